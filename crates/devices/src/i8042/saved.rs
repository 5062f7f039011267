//! The keyboard controller's and the keyboard's state, saved.

use super::{Expect, I8042, REPLIES, State};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedI8042 {
    registers: State,
    line1: bool,
    line12: bool,
}

impl Component for I8042 {
    fn name(&self) -> String {
        "i8042".into()
    }

    fn reset(&self) {
        I8042::reset(self);
    }

    fn save(&self) -> Saved {
        let s = lock(&self.state);
        let (line1, line12) = (self.irq1.level(), self.irq12.level());
        Saved::of(self, VERSION, &SavedI8042 { registers: s.clone(), line1, line12 })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedI8042 { registers, line1, line12 } = saved.read(self, VERSION)?;
        saved.ensure(registers.replies.len() <= REPLIES, "more answers wait than there is room for")?;
        saved.ensure(
            registers.keyboard.is_possible(),
            "the keyboard has a scan code set or buffer that none has",
        )?;
        let within = !matches!(registers.expect, Expect::Ram(i) if i > 0x1f);
        saved.ensure(within, "a byte is expected for a place beyond the controller's RAM")?;
        self.irq1.restore(line1);
        self.irq12.restore(line12);
        *lock(&self.state) = registers;
        Ok(())
    }
}
