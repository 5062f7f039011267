//! The machine: [`VmSpec`] (what it is to be), [`Machine`] (memory, processors' threads and devices, from power-up to its
//! [`Outcome`]), the choice of an engine, and the firmware tables.
#![forbid(unsafe_code)]

pub mod acpi;
mod control;
mod engines;
mod error;
mod gdb;
mod machine;
mod peak;
mod platform;
mod spec;
mod state;
mod vcpus;

pub use control::{Control, ControlError, MachineHandle, Status};
pub use engines::{Choice, choose, cpu_model, engines, needs};
pub use error::VmmError;
pub use gdb::GdbServer;
pub use machine::{Machine, Outcome};
pub use platform::{SerialInput, SerialSides};
pub use spec::{DEFAULT_MEMORY, MAX_CPUS, MIN_MEMORY, OnReset, SpecError, VmSpec, parse_size, show_size};
pub use state::MachineState;
