//! [`StopToken`]: how other threads get a processor's attention.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What gets a processor out of where it does not see the word.
type Kick = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Inner {
    flags: AtomicU32,
    /// Somebody sleeps, or is about to, or must be kicked: waking costs a system call, which a processor that runs need not pay for.
    sleepers: AtomicU32,
    /// The kick of the processor that runs, if it needs one.
    lock: Mutex<Option<Kick>>,
    wake: Condvar,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopToken").field("flags", &self.flags).finish_non_exhaustive()
    }
}

/// A word of requests to one processor, with a place to sleep until one comes. Cloning shares it.
///
/// Engines look at the word between blocks of guest code (a microsecond or so apart); whoever raises a bit may
/// do so from any thread, at any time, also before the processor first runs.
#[derive(Clone, Debug, Default)]
pub struct StopToken(Arc<Inner>);

impl StopToken {
    /// `Vcpu::run` must return [`Exit::Stopped`](crate::Exit::Stopped) at the next instruction boundary.
    pub const STOP: u32 = 1;
    /// The interrupt fabric has changed: ask [`CpuIo::pending`](crate::CpuIo::pending).
    pub const ATTENTION: u32 = 2;
    /// For the engine's own use between its processors (TLB and code shoot-downs).
    pub const ENGINE: u32 = 4;
    /// For the engine's own use: code has been written over.
    pub const CODE: u32 = 8;

    /// A token with no request.
    #[must_use]
    pub fn new() -> StopToken {
        StopToken::default()
    }

    /// Raises `bits` and wakes the processor if it sleeps.
    pub fn raise(&self, bits: u32) {
        let before = self.0.flags.fetch_or(bits, Ordering::SeqCst);
        // Either this sees the sleeper, or the sleeper, who announced itself first, sees the bits.
        if before & bits != bits && self.0.sleepers.load(Ordering::SeqCst) != 0 {
            // Taking the lock orders this with a sleeper between its check and its wait, and keeps the kick valid while it is called.
            let guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kick) = &*guard {
                kick();
            }
            drop(guard);
            self.0.wake.notify_all();
        }
    }

    /// Has `kick` called by whoever raises a bit that was not raised, after it was, until the answer is dropped: for a processor
    /// that runs where it cannot look at the word, such as in the host's kernel. `kick` must not block, nor use this token. One
    /// kick at a time: a later one takes an earlier one's place.
    pub fn kick_by(&self, kick: impl Fn() + Send + Sync + 'static) -> Kicked {
        *self.0.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(kick));
        self.0.sleepers.fetch_add(1, Ordering::SeqCst);
        Kicked(self.clone())
    }

    /// The bits raised now.
    #[must_use]
    #[inline]
    pub fn load(&self) -> u32 {
        self.0.flags.load(Ordering::Relaxed)
    }

    /// The word itself, for translated code to poll.
    #[must_use]
    pub fn word(&self) -> &AtomicU32 {
        &self.0.flags
    }

    /// Clears `bits` and returns those of them that were raised.
    pub fn take(&self, bits: u32) -> u32 {
        self.0.flags.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Sleeps until a bit is raised, or for `limit`.
    pub fn wait(&self, limit: Option<Duration>) {
        self.0.sleepers.fetch_add(1, Ordering::SeqCst);
        self.sleep(limit);
        self.0.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn sleep(&self, limit: Option<Duration>) {
        let Ok(mut guard) = self.0.lock.lock() else { return };
        while self.0.flags.load(Ordering::SeqCst) == 0 {
            match limit {
                None => match self.0.wake.wait(guard) {
                    Ok(g) => guard = g,
                    Err(_) => return,
                },
                Some(limit) => {
                    let _unused = self.0.wake.wait_timeout(guard, limit);
                    return;
                }
            }
        }
    }
}

/// While it lives, raising a bit calls a kick: [`StopToken::kick_by`].
#[must_use]
#[derive(Debug)]
pub struct Kicked(StopToken);

impl Drop for Kicked {
    fn drop(&mut self) {
        self.0.0.sleepers.fetch_sub(1, Ordering::SeqCst);
        *self.0.0.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raise_kicks_while_it_is_asked_to() {
        let (t, n) = (StopToken::new(), Arc::new(AtomicU32::new(0)));
        let counter = n.clone();
        let kicked = t.kick_by(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        t.raise(StopToken::ATTENTION);
        t.raise(StopToken::ATTENTION);
        assert_eq!(n.load(Ordering::SeqCst), 1, "the bit was raised only once");
        t.take(StopToken::ATTENTION);
        t.raise(StopToken::ATTENTION | StopToken::STOP);
        assert_eq!(n.load(Ordering::SeqCst), 2);
        drop(kicked);
        t.take(u32::MAX);
        t.raise(StopToken::STOP);
        assert_eq!(n.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_raise_wakes_a_sleeper() {
        let t = StopToken::new();
        let t2 = t.clone();
        let h = std::thread::spawn(move || t2.wait(None));
        t.raise(StopToken::STOP);
        h.join().unwrap();
        assert_eq!(t.take(StopToken::STOP | StopToken::ATTENTION), StopToken::STOP);
        assert_eq!(t.load(), 0);
    }

    #[test]
    fn no_raise_is_lost_on_a_sleeper() {
        let (ping, pong) = (StopToken::new(), StopToken::new());
        let (ping2, pong2) = (ping.clone(), pong.clone());
        let h = std::thread::spawn(move || {
            for _ in 0..20_000 {
                ping2.wait(None);
                ping2.take(u32::MAX);
                pong2.raise(StopToken::ATTENTION);
            }
        });
        for _ in 0..20_000 {
            ping.raise(StopToken::ATTENTION);
            pong.wait(None);
            pong.take(u32::MAX);
        }
        h.join().unwrap();
    }
}
