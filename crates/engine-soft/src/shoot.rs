//! Shoot-downs between the processors of a machine.
//!
//! A page that becomes code must not be written through a fast TLB entry any more. The processor that decodes it raises
//! the epoch and asks the others to drop their fast write entries; until all have acknowledged, blocks of that time are
//! compared with memory before each run. A processor that sleeps or is paused holds no such entries and has
//! acknowledged everything to come.

use ringer_engine::StopToken;
use ringer_memory::{CodeWatch, GuestMemory};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// State shared by the processors of one machine.
#[derive(Debug)]
pub struct Shared {
    epoch: AtomicU64,
    acks: Box<[AtomicU64]>,
    stops: Mutex<Vec<(u32, StopToken)>>,
    /// For each processor with translated code, the pages whose code was written over since it last looked.
    dropped: Box<[Mutex<Vec<u64>>]>,
    /// Held while a page is marked as code and the others are told.
    marking: Mutex<()>,
}

/// More pages than this are told as one: all of them.
const MOST_DROPPED: usize = 1024;

impl CodeWatch for Shared {
    fn code_dropped(&self, page: u64) {
        for (i, stop) in &*self.stops.lock().unwrap_or_else(PoisonError::into_inner) {
            if let Some(d) = self.dropped.get(*i as usize) {
                let mut d = d.lock().unwrap_or_else(PoisonError::into_inner);
                if d.len() < MOST_DROPPED {
                    d.push(page);
                } else if d.last() != Some(&u64::MAX) {
                    d.push(u64::MAX);
                }
                stop.raise(StopToken::CODE);
            }
        }
    }
}

impl Shared {
    /// For `vcpus` processors, all of them not running.
    #[must_use]
    pub fn new(vcpus: u32) -> Shared {
        let acks = (0..vcpus).map(|_| AtomicU64::new(u64::MAX)).collect();
        let dropped = (0..vcpus).map(|_| Mutex::default()).collect();
        Shared {
            epoch: AtomicU64::new(0),
            acks,
            stops: Mutex::new(Vec::new()),
            dropped,
            marking: Mutex::new(()),
        }
    }

    /// Declares that processor `index` is about to decode `len` bytes of code at `gpa`, within one page; the version to file it under, and
    /// whether the processor must drop its own fast write entries to the page. The others are asked to.
    #[must_use]
    pub fn mark_code(&self, memory: &GuestMemory, gpa: u64, len: u64, index: u32) -> (u32, bool) {
        // One at a time, so that whoever finds the page marked already finds the epoch raised, too.
        let _one = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let (version, cached) = memory.mark_code(gpa, len);
        if cached {
            self.raise(index);
        }
        (version, cached)
    }

    /// Moves to `into` the numbers of the pages whose code was written over since processor `index` last asked; `u64::MAX`
    /// stands for all.
    pub fn take_dropped(&self, index: u32, into: &mut Vec<u64>) {
        if let Some(d) = self.dropped.get(index as usize) {
            std::mem::swap(&mut *d.lock().unwrap_or_else(PoisonError::into_inner), into);
        }
    }

    /// Registers how to get the attention of processor `index`.
    pub fn register(&self, index: u32, stop: StopToken) {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner).push((index, stop));
    }

    /// Asks all processors but `index` to drop their fast write entries.
    pub fn raise(&self, index: u32) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for (i, stop) in &*self.stops.lock().unwrap_or_else(PoisonError::into_inner) {
            if *i != index && self.ack_of(*i) != u64::MAX {
                stop.raise(StopToken::ENGINE);
            }
        }
    }

    fn ack_of(&self, index: u32) -> u64 {
        self.acks.get(index as usize).map_or(u64::MAX, |a| a.load(Ordering::SeqCst))
    }

    /// The epoch now: code decoded now can be trusted once all have acknowledged it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Processor `index` holds no fast write entry made before now.
    pub fn acknowledge(&self, index: u32) {
        self.set(index, self.epoch());
    }

    /// Processor `index` holds no fast write entries and makes none until it acknowledges again.
    pub fn idle(&self, index: u32) {
        self.set(index, u64::MAX);
    }

    fn set(&self, index: u32, v: u64) {
        if let Some(a) = self.acks.get(index as usize) {
            a.store(v, Ordering::SeqCst);
        }
    }

    /// Whether all processors but `index` have acknowledged `epoch`.
    #[must_use]
    pub fn settled(&self, index: u32, epoch: u64) -> bool {
        self.acks.iter().enumerate().all(|(i, a)| i == index as usize || a.load(Ordering::SeqCst) >= epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_once_every_other_has_acknowledged() {
        let s = Shared::new(3);
        let t = StopToken::new();
        s.register(1, t.clone());
        s.acknowledge(0);
        s.acknowledge(1);
        s.raise(0);
        assert_eq!(t.take(StopToken::ENGINE), StopToken::ENGINE);
        let e = s.epoch();
        assert!(!s.settled(0, e));
        s.acknowledge(1);
        assert!(s.settled(0, e), "processor 2 does not run");
        s.raise(0);
        s.idle(1);
        assert!(s.settled(0, s.epoch()));
    }
}
