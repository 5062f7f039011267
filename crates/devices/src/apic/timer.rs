//! The local APIC's timer (Intel SDM vol. 3A §11.5.4). Its bus clock is 1 GHz: one tick a nanosecond of machine time,
//! before the divider.

use super::lapic::{Lapic, State, lvt};
use crate::timer::{NEVER, TimerTarget};

/// A periodic timer faster than this gets one interrupt this often, as a host cannot serve more; the counter that the
/// guest reads keeps its own pace.
const MIN_PERIOD_NS: u64 = 100_000;

/// The timer's mode, bits 18:17 of its LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl State {
    pub(super) fn timer_mode(&self) -> Mode {
        match self.lvt[lvt::TIMER] >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            // 3 is reserved and refused or dropped on writes.
            _ => Mode::TscDeadline,
        }
    }

    /// Nanoseconds a count.
    pub(super) fn tick_ns(&self) -> u64 {
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        1 << ((code + 1) & 7)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial_count) * self.tick_ns()
    }

    /// The current-count register.
    pub(super) fn current_count(&self, now_ns: u64) -> u32 {
        let elapsed = now_ns.wrapping_sub(self.count_start_ns) / self.tick_ns();
        let initial = u64::from(self.initial_count);
        let left = match self.timer_mode() {
            Mode::TscDeadline => 0,
            Mode::OneShot => initial.saturating_sub(elapsed),
            Mode::Periodic if initial == 0 => 0,
            Mode::Periodic => initial - elapsed % initial,
        };
        // At most the initial count, which is 32 bits wide.
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}

impl Lapic {
    fn arm(&self, s: &mut State, due_ns: u64) {
        s.timer_due_ns = due_ns;
        self.timer.arm(due_ns);
    }

    /// Loads the counter: a write of the initial-count register.
    pub(super) fn load_count(&self, s: &mut State, count: u32) {
        if s.timer_mode() == Mode::TscDeadline {
            return;
        }
        s.initial_count = count;
        s.count_start_ns = self.timer.now_ns();
        let due = if count == 0 { NEVER } else { s.count_start_ns.wrapping_add(s.period_ns()) };
        self.arm(s, due);
    }

    /// Changes the divider; a running count goes on from where it is.
    pub(super) fn set_divide(&self, s: &mut State, value: u32) {
        let now = self.timer.now_ns();
        let done = u64::from(s.initial_count) - u64::from(s.current_count(now));
        s.divide = value & 0xb;
        if s.timer_mode() == Mode::TscDeadline {
            return;
        }
        s.count_start_ns = now.wrapping_sub(done * s.tick_ns());
        if s.timer_due_ns != NEVER {
            let due = s.count_start_ns.wrapping_add(s.period_ns());
            self.arm(s, due);
        }
    }

    /// Writes the timer's LVT entry. Going to or from TSC-deadline mode disarms the timer.
    pub(super) fn set_timer_lvt(&self, s: &mut State, value: u32) {
        let before = s.timer_mode();
        s.lvt[lvt::TIMER] = value;
        let after = s.timer_mode();
        if before == after {
            return;
        }
        if before == Mode::TscDeadline || after == Mode::TscDeadline {
            s.tsc_deadline = 0;
            s.initial_count = 0;
            self.arm(s, NEVER);
        } else if after == Mode::Periodic && s.initial_count != 0 && s.timer_due_ns == NEVER {
            // A one-shot count that has run out starts over.
            s.count_start_ns = self.timer.now_ns();
            let due = s.count_start_ns.wrapping_add(s.period_ns());
            self.arm(s, due);
        }
    }

    /// The TSC-deadline MSR: 0 when not armed, or not in that mode.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        self.lock().tsc_deadline
    }

    /// Writes the TSC-deadline MSR: arms the timer for that TSC value, 0 disarms; ignored in other modes.
    pub fn set_tsc_deadline(&self, tsc: u64) {
        let mut s = self.lock();
        if s.timer_mode() != Mode::TscDeadline {
            return;
        }
        s.tsc_deadline = tsc;
        if tsc == 0 {
            self.arm(&mut s, NEVER);
            return;
        }
        let due = self.timer.clock().tsc_to_ns(tsc);
        s.timer_due_ns = due;
        let now = self.timer.now_ns();
        if due <= now {
            self.timer.disarm();
            self.expire(&mut s, now);
        } else {
            self.timer.arm(due);
        }
    }

    /// Fires the timer if it is due.
    fn expire(&self, s: &mut State, now_ns: u64) {
        if s.timer_due_ns > now_ns {
            // Programmed anew since the call was due.
            if s.timer_due_ns != NEVER {
                self.timer.arm(s.timer_due_ns);
            }
            return;
        }
        match s.timer_mode() {
            Mode::Periodic if s.initial_count != 0 => {
                // Ticks that were missed are gone; the next one is the first in phase.
                let period = s.period_ns();
                let from = now_ns.saturating_add(MIN_PERIOD_NS.saturating_sub(period));
                let ticks = from.wrapping_sub(s.count_start_ns) / period + 1;
                let due = s.count_start_ns.wrapping_add(ticks.saturating_mul(period));
                self.arm(s, due);
            }
            _ => {
                s.tsc_deadline = 0;
                s.timer_due_ns = NEVER;
            }
        }
        self.local(s, lvt::TIMER);
    }
}

impl TimerTarget for Lapic {
    fn on_timer(&self, now_ns: u64) {
        self.expire(&mut self.lock(), now_ns);
    }
}
