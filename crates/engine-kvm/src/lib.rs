//! KVM as an engine. The processors run in the host's kernel; interrupt chips, timers and all else of the machine stay Ringer's, behind
//! [`CpuIo`](ringer_engine::CpuIo), so that a machine can change between this engine and the others.
//!
//! [`vcpu`] is the loop around KVM_RUN; [`state`] turns [`VcpuState`](ringer_arch::VcpuState) into KVM's structures and back; [`cpuid`] and
//! [`msrs`] make a processor what its model says; [`tsc`] ties the TSC to the machine's clock; [`vm`] has RAM and the dirty log; [`host`]
//! opens the node and says what is wrong with it; [`probe`] measures what it is worth. [`raw`] and [`kick`] hold all `unsafe`.
//!
//! KVM: Linux Documentation/virt/kvm/api.rst.

mod check;
mod cpuid;
mod debug;
mod engine;
mod host;
mod kick;
mod msrs;
mod probe;
mod quirks;
mod raw;
mod state;
mod tsc;
mod vcpu;
mod vm;

pub use engine::KvmEngine;

/// The engine's name.
const NAME: &str = "kvm";

/// What KVM refused.
fn host_error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> ringer_engine::EngineError {
    move |e| ringer_engine::EngineError::Host { engine: NAME, what, source: e.into() }
}
