//! Emitting instructions by hand.

use super::Gen;
use crate::layout as l;
use crate::program::Insn;
use iced_x86::Instruction;
use std::sync::Arc;

/// A place in the code whose branch displacement is to be filled in: offset of the field, and its size.
#[derive(Clone, Copy)]
pub(super) struct Hole {
    at: usize,
    size: usize,
}

impl Gen<'_> {
    /// Appends an instruction.
    pub(super) fn emit(&mut self, bytes: &[u8]) {
        let at = self.cursor;
        if at + bytes.len() + 16 > l::CODE_LEN as usize {
            return;
        }
        self.p.code[at..at + bytes.len()].copy_from_slice(bytes);
        self.p.insns.push(Insn { off: at as u16, len: bytes.len() as u8 });
        self.cursor += bytes.len();
        self.left -= 1;
    }

    /// Encodes and appends; false: it cannot be encoded.
    pub(super) fn emit_insn(&mut self, i: &Instruction) -> bool {
        let rip = self.lin(self.cursor);
        let done = self.encoder.encode(i, rip).is_ok();
        let mut buffer = self.encoder.take_buffer();
        if done {
            self.emit(&buffer);
        }
        buffer.clear();
        self.encoder.set_buffer(buffer);
        done
    }

    /// Whether there is room for another item.
    pub(super) fn room(&self) -> bool {
        self.cursor + 0x400 < l::CODE_LEN as usize
    }

    /// An instruction with a register for its ModRM operand: `op`, /`reg`, `rm`; `wide`: 64 bits.
    pub(super) fn rr(&mut self, op: &[u8], reg: u8, rm: u8, wide: bool) {
        let mut b = Vec::with_capacity(8);
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | rm >> 3;
        if self.bits == 64 && rex != 0x40 {
            b.push(rex);
        }
        b.extend(op);
        b.push(0xc0 | (reg & 7) << 3 | rm & 7);
        self.emit(&b);
    }

    /// An instruction with the absolute address `lin` (below 2 GiB) for its operand, and `tail` behind.
    pub(super) fn ra(&mut self, op: &[u8], reg: u8, lin: u64, wide: bool, tail: &[u8]) {
        let mut b = Vec::with_capacity(16);
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2;
        if self.bits == 64 && rex != 0x40 {
            b.push(rex);
        }
        b.extend(op);
        if self.bits == 64 {
            b.extend([4 | (reg & 7) << 3, 0x25]);
        } else {
            b.push(5 | (reg & 7) << 3);
        }
        b.extend((lin as u32).to_le_bytes());
        b.extend(tail);
        self.emit(&b);
    }

    /// MOV of an immediate into a register.
    pub(super) fn set(&mut self, reg: u8, v: u64) {
        let mut b = Vec::with_capacity(10);
        let short = v >> 32 == 0;
        let rex = 0x40 | u8::from(!short) << 3 | reg >> 3;
        if self.bits == 64 && rex != 0x40 {
            b.push(rex);
        }
        b.push(0xb8 | reg & 7);
        b.extend(&v.to_le_bytes()[..if short || self.bits == 32 { 4 } else { 8 }]);
        self.emit(&b);
        self.known[usize::from(reg)] = Some(v);
    }

    /// A branch forward whose target is not known yet: `op` with one byte of displacement, or with four.
    pub(super) fn branch(&mut self, op: &[u8], size: usize) -> Hole {
        let mut b = op.to_vec();
        b.extend(&[0; 4][..size]);
        let at = self.cursor + op.len();
        self.emit(&b);
        Hole { at, size }
    }

    /// A conditional branch forward.
    pub(super) fn jcc(&mut self, cc: u8, short: bool) -> Hole {
        if short { self.branch(&[0x70 | cc], 1) } else { self.branch(&[0x0f, 0x80 | cc], 4) }
    }

    /// Lets a branch lead to `target`; a short one that does not reach leads to the next instruction.
    pub(super) fn fill(&mut self, h: Hole, target: usize) {
        let rel = target as i64 - (h.at + h.size) as i64;
        let rel = if h.size == 1 && i8::try_from(rel).is_err() { 0 } else { rel };
        self.p.code[h.at..h.at + h.size].copy_from_slice(&rel.to_le_bytes()[..h.size]);
    }

    /// A branch back to `target`.
    pub(super) fn back(&mut self, op8: &[u8], op32: &[u8], target: usize) {
        let rel = target as i64 - (self.cursor + op8.len() + 1) as i64;
        let short = i8::try_from(rel).is_ok();
        let h = if short { self.branch(op8, 1) } else { self.branch(op32, 4) };
        self.fill(h, target);
    }

    /// Puts bytes into RAM before the program runs.
    pub(super) fn patch(&mut self, gpa: u64, bytes: impl Into<Arc<[u8]>>) {
        self.p.patches.push((gpa, bytes.into()));
    }

    /// Puts bytes into the scratch page at linear address `lin`.
    pub(super) fn scratch(&mut self, lin: u64, bytes: Vec<u8>) {
        self.patch(lin - l::SCRATCH + l::SCRATCH_GPA, bytes);
    }

    /// Ends the range in use.
    pub(super) fn close(&mut self) {
        if self.cursor > self.start {
            self.p.used.push((self.start as u16, self.cursor as u16));
        }
        self.start = self.cursor;
    }

    /// Goes on elsewhere in the window, without a jump.
    pub(super) fn hop_silently(&mut self) {
        self.close();
        let page_end = (self.cursor | 0xfff) + 1;
        let to = match self.r.below(4) {
            // Just before the page's end, so that something straddles.
            0 => page_end - 1 - self.r.below(24) as usize,
            1 => page_end + self.r.below(64) as usize,
            _ => self.cursor + self.r.below(200) as usize,
        };
        if to > self.cursor && to + 0x800 < l::CODE_LEN as usize {
            self.cursor = to;
        }
        self.start = self.cursor;
    }

    /// Jumps elsewhere in the window.
    pub(super) fn hop(&mut self) {
        if !self.room() {
            return;
        }
        let h = self.branch(&[0xe9], 4);
        self.hop_silently();
        self.fill(h, self.cursor);
    }

    /// A general register that is neither locked nor, mostly, a pointer.
    pub(super) fn free_reg(&mut self) -> Option<u8> {
        let n = if self.bits == 64 { 16 } else { 8 };
        let avoid = self.locked | if self.r.chance(90) { self.pointers } else { 0 };
        for _ in 0..8 {
            let reg = self.r.below(n) as u8;
            if avoid >> reg & 1 == 0 {
                return Some(reg);
            }
        }
        None
    }
}
