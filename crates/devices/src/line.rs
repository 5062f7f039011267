//! [`IrqLine`]: a device's wire to the interrupt chips.

use ringer_engine::IrqChip;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device's interrupt wire: a chip and the input it is connected to.
pub struct IrqLine {
    chip: Arc<dyn IrqChip>,
    gsi: u32,
    /// What the chip was told last: it hears of changes only.
    level: AtomicBool,
    muted: Option<Arc<AtomicBool>>,
}

impl IrqLine {
    /// A wire to input `gsi` of `chip`.
    #[must_use]
    pub fn new(chip: Arc<dyn IrqChip>, gsi: u32) -> IrqLine {
        IrqLine { chip, gsi, level: AtomicBool::new(false), muted: None }
    }

    /// A wire that is disconnected while `muted` is true: the PIT's and the RTC's, which the HPET takes over in its
    /// legacy replacement mode.
    #[must_use]
    pub fn with_mute(chip: Arc<dyn IrqChip>, gsi: u32, muted: Arc<AtomicBool>) -> IrqLine {
        IrqLine { chip, gsi, level: AtomicBool::new(false), muted: Some(muted) }
    }

    /// Drives the wire. A device does so with its own lock held, so that calls do not overtake each other.
    pub fn set(&self, level: bool) {
        if self.muted.as_ref().is_some_and(|m| m.load(Ordering::SeqCst)) {
            return;
        }
        if self.level.swap(level, Ordering::SeqCst) != level {
            self.chip.set_irq(self.gsi, level);
        }
    }

    /// The level that the chip knows.
    pub(crate) fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    /// The chip knows this level already: it was saved with it.
    pub(crate) fn restore(&self, level: bool) {
        self.level.store(level, Ordering::SeqCst);
    }

    /// Makes a rising edge: down if it was up, then up.
    pub fn edge(&self) {
        self.set(false);
        self.set(true);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqLine(gsi {})", self.gsi)
    }
}
