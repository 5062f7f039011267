//! What a debugger has asked of a processor ([`DebugRequest`]), in the form that the engines look at.

#[cfg(test)]
mod tests;

use ringer_engine::{DebugRequest, WatchKind, Watchpoint};

/// The part that the soft MMU and repeated instructions look at.
#[derive(Default)]
pub struct Watched {
    /// Data whose pages have no fast entries in the soft TLB.
    pub points: Vec<Watchpoint>,
    /// Of these, the one that was accessed since the last instruction boundary.
    pub hit: Option<Watchpoint>,
    /// A repeated instruction stops after one iteration.
    pub one_iteration: bool,
}

/// The part that the loops look at between two instructions.
#[derive(Default)]
pub(crate) struct Debugger {
    /// Linear addresses, in ascending order.
    breakpoints: Vec<u64>,
    /// Reads are watched. Blocks are not left for what they read: there is one instruction a block then.
    reads: bool,
    /// A step is wanted.
    pub step: bool,
    /// The processor has stopped for the breakpoint at RIP, and goes on over it.
    pub pass: bool,
    /// The processor has been halted since the step began.
    pub halted: bool,
}

impl Debugger {
    pub fn new(request: &DebugRequest) -> Debugger {
        Debugger {
            breakpoints: request.breakpoints.clone(),
            reads: request.watchpoints.iter().any(|w| w.kind != WatchKind::Write),
            step: request.step,
            ..Debugger::default()
        }
    }

    /// Whether blocks may not be run as they come.
    #[inline]
    pub fn cares_for_blocks(&self) -> bool {
        self.reads || !self.breakpoints.is_empty()
    }

    /// Whether the next instruction is to be run by itself.
    pub fn is_singular(&self) -> bool {
        self.step || self.pass
    }

    /// Whether external interrupts wait.
    pub fn holds_interrupts(&self) -> bool {
        self.pass || self.step && !self.halted
    }

    /// Whether the processor is to stop before the instruction at `lin`.
    pub fn stops_at(&self, lin: u64) -> bool {
        !self.pass && self.breakpoints.binary_search(&lin).is_ok()
    }

    /// Whether a block of `len` bytes at `lin` is too much to be run at once.
    pub fn splits(&self, lin: u64, len: u64) -> bool {
        let next = self.breakpoints.partition_point(|b| *b <= lin);
        self.reads || self.breakpoints.get(next).is_some_and(|b| b - lin < len)
    }

    /// Offsets of the breakpoints in their pages.
    pub fn offsets(&self) -> impl Iterator<Item = u16> {
        self.breakpoints.iter().map(|b| (b & 0xfff) as u16)
    }
}
