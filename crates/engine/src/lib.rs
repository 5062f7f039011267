//! What every execution engine is to the rest of Ringer: the traits [`Engine`], [`Vm`], [`Vcpu`], what a
//! processor calls down into ([`CpuIo`]), the interrupt fabric ([`IrqChip`]), how a processor is kicked
//! ([`StopToken`]), what a debugger asks of a processor ([`DebugRequest`]) and the machine's time ([`VmClock`]).
#![forbid(unsafe_code)]

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod cpu_io;
mod debug;
mod irq;
pub mod states;
mod stop;
mod vcpu;
mod vm;

pub use clock::VmClock;
pub use cpu_io::{CpuIo, Pending};
pub use debug::{DebugRequest, DebugStop, WatchKind, Watchpoint};
pub use irq::IrqChip;
pub use stop::{Kicked, StopToken};
pub use vcpu::{EXITS, Exit, Stats, Step, Until, Vcpu};
pub use vm::{CODE_LIMIT, Engine, EngineError, Needs, Probe, Vm, VmParams};
