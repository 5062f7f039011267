//! The software engines. One core (decode, soft MMU, instruction semantics, exceptions); on it the interpreter, the reference.
//!
//! The way of one guest instruction: [`run`](Interpreter) finds the block at RIP in the [`cache`], or [`decode`] makes it from the
//! bytes that the soft MMU ([`mmu`]) fetches; each op's handler (`exec::fast`, or [`exec::generic`] and behind it [`sys`] and
//! [`host`]) does its work on the [`cpu::Cpu`] and hands on to the next; the last sets RIP. A fault leaves the block at
//! once and is delivered by [`sys`].

pub mod block;
pub mod cache;
pub mod cpu;
pub mod debugger;
pub mod decode;
pub mod exec;
mod fetched;
pub mod host;
pub mod hostops;
mod large;
mod mapping;
pub mod mmu;
pub mod operand;
mod probe;
mod run;
pub mod shoot;
pub mod sites;
pub mod sys;
pub mod translator;
mod vm;

pub use run::Interpreter;
pub use translator::TranslatorEngine;
pub use vm::InterpreterEngine;

/// The features that these engines offer a guest on this host.
#[must_use]
pub fn offered() -> ringer_arch::cpu::FeatureSet {
    ringer_arch::cpu::FeatureSet::software(&host::cpuid)
}

/// The model that `--cpu host` names on this host.
///
/// # Errors
/// The host lacks what every model needs.
pub fn host_model() -> Result<ringer_arch::cpu::CpuModel, ringer_arch::cpu::CpuModelError> {
    ringer_arch::cpu::CpuModel::named("host", &host::cpuid, &offered())
}
