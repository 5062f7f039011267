//! [`Serial`]: a 16550A UART (National Semiconductor PC16550D datasheet) whose line is infinitely fast and loses
//! nothing: output goes straight to a writer, input waits in a queue of the host's until the FIFO has room.
//!
//! An interrupt handler that reads until the FIFO is empty would never come to an end on such a line; Linux's gives up
//! after 512 rounds and, the interrupt being edge-triggered, never hears of the rest. So once a guest that asked for
//! interrupts has begun to read, nothing more comes until it has seen that no interrupt is left (or has had time to).

mod saved;
#[cfg(test)]
mod tests;

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::line::IrqLine;
use crate::sync::lock;
use crate::timer::{TimerHandle, TimerTarget, Timers};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// Bytes of input that wait behind the FIFO.
const QUEUE: usize = 4096;
const FIFO: usize = 16;
/// How long input is held back from a guest that reads it but never asks whether interrupts are left: about what 16
/// characters take at 115,200 baud.
const HOLD_NS: u64 = 1_000_000;

mod ier {
    pub const RECEIVED: u8 = 1;
    pub const THR_EMPTY: u8 = 2;
    pub const LINE: u8 = 4;
    pub const MODEM: u8 = 8;
}

mod iir {
    pub const NONE: u8 = 0x01;
    pub const MODEM: u8 = 0x00;
    pub const THR_EMPTY: u8 = 0x02;
    pub const RECEIVED: u8 = 0x04;
    pub const LINE: u8 = 0x06;
    pub const TIMEOUT: u8 = 0x0c;
    pub const FIFO_ON: u8 = 0xc0;
}

mod lsr {
    pub const DATA: u8 = 0x01;
    pub const OVERRUN: u8 = 0x02;
    pub const BREAK: u8 = 0x10;
    /// Parity, framing, break: what belongs to a character.
    pub const ERRORS: u8 = 0x1c;
    /// Transmitter holding register and shift register empty.
    pub const EMPTY: u8 = 0x60;
    pub const FIFO_ERROR: u8 = 0x80;
}

mod lcr {
    pub const BREAK: u8 = 0x40;
    pub const DLAB: u8 = 0x80;
}

mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    pub const OUT2: u8 = 8;
    pub const LOOP: u8 = 0x10;
}

mod msr {
    pub const RING_ENDED: u8 = 0x04;
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RING: u8 = 0x40;
    pub const CARRIER: u8 = 0x80;
}

/// The UART's registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    ier: u8,
    /// Low bits of FCR that stick: bit 0 FIFOs on, bits 7:6 trigger level.
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// Received characters, each with its line-status error bits.
    fifo: VecDeque<(u8, u8)>,
    overrun: bool,
    /// The THR-empty interrupt waits.
    thr_interrupt: bool,
    /// Modem inputs (bits 7:4) and their changes since the last read (bits 3:0).
    msr: u8,
    /// What the other side drives on the modem inputs.
    lines: u8,
    /// Input that waits for room in the FIFO.
    queue: VecDeque<u8>,
    /// `receive` had to refuse bytes since room was last announced.
    refused: bool,
    /// The guest is reading: what waits is held back.
    hold: bool,
    /// The timer that ends the hold runs.
    timed: bool,
}

impl State {
    fn new() -> State {
        State {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: [12, 0],
            fifo: VecDeque::with_capacity(FIFO),
            overrun: false,
            thr_interrupt: false,
            msr: msr::CTS | msr::DSR | msr::CARRIER,
            lines: msr::CTS | msr::DSR | msr::CARRIER,
            queue: VecDeque::new(),
            refused: false,
            hold: false,
            timed: false,
        }
    }

