//! The interpreter as an [`Engine`].

use crate::cpu::Cpu;
use crate::run::Interpreter;
use crate::shoot::Shared;
use ringer_engine::{CpuIo, Engine, EngineError, Probe, StopToken, Vcpu, Vm, VmParams};
use std::sync::Arc;

/// The interpreter: the reference engine. Runs on any x86-64 Linux host.
#[derive(Clone, Copy, Debug, Default)]
pub struct InterpreterEngine;

impl Engine for InterpreterEngine {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn probe(&self) -> Probe {
        crate::probe::probe(self)
    }

    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(InterpreterVm { shared: Arc::new(Shared::new(params.vcpus)), params }))
    }
}

struct InterpreterVm {
    params: VmParams,
    shared: Arc<Shared>,
}

impl Vm for InterpreterVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        self.shared.register(index, stop.clone());
        let cpu = Cpu::new(&self.params, index, io, stop).map_err(|source| EngineError::Host {
            engine: "interpreter",
            what: "mapping executable memory",
            source,
        })?;
        Ok(Box::new(Interpreter::new(cpu, self.shared.clone(), self.params.started)))
    }
}
