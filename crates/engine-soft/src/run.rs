//! The interpreter's run loop: events, then a block, again and again.

use crate::block::{Block, MAX_OPS};
use crate::cache::Cache;
use crate::cpu::{Cpu, Mode, R};
use crate::debugger::Debugger;
use crate::decode::{self, How};
use crate::shoot::Shared;
use crate::sys::{debug, interrupt, state};
use iced_x86::Mnemonic;
use ringer_arch::cpu::Vendor;
use ringer_arch::regs::{dr, rflags};
use ringer_arch::seg::sreg;
use ringer_arch::{MpState, VcpuState};
use ringer_engine::{DebugRequest, DebugStop, EngineError, Exit, Stats, Step, StopToken, Until, Vcpu};
use ringer_memory::PAGE_SIZE;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// The longest an instruction can be.
const MAX_INSN: usize = 15;
/// Bytes looked at for one block.
const WINDOW: usize = 256;

/// One processor under the interpreter.
pub struct Interpreter {
    pub(crate) cpu: Cpu,
    cache: Cache,
    pub(crate) shared: Arc<Shared>,
    started: Instant,
    /// An interrupt waits in the local APIC.
    pub(crate) intr: bool,
    /// Something beyond the stop word must be looked at before the next block.
    pub(crate) attention: bool,
    /// Code has been written over: of interest to whoever holds more than this interpreter does, which compares versions.
    pub(crate) code_dropped: bool,
    /// Instructions that were left for a fault.
    faults: u64,
    /// What a debugger has asked for.
    pub(crate) debug: Debugger,
}

/// What came of [`Interpreter::between_awake`].
pub(crate) enum Awake {
    /// The processor is halted, and nothing wakes it.
    Asleep,
    /// What was due is done.
    Done(Result<(), Exit>),
}

/// Where the next instruction is.
enum Found {
    Cached(u32),
    /// Not to be kept: code outside RAM.
    Once(Box<Block>),
    /// In the table of straddling instructions, by the addresses of its two parts.
    Straddling(u64, u64),
}

impl Interpreter {
    /// A processor in its reset state.
    #[must_use]
    pub fn new(cpu: Cpu, shared: Arc<Shared>, started: Instant) -> Interpreter {
        Interpreter {
            cpu,
            cache: Cache::default(),
            shared,
            started,
            intr: false,
            attention: true,
            code_dropped: false,
            faults: 0,
            debug: Debugger::default(),
        }
    }

    /// Decoded code and its tables take no more than `limit` bytes, or what one block takes.
    #[must_use]
    pub fn with_code_limit(mut self, limit: usize) -> Interpreter {
        self.cache.set_limit(limit);
        self
    }

    /// The most bytes that decoded code and its tables have taken.
    pub(crate) fn code_peak(&self) -> usize {
        self.cache.peak()
    }

    pub(crate) fn index(&self) -> u32 {
        self.cpu.index
    }

    /// Looks at everything that may come between two instructions, and runs one instruction by itself where something must
    /// follow it closely.
    pub(crate) fn between(&mut self) -> Option<Exit> {
        if let Some(hit) = self.cpu.watched.hit.take() {
            self.update_attention();
            return Some(Exit::Debug(DebugStop::Watchpoint(hit)));
        }
        if let Some(exit) = self.requests() {
            return Some(exit);
        }
        match self.cpu.mp_state {
            MpState::Running => {}
            MpState::Halted | MpState::WaitForSipi => {
                self.debug.halted = true;
                self.sleep();
                return None;
            }
        }
        if !self.cpu.shadow {
            // Of a task switch, or of what an event's delivery touched: before the handler's first instruction.
            if self.cpu.debug_trap != 0 {
                interrupt::debug_trap(&mut self.cpu);
                return self.after_event().or_else(|| self.after_debug_step());
            }
            if self.cpu.nmi_pending && !self.cpu.nmi_blocked {
                self.cpu.nmi_pending = false;
                self.cpu.stats.interrupts += 1;
                interrupt::nmi(&mut self.cpu);
                return self.after_event().or_else(|| self.after_debug_step());
            }
            if self.intr && self.cpu.sysflags & rflags::IF != 0 && !self.debug.holds_interrupts() {
                let vector = self.cpu.io.acknowledge();
                if let Some(vector) = vector {
                    self.cpu.stats.interrupts += 1;
                    interrupt::external(&mut self.cpu, vector);
                }
                self.poll();
                let exit = self.after_event();
                return if vector.is_some() { exit.or_else(|| self.after_debug_step()) } else { exit };
            }
        }
        if self.must_single() { self.single() } else { None }
    }