    fn fifo_on(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_on() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if !self.fifo_on() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    fn looped(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn line_status(&self) -> u8 {
        let head = self.fifo.front().map_or(0, |(_, e)| lsr::DATA | e);
        let any = self.fifo_on() && self.fifo.iter().any(|(_, e)| *e != 0);
        let overrun = if self.overrun { lsr::OVERRUN } else { 0 };
        head | overrun | lsr::EMPTY | if any { lsr::FIFO_ERROR } else { 0 }
    }

    /// The strongest interrupt that waits and is enabled (PC16550D table IV). The line is infinitely fast, so four
    /// character times have always passed when characters below the trigger level are looked at.
    fn interrupt(&self) -> u8 {
        if self.ier & ier::LINE != 0 && self.line_status() & 0x1e != 0 {
            iir::LINE
        } else if self.ier & ier::RECEIVED != 0 && self.fifo.len() >= self.trigger() {
            iir::RECEIVED
        } else if self.ier & ier::RECEIVED != 0 && !self.fifo.is_empty() {
            iir::TIMEOUT
        } else if self.ier & ier::THR_EMPTY != 0 && self.thr_interrupt {
            iir::THR_EMPTY
        } else if self.ier & ier::MODEM != 0 && self.msr & 0x0f != 0 {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    /// A character arrives in the FIFO, which may be full.
    fn arrive(&mut self, byte: u8, errors: u8) {
        if self.fifo.len() < self.capacity() {
            self.fifo.push_back((byte, errors));
            return;
        }
        self.overrun = true;
        if !self.fifo_on() {
            // Without FIFOs the new character replaces the old one.
            self.fifo.clear();
            self.fifo.push_back((byte, errors));
        }
    }

    /// Works out the modem inputs, and which have changed.
    fn update_modem(&mut self) {
        let now = if self.looped() {
            let m = self.mcr;
            let wire = |from: u8, to: u8| if m & from != 0 { to } else { 0 };
            wire(mcr::RTS, msr::CTS)
                | wire(mcr::DTR, msr::DSR)
                | wire(mcr::OUT1, msr::RING)
                | wire(mcr::OUT2, msr::CARRIER)
        } else {
            self.lines
        };
        let changed = (self.msr ^ now) & 0xf0;
        let mut deltas = self.msr & 0x0f | (changed & !msr::RING) >> 4;
        if changed & msr::RING != 0 && now & msr::RING == 0 {
            deltas |= msr::RING_ENDED;
        }
        self.msr = now | deltas;
    }

    fn write_fcr(&mut self, v: u8) {
        let toggled = (self.fcr ^ v) & 1 != 0;
        // The other bits only count while bit 0 is set.
        self.fcr = if v & 1 != 0 { v & 0xc1 } else { 0 };
        if toggled || v & 3 == 3 {
            self.fifo.clear();
        }
    }

    fn write_ier(&mut self, v: u8) {
        if v & ier::THR_EMPTY != 0 && self.ier & ier::THR_EMPTY == 0 {
            // The holding register is always empty.
            self.thr_interrupt = true;
        }
        self.ier = v & 0x0f;
        self.hold = false;
    }

    fn read(&mut self, reg: u16) -> u8 {
        let dlab = self.lcr & lcr::DLAB != 0;
        match reg {
            0 | 1 if dlab => self.divisor[usize::from(reg)],
            0 => {
                self.hold = self.ier & ier::RECEIVED != 0;
                self.fifo.pop_front().map_or(0, |(b, _)| b)
            }
            1 => self.ier,
            2 => {
                let i = self.interrupt();
                match i {
                    iir::THR_EMPTY => self.thr_interrupt = false,
                    iir::NONE => self.hold = false,
                    _ => {}
                }
                i | if self.fifo_on() { iir::FIFO_ON } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let v = self.line_status();
                self.overrun = false;
                if let Some(head) = self.fifo.front_mut() {
                    head.1 = 0;
                }
                v
            }
            6 => {
                let v = self.msr;
                self.msr &= 0xf0;
                v
            }
            _ => self.scratch,
        }
    }

    /// Writes a register; a character for the other side, if it is one.
    fn write(&mut self, reg: u16, v: u8) -> Option<u8> {
        let dlab = self.lcr & lcr::DLAB != 0;
        match reg {
            0 | 1 if dlab => self.divisor[usize::from(reg)] = v,
            0 => {
                self.thr_interrupt = true;
                if !self.looped() {
                    return Some(v);
                }
                self.arrive(v, 0);
            }
            1 => self.write_ier(v),
            2 => self.write_fcr(v),
            3 => {
                if v & !self.lcr & lcr::BREAK != 0 && self.looped() {
                    self.arrive(0, lsr::BREAK);
                }
                self.lcr = v;
            }
            4 => {
                self.mcr = v & 0x1f;
                self.update_modem();
            }
            // LSR and MSR are for reading (factory tests apart).
            5 | 6 => {}
            _ => self.scratch = v,
        }
        None
    }
}

/// A UART on eight ports.
pub struct Serial {
    state: Mutex<State>,
    irq: IrqLine,
    out: Mutex<Box<dyn Write + Send>>,
    flow_control: bool,
    timer: TimerHandle,
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// 1 is COM1.
    number: u32,
}

impl Serial {
    /// A UART that interrupts on `irq` and sends what the guest writes to `out`, which should not block for long: it is
    /// called on a processor's thread. Its errors are ignored, as a UART does not know whether anybody listens.
    ///
    /// With `flow_control`, input waits until the guest raises RTS, so that nothing is lost to a guest that
    /// resets the FIFO when it opens the port; without, the guest gets it at once.
    #[must_use]
    pub fn new(irq: IrqLine, timers: &Timers, out: Box<dyn Write + Send>, flow_control: bool) -> Arc<Serial> {
        Serial::numbered(irq, timers, out, flow_control, 1)
    }

    /// The same for COM`number`.
    #[must_use]
    pub fn numbered(
        irq: IrqLine,
        timers: &Timers,
        out: Box<dyn Write + Send>,
        flow_control: bool,
        number: u32,
    ) -> Arc<Serial> {
        Arc::new_cyclic(|weak: &Weak<Serial>| Serial {
            state: Mutex::new(State::new()),
            irq,
            out: Mutex::new(out),
            flow_control,
            timer: timers.add(weak.clone()),
            on_room: OnceLock::new(),
            number,
        })
    }

    /// Power-up. Input that the guest has not seen stays queued.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        let old = std::mem::replace(&mut *s, State::new());
        (s.queue, s.refused, s.lines, s.timed) = (old.queue, old.refused, old.lines, old.timed);
        s.update_modem();
        s.msr &= 0xf0;
        self.irq.set(false);
    }

    /// Moves waiting input into the FIFO and drives the interrupt line. Call after every change.
    fn settle(&self, s: &mut State) {
        let open = !s.looped() && (!self.flow_control || s.mcr & mcr::RTS != 0);
        while open && !s.hold && s.fifo.len() < s.capacity() {
            let Some(b) = s.queue.pop_front() else { break };
            s.fifo.push_back((b, 0));
        }
        if s.hold && !s.timed && !s.queue.is_empty() {
            s.timed = true;
            self.timer.arm(self.timer.now_ns().saturating_add(HOLD_NS));
        }
        self.irq.set(s.interrupt() != iir::NONE);
    }

    /// Takes input for the guest; returns how many bytes it took. Whatever is left must be offered again after
    /// [`on_room`](Self::on_room)'s call.
    #[must_use]
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut s = lock(&self.state);
        let n = bytes.len().min(QUEUE.saturating_sub(s.queue.len()));
        s.queue.extend(&bytes[..n]);
        s.refused |= n < bytes.len();
        self.settle(&mut s);
        n
    }

    /// Bytes of input that the guest has not read yet.
    #[must_use]
    pub fn unread(&self) -> usize {
        let s = lock(&self.state);
        s.queue.len() + s.fifo.len()
    }

    /// Sets what is called, once, on a processor's thread, when there is room for input after
    /// [`receive`](Self::receive) took less than it was given. May be set once; a second call does nothing.
    pub fn on_room(&self, f: Box<dyn Fn() + Send + Sync>) {
        let _first_stays = self.on_room.set(f);
    }

    /// Sends the guest a break, which Linux takes as the SysRq key on its console.
    pub fn send_break(&self) {
        let mut s = lock(&self.state);
        if !s.looped() {
            s.arrive(0, lsr::BREAK);
        }
        self.settle(&mut s);
    }

    /// Drives the carrier-detect input; dropping it hangs up the guest's terminal.
    pub fn set_carrier(&self, up: bool) {
        let mut s = lock(&self.state);
        s.lines = if up { s.lines | msr::CARRIER } else { s.lines & !msr::CARRIER };
        s.update_modem();
        self.settle(&mut s);
    }

    fn read_reg(&self, reg: u16) -> u8 {
        let mut s = lock(&self.state);
        let v = s.read(reg);
        self.settle(&mut s);
        if s.refused && s.queue.len() <= QUEUE / 2 {
            s.refused = false;
            drop(s);
            if let Some(f) = self.on_room.get() {
                f();
            }
        }
        v
    }

    fn write_reg(&self, reg: u16, v: u8) {
        let mut s = lock(&self.state);
        let sent = s.write(reg, v);
        self.settle(&mut s);
        drop(s);
        if let Some(b) = sent {
            let mut out = lock(&self.out);
            let _nobody_listens = out.write_all(&[b]).and_then(|()| out.flush());
        }
    }
}

impl TimerTarget for Serial {
    fn on_timer(&self, _now_ns: u64) {
        let mut s = lock(&self.state);
        (s.hold, s.timed) = (false, false);
        self.settle(&mut s);
    }
}

impl PioDevice for Serial {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(offset, data, |o| self.read_reg(o & 7));
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |o, v| self.write_reg(o & 7, v));
    }
}
