//! [`Hpet`]: the high precision event timers (IA-PC HPET specification 1.0a): a 64-bit counter of 10 ns ticks and
//! three comparators, the first of which can be periodic.

mod saved;
#[cfg(test)]
mod tests;

use crate::bus::MmioDevice;
use crate::sync::lock;
use crate::timer::{NEVER, TimerHandle, TimerTarget, Timers};
use ringer_engine::IrqChip;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Nanoseconds a tick.
const TICK_NS: u64 = 10;
/// Timers.
const TIMERS: usize = 3;
/// Interrupts of a periodic timer come no more often than this, as a host cannot serve more (0.1 ms).
const MIN_TICKS: u64 = 10_000;

/// Capabilities: period in femtoseconds, vendor, legacy replacement, 64 bits, three timers, revision 1.
const CAPABILITIES: u64 =
    (TICK_NS * 1_000_000) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;
/// I/O APIC inputs that timers can be routed to: 20 to 23, as in Intel's ICH chipsets.
const ROUTES: u64 = 0x00f0_0000;

mod reg {
    pub const CAPABILITIES: u64 = 0x00;
    pub const CONFIG: u64 = 0x10;
    pub const STATUS: u64 = 0x20;
    pub const COUNTER: u64 = 0xf0;
    pub const TIMER0: u64 = 0x100;
    pub const TIMER_LEN: u64 = 0x20;
}

mod config {
    pub const ENABLE: u64 = 1;
    pub const LEGACY: u64 = 2;
}

mod tn {
    pub const LEVEL: u64 = 1 << 1;
    pub const INTERRUPT: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const PERIODIC_CAP: u64 = 1 << 4;
    pub const SIZE_CAP: u64 = 1 << 5;
    pub const SET_VALUE: u64 = 1 << 6;
    pub const MODE_32: u64 = 1 << 8;
    pub const ROUTE: u64 = 0x1f << 9;
    pub const FSB: u64 = 1 << 14;
    pub const FSB_CAP: u64 = 1 << 15;
    /// What software sets.
    pub const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | MODE_32 | ROUTE | FSB;
}

/// A comparator.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Timer {
    /// Software-set bits of the configuration register.
    config: u64,
    comparator: u64,
    period: u64,
    /// Message address (upper half) and data (lower half).
    route: u64,
    /// Ticks since `start_ns` at which it is due, which unlike the counter do not wrap; `None`: it waits for nothing.
    due: Option<u64>,
}

/// Its registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    config: u64,
    status: u64,
    /// Counter when it was stopped, or when it last started at `start_ns`.
    base: u64,
    start_ns: u64,
    timers: [Timer; TIMERS],
}

impl State {
    fn new() -> State {
        // At power-up a comparator holds all ones.
        let timer = Timer { comparator: u64::MAX, ..Timer::default() };
        State { config: 0, status: 0, base: 0, start_ns: 0, timers: [timer; TIMERS] }
    }

    fn runs(&self) -> bool {
        self.config & config::ENABLE != 0
    }

    fn counter(&self, now_ns: u64) -> u64 {
        let ticks = if self.runs() { now_ns.saturating_sub(self.start_ns) / TICK_NS } else { 0 };
        self.base.wrapping_add(ticks)
    }

    fn periodic(&self, n: usize) -> bool {
        n == 0 && self.timers[n].config & tn::PERIODIC != 0
    }

    fn mask(&self, n: usize) -> u64 {
        if self.timers[n].config & tn::MODE_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }

    /// Ticks from `counter` to the next match of timer `n`; a match now is one turn away.
    fn ticks_to_match(&self, n: usize, counter: u64) -> u64 {
        let mask = self.mask(n);
        let left = self.timers[n].comparator.wrapping_sub(counter) & mask;
        if left == 0 { mask.saturating_add(1) } else { left }
    }

    fn config_reg(&self, n: usize) -> u64 {
        let t = &self.timers[n];
        let caps = tn::SIZE_CAP | tn::FSB_CAP | ROUTES << 32 | if n == 0 { tn::PERIODIC_CAP } else { 0 };
        t.config & !tn::SET_VALUE | caps
    }
}

/// The event timers.
pub struct Hpet {
    state: Mutex<State>,
    chip: Arc<dyn IrqChip>,
    /// True while the first two timers take the places of PIT and RTC.
    legacy: Arc<AtomicBool>,
    timer: TimerHandle,
}

