//! [`StopToken`]: how other threads get a processor's attention.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
struct Inner {
    flags: AtomicU32,
    /// Somebody sleeps, or is about to: waking costs a system call, which a processor that runs need not pay for.
    sleepers: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
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
            // Taking the lock orders this with a sleeper between its check and its wait.
            drop(self.0.lock.lock());
            self.0.wake.notify_all();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
