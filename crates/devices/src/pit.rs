//! [`Pit`]: the 8254 interval timer (Intel 8254 datasheet), and the PC's port 0x61 that gates and reads its third
//! counter. Nothing ticks: counts and outputs are worked out from machine time when somebody looks.

mod counter;
mod saved;
#[cfg(test)]
mod tests;

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::line::IrqLine;
use crate::sync::lock;
use crate::timer::{NEVER, TimerHandle, TimerTarget, Timers, mul_div};
use counter::Counter;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// Input clock in Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// Interrupts come no more often than this many ticks (0.1 ms), as a host cannot serve more.
const MIN_TICKS: u64 = 119;
/// Half the period of the DRAM refresh signal, which port 0x61 bit 4 shows.
const REFRESH_NS: u64 = 15_085;

/// PIT ticks since power-up.
fn ticks(ns: u64) -> u64 {
    mul_div(ns, PIT_HZ, 1_000_000_000)
}

/// First nanosecond at which the tick count is at least `ticks`.
fn tick_ns(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(NEVER)
}

/// The three counters, and port 0x61.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    counters: [Counter; 3],
    /// Tick of counter 0's next rising edge, which is an interrupt.
    next_edge: Option<u64>,
    /// Port 0x61 bits 0 (gate of counter 2) and 1 (speaker).
    control: u8,
}

impl State {
    fn new() -> State {
        let mut counters = [Counter::new(), Counter::new(), Counter::new()];
        // Counter 2's gate comes from port 0x61; the others' are tied high.
        counters[2].set_gate(false, 0);
        State { counters, next_edge: None, control: 0 }
    }
}

/// The interval timer.
pub struct Pit {
    state: Mutex<State>,
    irq: IrqLine,
    timer: TimerHandle,
}

impl Pit {
    /// A timer whose counter 0 drives `irq`.
    #[must_use]
    pub fn new(irq: IrqLine, timers: &Timers) -> Arc<Pit> {
        Arc::new_cyclic(|weak: &Weak<Pit>| Pit {
            state: Mutex::new(State::new()),
            irq,
            timer: timers.add(weak.clone()),
        })
    }

    /// Power-up: no counter counts.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        self.timer.disarm();
        self.irq.set(false);
        *s = State::new();
    }

    fn now(&self) -> u64 {
        ticks(self.timer.now_ns())
    }

    /// Plans counter 0's next interrupt: the first rising edge after tick `after`.
    fn plan(&self, s: &mut State, after: u64) {
        s.next_edge = s.counters[0].next_rise(after);
        match s.next_edge {
            Some(t) => self.timer.arm(tick_ns(t)),
            None => self.timer.disarm(),
        }
    }

    /// Raises the interrupt if its edge has come. Edges that were missed are gone.
    fn settle(&self, s: &mut State, now: u64) {
        if s.next_edge.is_some_and(|t| t <= now) {
            s.counters[0].settle(now);
            let from = now + MIN_TICKS.saturating_sub(u64::from(s.counters[0].period()));
            self.plan(s, from);
            self.irq.edge();
        }
    }

    fn read(&self, port: u16) -> u8 {
        let now = self.now();
        let mut s = lock(&self.state);
        match s.counters.get_mut(usize::from(port)) {
            Some(c) => c.read(now),
            // The control word cannot be read.
            None => 0xff,
        }
    }

    fn write(&self, port: u16, v: u8) {
        let now = self.now();
        let mut s = lock(&self.state);
        self.settle(&mut s, now);
        let changed = match s.counters.get_mut(usize::from(port)) {
            Some(c) => c.write(v, now) && port == 0,
            None => self.command(&mut s, v, now),
        };
        if changed {
            if !s.counters[0].out(now) {
                self.irq.set(false);
            }
            self.plan(&mut s, now);
        }
    }

    /// Writes the control word; whether counter 0 was programmed.
    fn command(&self, s: &mut State, v: u8, now: u64) -> bool {
        if v >> 6 == 3 {
            // Read-back: bits 1 to 3 choose counters; bit 4 clear latches status, bit 5 clear the count.
            for (i, c) in s.counters.iter_mut().enumerate() {
                if v >> (i + 1) & 1 != 0 {
                    c.latch(v & 0x20 == 0, v & 0x10 == 0, now);
                }
            }
            return false;
        }
        let c = &mut s.counters[usize::from(v >> 6)];
        if v >> 4 & 3 == 0 {
            c.latch(true, false, now);
            return false;
        }
        c.program(v);
        v >> 6 == 0
    }

    fn read_control(&self) -> u8 {
        let ns = self.timer.now_ns();
        let mut s = lock(&self.state);
        let refresh = u8::from(ns % (2 * REFRESH_NS) >= REFRESH_NS);
        let out = u8::from(s.counters[2].out(ticks(ns)));
        s.control | refresh << 4 | out << 5
    }

    fn write_control(&self, v: u8) {
        let now = self.now();
        let mut s = lock(&self.state);
        s.control = v & 3;
        s.counters[2].set_gate(v & 1 != 0, now);
    }
}

impl TimerTarget for Pit {
    fn on_timer(&self, now_ns: u64) {
        let mut s = lock(&self.state);
        self.settle(&mut s, ticks(now_ns));
        if let Some(t) = s.next_edge {
            self.timer.arm(tick_ns(t));
        }
    }
}

/// Ports 0x40 to 0x43.
impl PioDevice for Pit {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(offset, data, |o| self.read(o & 3));
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |o, v| self.write(o & 3, v));
    }
}

/// Port 0x61.
pub struct PitControlPort(pub Arc<Pit>);

impl PioDevice for PitControlPort {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(offset, data, |_| self.0.read_control());
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |_, v| self.0.write_control(v));
    }
}
