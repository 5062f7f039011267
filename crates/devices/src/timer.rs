//! [`Timers`]: the machine's timers, all in machine time, and the one host thread that serves them.

use crate::sync::{lock, read, write};
use ringer_engine::VmClock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// The deadline of a timer that is not armed.
pub const NEVER: u64 = u64::MAX;

/// `a * b / c`, as far as it fits; `c` is not 0.
pub(crate) fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    u64::try_from(u128::from(a) * u128::from(b) / u128::from(c)).unwrap_or(u64::MAX)
}

/// What a timer calls.
pub trait TimerTarget: Send + Sync {
    /// The armed deadline has passed; the timer is disarmed. `now_ns` is machine time. A call may be late, or come
    /// just after the device was programmed anew: the device looks at its own state to see what is due.
    fn on_timer(&self, now_ns: u64);
}

struct Slot {
    deadline: AtomicU64,
    target: Weak<dyn TimerTarget>,
}

struct Control {
    paused: bool,
    stop: bool,
}

struct Inner {
    clock: VmClock,
    slots: RwLock<Vec<Arc<Slot>>>,
    /// The deadline that the thread sleeps towards; 0 while it does not sleep, or is not to fire.
    next_wake: AtomicU64,
    control: Mutex<Control>,
    wake: Condvar,
    /// Held while timers fire.
    firing: Mutex<()>,
}

impl Inner {
    fn earliest(&self) -> u64 {
        read(&self.slots).iter().map(|s| s.deadline.load(Ordering::SeqCst)).min().unwrap_or(NEVER)
    }

    fn run_expired(&self) {
        let _firing = lock(&self.firing);
        let now = self.clock.now_ns();
        for slot in read(&self.slots).iter() {
            let deadline = slot.deadline.load(Ordering::SeqCst);
            if deadline <= now
                && deadline != NEVER
                && slot.deadline.compare_exchange(deadline, NEVER, Ordering::SeqCst, Ordering::SeqCst).is_ok()
                && let Some(target) = slot.target.upgrade()
            {
                target.on_timer(now);
            }
        }
    }

    fn serve(&self) {
        let mut c = lock(&self.control);
        while !c.stop {
            self.next_wake.store(0, Ordering::SeqCst);
            let next = if c.paused { NEVER } else { self.earliest() };
            if !c.paused {
                let now = self.clock.now_ns();
                if next <= now {
                    drop(c);
                    self.run_expired();
                    c = lock(&self.control);
                    continue;
                }
                // Whoever arms a timer from now on and is earlier tells us; whoever did so before is seen by a
                // second look.
                self.next_wake.store(next, Ordering::SeqCst);
                if self.earliest() < next {
                    continue;
                }
                if next != NEVER {
                    let limit = Duration::from_nanos(next - now);
                    c = self.wake.wait_timeout(c, limit).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            }
            c = self.wake.wait(c).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tell(&self, f: impl FnOnce(&mut Control)) {
        f(&mut lock(&self.control));
        self.wake.notify_all();
    }
}

/// The machine's timers. One host thread (from [`start`](Timers::start) on) calls each target when machine time
/// reaches its deadline; tests that drive the clock by hand call [`run_expired`](Timers::run_expired) instead.
///
/// There are a few timers a machine and one a processor, so the thread looks at all of them when it wakes; arming
/// is a store, and a wake-up only if the new deadline is the earliest.
pub struct Timers {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Timers {
    /// No timers, paused, and no thread yet.
    #[must_use]
    pub fn new(clock: VmClock) -> Timers {
        let inner = Inner {
            clock,
            slots: RwLock::default(),
            next_wake: AtomicU64::new(0),
            control: Mutex::new(Control { paused: true, stop: false }),
            wake: Condvar::new(),
            firing: Mutex::new(()),
        };
        Timers { inner: Arc::new(inner), thread: Mutex::new(None) }
    }

    /// Adds a timer, disarmed.
    #[must_use]
    pub fn add(&self, target: Weak<dyn TimerTarget>) -> TimerHandle {
        let slot = Arc::new(Slot { deadline: AtomicU64::new(NEVER), target });
        write(&self.inner.slots).push(Arc::clone(&slot));
        TimerHandle { slot, inner: Arc::clone(&self.inner) }
    }

    /// Starts the thread, if it does not run yet; it stays [paused](Self::pause) until [`resume`](Self::resume).
    ///
    /// # Errors
    /// The host's, if it has no thread to give.
    pub fn start(&self) -> std::io::Result<()> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let inner = Arc::clone(&self.inner);
            *thread = Some(std::thread::Builder::new().name("timers".into()).spawn(move || inner.serve())?);
        }
        Ok(())
    }

    /// Keeps the thread from firing timers, and waits until it is out of any that it fires now. Stop the clock first.
    pub fn pause(&self) {
        self.inner.tell(|c| c.paused = true);
        drop(lock(&self.inner.firing));
    }

    /// Lets the thread fire timers. Start the clock first.
    pub fn resume(&self) {
        self.inner.tell(|c| c.paused = false);
    }

    /// Calls every target whose deadline has passed, on this thread.
    pub fn run_expired(&self) {
        self.inner.run_expired();
    }

    /// The earliest armed deadline in machine nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        Some(self.inner.earliest()).filter(|d| *d != NEVER)
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.inner.tell(|c| c.stop = true);
        if let Some(t) = lock(&self.thread).take() {
            let _panicked = t.join();
        }
    }
}

/// One timer.
pub struct TimerHandle {
    slot: Arc<Slot>,
    inner: Arc<Inner>,
}

impl TimerHandle {
    /// Sets the deadline, in machine nanoseconds; replaces the one before. [`u64::MAX`] disarms.
    #[inline]
    pub fn arm(&self, deadline_ns: u64) {
        self.slot.deadline.store(deadline_ns, Ordering::SeqCst);
        if deadline_ns < self.inner.next_wake.load(Ordering::SeqCst) {
            // Taking the lock orders this with a thread between its look at the deadlines and its sleep.
            drop(lock(&self.inner.control));
            self.inner.wake.notify_all();
        }
    }

