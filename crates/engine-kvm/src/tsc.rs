//! The guest's TSC follows the machine's clock.
//!
//! KVM's TSC runs on while the machine stands still, so whenever processors start, the offset between the host's and the guest's is set
//! anew. It is one for all processors of the machine, each adding its own TSC_ADJUST: two that are measured would differ by what a measurement
//! errs, and guests do look whether one processor's TSC is behind another's.

use crate::{msrs, raw};
use kvm_ioctls::{Error, VcpuFd};
use ringer_engine::CpuIo;
use std::sync::{Mutex, PoisonError};

/// A TSC that is not further off than this many nanoseconds, and the error of measuring it, is left alone.
const TOLERANCE_NS: u64 = 20_000;
/// Measurements, of which the shortest counts.
const TRIES: u32 = 4;

/// The offset that all processors of a machine have in common.
#[derive(Debug, Default)]
pub struct MachineTsc(Mutex<Option<u64>>);

/// How far `kvm` is ahead of the machine's TSC, which was `before` and `after` the reading; `None`: not worth a change.
fn ahead(before: u64, kvm: u64, after: u64, tolerance: u64) -> Option<u64> {
    let window = after.wrapping_sub(before);
    let ahead = kvm.wrapping_sub(before.wrapping_add(window / 2));
    let distance = ahead.min(ahead.wrapping_neg());
    (distance > tolerance.saturating_add(window)).then_some(ahead)
}

impl MachineTsc {
    /// Makes the processor's TSC the machine's plus `adjust`.
    pub fn set(&self, fd: &VcpuFd, io: &dyn CpuIo, adjust: u64, tsc_khz: u64) -> Result<(), Error> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let base = match *shared {
            Some(base) => base,
            None => raw::tsc_offset(fd)?,
        };
        raw::set_tsc_offset(fd, base.wrapping_add(adjust))?;
        let mut best = (0, 0, u64::MAX);
        for _ in 0..TRIES {
            let before = io.tsc();
            let kvm = msrs::tsc(fd)?.wrapping_sub(adjust);
            let after = io.tsc();
            if after.wrapping_sub(before) < best.2.wrapping_sub(best.0) {
                best = (before, kvm, after);
            }
        }
        let tolerance = TOLERANCE_NS.saturating_mul(tsc_khz) / 1_000_000;
        let base = match ahead(best.0, best.1, best.2, tolerance) {
            Some(ahead) => base.wrapping_sub(ahead),
            None => base,
        };
        *shared = Some(base);
        raw::set_tsc_offset(fd, base.wrapping_add(adjust))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_are_left_alone() {
        assert_eq!(ahead(1000, 1020, 1010, 50), None);
        assert_eq!(ahead(1000, 1105, 1010, 50), Some(100));
        assert_eq!(ahead(1000, 905, 1010, 50), Some(100u64.wrapping_neg()));
        // Across the wrap.
        assert_eq!(ahead(u64::MAX - 4, 995, 5, 50), Some(995));
    }
}
