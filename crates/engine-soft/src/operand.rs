//! Operands of a decoded instruction: registers, immediates, effective addresses, segmentation checks. What the generic
//! executor and the rare instructions use; the hot forms have their operands compiled into their `Op`.

use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use iced_x86::{Instruction, OpKind, Register};
use ringer_arch::Exception;
use ringer_arch::exception::vector;
use ringer_arch::seg::sreg;

/// Index of a segment register in [`Cpu::seg`].
#[must_use]
pub fn sreg_index(r: Register) -> usize {
    match r {
        Register::ES => sreg::ES,
        Register::CS => sreg::CS,
        Register::SS => sreg::SS,
        Register::FS => sreg::FS,
        Register::GS => sreg::GS,
        _ => sreg::DS,
    }
}

/// Whether a memory operand with this base register is in the stack segment by default.
#[must_use]
pub fn is_stack_base(base: Register) -> bool {
    matches!(base, Register::RSP | Register::RBP | Register::ESP | Register::EBP)
}

/// Number, width in bytes, and right shift (8 for AH to BH) of a general register.
#[must_use]
pub fn gpr_parts(r: Register) -> (u8, u32, u32) {
    let size = r.size() as u32;
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    let number = r.full_register().number() as u8 & 15;
    (number, size, if high { 8 } else { 0 })
}

/// Mask of an operand of `size` bytes.
#[must_use]
#[inline]
pub fn mask(size: u32) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// Sign-extends an operand of `size` bytes.
#[must_use]
#[inline]
pub fn sext(v: u64, size: u32) -> u64 {
    let s = 64 - size.min(8) * 8;
    ((v << s) as i64 >> s) as u64
}

impl Cpu {
    /// Value of a general register, zero-extended.
    #[must_use]
    pub fn reg(&self, r: Register) -> u64 {
        let (n, size, shift) = gpr_parts(r);
        self.regs[n as usize] >> shift & mask(size)
    }

    /// Writes a general register as an instruction does: 32-bit writes clear the upper half, 8- and 16-bit ones keep the rest.
    pub fn set_reg(&mut self, r: Register, v: u64) {
        let (n, size, shift) = gpr_parts(r);
        let old = self.regs[n as usize];
        self.regs[n as usize] = match size {
            8 => v,
            4 => v & 0xffff_ffff,
            _ => old & !(mask(size) << shift) | (v & mask(size)) << shift,
        };
    }

    /// Writes the low `bits` bits (16, 32 or 64) of general register `n`: 32 clears the upper half.
    pub fn set_gpr_bits(&mut self, n: usize, bits: u32, v: u64) {
        self.regs[n] = match bits {
            64 => v,
            32 => v & 0xffff_ffff,
            _ => self.regs[n] & !0xffff | v & 0xffff,
        };
    }

    /// Offset part of a memory operand, wrapped to the address size.
    #[must_use]
    pub fn ea(&self, i: &Instruction) -> u64 {
        let disp = i.memory_displacement64();
        let base = i.memory_base();
        if base == Register::RIP || base == Register::EIP {
            // iced gives the target for RIP-relative operands as if the instruction stood at its decoder's IP, which is
            // the offset in the block's page: see `decode`.
            let target = disp.wrapping_sub(i.next_ip()).wrapping_add(self.next_rip);
            return if base == Register::EIP { target & 0xffff_ffff } else { target };
        }
        let mut a = disp;
        if base != Register::None {
            a = a.wrapping_add(self.reg(base));
        }
        let index = i.memory_index();
        if index != Register::None && index.is_gpr() {
            a = a.wrapping_add(self.reg(index).wrapping_mul(u64::from(i.memory_index_scale())));
        }
        a & mask(address_size(i))
    }

    /// Linear address of `size` bytes at `off` in segment `seg`, with the checks of limit, rights and canonical form
    /// (Intel SDM vol. 3A §5.3 to 5.5).
    ///
    /// # Errors
    /// #GP(0), #SS(0).
    pub fn seg_lin(&mut self, seg: usize, off: u64, size: u64, acc: Acc) -> R<u64> {
        let s = &self.seg[seg];
        if self.is64() {
            let lin = if seg >= sreg::FS { s.base.wrapping_add(off) } else { off };
            if !self.canonical(lin) || !self.canonical(lin.wrapping_add(size.saturating_sub(1))) {
                return Err(self.canonical_fault(seg, lin, size));
            }
            return Ok(lin);
        }
        let last = off.wrapping_add(size.saturating_sub(1));
        if self.protected() {
            let a = s.attr;
            let allowed = !a.unusable()
                && a.present()
                && match acc {
                    Acc::Read => a.is_readable(),
                    Acc::Write => a.is_writable(),
                    Acc::Fetch => a.is_code(),
                };
            if !allowed {
                return Err(self.seg_fault(seg));
            }
        }
        let limit = u64::from(s.limit);
        let inside = if s.attr.is_expand_down() {
            let top = if s.attr.big() { 0xffff_ffff } else { 0xffff };
            off > limit && last <= top && off <= last
        } else {
            // What goes on at offset 0 behind the end of 4 GiB, Intel's processors let pass (SDM vol. 3A §6.3: may or may not fault).
            off <= last && (last <= limit || limit == 0xffff_ffff && off <= limit && !self.amd())
        };
        if !inside {
            return Err(self.seg_fault(seg));
        }
        Ok(s.base.wrapping_add(off) & 0xffff_ffff)
    }

