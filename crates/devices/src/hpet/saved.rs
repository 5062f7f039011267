//! The event timers' state, saved.

use super::{Hpet, State, config, tn};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use std::sync::atomic::Ordering;

const VERSION: u32 = 1;

fn check(saved: &Saved, s: &State, now_ns: u64) -> Result<(), StateError> {
    saved.ensure(s.config & !(config::ENABLE | config::LEGACY) == 0, "the configuration has unknown bits")?;
    saved.ensure(s.status < 8, "the status has unknown bits")?;
    saved.ensure(s.start_ns <= now_ns, "the counter starts in the future")?;
    for (n, t) in s.timers.iter().enumerate() {
        let only_first = if n == 0 { 0 } else { tn::PERIODIC | tn::SET_VALUE };
        saved.ensure(
            t.config & !(tn::WRITABLE & !only_first) == 0,
            "a timer's configuration has unknown bits",
        )?;
        let wide = t.config & tn::MODE_32 == 0 || (t.comparator | t.period) >> 32 == 0;
        saved.ensure(wide, "a 32-bit timer has a longer comparator or period")?;
        saved.ensure(t.due.is_none() || s.runs(), "a timer is due while the counter stands")?;
    }
    Ok(())
}

impl Component for Hpet {
    fn name(&self) -> String {
        "hpet".into()
    }

    fn reset(&self) {
        Hpet::reset(self);
    }

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let new: State = saved.read(self, VERSION)?;
        check(saved, &new, self.timer.now_ns())?;
        self.legacy.store(new.config & config::LEGACY != 0, Ordering::SeqCst);
        self.arm(&new);
        *lock(&self.state) = new;
        Ok(())
    }
}
