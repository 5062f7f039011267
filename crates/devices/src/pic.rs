//! [`Pic`]: the two cascaded 8259A interrupt controllers (Intel 8259A datasheet) with the ELCR of later chipsets.

mod saved;

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::sync::lock;
use ringer_engine::StopToken;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// The master's input that the slave is connected to.
const CASCADE: u8 = 2;
/// Inputs whose trigger mode the ELCR can set: not the timer, keyboard, cascade, RTC and FPU ones.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// Where the initialization sequence stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Init {
    Done,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chip {
    irr: u8,
    imr: u8,
    isr: u8,
    /// Inputs as they are now.
    lines: u8,
    elcr: u8,
    /// Vector of input 0.
    base: u8,
    init: Init,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// Reads of port 0 return ISR, not IRR.
    read_isr: bool,
    /// The next read is a poll.
    poll: bool,
    /// The input with the highest priority; the others follow in order, around.
    top: u8,
}

impl Chip {
    fn new() -> Chip {
        Chip {
            irr: 0,
            imr: 0xff,
            isr: 0,
            lines: 0,
            elcr: 0,
            base: 0,
            init: Init::Done,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
            top: 0,
        }
    }

    fn set_line(&mut self, irq: u8, level: bool) {
        let bit = 1 << irq;
        if !level {
            self.lines &= !bit;
            if self.elcr & bit != 0 {
                self.irr &= !bit;
            }
        } else {
            if self.elcr & bit != 0 || self.lines & bit == 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        }
    }

    /// Priority of the strongest of `bits`: 0 is the highest, 8 is none.
    fn priority(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.top)).trailing_zeros().min(8) as u8
    }

    fn input(&self, priority: u8) -> u8 {
        (priority + self.top) & 7
    }

    /// The input that asks for the processor: the strongest request, if it is stronger than all in service.
    fn request(&self, master: bool) -> Option<u8> {
        let request = self.priority(self.irr & !self.imr);
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        if self.special_fully_nested && master {
            // The slave sorts out its own inputs.
            serving &= !(1 << CASCADE);
        }
        (request < self.priority(serving)).then(|| self.input(request))
    }

    fn acknowledge(&mut self, irq: u8) {
        let bit = 1 << irq;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.top = (irq + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, v: u8) {
        if v & 0x10 != 0 {
            // ICW1.
            *self = Chip { lines: self.lines, elcr: self.elcr, imr: 0, ..Chip::new() };
            // Edge-triggered inputs must fall and rise again; level-triggered ones are as they are.
            self.irr = self.lines & self.elcr;
            self.init = Init::Icw2;
            self.needs_icw4 = v & 1 != 0;
            self.single = v & 2 != 0;
        } else if v & 0x08 != 0 {
            // OCW3.
            self.poll = v & 4 != 0;
            if v & 2 != 0 {
                self.read_isr = v & 1 != 0;
            }
            if v & 0x40 != 0 {
                self.special_mask = v & 0x20 != 0;
            }
        } else {
            self.write_ocw2(v);
        }
    }

    fn write_ocw2(&mut self, v: u8) {
        let level = v & 7;
        match v >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            // Non-specific EOI, without and with rotation.
            cmd @ (1 | 5) => {
                let p = self.priority(self.isr);
                if p < 8 {
                    let irq = self.input(p);
                    self.isr &= !(1 << irq);
                    if cmd == 5 {
                        self.top = (irq + 1) & 7;
                    }
                }
            }
            // Specific EOI, without and with rotation.
            3 => self.isr &= !(1 << level),
            7 => {
                self.isr &= !(1 << level);
                self.top = (level + 1) & 7;
            }
            6 => self.top = (level + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, v: u8) {
        match self.init {
            Init::Done => self.imr = v,
            Init::Icw2 => {
                self.base = v & 0xf8;
                self.init = match (self.single, self.needs_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                };
            }
            // The wiring of the cascade is fixed.
            Init::Icw3 => self.init = if self.needs_icw4 { Init::Icw4 } else { Init::Done },
            Init::Icw4 => {
                self.special_fully_nested = v & 0x10 != 0;
                self.auto_eoi = v & 2 != 0;
                self.init = Init::Done;
            }
        }
    }
}

/// Both chips.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    chips: [Chip; 2],
}

impl State {
    fn new() -> State {
        State { chips: [Chip::new(), Chip::new()] }
    }

    /// Passes the slave's output to the master, and returns the master's.
    fn output(&mut self) -> bool {
        let slave = self.chips[1].request(false).is_some();
        self.chips[0].set_line(CASCADE, slave);
        self.chips[0].request(true).is_some()
    }

