//! [`DebugRequest`]: what a debugger asks of a processor.

/// Which accesses a watchpoint looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads of data. An engine that cannot tell them from writes (the debug registers cannot) stops at both.
    Read,
    /// Both.
    Access,
}

/// Data whose accesses stop a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watchpoint {
    /// Linear address of the first byte.
    pub at: u64,
    /// Bytes, 1 to 8.
    pub len: u64,
    /// Which accesses.
    pub kind: WatchKind,
}

impl Watchpoint {
    /// Whether an access of `len` bytes at `lin` touches it.
    #[must_use]
    pub fn touched(&self, lin: u64, len: u64, write: bool) -> bool {
        let kind = match self.kind {
            WatchKind::Write => write,
            WatchKind::Read => !write,
            WatchKind::Access => true,
        };
        // Distances, so that neither range's end can overflow.
        kind && (lin.wrapping_sub(self.at) < self.len || self.at.wrapping_sub(lin) < len)
    }
}

/// Where a processor is to stop for a debugger: [`Vcpu::set_debug`](crate::Vcpu::set_debug) has the contract. The default
/// asks for nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DebugRequest {
    /// Linear addresses of instructions (CS base and RIP outside 64-bit code), in ascending order, each once.
    pub breakpoints: Vec<u64>,
    /// Data to be watched.
    pub watchpoints: Vec<Watchpoint>,
    /// Stop after one step.
    pub step: bool,
}

impl DebugRequest {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.breakpoints.is_empty() && self.watchpoints.is_empty() && !self.step
    }
}

/// Why a processor stopped for a debugger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugStop {
    /// It stands before the instruction at a breakpoint.
    Breakpoint,
    /// The instruction that has just completed, or the delivery of an event, accessed watched data.
    Watchpoint(Watchpoint),
    /// The step is done.
    Step,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_a_watchpoint() {
        let w = |at, len, kind| Watchpoint { at, len, kind };
        let four = w(0x1002, 4, WatchKind::Write);
        for (lin, len, hit) in
            [(0x1000, 2, false), (0x1000, 3, true), (0x1005, 8, true), (0x1006, 1, false), (0xff0, 64, true)]
        {
            assert_eq!(four.touched(lin, len, true), hit, "{lin:#x} {len}");
            assert!(!four.touched(lin, len, false));
        }
        assert!(
            w(5, 1, WatchKind::Read).touched(5, 1, false) && !w(5, 1, WatchKind::Read).touched(5, 1, true)
        );
        assert!(
            w(5, 1, WatchKind::Access).touched(5, 1, false) && w(5, 1, WatchKind::Access).touched(5, 1, true)
        );
        // At the top of the address space.
        let top = w(u64::MAX, 1, WatchKind::Access);
        assert!(top.touched(u64::MAX - 7, 8, false) && !top.touched(u64::MAX - 8, 8, false));
    }
}