    /// Serves the stop word.
    fn requests(&mut self) -> Option<Exit> {
        let word = self.cpu.stop.load();
        if word & StopToken::STOP != 0 {
            self.cpu.stop.take(StopToken::STOP);
            return Some(Exit::Stopped);
        }
        if word & StopToken::ENGINE != 0 {
            self.cpu.stop.take(StopToken::ENGINE);
            self.cpu.mmu.flush_writes();
            self.shared.acknowledge(self.index());
        }
        if word & StopToken::CODE != 0 {
            self.cpu.stop.take(StopToken::CODE);
            self.code_dropped = true;
        }
        if word & StopToken::ATTENTION != 0 {
            self.cpu.stop.take(StopToken::ATTENTION);
            self.poll();
        }
        None
    }

    /// Asks the local APIC what waits.
    pub(crate) fn poll(&mut self) {
        let p = self.cpu.io.pending();
        self.intr = p.intr;
        self.cpu.unhalt |= p.unhalt;
        self.cpu.nmi_pending |= p.nmi;
        if p.init {
            state::init(&mut self.cpu);
            self.cpu.io.reset_apic();
            self.intr = false;
        }
        if let Some(vector) = p.sipi
            && self.cpu.mp_state == MpState::WaitForSipi
        {
            state::start_up(&mut self.cpu, vector);
        }
        self.update_attention();
    }

    /// Whether something ends the processor's HLT.
    fn wakes(&self) -> bool {
        self.cpu.mp_state == MpState::Halted
            && (self.cpu.unhalt
                || self.intr && self.cpu.sysflags & rflags::IF != 0
                || self.cpu.nmi_pending && !self.cpu.nmi_blocked
                || self.cpu.debug_trap != 0)
    }

    fn sleep(&mut self) {
        if self.wakes() {
            self.cpu.unhalt = false;
            self.cpu.mp_state = MpState::Running;
            self.update_attention();
            return;
        }
        self.cpu.mmu.flush_writes();
        self.shared.idle(self.index());
        self.cpu.stats.halts += 1;
        self.cpu.stop.wait(None);
        self.shared.acknowledge(self.index());
    }

    /// Whether the next instruction must run by itself.
    fn must_single(&self) -> bool {
        self.cpu.shadow
            || self.cpu.sysflags & (rflags::TF | rflags::RF) != 0
            || self.cpu.dr[7] & 0xff != 0
            || self.cpu.debug_trap != 0
            || self.debug.is_singular()
    }

    pub(crate) fn update_attention(&mut self) {
        let c = &self.cpu;
        self.attention = self.intr && c.sysflags & rflags::IF != 0
            || c.nmi_pending && !c.nmi_blocked
            || c.debug_trap != 0
            || c.mp_state != MpState::Running
            || c.watched.hit.is_some()
            || self.must_single();
    }

    /// Runs one instruction with what comes with it: shadow, resume flag, breakpoints, single step.
    fn single(&mut self) -> Option<Exit> {
        if self.debug.stops_at(self.code_lin()) {
            return Some(self.at_breakpoint());
        }
        if !self.cpu.shadow && debug::code_breakpoint(&mut self.cpu) {
            interrupt::raise_pending(&mut self.cpu);
            return self.after_event().or_else(|| self.after_debug_step());
        }
        self.cpu.shadow = false;
        let step = self.cpu.sysflags & rflags::TF != 0;
        let before = self.cpu.stats.instructions;
        let rip = self.cpu.rip;
        self.cpu.last_mnemonic = Mnemonic::INVALID;
        self.cpu.watched.one_iteration = self.debug.step;
        let done = self.block(true);
        self.cpu.watched.one_iteration = false;
        // A repeated instruction that is not through yet is still the one to be gone over.
        self.debug.pass &= self.cpu.rip == rip && decode::is_string(self.cpu.last_mnemonic);
        if let Err(exit) = done {
            return Some(exit);
        }
        let completed = self.cpu.stats.instructions != before;
        if completed {
            self.after_step(step);
        }
        self.after_event().or_else(|| self.after_debug_step())
    }

    /// The exit at a breakpoint.
    fn at_breakpoint(&mut self) -> Exit {
        self.debug.pass = true;
        self.update_attention();
        Exit::Debug(DebugStop::Breakpoint)
    }

