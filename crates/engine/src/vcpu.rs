//! [`Vcpu`]: one processor under an engine.

use crate::EngineError;
use ringer_arch::VcpuState;

/// Why a processor stopped. I/O is not among the reasons: it goes down through [`CpuIo`](crate::CpuIo).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// [`StopToken::STOP`](crate::StopToken::STOP) was raised; the processor stands at an instruction boundary.
    Stopped,
    /// A fault while delivering a double fault: the machine resets.
    TripleFault,
}

/// What a processor has done so far, for `--stats`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Stats {
    pub instructions: u64,
    /// Blocks of guest code entered, decoded, and dropped because the page was written.
    pub blocks_run: u64,
    pub blocks_decoded: u64,
    pub blocks_dropped: u64,
    pub pio: u64,
    pub mmio: u64,
    pub interrupts: u64,
    pub exceptions: u64,
    pub page_faults: u64,
    pub halts: u64,
    /// Soft-TLB misses that a page walk filled, accesses that took the slow path for another reason, and flushes.
    /// The engine does not count hits: that would cost more than they do.
    pub tlb_fills: u64,
    pub tlb_slow: u64,
    pub tlb_flushes: u64,
    /// Memory operands executed, where the engine can tell: what the hit rate is measured against.
    pub memory_accesses: u64,
    /// `VmClock`-independent host time in nanoseconds at which this processor first entered ring 3, since the
    /// process started the machine; 0 if it never did.
    pub first_user_ns: u64,
}

/// One processor. Lives on one thread while it runs, may move between runs.
pub trait Vcpu: Send {
    /// Runs guest code until something stops the processor. Polls its [`StopToken`](crate::StopToken) between blocks,
    /// sleeps on it in HLT and while waiting for a SIPI. May be called again after [`Exit::Stopped`].
    fn run(&mut self) -> Exit;
    /// The architectural state. Only between runs.
    fn state(&self) -> VcpuState;
    /// Replaces the architectural state. Only between runs.
    ///
    /// # Errors
    /// [`EngineError::BadState`] for a state that no processor can be in; the old one stays.
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError>;
    /// Counters since creation.
    fn stats(&self) -> Stats;
}