impl Hpet {
    /// Timers that interrupt through `chip`. `legacy` is set while they replace PIT and RTC on their lines.
    #[must_use]
    pub fn new(chip: Arc<dyn IrqChip>, legacy: Arc<AtomicBool>, timers: &Timers) -> Arc<Hpet> {
        Arc::new_cyclic(|weak: &Weak<Hpet>| Hpet {
            state: Mutex::new(State::new()),
            chip,
            legacy,
            timer: timers.add(weak.clone()),
        })
    }

    /// Power-up: the counter stands at zero.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        for n in 0..TIMERS {
            self.lower(&s, n);
        }
        *s = State::new();
        self.legacy.store(false, Ordering::SeqCst);
        self.timer.disarm();
    }

    /// The line of timer `n`.
    fn gsi(&self, s: &State, n: usize) -> u32 {
        match n {
            0 if s.config & config::LEGACY != 0 => 2,
            1 if s.config & config::LEGACY != 0 => 8,
            _ => ((s.timers[n].config & tn::ROUTE) >> 9) as u32,
        }
    }

    /// Whether the line of timer `n` is one that it may use.
    fn routed(&self, s: &State, n: usize) -> bool {
        (n < 2 && s.config & config::LEGACY != 0) || ROUTES >> self.gsi(s, n) & 1 != 0
    }

    /// Takes down the line that a level-triggered timer holds.
    fn lower(&self, s: &State, n: usize) {
        if s.status >> n & 1 != 0 && self.routed(s, n) {
            self.chip.set_irq(self.gsi(s, n), false);
        }
    }

    fn fire(&self, s: &mut State, n: usize) {
        let t = s.timers[n];
        if t.config & tn::LEVEL != 0 {
            s.status |= 1 << n;
        }
        if t.config & tn::INTERRUPT == 0 {
            return;
        }
        if t.config & tn::FSB != 0 {
            self.chip.msi(t.route >> 32, (t.route & 0xffff_ffff) as u32);
        } else if self.routed(s, n) {
            let gsi = self.gsi(s, n);
            if t.config & tn::LEVEL == 0 {
                self.chip.set_irq(gsi, false);
            }
            self.chip.set_irq(gsi, true);
        }
    }

    /// Plans the next match of timer `n`, after the counter has reached `counter`.
    fn plan(s: &mut State, n: usize, counter: u64) {
        let armed = s.runs();
        let elapsed = counter.wrapping_sub(s.base);
        s.timers[n].due = armed.then(|| elapsed.saturating_add(s.ticks_to_match(n, counter)));
    }

    /// Arms the host's timer for the earliest match that somebody is to hear of.
    fn arm(&self, s: &State) {
        let wanted = |t: &&Timer| t.config & (tn::INTERRUPT | tn::LEVEL) != 0;
        let due = s.timers.iter().filter(wanted).filter_map(|t| t.due).min();
        let ns = match due {
            Some(d) => d.saturating_mul(TICK_NS).saturating_add(s.start_ns),
            None => NEVER,
        };
        self.timer.arm(ns);
    }

    /// Fires what is due, and plans on.
    fn settle(&self, s: &mut State, now_ns: u64) {
        let counter = s.counter(now_ns);
        for n in 0..TIMERS {
            if s.timers[n].due.is_none_or(|d| d > counter.wrapping_sub(s.base)) {
                continue;
            }
            let from = if s.periodic(n) { Self::advance(s, n, counter) } else { counter };
            Self::plan(s, n, from);
            self.fire(s, n);
        }
        self.arm(s);
    }

    /// Moves a periodic timer's comparator past `counter`, in phase: matches that were missed are gone. Returns what to
    /// plan from.
    fn advance(s: &mut State, n: usize, counter: u64) -> u64 {
        let mask = s.mask(n);
        let t = &mut s.timers[n];
        if t.period == 0 {
            return counter;
        }
        let past = counter.wrapping_sub(t.comparator) & mask;
        let past = past.saturating_add(MIN_TICKS.saturating_sub(t.period));
        let steps = (past / t.period).wrapping_add(1);
        t.comparator = t.comparator.wrapping_add(steps.wrapping_mul(t.period)) & mask;
        counter
    }

    fn read(&self, at: u64) -> u64 {
        let now = self.timer.now_ns();
        let mut s = lock(&self.state);
        self.settle(&mut s, now);
        match at {
            reg::CAPABILITIES => CAPABILITIES,
            reg::CONFIG => s.config,
            reg::STATUS => s.status,
            reg::COUNTER => s.counter(now),
            _ => match timer_reg(at) {
                Some((n, 0x00)) => s.config_reg(n),
                Some((n, 0x08)) => s.timers[n].comparator,
                Some((n, 0x10)) => s.timers[n].route,
                _ => 0,
            },
        }
    }

    /// Writes the bits `mask` of the 64-bit register at `at`.
    fn write(&self, at: u64, value: u64, mask: u64) {
        let now = self.timer.now_ns();
        let mut s = lock(&self.state);
        self.settle(&mut s, now);
        let merge = |old: u64| old & !mask | value & mask;
        match at {
            reg::CONFIG => {
                let new = merge(s.config) & (config::ENABLE | config::LEGACY);
                self.set_config(&mut s, new, now);
            }
            reg::STATUS => {
                for n in 0..TIMERS {
                    if value & mask & s.status >> n << n & 1 << n != 0 {
                        self.lower(&s, n);
                        s.status &= !(1 << n);
                    }
                }
            }
            // Only while it stands (specification §2.3.7).
            reg::COUNTER if !s.runs() => s.base = merge(s.base),
            _ => {
                if let Some((n, offset)) = timer_reg(at) {
                    self.write_timer(&mut s, n, offset, value, mask);
                    let counter = s.counter(now);
                    Self::plan(&mut s, n, counter);
                }
            }
        }
        self.arm(&s);
    }

    fn set_config(&self, s: &mut State, new: u64, now: u64) {
        let old = s.config;
        s.base = s.counter(now);
        s.start_ns = now;
        if (old ^ new) & config::LEGACY != 0 {
            for n in 0..2 {
                self.lower(s, n);
            }
            s.status &= !3;
            if new & config::LEGACY != 0 {
                // PIT and RTC may hold their lines up; from now on they are not connected.
                self.chip.set_irq(2, false);
                self.chip.set_irq(8, false);
            }
            self.legacy.store(new & config::LEGACY != 0, Ordering::SeqCst);
        }
        s.config = new;
        // What was due is counted from a new start.
        let base = s.base;
        for n in 0..TIMERS {
            Self::plan(s, n, base);
        }
    }

    fn write_timer(&self, s: &mut State, n: usize, offset: u64, value: u64, mask: u64) {
        let wide = s.mask(n);
        let periodic = s.periodic(n);
        match offset {
            0x00 => {
                self.lower(s, n);
                s.status &= !(1 << n);
                let t = &mut s.timers[n];
                let mut writable = tn::WRITABLE;
                if n != 0 {
                    writable &= !(tn::PERIODIC | tn::SET_VALUE);
                }
                t.config = (t.config & !mask | value & mask) & writable;
                if t.config & tn::MODE_32 != 0 {
                    t.comparator &= 0xffff_ffff;
                    t.period &= 0xffff_ffff;
                }
            }
            0x08 => {
                let t = &mut s.timers[n];
                if !periodic || t.config & tn::SET_VALUE != 0 {
                    t.comparator = (t.comparator & !mask | value & mask) & wide;
                }
                if periodic {
                    // The accumulator is set by the first write after SET_VALUE; every write sets the period.
                    t.period = (t.period & !mask | value & mask) & wide;
                }
                t.config &= !tn::SET_VALUE;
            }
            0x10 => {
                let t = &mut s.timers[n];
                t.route = t.route & !mask | value & mask;
            }
            _ => {}
        }
    }
}