    /// The exit that a step ends with, unless there is a watchpoint to be told of.
    fn after_debug_step(&self) -> Option<Exit> {
        (self.debug.step && self.cpu.watched.hit.is_none()).then_some(Exit::Debug(DebugStop::Step))
    }

    /// Takes over what a debugger wants.
    pub(crate) fn debug(&mut self, request: &DebugRequest) {
        let pass = self.debug.pass;
        self.debug = Debugger::new(request);
        self.debug.pass = pass;
        if self.cpu.watched.points != request.watchpoints {
            self.cpu.watched.points.clone_from(&request.watchpoints);
            self.cpu.mmu.flush_all();
        }
        self.update_attention();
    }

    /// After an instruction that ran by itself and completed; `tf` is TF from before it: clears RF, and delivers the #DB of a
    /// single step or data breakpoint.
    fn after_step(&mut self, tf: bool) {
        let m = self.cpu.last_mnemonic;
        if !matches!(m, Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq) {
            self.cpu.sysflags &= !rflags::RF;
        }
        // SYSCALL and SYSRET: the trap is taken if TF is still, or newly, set, so that an entry with TF in SFMASK is not
        // stepped (Intel SDM vol. 2, SYSCALL and SYSRET).
        let now = self.cpu.sysflags & rflags::TF != 0;
        let step = match m {
            Mnemonic::Syscall => tf && now,
            Mnemonic::Sysret | Mnemonic::Sysretq => now,
            _ => tf,
        };
        if step {
            self.cpu.debug_trap |= dr::DR6_BS;
        }
        // After MOV SS and POP SS, debug traps wait for the next instruction (Intel SDM vol. 3A §6.8.3).
        let held = self.cpu.shadow && m != Mnemonic::Sti;
        if self.cpu.debug_trap != 0 && !held {
            interrupt::debug_trap(&mut self.cpu);
        }
    }

    /// After an event was delivered, or failed to be.
    fn after_event(&mut self) -> Option<Exit> {
        self.update_attention();
        std::mem::take(&mut self.cpu.triple_fault).then_some(Exit::TripleFault)
    }

    /// Runs blocks that the jump table knows, one after the other, until there is something to look at between two of
    /// them, or one is not there.
    #[inline(always)]
    fn chain(&mut self, versions: &[AtomicU32]) {
        while !self.cpu.leave && self.cpu.stop.load() == 0 {
            let Some(n) = self.cache.jump(self.code_lin(), self.context(false)) else { return };
            let b = self.cache.block(n);
            let current = versions.get((b.gpa / PAGE_SIZE) as usize).map(|v| v.load(Ordering::Relaxed));
            if !b.trusted || current != Some(b.version) {
                return;
            }
            run_block(&mut self.cpu, b);
        }
    }

    /// Runs the block at RIP (or only its first instruction), wherever it comes from.
    pub(crate) fn block(&mut self, single: bool) -> Result<(), Exit> {
        let lin = self.code_lin();
        let ctx = self.context(single);
        if let Some(n) = self.cache.jump(lin, ctx) {
            let b = self.cache.block(n);
            if b.trusted && self.cpu.mmu.memory().code_version(b.gpa) == b.version {
                return self.execute_cached(n);
            }
        }
        match self.find(lin, ctx, single) {
            Ok(Found::Cached(n)) => self.execute_cached(n),
            Ok(Found::Once(b)) => {
                run_block(&mut self.cpu, &b);
                self.finish()
            }
            Ok(Found::Straddling(a, b)) => {
                if let Some(b) = self.cache.straddling_block(a, b) {
                    run_block(&mut self.cpu, b);
                }
                if self.cpu.leave { self.finish() } else { Ok(()) }
            }
            Err(_) => self.finish(),
        }
    }

    /// As [`block`](Self::block), but heeds the debugger.
    pub(crate) fn debugged_block(&mut self) -> Result<(), Exit> {
        if !self.debug.cares_for_blocks() {
            return self.block(false);
        }
        self.stop_at_breakpoint()?;
        let (lin, ctx) = (self.code_lin(), self.context(false));
        let known = self.cache.jump(lin, ctx).filter(|n| {
            let b = self.cache.block(*n);
            b.trusted && self.cpu.mmu.memory().code_version(b.gpa) == b.version
        });
        let found = match known {
            Some(n) => Ok(Found::Cached(n)),
            None => self.find(lin, ctx, false),
        };
        match found {
            Ok(Found::Cached(n)) if !self.debug.splits(lin, u64::from(self.cache.block(n).len)) => {
                self.execute_cached(n)
            }
            Ok(_) => self.block(true),
            Err(_) => self.finish(),
        }
    }

