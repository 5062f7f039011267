//! [`LockStepEngine`].

use crate::io::{Player, Recorder, Tape};
use crate::vcpu::{LockStep, Side};
use ringer_arch::cpu::CpuModel;
use ringer_engine::{CpuIo, Engine, EngineError, Probe, StopToken, Vcpu, Vm, VmParams};
use ringer_memory::GuestMemory;
use std::sync::Arc;

/// Runs guests on two engines at once.
pub struct LockStepEngine {
    primary: Box<dyn Engine>,
    secondary: Box<dyn Engine>,
}

impl LockStepEngine {
    /// Runs `primary`, and checks it by `secondary`.
    #[must_use]
    pub fn new(primary: Box<dyn Engine>, secondary: Box<dyn Engine>) -> LockStepEngine {
        LockStepEngine { primary, secondary }
    }
}

impl Engine for LockStepEngine {
    fn name(&self) -> &'static str {
        "lockstep"
    }

    fn probe(&self) -> Probe {
        match (self.primary.probe(), self.secondary.probe()) {
            (Probe::Missing(why), _) | (_, Probe::Missing(why)) => Probe::Missing(why),
            (Probe::Slow(why), _) | (_, Probe::Slow(why)) => Probe::Slow(why),
            // Not its own rate: what a loop takes with two engines and comparisons says nothing.
            (Probe::Works { rate }, Probe::Works { .. }) => Probe::Works { rate },
        }
    }

    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        if params.vcpus != 1 {
            return Err(EngineError::Unavailable {
                engine: "lockstep",
                why: "it takes machines of one processor only".to_owned(),
            });
        }
        let copy = GuestMemory::new(params.memory.size()).map_err(|e| EngineError::Unavailable {
            engine: "lockstep",
            why: format!("there is no room for a second copy of guest RAM: {e}"),
        })?;
        let other = VmParams { memory: copy.clone(), ..params.clone() };
        Ok(Box::new(LockStepVm {
            memories: [params.memory.clone(), copy],
            model: params.cpu.clone(),
            primary: self.primary.create_vm(params)?,
            secondary: self.secondary.create_vm(other)?,
            names: [self.primary.name(), self.secondary.name()],
        }))
    }
}

struct LockStepVm {
    memories: [GuestMemory; 2],
    model: Arc<CpuModel>,
    primary: Box<dyn Vm>,
    secondary: Box<dyn Vm>,
    names: [&'static str; 2],
}

impl Vm for LockStepVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let tape = Arc::new(Tape::default());
        let stops = [StopToken::new(), StopToken::new()];
        let recorder = Arc::new(Recorder::new(io, tape.clone(), stop.clone(), stops[0].clone()));
        let player = Arc::new(Player::new(tape.clone()));
        let a = self.primary.create_vcpu(index, recorder, stops[0].clone())?;
        let b = self.secondary.create_vcpu(index, player, stops[1].clone())?;
        let [m, n] = self.memories.clone();
        let [s, t] = stops;
        let sides = [
            Side { vcpu: a, stop: s, memory: m, name: self.names[0] },
            Side { vcpu: b, stop: t, memory: n, name: self.names[1] },
        ];
        Ok(Box::new(LockStep::new(sides, tape, stop, self.model.clone())))
    }
}
