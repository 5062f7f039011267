//! [`I8042`]: the keyboard controller with an AT keyboard on it (IBM PS/2 Technical Reference; the keyboard's own
//! commands as in IBM's AT keyboard). There is no mouse; its port answers as one with nothing plugged in.

mod keyboard;
mod saved;
#[cfg(test)]
mod tests;

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::events::{MachineEvent, MachineEvents};
use crate::line::IrqLine;
use crate::sync::lock;
use keyboard::Keyboard;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Answers of the controller that wait at most.
const REPLIES: usize = 8;

/// Status register.
mod status {
    pub const OUTPUT_FULL: u8 = 0x01;
    pub const SYSTEM: u8 = 0x04;
    pub const COMMAND: u8 = 0x08;
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX: u8 = 0x20;
    pub const TIMEOUT: u8 = 0x40;
}

/// Command byte.
mod ctl {
    pub const IRQ1: u8 = 0x01;
    pub const IRQ12: u8 = 0x02;
    pub const SYSTEM: u8 = 0x04;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const AUX_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
}

/// Where a byte in the output buffer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Controller,
    Keyboard,
    /// The mouse's port, which times out.
    Aux,
}

/// What the next byte written to the data port belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expect {
    Keyboard,
    Ram(u8),
    OutputPort,
    KeyboardOutput,
    AuxOutput,
    Aux,
}

/// Its registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Controller RAM; byte 0 is the command byte.
    ram: [u8; 32],
    output_port: u8,
    output: Option<(u8, Source)>,
    /// The controller's own answers that wait for the output buffer; a command gives one at most.
    replies: VecDeque<(u8, Source)>,
    expect: Expect,
    /// The last byte written was a command.
    command: bool,
    keyboard: Keyboard,
}

impl State {
    fn new() -> State {
        let mut ram = [0; 32];
        ram[0] = ctl::SYSTEM | ctl::IRQ1 | ctl::TRANSLATE | ctl::AUX_OFF;
        State {
            ram,
            output_port: 0x03,
            output: None,
            replies: VecDeque::new(),
            expect: Expect::Keyboard,
            command: false,
            keyboard: Keyboard::new(),
        }
    }

    fn reply(&mut self, v: u8, source: Source) {
        // A guest that never reads gets no more than this.
        if self.replies.len() < REPLIES {
            self.replies.push_back((v, source));
        }
    }

    fn status(&self) -> u8 {
        let mut v = status::UNLOCKED | self.ram[0] & status::SYSTEM;
        match self.output {
            Some((_, Source::Aux)) => v |= status::OUTPUT_FULL | status::AUX | status::TIMEOUT,
            Some(_) => v |= status::OUTPUT_FULL,
            None => {}
        }
        v | if self.command { status::COMMAND } else { 0 }
    }

    /// Fills the output buffer if it is empty.
    fn fill(&mut self) {
        if self.output.is_some() {
            return;
        }
        self.output = self.replies.pop_front();
        if self.output.is_none() && self.ram[0] & ctl::KEYBOARD_OFF == 0 {
            let translate = self.ram[0] & ctl::TRANSLATE != 0;
            self.output = self.keyboard.next(translate).map(|v| (v, Source::Keyboard));
        }
    }