    /// Stops if a breakpoint stands at RIP.
    #[inline]
    pub(crate) fn stop_at_breakpoint(&mut self) -> Result<(), Exit> {
        if self.debug.stops_at(self.code_lin()) { Err(self.at_breakpoint()) } else { Ok(()) }
    }

    /// As [`block`](Self::block), but of a block with more than `left` instructions only the first.
    fn block_within(&mut self, left: u64) -> Result<(), Exit> {
        let (lin, ctx) = (self.code_lin(), self.context(false));
        let known = self.cache.jump(lin, ctx);
        if left >= MAX_OPS as u64 || known.is_some_and(|n| self.fits(n, left)) {
            return self.block(false);
        }
        match self.find(lin, ctx, false) {
            Ok(Found::Cached(n)) if !self.fits(n, left) => self.block(true),
            Ok(_) => self.block(false),
            Err(_) => self.finish(),
        }
    }

    fn fits(&self, block: u32, left: u64) -> bool {
        u64::from(self.cache.block(block).ops.insns()) <= left
    }

    /// Instructions begun since creation, as [`Step::begun`] counts them.
    pub(crate) fn begun(&self) -> u64 {
        self.cpu.stats.instructions + self.faults
    }

    /// As [`between`](Self::between), but that it never sleeps.
    pub(crate) fn between_awake(&mut self) -> Awake {
        if let Some(exit) = self.requests() {
            return Awake::Done(Err(exit));
        }
        if self.cpu.mp_state != MpState::Running && !self.wakes() {
            return Awake::Asleep;
        }
        Awake::Done(self.between().map_or(Ok(()), Err))
    }

