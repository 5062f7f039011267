//! [`Vcpu`]: one processor under an engine.

use crate::{DebugRequest, DebugStop, EngineError};
use ringer_arch::VcpuState;

/// Why a processor stopped. I/O is not among the reasons: it goes down through [`CpuIo`](crate::CpuIo).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// [`StopToken::STOP`](crate::StopToken::STOP) was raised; the processor stands at an instruction boundary.
    Stopped,
    /// A fault while delivering a double fault: the machine resets.
    TripleFault,
    /// What [`Vcpu::set_debug`] asked for has come.
    Debug(DebugStop),
    /// The engine cannot go on with this guest: [`Vcpu::failure`] says why.
    Failed,
}

/// What a processor has done so far, for `--stats`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Stats {
    pub instructions: u64,
    /// Instructions are only a part of those that were executed: the engine counts the others only when
    /// [`Vcpu::count_instructions`] asks for it, or not at all.
    pub partial: bool,
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
    /// How often translated code was left, for each reason of [`EXITS`].
    pub exits: [u64; EXITS.len()],
    /// The most that the code made or decoded of the guest's took, with its tables, by the engine's own count: bytes of
    /// [`VmParams::code_limit`](crate::VmParams::code_limit).
    pub code_memory: u64,
}

/// Why translated code is left: a jump that leads to no block yet; an indirect one to a place that is not known; an instruction that
/// the interpreter must execute; an access whose site has no entry; a fault of the host's; a block that is no more; x87
/// registers that are not loaded; a loop that has become hot; an access that the soft TLB has no entry for; an
/// indirect jump that has become hot.
pub const EXITS: [&str; 10] = [
    "link",
    "indirect jump",
    "instruction",
    "site miss",
    "host fault",
    "dropped block",
    "x87 state",
    "hot loop",
    "TLB miss",
    "hot indirect jump",
];

/// Sums; of the times of first entries to ring 3 the earliest, of the memory for code the most.
impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Stats) {
        self.instructions += other.instructions;
        self.partial |= other.partial;
        self.blocks_run += other.blocks_run;
        self.blocks_decoded += other.blocks_decoded;
        self.blocks_dropped += other.blocks_dropped;
        self.pio += other.pio;
        self.mmio += other.mmio;
        self.interrupts += other.interrupts;
        self.exceptions += other.exceptions;
        self.page_faults += other.page_faults;
        self.halts += other.halts;
        self.tlb_fills += other.tlb_fills;
        self.tlb_slow += other.tlb_slow;
        self.tlb_flushes += other.tlb_flushes;
        self.memory_accesses += other.memory_accesses;
        for (a, b) in self.exits.iter_mut().zip(other.exits) {
            *a += b;
        }
        self.code_memory = self.code_memory.max(other.code_memory);
        self.first_user_ns = match (self.first_user_ns, other.first_user_ns) {
            (0, t) | (t, 0) => t,
            (a, b) => a.min(b),
        };
    }
}

/// Where [`Vcpu::step`] stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// At the first place where [`Vcpu::run`] would look at its stop word, by which at least so many instructions (1 or more)
    /// have begun. Where that is, is the engine's business.
    Block(u64),
    /// When exactly so many instructions (1 or more) have begun.
    Instruction(u64),
}

/// What a step did, and where it left the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// Instructions begun: each that completed, and each that was left for a fault, which has been delivered. A REP
    /// instruction counts once each time it is begun or gone on with. Interrupts, and traps like single stepping's, do not count.
    pub begun: u64,
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// The processor stopped for good.
    pub exit: Option<Exit>,
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
    /// Runs a little, for a lock-step run beside another engine: serves the stop word and delivers what is due, as [`run`](Vcpu::run)
    /// does between two blocks, then runs on `until`. What becomes due meanwhile is delivered at the instruction
    /// boundary where it does, but for what comes after the last instruction: that waits for the next step. So
    /// two engines that are given the same input agree about every boundary.
    ///
    /// Never sleeps: a processor that is halted and has nothing to wake it returns at once, with no instruction
    /// begun. Fast paths to RAM stay as they are: for a whole dirty log, call [`run`](Vcpu::run) with
    /// [`StopToken::STOP`](crate::StopToken::STOP) raised. Only on machines of one processor.
    ///
    /// `None`: this engine cannot.
    fn step(&mut self, until: Until) -> Option<Step> {
        let _ = until;
        None
    }
    /// Says where a debugger wants the processor to stop, instead of what was said before; [`run`](Vcpu::run) then
    /// ends with [`Exit::Debug`]. Only between runs. It holds until the next call, whatever state is set; a
    /// [`step`](Vcpu::step) need not know of it.
    ///
    /// - At a breakpoint, the processor stops *before* the instruction. A run that ended so goes on *over* that instruction when
    ///   it is called again, unless [`set_state`](Vcpu::set_state) comes between.
    /// - A watchpoint stops *after* the instruction that accessed the data (between two iterations, if it is a repeated
    ///   one), as data breakpoints do. Accesses by the page walker do not count.
    /// - A step is one instruction (one iteration, of a repeated one), completed or left for its fault, which has been delivered by then;
    ///   or, where an event comes first that cannot wait, the delivery of that. External interrupts wait meanwhile, but for a
    ///   processor that is halted: its step ends when something has woken it. An engine may take the
    ///   instruction behind a MOV SS or POP SS along.
    /// - Of several reasons at once the watchpoint is told, then the step. A stop request that comes with one of them stays raised.
    /// - The guest sees nothing of it: its memory, RFLAGS and debug registers are as they would be without, and its own breakpoints
    ///   and single steps work, as far as the engine's documentation makes no exception.
    ///
    /// Requests are optional: by default all but the empty one are refused.
    ///
    /// # Errors
    /// [`EngineError::NoDebug`]: the engine cannot serve this; what was said before holds.
    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        if request.is_empty() { Ok(()) } else { Err(EngineError::NoDebug("it knows no debugger".into())) }
    }
    /// Counts all instructions from now on in [`Stats::instructions`], though the guest may be slower then. Only between runs. An engine
    /// that cannot does not, and its [`Stats`] say so.
    fn count_instructions(&mut self) {}
    /// Why the last [`run`](Vcpu::run) ended with [`Exit::Failed`], in one clause.
    fn failure(&self) -> Option<&str> {
        None
    }
    /// Counters since creation.
    fn stats(&self) -> Stats;
}
