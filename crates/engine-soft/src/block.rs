//! Decoded blocks: a run of instructions of one page, each with the function that executes it. An unsafe room: a [`Cursor`] steps
//! through a block's ops without counting them.

use crate::cpu::{Cpu, Mode, slot};
use crate::host::HostOp;
use iced_x86::Instruction;
use std::marker::PhantomData;

/// Executes the op at the cursor, then hands on to the next op's handler.
///
/// A tail call where the optimizer makes it one; blocks are short ([`MAX_OPS`]), so the stack is bounded where not.
/// Whoever does not hand on has set [`Cpu::rip`]; and [`Cpu::stopped_at`], unless it was the last op.
pub type Handler = fn(&mut Cpu, Cursor<'_>);

/// A place in a block's ops.
///
/// Invariant: it points to an op of a block, and only the last op of a block, whose handler is `last` and does not
/// hand on, has none behind it.
#[derive(Clone, Copy)]
pub struct Cursor<'a>(*const Op, PhantomData<&'a Op>);

impl<'a> Cursor<'a> {
    /// The op here.
    #[inline(always)]
    #[must_use]
    pub fn op(self) -> &'a Op {
        // SAFETY: the invariant of the type.
        unsafe { &*self.0 }
    }

    /// The op behind. Not to be asked of the last op of a block.
    #[inline(always)]
    pub(crate) fn step(self) -> Cursor<'a> {
        // SAFETY: the invariant of the type: an op that hands on is not the last one.
        Cursor(unsafe { self.0.add(1) }, PhantomData)
    }
}

/// The most ops of a block.
pub const MAX_OPS: usize = 48;

/// One instruction, ready to run. What the fields mean is up to the handler; the usual meaning is given.
pub struct Op {
    /// What executes it.
    pub handler: Handler,
    /// First register operand (destination).
    pub a: u8,
    /// Second register operand (source).
    pub b: u8,
    /// Base register of the memory operand, an index of [`Cpu::regs`].
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Left shift of the index register.
    pub scale: u8,
    /// Slot of [`Cpu::regs`] with the segment base.
    pub seg_slot: u8,
    /// The memory operand is in the stack segment: a non-canonical address is #SS.
    pub stack: bool,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// Offset of the instruction from the start of the block.
    pub ip: u16,
    /// Displacement of the memory operand; branches: offset of the target from the start of the block.
    pub disp: i64,
    /// Immediate; conditional branches: offset of the next instruction from the start of the block.
    pub imm: u64,
    /// The decoded instruction, for handlers that work from it.
    pub insn: Option<Box<Decoded>>,
}

/// What a handler that works from the decoded instruction has.
pub struct Decoded {
    /// The instruction.
    pub insn: Instruction,
    /// It belongs to [`crate::host`].
    pub is_host: bool,
    /// What [`crate::host`] keeps of it, if it belongs there.
    pub host: HostOp,
}

/// The ops of a block, closed by one that is no instruction.
pub struct Ops(Box<[Op]>);

impl Ops {
    /// Closes `ops` with an op whose handler is `last`.
    #[must_use]
    pub fn new(ops: Vec<Op>, mut closing: Op) -> Ops {
        closing.handler = last;
        // One allocation of the right size, where shrinking a larger one leaves holes.
        Ops(ops.into_iter().chain([closing]).collect())
    }

    /// Guest instructions among them.
    #[must_use]
    pub fn insns(&self) -> u32 {
        self.0.len() as u32 - 1
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn held(&self) -> usize {
        let decoded = self.0.iter().filter(|o| o.insn.is_some()).count();
        ALLOCATION + size_of_val(&*self.0) + decoded * (ALLOCATION + size_of::<Decoded>())
    }

    /// Runs them; returns how many instructions have completed.
    #[inline(always)]
    pub fn run(&self, cpu: &mut Cpu) -> u32 {
        cpu.regs[slot::BLOCK as usize] = cpu.rip;
        let first = Cursor(self.0.as_ptr(), PhantomData);
        (first.op().handler)(cpu, first);
        if cpu.stopped_at == 0 {
            return self.insns();
        }
        cpu.leave = true;
        let done = (std::mem::take(&mut cpu.stopped_at) - self.0.as_ptr() as usize) / size_of::<Op>();
        done as u32
    }
}

/// What an allocation takes beside its bytes.
const ALLOCATION: usize = 16;

impl Block {
    /// Bytes on the heap.
    #[must_use]
    pub fn held(&self) -> usize {
        self.ops.held() + ALLOCATION + self.bytes.len()
    }
}

/// A decoded block.
pub struct Block {
    /// Its ops.
    pub ops: Ops,
    /// Guest-physical address of its first byte. The whole block lies in that page, unless it is a single straddling
    /// instruction.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Memory operands and stack slots that one run of it accesses.
    pub accesses: u32,
    /// Version of the page's code that it was decoded under.
    pub version: u32,
    /// Its bytes, to compare while other processors may still hold fast write entries to the page.
    pub bytes: Box<[u8]>,
    /// All processors have dropped their fast write entries since it was decoded.
    pub trusted: bool,
    /// The shoot-down after which it can be trusted.
    pub epoch: u64,
}

/// Hands on to the next op.
#[inline(always)]
pub fn next(cpu: &mut Cpu, at: Cursor<'_>) {
    let n = at.step();
    (n.op().handler)(cpu, n);
}

/// Hands on, unless the op asked for the block to be left (it wrote into code, say).
#[inline(always)]
pub fn next_unless_left(cpu: &mut Cpu, at: Cursor<'_>) {
    if cpu.leave {
        return leave(cpu, at);
    }
    next(cpu, at);
}

/// Closes every block; the op before it has gone on to the next instruction.
fn last(cpu: &mut Cpu, at: Cursor<'_>) {
    if cpu.mode == Mode::Long {
        cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(u64::from(at.op().ip));
    }
    // Elsewhere every op sets RIP itself, wrapped as the code size wants it.
}

/// Leaves the block after the current op, which has completed and left RIP alone.
#[cold]
pub fn leave(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(u64::from(op.ip) + u64::from(op.len));
    stop_after(cpu, at);
}

/// Leaves the block after the current op, which has completed and set RIP.
pub fn stop_after(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.stopped_at = at.0 as usize + size_of::<Op>();
}

/// Leaves the block at the current op, which has faulted and set RIP.
pub fn stop_at(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.stopped_at = at.0 as usize;
}

/// Leaves the block at the current op, which has faulted and left RIP alone.
#[cold]
pub fn abort(cpu: &mut Cpu, at: Cursor<'_>) {
    use ringer_arch::Exception;
    let op = at.op();
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(u64::from(op.ip));
    stop_at(cpu, at);
    if op.stack && cpu.exc == Some(Exception::GP0) {
        // The soft MMU raises #GP(0) for a non-canonical address; through the stack segment it is #SS(0) (Intel SDM vol. 1
        // §3.3.7.1).
        cpu.exc = Some(Exception::SS0);
    }
}
