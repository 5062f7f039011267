//! [`TestIo`]: the machine around the processor, the same for every engine and every time.

use crate::layout as l;
use ringer_difftest::rng::mix;
use ringer_engine::{CpuIo, Pending, StopToken};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Accesses kept one by one; all count in the hash.
const KEEP: usize = 64;

/// One access to a port or to what is not RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What: "in", "out", "load", "store", "ack".
    pub what: &'static str,
    /// Port or guest-physical address.
    pub at: u64,
    /// Bytes.
    pub len: usize,
    /// What was written (its first eight bytes), or the vector.
    pub value: u64,
}

/// All accesses of a program.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Log {
    /// How many.
    pub count: u64,
    /// Of all.
    pub hash: u64,
    /// The first ones.
    pub first: Vec<Access>,
}

#[derive(Default)]
struct State {
    log: Log,
    waiting: VecDeque<u8>,
    nmi: bool,
    cr8: u64,
    /// Asynchronous interrupts, which leave no trace here.
    quiet: u32,
    ended: bool,
}

/// A machine whose reads answer by place and number, and whose ports interrupt.
pub struct TestIo {
    state: Mutex<State>,
    stop: StopToken,
}

impl TestIo {
    /// Around the processor that `stop` belongs to.
    #[must_use]
    pub fn new(stop: StopToken) -> TestIo {
        TestIo { state: Mutex::default(), stop }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As before the first program.
    pub fn reset(&self) {
        *self.state() = State::default();
    }

    /// The log, and whether the program ended by the port.
    #[must_use]
    pub fn finish(&self) -> (Log, bool) {
        let mut s = self.state();
        (std::mem::take(&mut s.log), s.ended)
    }

    /// Makes an asynchronous interrupt pending, if none is.
    pub fn interrupt(&self) {
        let mut s = self.state();
        if s.quiet == 0 {
            s.quiet = 1;
            self.stop.raise(StopToken::ATTENTION);
        }
    }

    fn note(&self, what: &'static str, at: u64, data: &[u8]) -> MutexGuard<'_, State> {
        let mut s = self.state();
        let mut first = [0; 8];
        let n = data.len().min(8);
        first[..n].copy_from_slice(&data[..n]);
        let mut hash = s.log.hash ^ mix(at ^ (data.len() as u64) << 56 ^ u64::from(what.as_bytes()[0]) << 48);
        for chunk in data.chunks(8) {
            let mut b = [0; 8];
            b[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash ^ u64::from_le_bytes(b));
        }
        s.log.hash = hash;
        s.log.count += 1;
        if s.log.first.len() < KEEP {
            s.log.first.push(Access { what, at, len: data.len(), value: u64::from_le_bytes(first) });
        }
        s
    }

    fn answer(&self, what: &'static str, at: u64, data: &mut [u8]) {
        let n = data.len().min(16);
        let s = self.note(what, at, &[0; 16][..n]);
        let seed = at ^ s.log.count << 32;
        for (i, b) in data.iter_mut().enumerate() {
            *b = (mix(seed ^ (i as u64 / 8)) >> (i % 8 * 8)) as u8;
        }
    }
}

impl CpuIo for TestIo {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.answer("in", port.into(), data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        let mut s = self.note("out", port.into(), data);
        if port == u16::from(l::PORT_END) {
            s.ended = true;
            self.stop.raise(StopToken::STOP);
        } else if port == u16::from(l::PORT_RAISE) {
            s.waiting.push_back(l::VECTOR_RAISE + (data[0] & 15));
            self.stop.raise(StopToken::ATTENTION);
        } else if port == u16::from(l::PORT_NMI) {
            s.nmi = true;
            self.stop.raise(StopToken::ATTENTION);
        }
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.answer("load", gpa, data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        drop(self.note("store", gpa, data));
    }
    fn pending(&self) -> Pending {
        let mut s = self.state();
        let intr = !s.waiting.is_empty() || s.quiet != 0;
        Pending { intr, nmi: std::mem::take(&mut s.nmi), ..Pending::default() }
    }
    fn acknowledge(&self) -> Option<u8> {
        let v = {
            let mut s = self.state();
            if let Some(v) = s.waiting.pop_front() {
                v
            } else if s.quiet != 0 {
                s.quiet = 0;
                return Some(l::VECTOR_ASYNC);
            } else {
                return None;
            }
        };
        drop(self.note("ack", v.into(), &[]));
        Some(v)
    }
    fn cr8(&self) -> u64 {
        self.state().cr8
    }
    fn set_cr8(&self, value: u64) {
        self.note("tpr", value, &[]).cr8 = value;
    }
    fn msr_read(&self, _msr: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _msr: u32, _value: u64) -> Option<()> {
        None
    }
    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64 {
        args.iter().fold(nr, |a, b| mix(a ^ b))
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn reset_apic(&self) {}
}
