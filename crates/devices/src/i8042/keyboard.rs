//! An AT keyboard with 102 keys, of which three are ever pressed.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// Bytes that wait at most, as in the keyboard's own buffer.
const BUFFER: usize = 16;

/// Ctrl-Alt-Del pressed and released, in scan code set 2.
const CTRL_ALT_DEL_2: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
/// The same in set 1, which is also what the controller translates set 2 to.
const CTRL_ALT_DEL_1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];

/// The keyboard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keyboard {
    buffer: VecDeque<u8>,
    /// The command whose parameter comes next.
    parameter_of: Option<u8>,
    scanning: bool,
    set: u8,
    last: u8,
}

impl Keyboard {
    pub(super) fn new() -> Keyboard {
        Keyboard { buffer: VecDeque::new(), parameter_of: None, scanning: true, set: 2, last: 0 }
    }

    /// Whether it is one that can be.
    pub(super) fn is_possible(&self) -> bool {
        self.buffer.len() <= BUFFER && (1..=3).contains(&self.set)
    }

    fn push(&mut self, bytes: &[u8]) {
        for b in bytes {
            if self.buffer.len() < BUFFER {
                self.buffer.push_back(*b);
            }
        }
    }

    /// The next byte for the controller, translated from set 2 to set 1 if it asks for that. Codes of keys are put in
    /// as they come out, so only answers pass here: the identity's second byte and the number of a set change.
    pub(super) fn next(&mut self, translate: bool) -> Option<u8> {
        let v = self.buffer.pop_front()?;
        self.last = v;
        Some(match v {
            0x83 | 0x02 if translate => 0x41,
            0x01 if translate => 0x43,
            0x03 if translate => 0x3f,
            v => v,
        })
    }

    /// Presses and releases the keys, if it is scanning. A controller that translates turns set 2 into set 1.
    pub(super) fn ctrl_alt_del(&mut self, translate: bool) {
        if !self.scanning {
            return;
        }
        if self.set == 1 || translate {
            self.push(&CTRL_ALT_DEL_1);
        } else {
            self.push(&CTRL_ALT_DEL_2);
        }
    }

    /// Takes a byte from the controller.
    pub(super) fn command(&mut self, v: u8) {
        if let Some(of) = self.parameter_of.take() {
            self.parameter(of, v);
            return;
        }
        // A new command drops what has not been sent.
        self.buffer.clear();
        match v {
            // LEDs, scan code set, typematic rate: a parameter follows.
            0xed | 0xf0 | 0xf3 => {
                self.parameter_of = Some(v);
                self.push(&[ACK]);
            }
            0xee => self.push(&[0xee]),
            0xf2 => self.push(&[ACK, 0xab, 0x83]),
            0xf4 => {
                self.scanning = true;
                self.push(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.scanning = v == 0xf6;
                self.set = 2;
                self.push(&[ACK]);
            }
            0xfe => self.push(&[self.last]),
            0xff => {
                *self = Keyboard::new();
                self.push(&[ACK, 0xaa]);
            }
            _ => self.push(&[RESEND]),
        }
    }

    fn parameter(&mut self, of: u8, v: u8) {
        match (of, v) {
            (0xf0, 0) => self.push(&[ACK, self.set]),
            (0xf0, 1..=3) => {
                self.set = v;
                self.push(&[ACK]);
            }
            (0xf0, _) => self.push(&[RESEND]),
            _ => self.push(&[ACK]),
        }
    }
}
