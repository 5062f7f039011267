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
        let interp = Interpreter::new(cpu, self.shared.clone(), self.params.started);
        Ok(Box::new(interp.with_code_limit(share(&self.params))))
    }
}

/// A processor gets no less than this for code, in bytes.
const LEAST: u64 = 4 << 20;

/// What one processor's code may take of what the machine's may.
pub(crate) fn share(params: &VmParams) -> usize {
    let share = (params.code_limit / u64::from(params.vcpus.max(1))).max(LEAST);
    usize::try_from(share).unwrap_or(usize::MAX)
}