    /// The outcome of a step that ends here.
    pub(crate) fn stepped(&self, begun: u64, exit: Option<Exit>) -> Step {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.cpu.regs[..16]);
        Step { begun, gpr, rip: self.cpu.rip, rflags: self.cpu.rflags(), exit }
    }

    /// The loop of [`Vcpu::step`].
    fn steps(&mut self, until: Until) -> Option<Exit> {
        let first = self.begun();
        let (Until::Block(wanted) | Until::Instruction(wanted)) = until;
        loop {
            let left = wanted.saturating_sub(self.begun() - first);
            if left == 0 {
                return None;
            }
            let done = if self.cpu.stop.load() != 0 || self.attention {
                match self.between_awake() {
                    Awake::Asleep => return None,
                    Awake::Done(done) => done,
                }
            } else if self.cpu.leave {
                self.finish()
            } else if matches!(until, Until::Block(_)) {
                self.block(false)
            } else {
                self.block_within(left)
            };
            if let Err(exit) = done {
                return Some(exit);
            }
        }
    }

    #[inline(always)]
    fn execute_cached(&mut self, n: u32) -> Result<(), Exit> {
        run_block(&mut self.cpu, self.cache.block(n));
        if self.cpu.leave { self.finish() } else { Ok(()) }
    }

    /// After a block that was left early, changed the mode, or faulted.
    #[cold]
    pub(crate) fn finish(&mut self) -> Result<(), Exit> {
        self.cpu.leave = false;
        if self.cpu.exc.is_some() {
            self.cpu.stats.exceptions += 1;
            self.faults += 1;
            interrupt::raise_pending(&mut self.cpu);
        }
        if self.cpu.cpl == 3 && self.cpu.stats.first_user_ns == 0 {
            self.cpu.stats.first_user_ns = self.started.elapsed().as_nanos() as u64;
        }
        self.update_attention();
        if std::mem::take(&mut self.cpu.triple_fault) { Err(Exit::TripleFault) } else { Ok(()) }
    }

    /// Linear address of the next instruction.
    #[inline(always)]
    pub(crate) fn code_lin(&self) -> u64 {
        self.cpu.rip.wrapping_add(self.cpu.code_base) & self.cpu.code_mask
    }

    /// What a linear address must have in common with its entry in the jump table, besides the address: what it means
    /// (the TLB's generation), code size, ring, and whether one instruction is to run by itself.
    #[inline(always)]
    fn context(&self, single: bool) -> u64 {
        self.cpu.mmu.generation() << 5 | self.cpu.code_key | u64::from(single) << 2
    }

    /// What a block was decoded under: code size, and whether it is to be one instruction only.
    fn key(&self, single: bool) -> u8 {
        self.cpu.code_key as u8 & 3 | u8::from(single) << 2
    }

    fn how(&self, single: bool) -> How {
        let limit = if single { 1 } else { usize::MAX };
        How { bits: self.cpu.bits(), amd: self.cpu.model.vendor() == Vendor::Amd, limit }
    }

    /// Finds or makes the block at `lin`.
    #[cold]
    #[inline(never)]
    fn find(&mut self, lin: u64, ctx: u64, single: bool) -> R<Found> {
        let rip = self.cpu.rip;
        let legacy = self.cpu.mode != Mode::Long;
        let fetched = self.cpu.fetch_gpa(lin);
        self.mark_fault();
        let gpa = fetched?;
        let key = self.key(single);
        // How far code may be fetched in the segment; in 64-bit mode there is no limit.
        let mut window = WINDOW.min((PAGE_SIZE - gpa % PAGE_SIZE) as usize);
        if legacy {
            let limit = u64::from(self.cpu.seg[sreg::CS].limit);
            if rip > limit {
                let f = self.cpu.gp(0);
                self.mark_fault();
                return Err(f);
            }
            window = window.min((limit - rip).saturating_add(1).min(WINDOW as u64) as usize);
        }
        if !self.cpu.mmu.memory().contains(gpa, window as u64) {
            return self.outside_ram(gpa, window, single);
        }
        if let Some(n) = self.cache.find(gpa, key)
            && self.still_good(n)
            && self.cache.block(n).len as usize <= window
        {
            if self.cache.block(n).trusted {
                self.cache.set_jump(lin, ctx, n);
            }
            return Ok(Found::Cached(n));
        }
        let mut bytes = [0; WINDOW];
        let bytes = &mut bytes[..window];
        self.cpu.phys_read(gpa, bytes);
        let d = decode::decode(bytes, self.how(single));
        if d.ops.insns() == 0 {
            return self.straddling(lin, gpa, bytes, key);
        }
        self.cpu.stats.blocks_decoded += 1;
        let block = self.seal(gpa, d, bytes);
        let trusted = block.trusted;
        let n = self.cache.insert(gpa, key, block);
        if trusted {
            self.cache.set_jump(lin, ctx, n);
        }
        Ok(Found::Cached(n))
    }

    /// A fault while finding code leaves no instruction executed.
    fn mark_fault(&mut self) {
        if self.cpu.exc.is_some() {
            self.cpu.leave = true;
        }
    }

    /// Whether a cached block still says what memory says.
    fn still_good(&mut self, n: u32) -> bool {
        let b = self.cache.block(n);
        let memory = self.cpu.mmu.memory();
        if memory.code_version(b.gpa) != b.version {
            self.cpu.stats.blocks_dropped += 1;
            return false;
        }
        if b.trusted {
            return true;
        }
        let settled = self.shared.settled(self.cpu.index, b.epoch);
        let mut now = [0; WINDOW];
        let len = b.bytes.len();
        if memory.read(b.gpa, &mut now[..len]).is_err() || now[..len] != *b.bytes {
            self.cpu.stats.blocks_dropped += 1;
            return false;
        }
        self.cache.block_mut(n).trusted = settled;
        true
    }

    /// Files a decoded block under the version of its page, and asks for a shoot-down if fast writes to it may be about.
    fn seal(&mut self, gpa: u64, d: decode::Decoded, bytes: &[u8]) -> Block {
        let (version, cached) =
            self.shared.mark_code(self.cpu.mmu.memory(), gpa, u64::from(d.len), self.cpu.index);
        if cached {
            self.cpu.mmu.flush_writes_to(gpa);
        }
        let epoch = self.shared.epoch();
        let len = d.len as usize;
        // The bytes were read before the page was marked: only what has not changed since is known to be right. A block
        // that did change is not trusted, fails its comparison, and is decoded anew when next met.
        let mut now = [0; WINDOW];
        let same = self.cpu.mmu.memory().read(gpa, &mut now[..len]).is_ok() && now[..len] == bytes[..len];
        let trusted = same && self.shared.settled(self.cpu.index, epoch);
        Block {
            ops: d.ops,
            gpa,
            len: d.len,
            accesses: d.accesses,
            version,
            bytes: bytes[..len].into(),
            trusted,
            epoch,
        }
    }

    /// Code in MMIO space: one instruction at a time, never kept.
    fn outside_ram(&mut self, gpa: u64, window: usize, single: bool) -> R<Found> {
        let mut bytes = [0; MAX_INSN];
        let bytes = &mut bytes[..window.min(MAX_INSN)];
        self.cpu.phys_read(gpa, bytes);
        let d = decode::decode(bytes, How { limit: 1, ..self.how(single) });
        if d.ops.insns() == 0 {
            let f = self.cpu.ud();
            self.mark_fault();
            return Err(f);
        }
        Ok(Found::Once(Box::new(loose(gpa, d, bytes))))
    }

    /// An instruction that continues in the next page, or beyond the segment's limit.
    fn straddling(&mut self, lin: u64, gpa: u64, head: &[u8], key: u8) -> R<Found> {
        let rest = MAX_INSN.saturating_sub(head.len());
        let at_limit = gpa % PAGE_SIZE + (head.len() as u64) < PAGE_SIZE;
        if at_limit || rest == 0 {
            let f = self.cpu.gp(0);
            self.mark_fault();
            return Err(f);
        }
        let next_page = self.cpu.lin_add(lin, head.len() as u64);
        let fetched = self.cpu.fetch_gpa(next_page);
        self.mark_fault();
        let gpa2 = fetched?;
        let mut bytes = [0; MAX_INSN];
        bytes[..head.len()].copy_from_slice(head);
        let mut tail = rest;
        if self.cpu.mode != Mode::Long {
            let limit = u64::from(self.cpu.seg[sreg::CS].limit);
            let end = limit.saturating_sub(self.cpu.rip).saturating_add(1).min(MAX_INSN as u64) as usize;
            tail = tail.min(end.saturating_sub(head.len()));
        }
        self.cpu.phys_read(gpa2, &mut bytes[head.len()..head.len() + tail]);
        let bytes = &bytes[..head.len() + tail];
        if self.cache.straddling(gpa, gpa2, key, bytes) {
            return Ok(Found::Straddling(gpa, gpa2));
        }
        let d = decode::decode(bytes, How { limit: 1, ..self.how(true) });
        if d.ops.insns() == 0 {
            let f = self.cpu.gp(0);
            self.mark_fault();
            return Err(f);
        }
        self.cache.insert_straddling(gpa, gpa2, key, loose(gpa, d, bytes));
        Ok(Found::Straddling(gpa, gpa2))
    }
}

