//! [`Rtc`]: the MC146818 real-time clock and its CMOS RAM (Motorola MC146818A datasheet), with a century byte.
//!
//! The time of day is the host's plus what the guest has set; the periodic interrupt runs on machine time.

mod saved;
#[cfg(test)]
mod tests;
mod time;

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::line::IrqLine;
use crate::sync::lock;
use crate::timer::{NEVER, TimerHandle, TimerTarget, Timers, mul_div};
use ringer_engine::VmClock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};
use time::{Civil, Format};

const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: update in progress.
const UIP: u8 = 0x80;
/// Register B.
mod b {
    pub const SET: u8 = 0x80;
    pub const BINARY: u8 = 0x04;
    pub const HOURS24: u8 = 0x02;
    /// Square wave and the three interrupt enables.
    pub const RESET_CLEARS: u8 = 0x78;
}
/// Register C.
mod c {
    pub const IRQF: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE: u8 = 0x10;
}
/// UIP is up this long before each update.
const UIP_NS: u64 = 244_000;
const SECOND_NS: u64 = 1_000_000_000;

/// Its registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    index: u8,
    /// CMOS RAM; the clock's own registers in it hold alarms, A to D, and the time while it is being set.
    #[serde(with = "ringer_arch::hex")]
    cmos: [u8; 128],
    /// Seconds that the guest's time is ahead of the host's.
    offset_s: i64,
    /// Second up to which updates have been noticed.
    seen_s: i64,
    /// Periodic ticks that have been noticed, at the current rate.
    seen_ticks: u64,
}

impl State {
    fn format(&self) -> Format {
        let v = self.cmos[usize::from(REG_B)];
        Format { binary: v & b::BINARY != 0, hours24: v & b::HOURS24 != 0 }
    }

    fn reg(&mut self, reg: u8) -> &mut u8 {
        &mut self.cmos[usize::from(reg & 0x7f)]
    }

    /// Whether the time stands: it is being set, or the divider is held in reset.
    fn stands(&self) -> bool {
        self.cmos[usize::from(REG_B)] & b::SET != 0 || self.cmos[usize::from(REG_A)] & 0x60 == 0x60
    }

    /// Nanoseconds a periodic tick times 32,768 over a billion, that is: 32 kHz cycles a tick; 0: none.
    fn cycles(&self) -> u64 {
        match self.cmos[usize::from(REG_A)] & 15 {
            0 => 0,
            // The two fastest codes give 256 and 128 Hz again.
            n @ (1 | 2) => 1 << (n + 6),
            n => 1 << (n - 1),
        }
    }

    fn ticks(&self, now_ns: u64) -> u64 {
        match self.cycles() {
            0 => 0,
            n => mul_div(now_ns, 32_768, 1_000_000_000) / n,
        }
    }

    /// Sets the offset so that the time is what the registers say, if they say a time.
    fn take_time(&mut self, wall_s: i64) {
        let f = self.format();
        if let Some(t) = Civil::from_regs(&self.cmos, f) {
            self.offset_s = t.to_unix().saturating_sub(wall_s);
            self.seen_s = wall_s.saturating_add(self.offset_s);
        }
    }
}

/// The RTC. Its time of day comes from a function, so that it can be tested.
pub struct Rtc {
    state: Mutex<State>,
    irq: IrqLine,
    timer: TimerHandle,
    wall_ns: fn(&VmClock) -> u64,
}

/// The host's time of day.
fn host_wall(_clock: &VmClock) -> u64 {
    VmClock::wall_ns()
}

impl Rtc {
    /// A clock on the host's time. `cmos` is what its RAM holds from register 0x0E on; the clock's own registers, of it,
    /// are ignored.
    #[must_use]
    pub fn new(irq: IrqLine, timers: &Timers, cmos: [u8; 128]) -> Arc<Rtc> {
        Rtc::with_wall(irq, timers, cmos, host_wall)
    }

    fn with_wall(
        irq: IrqLine,
        timers: &Timers,
        mut cmos: [u8; 128],
        wall_ns: fn(&VmClock) -> u64,
    ) -> Arc<Rtc> {
        cmos[..14].fill(0);
        cmos[usize::from(REG_A)] = 0x26;
        cmos[usize::from(REG_B)] = b::HOURS24;
        cmos[usize::from(REG_D)] = 0x80;
        Arc::new_cyclic(|weak: &Weak<Rtc>| {
            let timer = timers.add(weak.clone());
            let seen_s = split(wall_ns(timer.clock())).0;
            let state = State { index: 0, cmos, offset_s: 0, seen_s, seen_ticks: 0 };
            Rtc { state: Mutex::new(state), irq, timer, wall_ns }
        })
    }

    /// The RESET pin: interrupts are off. Time, alarms and RAM live on the battery.
    pub fn reset(&self) {
        let mut s = lock(&self.state);
        s.index = 0;
        *s.reg(REG_B) &= !b::RESET_CLEARS;
        *s.reg(REG_C) = 0;
        self.update(&mut s);
    }

    /// The guest's seconds since 1970, and nanoseconds into the second.
    fn time(&self, s: &State) -> (i64, u64) {
        let (wall_s, ns) = split((self.wall_ns)(self.timer.clock()));
        (wall_s.saturating_add(s.offset_s), ns)
    }