    /// An interrupt-acknowledge cycle. Requests that have gone give a spurious input 7.
    fn acknowledge(&mut self) -> u8 {
        match self.chips[0].request(true) {
            Some(CASCADE) => {
                self.chips[0].acknowledge(CASCADE);
                let slave = &mut self.chips[1];
                let irq = slave.request(false);
                if let Some(irq) = irq {
                    slave.acknowledge(irq);
                    // The cascade line falls between two requests of the slave, so that each is an edge.
                    self.chips[0].set_line(CASCADE, false);
                }
                self.chips[1].base + irq.unwrap_or(7)
            }
            Some(irq) => {
                self.chips[0].acknowledge(irq);
                self.chips[0].base + irq
            }
            None => self.chips[0].base + 7,
        }
    }

    /// A read after a poll command (8259A datasheet, "Poll Command"): acknowledges, and says whom.
    fn poll(&mut self, chip: usize) -> u8 {
        let c = &mut self.chips[chip];
        c.poll = false;
        match c.request(chip == 0) {
            Some(irq) => {
                c.acknowledge(irq);
                0x80 | irq
            }
            None => 0,
        }
    }
}

/// The PIC pair of a PC. Its INTR output goes to the boot processor's LINT0.
pub struct Pic {
    state: Mutex<State>,
    intr: AtomicBool,
    stop: StopToken,
}

impl Pic {
    /// A pair that has not been initialized; `stop` is the boot processor's.
    #[must_use]
    pub fn new(stop: StopToken) -> Pic {
        Pic { state: Mutex::new(State::new()), intr: AtomicBool::new(false), stop }
    }

    /// Power-up. The inputs stay as their devices drive them.
    pub fn reset(&self) {
        self.change(|s| {
            let lines = [s.chips[0].lines, s.chips[1].lines];
            *s = State::new();
            s.chips[0].lines = lines[0] & !(1 << CASCADE);
            s.chips[1].lines = lines[1];
        });
    }

    fn change<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut s = lock(&self.state);
        let r = f(&mut s);
        let up = s.output();
        if up != self.intr.swap(up, Ordering::SeqCst) && up {
            self.stop.raise(StopToken::ATTENTION);
        }
        r
    }

    /// Drives ISA interrupt `irq` (0 to 15, but 2, which is the cascade).
    pub fn set_line(&self, irq: u8, level: bool) {
        if irq < 16 && irq != CASCADE {
            self.change(|s| s.chips[usize::from(irq >> 3)].set_line(irq & 7, level));
        }
    }

    /// The INTR output.
    #[must_use]
    #[inline]
    pub fn intr(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }

    /// An interrupt-acknowledge cycle: the vector. If INTR stays up for another one, gets the processor's attention
    /// again.
    #[must_use]
    pub fn acknowledge(&self) -> u8 {
        let v = self.change(State::acknowledge);
        if self.intr() {
            self.stop.raise(StopToken::ATTENTION);
        }
        v
    }

    fn read(&self, chip: usize, data: bool) -> u8 {
        self.change(|s| {
            if s.chips[chip].poll {
                return s.poll(chip);
            }
            let c = &s.chips[chip];
            match (data, c.read_isr) {
                (true, _) => c.imr,
                (false, true) => c.isr,
                (false, false) => c.irr,
            }
        })
    }

    fn write(&self, chip: usize, data: bool, v: u8) {
        self.change(|s| {
            let c = &mut s.chips[chip];
            if data { c.write_data(v) } else { c.write_command(v) }
        });
    }
}

/// The ports of the master (`PicPorts(pic, 0)`) or of the slave.
pub struct PicPorts(pub std::sync::Arc<Pic>, pub usize);

impl PioDevice for PicPorts {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(offset, data, |o| self.0.read(self.1 & 1, o & 1 != 0));
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |o, v| self.0.write(self.1 & 1, o & 1 != 0, v));
    }
}

/// The edge/level control registers, two ports.
pub struct ElcrPorts(pub std::sync::Arc<Pic>);

impl PioDevice for ElcrPorts {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        let s = lock(&self.0.state);
        each_byte_read(offset, data, |o| s.chips[usize::from(o & 1)].elcr);
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        self.0.change(|s| {
            each_byte_write(offset, data, |o, v| {
                let i = usize::from(o & 1);
                s.chips[i].elcr = v & ELCR_WRITABLE[i];
            });
        });
    }
}

#[cfg(test)]
mod tests;
