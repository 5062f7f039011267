//! [`Engine`] and [`Vm`]: what can run guests here.

use crate::{CpuIo, StopToken, Vcpu};
use ringer_arch::cpu::{CpuModel, FeatureSet};
use ringer_memory::GuestMemory;
use std::sync::Arc;
use thiserror::Error;

/// What an engine cannot do.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The host lacks what the engine needs.
    #[error("engine {engine} cannot run here: {why}")]
    Unavailable {
        /// Its name.
        engine: &'static str,
        /// One clause that names what is missing.
        why: String,
    },
    /// A state that no processor can be in.
    #[error("not a processor state: {0}")]
    BadState(&'static str),
    /// Something that a debugger wants.
    #[error("the engine cannot serve the debugger: {0}")]
    NoDebug(String),
    /// The host refused something.
    #[error("engine {engine}: {what} failed")]
    Host {
        /// Its name.
        engine: &'static str,
        /// What was tried.
        what: &'static str,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
}

/// Result of an engine's functional probe.
#[derive(Clone, PartialEq, Debug)]
pub enum Probe {
    /// It runs guests; measured guest instructions per second.
    Works {
        /// Guest instructions per second of a short loop.
        rate: f64,
    },
    /// It runs guests, but so slowly that only who asks for it by name shall get it; the figures, in one clause.
    Slow(String),
    /// It does not, for this reason (one clause).
    Missing(String),
}

/// [`VmParams::code_limit`] where nobody says otherwise.
pub const CODE_LIMIT: u64 = 64 << 20;

/// What a machine's engine is created from. Fixed for the life of the machine.
#[derive(Clone, Debug)]
pub struct VmParams {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// What the processors are.
    pub cpu: Arc<CpuModel>,
    /// How many processors, at least 1.
    pub vcpus: u32,
    /// What the code that the engine makes or decodes of the guest's may take, with all tables that belong to it, in bytes, for all
    /// processors together. An engine that makes none has no use for it; one may need some megabytes for each processor and then takes those.
    pub code_limit: u64,
    /// Host time at which the machine was started, for [`Stats::first_user_ns`](crate::Stats::first_user_ns).
    pub started: std::time::Instant,
}

/// What an engine asks of the machine around its processors. The default asks for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// The only rate in kHz at which the guest's TSC can run; `None`: any.
    pub tsc_khz: Option<u64>,
    /// The processor features that it can offer, of those that the software engines know; `None`: what they offer.
    pub features: Option<FeatureSet>,
    /// It cannot pass hypercalls to the machine, which must not offer any.
    pub no_hypercalls: bool,
}

/// Something that can run guests on this host.
pub trait Engine: Send + Sync {
    /// The name that `--engine` takes.
    fn name(&self) -> &'static str;
    /// Runs a short guest loop and says at what rate; not just "is the device node there".
    fn probe(&self) -> Probe;
    /// Whether this engine knows an optional request by name. False by default, so that an engine which has never
    /// heard of a feature cannot ignore it silently.
    fn recognizes(&self, feature: &str) -> bool {
        let _ = feature;
        false
    }
    /// What a machine must be like to run on this engine. A machine that is made for another may still run on it: if it does not
    /// fit, [`create_vm`](Engine::create_vm) or [`Vm::create_vcpu`] refuses.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`], [`EngineError::Host`].
    fn needs(&self) -> Result<Needs, EngineError> {
        Ok(Needs::default())
    }
    /// Creates the engine's side of a machine.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`], [`EngineError::Host`].
    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError>;
}

/// The engine's side of one machine.
pub trait Vm: Send + Sync {
    /// Creates processor `index` (0 is the boot processor; also its APIC id), in its reset state. `io` is the machine
    /// as it sees it, `stop` how others get its attention: both are its own for life.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError>;
    /// Says whether the dirty log ([`GuestMemory::take_dirty`]) must be exact: by default the engine may call more pages written than
    /// were, where that costs less. Whatever is written while a processor runs is in the log once all have stopped.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    fn log_writes(&self, on: bool) -> Result<(), EngineError> {
        let _ = on;
        Ok(())
    }
}
