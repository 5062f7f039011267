//! The x86-64 guest architecture as data: processor state, bits of control registers and MSRs, exceptions,
//! descriptors, the CPU model. Knows neither memory objects, nor engines, nor the host's instruction set.
#![forbid(unsafe_code)]

pub mod cpu;
pub mod desc;
pub mod exception;
pub mod hex;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod seg;
pub mod state;

pub use exception::Exception;
pub use seg::{Attr, Segment};
pub use state::{MpState, VcpuState};