    /// Notices what has happened since the last look, drives the interrupt, and plans the next look.
    fn update(&self, s: &mut State) {
        let now_ns = self.timer.now_ns();
        let (second, into) = self.time(s);
        let mut flags = 0;
        if s.stands() {
            s.seen_s = second;
        } else if second != s.seen_s {
            flags |= c::UPDATE;
            if self.alarm_between(s, second) {
                flags |= c::ALARM;
            }
            s.seen_s = second;
        }
        let ticks = s.ticks(now_ns);
        if ticks != s.seen_ticks {
            s.seen_ticks = ticks;
            flags |= c::PERIODIC;
        }
        let enabled = *s.reg(REG_B) & (c::PERIODIC | c::ALARM | c::UPDATE);
        let regc = s.reg(REG_C);
        *regc |= flags;
        let up = *regc & enabled != 0;
        *regc = *regc & !c::IRQF | if up { c::IRQF } else { 0 };
        self.irq.set(up);

        let mut next = NEVER;
        if enabled & c::PERIODIC != 0 && s.cycles() != 0 {
            let cycle = u128::from(ticks + 1) * u128::from(s.cycles());
            next = u64::try_from((cycle * 1_000_000_000).div_ceil(32_768)).unwrap_or(NEVER);
        }
        if enabled & (c::ALARM | c::UPDATE) != 0 && !s.stands() {
            next = next.min(now_ns.saturating_add(SECOND_NS - into));
        }
        self.timer.arm(next);
    }

    /// Whether the alarm matches a second after the last noticed one, up to `second`.
    fn alarm_between(&self, s: &State, second: i64) -> bool {
        let f = s.format();
        // An alarm is a time of day, so the last day is all there is to look at.
        let first = s.seen_s.saturating_add(1).max(second.saturating_sub(86_399));
        (first..=second).any(|t| f.alarm_matches(&s.cmos, t))
    }

    fn read(&self, offset: u16) -> u8 {
        let mut s = lock(&self.state);
        if offset & 1 == 0 {
            // The index register is write-only.
            return 0xff;
        }
        self.update(&mut s);
        let (second, into) = self.time(&s);
        let index = s.index;
        match index {
            REG_A => {
                let uip = !s.stands() && into >= SECOND_NS - UIP_NS;
                *s.reg(REG_A) & !UIP | if uip { UIP } else { 0 }
            }
            REG_C => {
                let v = std::mem::take(s.reg(REG_C));
                self.update(&mut s);
                v
            }
            0 | 2 | 4 | 6..=9 | CENTURY if !s.stands() => {
                let f = s.format();
                Civil::from_unix(second).reg(index, f)
            }
            i => *s.reg(i),
        }
    }

    fn write(&self, offset: u16, v: u8) {
        let mut s = lock(&self.state);
        if offset & 1 == 0 {
            // Bit 7 masks NMIs, of which there are none.
            s.index = v & 0x7f;
            return;
        }
        self.update(&mut s);
        let index = s.index;
        let wall_s = split((self.wall_ns)(self.timer.clock())).0;
        let stood = s.stands();
        match index {
            REG_A => *s.reg(REG_A) = v & !UIP,
            REG_B => *s.reg(REG_B) = v,
            REG_C | REG_D => return,
            0 | 2 | 4 | 6..=9 | CENTURY => {
                if !stood {
                    self.freeze(&mut s);
                }
                *s.reg(index) = v;
                if !stood {
                    s.take_time(wall_s);
                }
            }
            i => *s.reg(i) = v,
        }
        if index == REG_A {
            // Another rate: only ticks from now on count.
            s.seen_ticks = s.ticks(self.timer.now_ns());
        }
        match (stood, s.stands()) {
            (false, true) => self.freeze(&mut s),
            (true, false) => s.take_time(wall_s),
            _ => {}
        }
        self.update(&mut s);
    }

    /// Puts the time into the registers, where it stands.
    fn freeze(&self, s: &mut State) {
        let f = s.format();
        let t = Civil::from_unix(self.time(s).0);
        for r in [0, 2, 4, 6, 7, 8, 9, CENTURY] {
            *s.reg(r) = t.reg(r, f);
        }
    }
}

/// Seconds and the rest.
fn split(ns: u64) -> (i64, u64) {
    // u64::MAX nanoseconds are fewer than i64::MAX seconds.
    ((ns / SECOND_NS) as i64, ns % SECOND_NS)
}

impl TimerTarget for Rtc {
    fn on_timer(&self, _now_ns: u64) {
        self.update(&mut lock(&self.state));
    }
}

/// Ports 0x70 and 0x71.
impl PioDevice for Rtc {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(offset, data, |o| self.read(o));
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |o, v| self.write(o, v));
    }
}

/// What firmware leaves in CMOS RAM about memory: base, extended, above 16 MiB and above 4 GiB, each capped by its
/// field; and a checksum.
#[must_use]
pub fn cmos_for(low_ram: u64, high_ram: u64, vcpus: usize) -> [u8; 128] {
    let mut m = [0u8; 128];
    let word = |v: u64| u16::try_from(v).unwrap_or(u16::MAX).to_le_bytes();
    let kib = |from: u64| low_ram.saturating_sub(from) >> 10;
    m[0x15..0x17].copy_from_slice(&word(640));
    m[0x17..0x19].copy_from_slice(&word(kib(1 << 20)));
    m[0x30..0x32].copy_from_slice(&word(kib(1 << 20)));
    m[0x34..0x36].copy_from_slice(&word(kib(16 << 20) >> 6));
    m[0x5b..0x5e].copy_from_slice(&(high_ram >> 16).min(0xff_ffff).to_le_bytes()[..3]);
    m[0x5f] = u8::try_from(vcpus.saturating_sub(1)).unwrap_or(u8::MAX);
    // FPU and PS/2 mouse port present.
    m[0x14] = 0x06;
    let sum: u16 = m[0x10..0x2e].iter().map(|b| u16::from(*b)).sum();
    m[0x2e..0x30].copy_from_slice(&sum.to_be_bytes());
    // 20th or 21st century is told from the clock; this byte is a register of it.
    m[usize::from(CENTURY)] = 0;
    m
}