    /// Disarms it. A call that is under way may still come.
    pub fn disarm(&self) {
        self.slot.deadline.store(NEVER, Ordering::SeqCst);
    }

    /// Machine time now.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.inner.clock.now_ns()
    }

    /// The machine's clock.
    #[must_use]
    pub fn clock(&self) -> &VmClock {
        &self.inner.clock
    }
}

impl std::fmt::Debug for TimerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TimerHandle({})", self.slot.deadline.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize, Condvar, Mutex<usize>);

    impl TimerTarget for Count {
        fn on_timer(&self, _now: u64) {
            self.0.fetch_add(1, Ordering::SeqCst);
            *lock(&self.2) += 1;
            self.1.notify_all();
        }
    }

    fn weak(c: &Arc<Count>) -> Weak<dyn TimerTarget> {
        let w: Weak<Count> = Arc::downgrade(c);
        w
    }

    #[test]
    fn fires_once_when_due() {
        let clock = VmClock::new(1_000_000);
        let timers = Timers::new(clock.clone());
        let c = Arc::new(Count::default());
        let h = timers.add(weak(&c));
        h.arm(100);
        clock.set_ns(99);
        timers.run_expired();
        assert_eq!(c.0.load(Ordering::SeqCst), 0);
        clock.set_ns(100);
        timers.run_expired();
        timers.run_expired();
        assert_eq!(c.0.load(Ordering::SeqCst), 1);
        h.arm(200);
        assert_eq!(timers.next_deadline(), Some(200));
        h.disarm();
        clock.set_ns(300);
        timers.run_expired();
        assert_eq!(c.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_thread_fires_after_resume_and_ends_on_drop() {
        let clock = VmClock::new(1_000_000);
        let timers = Timers::new(clock.clone());
        let c = Arc::new(Count::default());
        let h = timers.add(weak(&c));
        timers.start().unwrap();
        clock.start();
        timers.resume();
        for n in 1..=20 {
            h.arm(clock.now_ns() + 1000);
            let mut fired = lock(&c.2);
            while *fired < n {
                fired = c.1.wait(fired).unwrap();
            }
        }
        clock.stop();
        timers.pause();
        h.arm(0);
        drop(timers);
        assert_eq!(c.0.load(Ordering::SeqCst), 20);
    }
}