    /// The fault of `size` bytes at `lin` not all of which are at canonical addresses. Of #AC and this one Intel's processors raise #AC
    /// if the first byte is at one (SDM vol. 3A table 6-2: the order is the processor's).
    #[cold]
    fn canonical_fault(&mut self, seg: usize, lin: u64, size: u64) -> crate::cpu::Fault {
        let misaligned = size <= 8 && size.is_power_of_two() && lin & (size - 1) != 0;
        if misaligned && self.alignment_checked() && self.canonical(lin) && !self.amd() {
            return self.raise(Exception::coded(vector::AC, 0));
        }
        self.seg_fault(seg)
    }

    #[cold]
    fn seg_fault(&mut self, seg: usize) -> crate::cpu::Fault {
        let v = if seg == sreg::SS { vector::SS } else { vector::GP };
        self.raise(Exception::coded(v, 0))
    }

    /// Segment of the memory operand, an index of [`Cpu::seg`]. 64-bit code ignores ES, CS, SS and DS prefixes (AMD APM
    /// vol. 1 §2.1.6; Intel SDM vol. 1 §3.4.2.1): there the base register tells whether it is the stack segment, and so
    /// whether a non-canonical address is #SS.
    #[must_use]
    pub fn memory_seg(&self, i: &Instruction) -> usize {
        let seg = sreg_index(i.memory_segment());
        if !self.is64() || seg >= sreg::FS {
            return seg;
        }
        if is_stack_base(i.memory_base()) { sreg::SS } else { sreg::DS }
    }

    /// Linear address of the memory operand, checked for `size` bytes.
    ///
    /// # Errors
    /// #GP(0), #SS(0).
    pub fn mem_lin(&mut self, i: &Instruction, size: u64, acc: Acc) -> R<u64> {
        let off = self.ea(i);
        self.seg_lin(self.memory_seg(i), off, size, acc)
    }

    /// Linear address of a memory operand of `size` bytes that must be aligned to them. That is checked first: a misaligned
    /// operand in the stack segment at a non-canonical address is #GP(0), not #SS(0).
    ///
    /// # Errors
    /// #GP(0), #SS(0).
    pub fn aligned_mem_lin(&mut self, i: &Instruction, size: u64, acc: Acc) -> R<u64> {
        if !self.unchecked_lin(i).is_multiple_of(size) {
            return Err(self.gp(0));
        }
        self.mem_lin(i, size, acc)
    }

    /// Linear address of the memory operand, if it has one.
    #[must_use]
    pub fn unchecked_lin(&self, i: &Instruction) -> u64 {
        let seg = self.memory_seg(i);
        let base = if self.is64() && seg < sreg::FS { 0 } else { self.seg[seg].base };
        base.wrapping_add(self.ea(i))
    }

