//! The timer's state, saved.

use super::{Pit, State, tick_ns};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPit {
    registers: State,
    line: bool,
}

impl Component for Pit {
    fn name(&self) -> String {
        "pit".into()
    }

    fn reset(&self) {
        Pit::reset(self);
    }

    fn save(&self) -> Saved {
        let s = lock(&self.state);
        Saved::of(self, VERSION, &SavedPit { registers: s.clone(), line: self.irq.level() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedPit { registers, line } = saved.read(self, VERSION)?;
        let now = self.now();
        let possible = registers.counters.iter().all(|c| c.is_possible(now));
        saved.ensure(possible, "a counter has a mode, count or start that no counter has now")?;
        saved.ensure(registers.control <= 3, "port 0x61 has more than two bits")?;
        match registers.next_edge {
            Some(t) => self.timer.arm(tick_ns(t)),
            None => self.timer.disarm(),
        }
        self.irq.restore(line);
        *lock(&self.state) = registers;
        Ok(())
    }
}
