//! [`Clock`]: the machine's time and the timers that run on it, as a component.

use crate::component::{Component, Saved, StateError};
use crate::timer::Timers;
use ringer_engine::VmClock;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
/// Machine time that is believed: 146 years.
const MOST_NS: u64 = 1 << 62;

/// Machine time and the timers. The timers' deadlines follow from their devices' states.
pub struct Clock {
    clock: VmClock,
    timers: Timers,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedClock {
    /// Machine time in nanoseconds.
    ns: u64,
    tsc_khz: u64,
}

impl Clock {
    pub(crate) fn new(clock: VmClock, timers: Timers) -> Clock {
        Clock { clock, timers }
    }

    pub(crate) fn clock(&self) -> &VmClock {
        &self.clock
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }
}

impl Component for Clock {
    fn name(&self) -> String {
        "clock".into()
    }

    fn start(&self) -> std::io::Result<()> {
        self.timers.start()
    }

    fn pause(&self) {
        self.clock.stop();
        self.timers.pause();
    }

    fn resume(&self) {
        self.clock.start();
        self.timers.resume();
    }

    /// Time goes on over a reset.
    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &SavedClock { ns: self.clock.now_ns(), tsc_khz: self.clock.tsc_khz() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedClock { ns, tsc_khz } = saved.read(self, VERSION)?;
        saved.ensure(ns <= MOST_NS, "its time is too far in the future")?;
        saved.ensure(tsc_khz == self.clock.tsc_khz(), "its TSC has another frequency than this machine's")?;
        self.clock.set_ns(ns);
        Ok(())
    }
}