    /// Loads `size` (1, 2, 4, 8) bytes at linear address `lin`.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    pub fn load_n(&mut self, lin: u64, size: u32) -> R<u64> {
        Ok(match size {
            1 => u64::from(self.load::<u8>(lin)?),
            2 => u64::from(self.load::<u16>(lin)?),
            4 => u64::from(self.load::<u32>(lin)?),
            _ => self.load::<u64>(lin)?,
        })
    }

    /// Stores the low `size` (1, 2, 4, 8) bytes of `v` at linear address `lin`.
    ///
    /// # Errors
    /// As [`Cpu::store`].
    pub fn store_n(&mut self, lin: u64, size: u32, v: u64) -> R<()> {
        match size {
            1 => self.store(lin, v as u8),
            2 => self.store(lin, v as u16),
            4 => self.store(lin, v as u32),
            _ => self.store(lin, v),
        }
    }

    /// Reads integer operand `n`, zero-extended from its size (immediates sign-extended as encoded, then masked).
    ///
    /// # Errors
    /// The fault of a memory operand.
    pub fn read_op(&mut self, i: &Instruction, n: u32) -> R<u64> {
        match i.op_kind(n) {
            OpKind::Register => Ok(self.reg(i.op_register(n))),
            OpKind::Memory => {
                let size = mem_size(i);
                let lin = self.mem_lin(i, u64::from(size), Acc::Read)?;
                self.load_n(lin, size)
            }
            _ => Ok(i.immediate(n)),
        }
    }

    /// Writes integer operand `n`, a register or memory.
    ///
    /// # Errors
    /// The fault of a memory operand.
    pub fn write_op(&mut self, i: &Instruction, n: u32, v: u64) -> R<()> {
        if i.op_kind(n) == OpKind::Register {
            self.set_reg(i.op_register(n), v);
            return Ok(());
        }
        let size = mem_size(i);
        let lin = self.mem_lin(i, u64::from(size), Acc::Write)?;
        self.store_n(lin, size, v)
    }

    /// Pushes `size` (2, 4, 8) bytes on the current stack; RSP changes only if the store succeeds.
    ///
    /// # Errors
    /// #SS(0), #PF.
    pub fn push(&mut self, size: u32, v: u64) -> R<()> {
        let bits = self.stack_bits();
        let sp = self.regs[4].wrapping_sub(u64::from(size)) & Cpu::width_mask(bits);
        let lin = self.seg_lin(sreg::SS, sp, u64::from(size), Acc::Write)?;
        self.store_n(lin, size, v)?;
        self.set_gpr_bits(4, bits, sp);
        Ok(())
    }

    /// The `size` bytes `skip` bytes above the stack pointer, which stays.
    ///
    /// # Errors
    /// #SS(0), #PF.
    pub fn peek(&mut self, size: u32, skip: u64) -> R<u64> {
        let sp = self.regs[4].wrapping_add(skip) & Cpu::width_mask(self.stack_bits());
        let lin = self.seg_lin(sreg::SS, sp, u64::from(size), Acc::Read)?;
        self.load_n(lin, size)
    }

    /// Moves the stack pointer up by `n`, wrapped to its width.
    pub fn add_sp(&mut self, n: u64) {
        let bits = self.stack_bits();
        self.set_gpr_bits(4, bits, self.regs[4].wrapping_add(n));
    }

    /// Pops `size` bytes.
    ///
    /// # Errors
    /// #SS(0), #PF.
    pub fn pop(&mut self, size: u32) -> R<u64> {
        let v = self.peek(size, 0)?;
        self.add_sp(u64::from(size));
        Ok(v)
    }

    /// The bytes at [`Cpu::rip`], for what a decoded instruction does not tell. They were fetched for decoding already: what
    /// can no longer be is zero.
    pub fn code_bytes(&mut self) -> [u8; 15] {
        let base = if self.is64() { 0 } else { self.seg[sreg::CS].base };
        let mut bytes = [0; 15];
        let (exc, cr2) = (self.exc, self.cr2);
        for (n, b) in bytes.iter_mut().enumerate() {
            let lin = self.lin_add(base, self.rip.wrapping_add(n as u64));
            let Ok(gpa) = self.fetch_gpa(lin) else { break };
            self.phys_read(gpa, std::slice::from_mut(b));
        }
        (self.exc, self.cr2) = (exc, cr2);
        bytes
    }

    /// Checks a near branch target (canonical, or within CS's limit) and makes it the next RIP.
    ///
    /// # Errors
    /// #GP(0).
    pub fn branch_to(&mut self, target: u64) -> R<()> {
        let bad =
            if self.is64() { !self.canonical(target) } else { target > u64::from(self.seg[sreg::CS].limit) };
        if bad {
            return Err(self.gp(0));
        }
        self.next_rip = target;
        Ok(())
    }
}

/// Address size of an instruction with a memory operand, in bytes.
#[must_use]
pub fn address_size(i: &Instruction) -> u32 {
    let base = i.memory_base();
    if base != Register::None {
        return base.size() as u32;
    }
    let index = i.memory_index();
    if index != Register::None && index.is_gpr() {
        return index.size() as u32;
    }
    match i.memory_displ_size() {
        8 => 8,
        4 => 4,
        2 => 2,
        // In 64-bit code a 32-bit displacement without registers is sign-extended, unless a 67 prefix makes it 32-bit:
        // iced has then zero-extended it.
        _ => 8,
    }
}

/// Bytes of the memory operand.
#[must_use]
pub fn mem_size(i: &Instruction) -> u32 {
    i.memory_size().size() as u32
}
