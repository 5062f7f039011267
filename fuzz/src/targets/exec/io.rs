//! [`GarbageIo`]: a machine that answers anything, interrupts at any time, and counts.

use super::Plan;
use crate::input::Rng;
use ringer_engine::{CpuIo, Pending, StopToken};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Calls until the processor is stopped.
const BUDGET: u32 = 2000;

struct State {
    rng: Rng,
    left: u32,
    interrupts: bool,
    resets: bool,
    cr8: u64,
    tsc: u64,
}

pub(super) struct GarbageIo {
    state: Mutex<State>,
    stop: StopToken,
}

impl GarbageIo {
    pub fn new(stop: StopToken) -> GarbageIo {
        let state = State { rng: Rng::new(0), left: 0, interrupts: false, resets: false, cr8: 0, tsc: 0 };
        GarbageIo { state: Mutex::new(state), stop }
    }

    pub fn begin(&self, plan: &Plan) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State {
            rng: plan.rng.clone(),
            left: BUDGET,
            interrupts: !plan.flag(3),
            resets: plan.flag(4),
            cr8: 0,
            tsc: 0,
        };
    }

    fn count(&self) {
        drop(self.call());
    }

    /// A call: takes one of the budget, and now and then asks for attention.
    fn call(&self) -> MutexGuard<'_, State> {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.left = s.left.saturating_sub(1);
        if s.left == 0 {
            self.stop.raise(StopToken::STOP);
        } else if s.interrupts && s.rng.one_in(4) {
            self.stop.raise(StopToken::ATTENTION);
        }
        s
    }
}

impl CpuIo for GarbageIo {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        self.call().rng.fill(data);
    }
    fn pio_write(&self, _port: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        self.count();
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        check_mmio(gpa, data.len());
        self.call().rng.fill(data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        check_mmio(gpa, data.len());
        self.count();
    }
    fn pending(&self) -> Pending {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !s.interrupts {
            return Pending::default();
        }
        Pending {
            intr: s.rng.one_in(2),
            nmi: s.rng.one_in(8),
            init: s.resets && s.rng.one_in(32),
            sipi: (s.resets && s.rng.one_in(8)).then(|| s.rng.u64() as u8),
            unhalt: s.rng.one_in(8),
        }
    }
    fn acknowledge(&self) -> Option<u8> {
        let mut s = self.call();
        (!s.rng.one_in(8)).then(|| s.rng.u64() as u8)
    }
    fn cr8(&self) -> u64 {
        self.call().cr8
    }
    fn set_cr8(&self, value: u64) {
        assert!(value <= 15);
        self.call().cr8 = value;
    }
    fn msr_read(&self, _msr: u32) -> Option<u64> {
        let mut s = self.call();
        (!s.rng.one_in(4)).then(|| s.rng.value())
    }
    fn msr_write(&self, _msr: u32, _value: u64) -> Option<()> {
        (!self.call().rng.one_in(4)).then_some(())
    }
    fn hypercall(&self, _nr: u64, _args: [u64; 4]) -> u64 {
        self.call().rng.u64()
    }
    fn tsc(&self) -> u64 {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.tsc += 1000;
        s.tsc
    }
    fn reset_apic(&self) {
        self.call().cr8 = 0;
    }
}

fn check_mmio(gpa: u64, len: usize) {
    assert!((1..=64).contains(&len), "an access of {len} bytes at {gpa:#x}");
    assert!(gpa >> 52 == 0, "guest-physical address {gpa:#x}");
}