/// A block outside the rules of versions and trust.
fn loose(gpa: u64, d: decode::Decoded, bytes: &[u8]) -> Block {
    let len = d.len as usize;
    Block {
        ops: d.ops,
        gpa,
        len: d.len,
        accesses: d.accesses,
        version: 0,
        bytes: bytes[..len].into(),
        trusted: false,
        epoch: 0,
    }
}

/// Runs a block and counts its instructions.
#[inline(always)]
fn run_block(cpu: &mut Cpu, b: &Block) {
    let done = b.ops.run(cpu);
    cpu.stats.blocks_run += 1;
    cpu.stats.instructions += u64::from(done);
    // Of a block that is left early this counts too much: by less than one in a thousand in practice.
    cpu.stats.memory_accesses += u64::from(b.accesses);
}

impl Vcpu for Interpreter {
    fn run(&mut self) -> Exit {
        self.shared.acknowledge(self.index());
        self.poll();
        self.debug.halted = false;
        let memory = self.cpu.mmu.memory().clone();
        let versions = memory.code_versions();
        let exit = loop {
            if self.cpu.stop.load() != 0 || self.attention {
                match self.between() {
                    Some(exit) => break exit,
                    None => continue,
                }
            }
            if !self.debug.cares_for_blocks() {
                self.chain(versions);
            }
            let done = if self.cpu.leave { self.finish() } else { self.debugged_block() };
            if let Err(exit) = done {
                break exit;
            }
        };
        self.cpu.mmu.flush_writes();
        self.shared.idle(self.index());
        exit
    }

    fn state(&self) -> VcpuState {
        state::save(&self.cpu)
    }

    fn set_state(&mut self, s: &VcpuState) -> Result<(), EngineError> {
        // What is decoded stays: it is looked up by what memory holds, and the jump table by a generation that has passed.
        state::load(&mut self.cpu, s)?;
        self.debug.pass = false;
        self.cpu.watched.hit = None;
        self.update_attention();
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.debug(request);
        Ok(())
    }

    fn step(&mut self, until: Until) -> Option<Step> {
        self.shared.acknowledge(self.index());
        let first = self.begun();
        let exit = self.steps(until);
        Some(self.stepped(self.begun() - first, exit))
    }

    fn stats(&self) -> Stats {
        Stats { code_memory: self.code_peak() as u64, ..self.cpu.stats }
    }
}
