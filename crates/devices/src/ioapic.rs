//! [`IoApic`]: the I/O APIC (Intel 82093AA datasheet; version 0x20 with its EOI register as in later chipsets).

mod saved;

use crate::apic::{Apics, Delivery, Dest, Message};
use crate::bus::MmioDevice;
use crate::sync::lock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Input pins.
pub const PINS: usize = 24;

/// Version 0x20, and the number of the last redirection entry.
const VERSION: u32 = 0x20 | 23 << 16;
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOIR: u64 = 0x40;

/// Fields of a redirection entry.
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// What software sets: all but delivery status (12), remote IRR (14) and the reserved bits.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

/// Its registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    id: u32,
    select: u32,
    entries: [u64; PINS],
    /// Level of each input.
    lines: u32,
}

impl State {
    fn new(id: u8) -> State {
        State { id: u32::from(id), select: 0, entries: [entry::MASKED; PINS], lines: 0 }
    }
}

/// The I/O APIC. Its lines come from [`set_line`](IoApic::set_line), its messages go to the local APICs.
pub struct IoApic {
    apics: Arc<Apics>,
    id: u8,
    state: Mutex<State>,
}

impl IoApic {
    /// An I/O APIC with this id (0 to 15 can be read back), all pins masked.
    #[must_use]
    pub fn new(apics: Arc<Apics>, id: u8) -> IoApic {
        IoApic { apics, id, state: Mutex::new(State::new(id)) }
    }

    /// Power-up: all pins masked. The inputs stay as their devices drive them.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        *s = State { lines: s.lines, ..State::new(self.id) };
    }

    /// Drives input `pin`; others than 0 to 23 go nowhere.
    pub fn set_line(&self, pin: usize, level: bool) {
        if pin >= PINS {
            return;
        }
        let mut s = lock(&self.state);
        let before = s.lines;
        let bit = 1u32 << pin;
        s.lines = if level { before | bit } else { before & !bit };
        let e = s.entries[pin];
        if !level || e & entry::MASKED != 0 {
            // Edges at a masked pin are lost (82093AA datasheet §3.2.4).
            return;
        }
        if e & entry::LEVEL != 0 {
            self.raise_level(&mut s, pin);
        } else if before & bit == 0 {
            self.send(e);
        }
    }

    /// Sends a level-triggered pin's message if its line is up and the one before has ended.
    fn raise_level(&self, s: &mut State, pin: usize) {
        let e = s.entries[pin];
        let due = e & (entry::LEVEL | entry::MASKED | entry::REMOTE_IRR) == entry::LEVEL;
        if due && s.lines >> pin & 1 != 0 && self.send(e) != 0 {
            s.entries[pin] |= entry::REMOTE_IRR;
        }
    }

    fn send(&self, e: u64) -> u32 {
        let Some(delivery) = Delivery::from_bits((e >> 8 & 7) as u32) else { return 0 };
        let dest = Dest::from_byte((e >> 56) as u8, e & entry::LOGICAL != 0);
        // NMI, INIT and ExtINT are edge-triggered whatever the entry says (82093AA datasheet §3.2.4).
        let fixed = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        let level = fixed && e & entry::LEVEL != 0;
        self.apics.deliver(&Message { dest, delivery, vector: (e & 0xff) as u8, level })
    }

    /// The end of a level-triggered interrupt, broadcast by a local APIC or written to the EOI register.
    pub fn eoi(&self, vector: u8) {
        let mut s = lock(&self.state);
        for pin in 0..PINS {
            let e = s.entries[pin];
            if e & 0xff == u64::from(vector) && e & entry::REMOTE_IRR != 0 {
                s.entries[pin] &= !entry::REMOTE_IRR;
                self.raise_level(&mut s, pin);
            }
        }
    }

    fn read_reg(&self) -> u32 {
        let s = lock(&self.state);
        match s.select {
            0 | 2 => s.id << 24,
            1 => VERSION,
            n @ 0x10..0x40 => {
                let e = s.entries[(n as usize - 0x10) / 2];
                ((if n % 2 == 0 { e } else { e >> 32 }) & 0xffff_ffff) as u32
            }
            _ => 0,
        }
    }

    fn write_reg(&self, value: u32) {
        let mut s = lock(&self.state);
        match s.select {
            0 => s.id = value >> 24 & 15,
            n @ 0x10..0x40 => {
                let pin = (n as usize - 0x10) / 2;
                let old = s.entries[pin];
                let new = if n % 2 == 0 {
                    old & !0xffff_ffff | u64::from(value)
                } else {
                    old & 0xffff_ffff | u64::from(value) << 32
                };
                let mut e = new & entry::WRITABLE | old & entry::REMOTE_IRR;
                if e & entry::LEVEL == 0 {
                    // The way to end a level-triggered interrupt by hand: make the pin edge-triggered and back.
                    e &= !entry::REMOTE_IRR;
                }
                s.entries[pin] = e;
                self.raise_level(&mut s, pin);
            }
            _ => {}
        }
    }
}

impl MmioDevice for IoApic {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & !3 {
            IOREGSEL => lock(&self.state).select,
            IOWIN => self.read_reg(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        for (at, b) in (offset % 4..).zip(data.iter_mut()) {
            *b = usize::try_from(at).ok().and_then(|i| bytes.get(i)).copied().unwrap_or(0);
        }
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) {
        let low = data.first().copied().unwrap_or(0);
        match (offset, data.first_chunk::<4>()) {
            // The selector is a byte, so narrow stores to it are as good.
            (IOREGSEL, _) => lock(&self.state).select = u32::from(low),
            (IOWIN, Some(v)) => self.write_reg(u32::from_le_bytes(*v)),
            (EOIR, _) => self.eoi(low),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
