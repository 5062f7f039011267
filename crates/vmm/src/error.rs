//! What can go wrong with a machine.

use crate::SpecError;
use crate::acpi::AcpiError;
use ringer_arch::cpu::{CpuModelError, FeatureSet};
use ringer_devices::{BusError, StateError};
use ringer_engine::EngineError;
use ringer_image::ImageError;
use ringer_memory::MemoryError;
use thiserror::Error;

/// A machine that could not be made, or that ended by a fault of ours.
#[derive(Debug, Error)]
pub enum VmmError {
    /// A machine that cannot be.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The kernel or initrd.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The processor model.
    #[error(transparent)]
    Cpu(#[from] CpuModelError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Firmware tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// There is no such engine.
    #[error("no engine is called {name:?}: choose auto, {names}")]
    UnknownEngine {
        /// What was asked for.
        name: String,
        /// Those that there are.
        names: String,
    },
    /// None works.
    #[error("no engine can run guests here: {0}")]
    NoEngine(String),
    /// The host refused a thread or the like.
    #[error("the host refused {what}")]
    Host {
        /// What.
        what: String,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// A device that could not be placed.
    #[error(transparent)]
    Platform(#[from] BusError),
    /// The engine cannot go on with the guest.
    #[error("engine {engine} cannot go on: processor {index}: {why}")]
    Failed {
        /// The engine.
        engine: &'static str,
        /// The processor.
        index: u32,
        /// One clause.
        why: String,
    },
    /// An engine lacks a part of a machine's processors.
    #[error("engine {engine} lacks {missing}, which this machine's processor model {model} has")]
    Lacks {
        /// The engine.
        engine: &'static str,
        /// The model.
        model: String,
        /// The features.
        missing: FeatureSet,
    },
    /// An engine needs another machine.
    #[error("engine {engine} {why}: a machine that is to change to it must be started so (--also {engine})")]
    Unfit {
        /// The engine.
        engine: &'static str,
        /// What does not fit.
        why: String,
    },
    /// A saved state that cannot be loaded.
    #[error(transparent)]
    State(#[from] StateError),
    /// A saved state of another machine.
    #[error("this is the state of a machine with {found}, and this one has {has}")]
    OtherMachine {
        /// What the state is of.
        found: String,
        /// What the machine is.
        has: String,
    },
    /// A processor's thread ended by a panic.
    #[error("processor {0} failed inside Ringer: this is a bug of Ringer's; the machine was ended")]
    Panicked(u32),
}
