//! [`VmClock`]: the machine's time, which stands still while the machine does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// In [`Inner::word`]: time runs.
const RUNS: u64 = 1 << 63;
/// Times are 63 bits of nanoseconds (292 years), and wrap there.
const MASK: u64 = RUNS - 1;

#[derive(Debug)]
struct Inner {
    tsc_khz: u64,
    /// What host time is counted from.
    epoch: Instant,
    /// While time stands still: machine time. While it runs: [`RUNS`], and what is to be added to the host time since
    /// `epoch` (modulo 2^63). One word, so that reading the clock, which processors do all the time, takes no lock.
    word: AtomicU64,
    /// Held by whoever changes `word`.
    change: Mutex<()>,
}

/// Machine time in nanoseconds since power-up, and the TSC derived from it. All timers of a machine (TSC, LAPIC,
/// PIT, HPET, PM timer, kvmclock) read this one clock, so that whatever the guest calibrates against whatever,
/// the answer holds, however the host starves it. Cloning shares it.
#[derive(Clone, Debug)]
pub struct VmClock(Arc<Inner>);

impl VmClock {
    /// A clock at zero, standing still. `tsc_khz` is the guest's TSC frequency, 1 kHz to 1 THz.
    #[must_use]
    pub fn new(tsc_khz: u64) -> VmClock {
        VmClock(Arc::new(Inner {
            // The bounds keep the arithmetic below within 64 bits.
            tsc_khz: tsc_khz.clamp(1, 1_000_000_000),
            epoch: Instant::now(),
            word: AtomicU64::new(0),
            change: Mutex::new(()),
        }))
    }

    fn host_ns(&self) -> u64 {
        let t = self.0.epoch.elapsed();
        t.as_secs() * 1_000_000_000 + u64::from(t.subsec_nanos())
    }

    /// Machine time that `word` means now.
    fn read(&self, word: u64) -> u64 {
        if word & RUNS == 0 { word } else { self.host_ns().wrapping_add(word) & MASK }
    }

    fn change(&self, f: impl FnOnce(u64) -> u64) {
        let _only_one = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.word.store(f(self.0.word.load(Ordering::SeqCst)), Ordering::SeqCst);
    }

    /// The word of a clock that runs and shows `ns` now.
    fn running(&self, ns: u64) -> u64 {
        ns.wrapping_sub(self.host_ns()) & MASK | RUNS
    }

    /// Lets time run.
    pub fn start(&self) {
        self.change(|w| if w & RUNS == 0 { self.running(w) } else { w });
    }

    /// Makes time stand still.
    pub fn stop(&self) {
        self.change(|w| self.read(w));
    }

    /// Machine time in nanoseconds. Never goes back.
    #[must_use]
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.read(self.0.word.load(Ordering::SeqCst))
    }

    /// Sets machine time, as after loading a snapshot; less than 2^63.
    pub fn set_ns(&self, ns: u64) {
        let ns = ns & MASK;
        self.change(|w| if w & RUNS == 0 { ns } else { self.running(ns) });
    }

    /// Guest TSC frequency in kHz.
    #[must_use]
    pub fn tsc_khz(&self) -> u64 {
        self.0.tsc_khz
    }

    /// The TSC now, before any guest adjustment.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.ns_to_tsc(self.now_ns())
    }

    /// The TSC value at machine time `ns`, modulo 2^64.
    #[must_use]
    #[inline]
    pub fn ns_to_tsc(&self, ns: u64) -> u64 {
        // In two parts, as a division of 128 bits costs more than reading the host's clock.
        let (ms, rest) = (ns / 1_000_000, ns % 1_000_000);
        ms.wrapping_mul(self.0.tsc_khz).wrapping_add(rest * self.0.tsc_khz / 1_000_000)
    }

    /// The first machine time at which the TSC is at least `tsc`; saturates at `u64::MAX`.
    #[must_use]
    pub fn tsc_to_ns(&self, tsc: u64) -> u64 {
        let (ms, rest) = (tsc / self.0.tsc_khz, tsc % self.0.tsc_khz);
        ms.saturating_mul(1_000_000).saturating_add((rest * 1_000_000).div_ceil(self.0.tsc_khz))
    }

    /// The host's wall clock in nanoseconds since 1970, for the RTC and kvmclock.
    #[must_use]
    pub fn wall_ns() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stands_still_until_started() {
        let c = VmClock::new(2_000_000);
        assert_eq!(c.now_ns(), 0);
        c.start();
        while c.now_ns() == 0 {}
        c.stop();
        let t = c.now_ns();
        assert_eq!(c.now_ns(), t);
        assert_eq!(c.ns_to_tsc(500), 1000);
        assert_eq!(c.tsc_to_ns(1001), 501);
        assert_eq!(c.tsc_to_ns(u64::MAX), u64::MAX / 2 + 1);
        c.set_ns(5);
        assert_eq!(c.now_ns(), 5);
        c.start();
        c.start();
        c.set_ns(1 << 40);
        assert!(c.now_ns() >= 1 << 40);
        c.stop();
        c.stop();
        assert!(c.now_ns() < 1 << 41);
    }

    #[test]
    fn the_two_directions_agree() {
        for khz in [1, 3, 999_999, 1_000_000, 2_596_098, 1_000_000_000] {
            let c = VmClock::new(khz);
            for ns in [0, 1, 999_999, 1_000_000, 123_456_789_012, 86_400_000_000_000] {
                let tsc = c.ns_to_tsc(ns);
                assert_eq!(u128::from(tsc), u128::from(ns) * u128::from(khz) / 1_000_000);
                let first = c.tsc_to_ns(tsc);
                assert!(first <= ns && c.ns_to_tsc(first) >= tsc, "{khz} {ns}");
                assert!(first == 0 || c.ns_to_tsc(first - 1) < tsc, "{khz} {ns}");
            }
        }
        assert_eq!(VmClock::new(1).tsc_to_ns(u64::MAX), u64::MAX);
    }
}
