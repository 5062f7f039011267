//! Engines by name, and a broken one, by which the tests show that they find something.

use crate::handed::HandedEngine;
use ringer_arch::VcpuState;
use ringer_engine::{
    CpuIo, Engine, EngineError, Exit, Probe, Stats, Step, StopToken, Until, Vcpu, Vm, VmParams,
};
use std::sync::Arc;

/// The engine called `name`; several, joined by `>`, are one that hands its processors from one to the next.
///
/// # Errors
/// There is none.
pub fn engine(name: &str) -> anyhow::Result<Box<dyn Engine>> {
    if !name.contains('>') {
        return Ok(ringer_vmm::choose(name)?.engine);
    }
    let parts = name.split('>').map(|n| Ok(ringer_vmm::choose(n)?.engine));
    Ok(Box::new(HandedEngine::new(parts.collect::<anyhow::Result<_>>()?)))
}

/// What is wrong with a [`Broken`] engine.
#[derive(Clone, Copy)]
pub struct Fault {
    /// How it changes the state that a run of so many instructions has left.
    pub run: fn(&mut VcpuState, u64),
    /// How it changes what it tells of a step.
    pub step: fn(&mut Step),
}

/// An engine that does something wrong.
pub struct Broken {
    inner: Box<dyn Engine>,
    fault: Fault,
}

impl Broken {
    /// `inner`, with this wrong.
    #[must_use]
    pub fn new(inner: Box<dyn Engine>, fault: Fault) -> Broken {
        Broken { inner, fault }
    }
}

impl Engine for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn probe(&self) -> Probe {
        self.inner.probe()
    }
    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(BrokenVm { inner: self.inner.create_vm(params)?, fault: self.fault }))
    }
}

struct BrokenVm {
    inner: Box<dyn Vm>,
    fault: Fault,
}

impl Vm for BrokenVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(BrokenVcpu { inner: self.inner.create_vcpu(index, io, stop)?, fault: self.fault }))
    }
}

struct BrokenVcpu {
    inner: Box<dyn Vcpu>,
    fault: Fault,
}

impl BrokenVcpu {
    fn spoil(&mut self, instructions: u64) {
        let before = self.inner.state();
        let mut s = before.clone();
        (self.fault.run)(&mut s, instructions);
        if s != before {
            let set = self.inner.set_state(&s);
            assert!(set.is_ok(), "faults leave a state that processors can be in");
        }
    }
}

impl Vcpu for BrokenVcpu {
    fn run(&mut self) -> Exit {
        let before = self.inner.stats().instructions;
        let exit = self.inner.run();
        self.spoil(self.inner.stats().instructions - before);
        exit
    }
    fn state(&self) -> VcpuState {
        self.inner.state()
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.inner.set_state(state)
    }
    fn step(&mut self, until: Until) -> Option<Step> {
        let mut step = self.inner.step(until)?;
        (self.fault.step)(&mut step);
        Some(step)
    }
    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
