//! A serial port's state, saved, with the input that the guest has not read. What it wrote has gone out already.

use super::{FIFO, HOLD_NS, QUEUE, Serial, State, lsr};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedSerial {
    registers: State,
    line: bool,
}

fn check(saved: &Saved, s: &State) -> Result<(), StateError> {
    saved.ensure(s.ier <= 0x0f && s.mcr <= 0x1f, "a register has unknown bits")?;
    saved.ensure(s.fcr == 0 || s.fcr & !0xc0 == 1, "the FIFO control register has unknown bits")?;
    saved
        .ensure(s.fifo.len() <= FIFO && s.queue.len() <= QUEUE, "more input waits than there is room for")?;
    let errors = s.fifo.iter().all(|(_, e)| e & !lsr::ERRORS == 0);
    saved.ensure(errors, "a character has errors that there are not")
}

impl Component for Serial {
    fn name(&self) -> String {
        format!("com{}", self.number)
    }

    fn reset(&self) {
        Serial::reset(self);
    }

    fn save(&self) -> Saved {
        let s = lock(&self.state);
        Saved::of(self, VERSION, &SavedSerial { registers: s.clone(), line: self.irq.level() })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedSerial { registers, line } = saved.read(self, VERSION)?;
        check(saved, &registers)?;
        if registers.timed {
            self.timer.arm(self.timer.now_ns().saturating_add(HOLD_NS));
        } else {
            self.timer.disarm();
        }
        self.irq.restore(line);
        *lock(&self.state) = registers;
        Ok(())
    }
}
