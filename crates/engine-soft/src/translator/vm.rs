//! The translator as an [`Engine`].

use super::vcpu::Translator;
use crate::cpu::Cpu;
use crate::run::Interpreter;
use crate::shoot::Shared;
use crate::vm::share;
use ringer_engine::{CpuIo, Engine, EngineError, Probe, StopToken, Vcpu, Vm, VmParams};
use ringer_memory::CodeWatch;
use std::sync::{Arc, Weak};

/// The translator: runs on any x86-64 Linux host.
#[derive(Clone, Copy, Debug, Default)]
pub struct TranslatorEngine;

impl Engine for TranslatorEngine {
    fn name(&self) -> &'static str {
        "translator"
    }

    fn probe(&self) -> Probe {
        crate::probe::probe(self)
    }

    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        let shared = Arc::new(Shared::new(params.vcpus));
        let watch: Weak<dyn CodeWatch> = Arc::downgrade(&shared) as Weak<dyn CodeWatch>;
        params.memory.watch_code(watch);
        Ok(Box::new(TranslatorVm { shared, params }))
    }
}

struct TranslatorVm {
    params: VmParams,
    shared: Arc<Shared>,
}

impl Vm for TranslatorVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let fail =
            |source| EngineError::Host { engine: "translator", what: "mapping executable memory", source };
        self.shared.register(index, stop.clone());
        let cpu = Cpu::new(&self.params, index, io, stop).map_err(fail)?;
        let interp = Interpreter::new(cpu, self.shared.clone(), self.params.started);
        Ok(Box::new(Translator::new(interp, share(&self.params)).map_err(fail)?))
    }
}