/// Which timer's register is at `at`, and which of them.
fn timer_reg(at: u64) -> Option<(usize, u64)> {
    let from = at.checked_sub(reg::TIMER0)?;
    let n = usize::try_from(from / reg::TIMER_LEN).ok().filter(|n| *n < TIMERS)?;
    Some((n, from % reg::TIMER_LEN))
}

impl TimerTarget for Hpet {
    fn on_timer(&self, now_ns: u64) {
        self.settle(&mut lock(&self.state), now_ns);
    }
}

impl MmioDevice for Hpet {
    fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let (mut last, mut bytes) = (u64::MAX, [0; 8]);
        for (at, b) in (offset..).zip(data.iter_mut()) {
            if at & !7 != last {
                last = at & !7;
                bytes = self.read(last).to_le_bytes();
            }
            *b = bytes[(at % 8) as usize];
        }
    }

    /// Registers take aligned stores of 32 and 64 bits (specification §2.2); others are dropped.
    fn mmio_write(&self, offset: u64, data: &[u8]) {
        if let (Ok(v), 0) = (<[u8; 8]>::try_from(data), offset % 8) {
            self.write(offset, u64::from_le_bytes(v), u64::MAX);
        } else if let (Ok(v), 0) = (<[u8; 4]>::try_from(data), offset % 4) {
            let shift = offset % 8 * 8;
            self.write(offset & !7, u64::from(u32::from_le_bytes(v)) << shift, 0xffff_ffff << shift);
        }
    }
}
