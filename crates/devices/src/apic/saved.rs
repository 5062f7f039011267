//! A local APIC's state, saved, with what waits in it for its processor.

use super::bus::Apics;
use super::lapic::{BASE_EN, BASE_X2, Lapic, State, lvt};
use super::regs::LVT_WRITABLE;
use crate::component::{Component, Saved, StateError};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

const VERSION: u32 = 1;
/// A count that goes on under another divider began at most so long before now (32 bits of counts, 128 ns each), or when it was loaded.
const LONGEST_COUNT_NS: u64 = 1 << 39;

fn check(saved: &Saved, s: &State, lapic: &Lapic) -> Result<(), StateError> {
    let now = lapic.timer.now_ns();
    let x2_on = s.base & (BASE_EN | BASE_X2) != BASE_X2;
    saved.ensure(
        s.base & 0x2ff == 0 && s.base >> 40 == 0 && x2_on,
        "the base MSR has a value that it cannot take",
    )?;
    saved
        .ensure(s.tpr <= 0xff && s.svr <= 0x1ff, "the task priority or spurious vector is beyond its bits")?;
    saved.ensure(
        s.ldr << 8 == 0 && s.dfr | 0xf000_0000 == u32::MAX,
        "the logical destination has fixed bits wrong",
    )?;
    let entries = s.lvt.iter().zip(LVT_WRITABLE).all(|(e, bits)| e & !bits == 0);
    saved.ensure(
        entries && s.lvt[lvt::TIMER] >> 17 & 3 != 3,
        "an entry of the local vector table has unknown bits",
    )?;
    saved.ensure(s.divide & !0xb == 0, "the timer's divider has unknown bits")?;
    let began = now.wrapping_sub(s.count_start_ns) <= now.saturating_add(LONGEST_COUNT_NS);
    saved.ensure(began, "the timer's count begins in the future")?;
    saved.ensure(s.pv_eoi.is_possible(&lapic.memory), "the word for ends of interrupts is not in memory")
}

impl Component for Lapic {
    fn name(&self) -> String {
        format!("lapic{}", self.index)
    }

    fn reset(&self) {
        Lapic::reset(self);
    }

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &*self.lock())
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let new: State = saved.read(self, VERSION)?;
        check(saved, &new, self)?;
        self.publish_base(&new);
        self.timer.arm(new.timer_due_ns);
        *self.lock() = new;
        // The processor finds out what of it is for it.
        self.wake();
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedBus {
    turn: usize,
}

/// Whose turn it is among equals.
impl Component for Apics {
    fn name(&self) -> String {
        "apic-bus".into()
    }

    fn reset(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> Saved {
        let turn = self.turn.load(Ordering::Relaxed) % self.all().len().max(1);
        Saved::of(self, VERSION, &SavedBus { turn })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedBus { turn } = saved.read(self, VERSION)?;
        saved.ensure(turn < self.all().len(), "it is the turn of a local APIC that is not there")?;
        self.turn.store(turn, Ordering::Relaxed);
        Ok(())
    }
}
