//! The fixed hardware's state, saved.

use super::{AcpiPm, EN_BITS, SCI_EN, SLP_EN, State};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedAcpi {
    registers: State,
    sci: bool,
}

impl Component for AcpiPm {
    fn name(&self) -> String {
        "acpi".into()
    }

    fn reset(&self) {
        AcpiPm::reset(self);
    }

    fn save(&self) -> Saved {
        let s = lock(&self.state);
        Saved::of(self, VERSION, &SavedAcpi { registers: s.clone(), sci: self.sci.level() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedAcpi { registers, sci } = saved.read(self, VERSION)?;
        saved.ensure(registers.pm1_en & !EN_BITS == 0, "PM1 enables unknown events")?;
        let command = SCI_EN | u16::from(SLP_EN) << 8;
        saved.ensure(registers.pm1_cnt & command == 0, "PM1 control holds bits that do not stick")?;
        self.sci.restore(sci);
        *lock(&self.state) = registers;
        // It looks at the PM timer as soon as time runs.
        self.timer.arm(0);
        Ok(())
    }
}
