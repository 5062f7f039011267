//! The PIC pair's state, saved.

use super::{ELCR_WRITABLE, Pic, State};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;

const VERSION: u32 = 1;

impl Component for Pic {
    fn name(&self) -> String {
        "pic".into()
    }

    fn reset(&self) {
        Pic::reset(self);
    }

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let mut new: State = saved.read(self, VERSION)?;
        for (chip, elcr) in new.chips.iter().zip(ELCR_WRITABLE) {
            saved.ensure(
                chip.base & 7 == 0 && chip.top <= 7,
                "a vector base or priority is beyond its bits",
            )?;
            saved.ensure(chip.elcr & !elcr == 0, "an input is level-triggered that cannot be")?;
        }
        // What the chips make of their inputs they had made of them when they were saved.
        let before = serde_json::to_value(&new).ok();
        new.output();
        saved.ensure(
            before == serde_json::to_value(&new).ok(),
            "the slave's output is not the master's input",
        )?;
        self.change(|s| *s = new);
        Ok(())
    }
}