    /// Takes a command; whether it resets the machine.
    fn command(&mut self, v: u8) -> bool {
        self.command = true;
        self.expect = Expect::Keyboard;
        match v {
            0x20..=0x3f => self.reply(self.ram[usize::from(v & 0x1f)], Source::Controller),
            0x60..=0x7f => self.expect = Expect::Ram(v & 0x1f),
            0xa7 => self.ram[0] |= ctl::AUX_OFF,
            0xa8 => self.ram[0] &= !ctl::AUX_OFF,
            // Mouse port test: its clock line is stuck low, as there is no port.
            0xa9 => self.reply(1, Source::Controller),
            0xaa => {
                self.ram[0] |= ctl::SYSTEM;
                self.reply(0x55, Source::Controller);
            }
            0xab => self.reply(0, Source::Controller),
            0xad => self.ram[0] |= ctl::KEYBOARD_OFF,
            0xae => self.ram[0] &= !ctl::KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => self.reply(0x80, Source::Controller),
            0xd0 => self.reply(self.output_port, Source::Controller),
            0xd1 => self.expect = Expect::OutputPort,
            0xd2 => self.expect = Expect::KeyboardOutput,
            0xd3 => self.expect = Expect::AuxOutput,
            0xd4 => self.expect = Expect::Aux,
            0xdd => self.output_port &= !2,
            0xdf => self.output_port |= 2,
            // Pulses the output port's low bits that are 0 here; bit 0 is the reset line.
            0xf0..=0xff => return v & 1 == 0,
            _ => {}
        }
        false
    }

    /// Takes a byte for the data port; whether it resets the machine.
    fn data(&mut self, v: u8) -> bool {
        self.command = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Keyboard => {
                // Writing to the keyboard turns its interface on.
                self.ram[0] &= !ctl::KEYBOARD_OFF;
                self.keyboard.command(v);
            }
            Expect::Ram(i) => self.ram[usize::from(i & 0x1f)] = v,
            Expect::OutputPort => {
                self.output_port = v | 1;
                return v & 1 == 0;
            }
            Expect::KeyboardOutput => self.reply(v, Source::Keyboard),
            // There is no mouse port to loop it back.
            Expect::AuxOutput => {}
            Expect::Aux => self.reply(0xfe, Source::Aux),
        }
        false
    }
}

/// The keyboard controller.
pub struct I8042 {
    state: Mutex<State>,
    irq1: IrqLine,
    irq12: IrqLine,
    events: Arc<dyn MachineEvents>,
}

impl I8042 {
    /// A controller that asks `events` for a reset when the guest pulses the reset line.
    #[must_use]
    pub fn new(irq1: IrqLine, irq12: IrqLine, events: Arc<dyn MachineEvents>) -> I8042 {
        I8042 { state: Mutex::new(State::new()), irq1, irq12, events }
    }

    /// Power-up, with what firmware sets: keyboard on, translated, interrupting.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        *s = State::new();
        self.settle(&mut s);
    }

    /// Presses and releases Ctrl-Alt-Del.
    pub fn ctrl_alt_del(&self) {
        let mut s = lock(&self.state);
        let translate = s.ram[0] & ctl::TRANSLATE != 0;
        s.keyboard.ctrl_alt_del(translate);
        self.settle(&mut s);
    }

    fn settle(&self, s: &mut State) {
        s.fill();
        let (one, twelve) = match s.output {
            Some((_, Source::Aux)) => (false, s.ram[0] & ctl::IRQ12 != 0),
            Some(_) => (s.ram[0] & ctl::IRQ1 != 0, false),
            None => (false, false),
        };
        self.irq1.set(one);
        self.irq12.set(twelve);
    }

    fn read_data(&self) -> u8 {
        let mut s = lock(&self.state);
        let Some((v, _)) = s.output.take() else { return 0 };
        // The line falls between two bytes, so that each is an edge.
        self.irq1.set(false);
        self.irq12.set(false);
        self.settle(&mut s);
        v
    }

    fn write(&self, command: bool, v: u8) {
        let mut s = lock(&self.state);
        let reset = if command { s.command(v) } else { s.data(v) };
        self.settle(&mut s);
        drop(s);
        if reset {
            self.events.event(MachineEvent::Reset);
        }
    }
}

/// Port 0x60 (`I8042Ports(_, false)`) or 0x64 (`I8042Ports(_, true)`).
pub struct I8042Ports(pub Arc<I8042>, pub bool);

impl PioDevice for I8042Ports {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(
            offset,
            data,
            |_| {
                if self.1 { lock(&self.0.state).status() } else { self.0.read_data() }
            },
        );
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |_, v| self.0.write(self.1, v));
    }
}
