//! Decoded blocks: a run of instructions of one page, each with the function that executes it.

use crate::cpu::{Cpu, slot};
use iced_x86::Instruction;

/// Executes the first op of the slice, then hands on to the next op's handler.
///
/// A tail call where the optimizer makes it one; blocks are short ([`MAX_OPS`]), so the stack is bounded where not.
/// Whoever does not hand on has set [`Cpu::rip`] (and [`Cpu::left`], unless it was the last op).
pub type Handler = fn(&mut Cpu, &[Op]);

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
    pub insn: Option<Box<Instruction>>,
}

/// A decoded block.
pub struct Block {
    /// Its ops; the last one leaves the block.
    pub ops: Box<[Op]>,
    /// Guest instructions in it (a closing pseudo-op is not one).
    pub insns: u32,
    /// Guest-physical address of its first byte; the whole block lies in that page unless `straddles`.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
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
pub fn next(cpu: &mut Cpu, ops: &[Op]) {
    if let [_, rest @ ..] = ops
        && let [op, ..] = rest
    {
        (op.handler)(cpu, rest);
    }
}

/// Hands on, unless the op asked for the block to be left (it wrote into code, say).
#[inline(always)]
pub fn next_unless_left(cpu: &mut Cpu, ops: &[Op]) {
    if cpu.leave {
        return leave(cpu, ops);
    }
    next(cpu, ops);
}

/// Leaves the block after the current op, which has completed.
#[cold]
pub fn leave(cpu: &mut Cpu, ops: &[Op]) {
    let op = &ops[0];
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(u64::from(op.ip) + u64::from(op.len));
    cpu.left = ops.len() as u32 - 1;
}

/// Leaves the block at the current op, which has faulted.
#[cold]
pub fn abort(cpu: &mut Cpu, ops: &[Op]) {
    use ringer_arch::Exception;
    let op = &ops[0];
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(u64::from(op.ip));
    cpu.left = ops.len() as u32;
    if op.stack && cpu.exc == Some(Exception::GP0) {
        // The soft MMU raises #GP(0) for a non-canonical address; through the stack segment it is #SS(0) (Intel SDM vol. 1
        // §3.3.7.1).
        cpu.exc = Some(Exception::SS0);
    }
}
