//! The I/O APIC's state, saved, with the level of its inputs.

use super::{IoApic, PINS, State, entry};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;

const VERSION: u32 = 1;

impl Component for IoApic {
    fn name(&self) -> String {
        "ioapic".into()
    }

    fn reset(&self) {
        IoApic::reset(self);
    }

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let new: State = saved.read(self, VERSION)?;
        saved.ensure(
            new.select <= 0xff && new.lines >> PINS == 0,
            "a register has more bits than there are",
        )?;
        for e in new.entries {
            saved.ensure(e & !(entry::WRITABLE | entry::REMOTE_IRR) == 0, "an entry has unknown bits")?;
            let level = e & entry::LEVEL != 0 || e & entry::REMOTE_IRR == 0;
            saved.ensure(level, "an edge-triggered input waits for the end of an interrupt")?;
        }
        *lock(&self.state) = new;
        Ok(())
    }
}
