//! The clock's state, saved. The time of day goes on meanwhile, as on a battery.

use super::{Rtc, State};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRtc {
    registers: State,
    line: bool,
}

impl Component for Rtc {
    fn name(&self) -> String {
        "rtc".into()
    }

    fn reset(&self) {
        Rtc::reset(self);
    }

    fn save(&self) -> Saved {
        let s = lock(&self.state);
        Saved::of(self, VERSION, &SavedRtc { registers: s.clone(), line: self.irq.level() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedRtc { registers, line } = saved.read(self, VERSION)?;
        saved.ensure(registers.index <= 0x7f, "the index is beyond CMOS RAM")?;
        self.irq.restore(line);
        *lock(&self.state) = registers;
        // It looks at what has come meanwhile as soon as time runs.
        self.timer.arm(0);
        Ok(())
    }
}
