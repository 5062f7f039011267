//! [`VmClock`]: the machine's time, which stands still while the machine does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug)]
struct State {
    /// Machine time at `since`, or now if it stands still.
    base: Duration,
    since: Option<Instant>,
}

#[derive(Debug)]
struct Inner {
    tsc_khz: u64,
    state: Mutex<State>,
}

/// Machine time in nanoseconds since power-up, and the TSC derived from it. All timers of a machine (TSC, LAPIC,
/// PIT, HPET, PM timer, kvmclock) read this one clock, so that whatever the guest calibrates against whatever,
/// the answer holds, however the host starves it. Cloning shares it.
#[derive(Clone, Debug)]
pub struct VmClock(Arc<Inner>);

impl VmClock {
    /// A clock at zero, standing still. `tsc_khz` is the guest's TSC frequency, at least 1.
    #[must_use]
    pub fn new(tsc_khz: u64) -> VmClock {
        let state = State { base: Duration::ZERO, since: None };
        VmClock(Arc::new(Inner { tsc_khz: tsc_khz.max(1), state: Mutex::new(state) }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time run.
    pub fn start(&self) {
        self.state().since.get_or_insert_with(Instant::now);
    }

    /// Makes time stand still.
    pub fn stop(&self) {
        let mut s = self.state();
        if let Some(t) = s.since.take() {
            s.base += t.elapsed();
        }
    }

    /// Machine time in nanoseconds. Never goes back.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        let s = self.state();
        let t = s.base + s.since.map_or(Duration::ZERO, |t| t.elapsed());
        t.as_nanos() as u64
    }

    /// Sets machine time, as after loading a snapshot.
    pub fn set_ns(&self, ns: u64) {
        let mut s = self.state();
        s.base = Duration::from_nanos(ns);
        if s.since.is_some() {
            s.since = Some(Instant::now());
        }
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

    /// The TSC value at machine time `ns`.
    #[must_use]
    pub fn ns_to_tsc(&self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.0.tsc_khz) / 1_000_000) as u64
    }

    /// The first machine time at which the TSC is at least `tsc`; saturates at `u64::MAX`.
    #[must_use]
    pub fn tsc_to_ns(&self, tsc: u64) -> u64 {
        let ns = (u128::from(tsc) * 1_000_000).div_ceil(u128::from(self.0.tsc_khz));
        u64::try_from(ns).unwrap_or(u64::MAX)
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
    }
}
