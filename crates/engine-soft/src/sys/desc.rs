//! Descriptors in the GDT and the LDT, and stacks that are not the current one (Intel SDM vol. 3A ch. 3, 5 and 6).

use crate::cpu::{Cpu, Fault, R};
pub(super) use ringer_arch::desc::system as typ;
use ringer_arch::exception::{Exception, vector};
use ringer_arch::seg::{Attr, Segment};

/// EXT: the event that is being delivered came from outside the program (Intel SDM vol. 3A §6.13).
pub(super) const EXT: u32 = 1;
/// The error code's selector part is an IDT entry.
pub(super) const IDT: u32 = 2;

/// Requested privilege level of a selector.
pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A null selector.
pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// An exception whose error code names a selector.
#[cold]
pub(super) fn sel_fault(cpu: &mut Cpu, vector: u8, selector: u16, ext: u32) -> Fault {
    cpu.raise(Exception::coded(vector, u32::from(selector & !3) | ext))
}

/// A descriptor and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Linear address.
    pub addr: u64,
    /// The eight bytes.
    pub raw: u64,
    pub selector: u16,
}

impl Descriptor {
    /// Access rights.
    pub fn attr(&self) -> Attr {
        Attr((self.raw >> 40) as u32 & 0xf0ff)
    }
    /// The type of a system descriptor; `None` for code and data.
    pub fn system(&self) -> Option<u8> {
        (!self.attr().is_code_or_data()).then(|| self.attr().typ())
    }
    /// What a segment register holds after loading it, accessed.
    pub fn segment(&self) -> Segment {
        let mut s = Segment::from_descriptor(self.selector, self.raw);
        if s.attr.is_code_or_data() {
            s.attr.0 |= 1;
        }
        s
    }
    /// A gate's target.
    pub fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    /// The 32-bit offset of a gate (the low half of a 64-bit one); the caller cuts it to 16 for 16-bit gates.
    pub fn gate_offset(&self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000
    }
}

/// The linear address of entry `selector`, `len` bytes of which lie within its table's limit.
fn entry_address(cpu: &Cpu, selector: u16, len: u32) -> Option<u64> {
    let index = u32::from(selector & !7);
    let (base, limit) = if selector & 4 == 0 {
        (cpu.gdtr.base, u32::from(cpu.gdtr.limit))
    } else if cpu.ldtr.attr.unusable() {
        return None;
    } else {
        (cpu.ldtr.base, cpu.ldtr.limit)
    };
    (index + len - 1 <= limit).then(|| wrap(cpu, base.wrapping_add(u64::from(index))))
}

/// A linear address computed for a system structure: 32 bits wide outside long mode.
pub(super) fn wrap(cpu: &Cpu, lin: u64) -> u64 {
    if cpu.long_active() { lin } else { lin & 0xffff_ffff }
}

/// Reads the descriptor of a selector that is not null. Outside the table: `vector` (#GP or #TS) with the selector.
pub(super) fn read(cpu: &mut Cpu, selector: u16, vector: u8, ext: u32) -> R<Descriptor> {
    let Some(addr) = entry_address(cpu, selector, 8) else {
        return Err(sel_fault(cpu, vector, selector, ext));
    };
    let raw = cpu.load_sys::<u64>(addr)?;
    Ok(Descriptor { addr, raw, selector })
}

/// Reads a descriptor for LAR, LSL, VERR and VERW, which find nothing outside the table.
pub(super) fn probe(cpu: &mut Cpu, selector: u16) -> R<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(addr) = entry_address(cpu, selector, 8) else { return Ok(None) };
    let raw = cpu.load_sys::<u64>(addr)?;
    Ok(Some(Descriptor { addr, raw, selector }))
}

/// The upper half of a 16-byte system descriptor of long mode. Its type field must be zero (Intel SDM vol. 3A §3.5.2).
pub(super) fn read_upper(cpu: &mut Cpu, d: &Descriptor, ext: u32) -> R<u64> {
    if entry_address(cpu, d.selector, 16).is_none() {
        return Err(sel_fault(cpu, vector::GP, d.selector, ext));
    }
    let upper = cpu.load_sys::<u64>(d.addr.wrapping_add(8))?;
    if upper >> 40 & 0x1f != 0 {
        return Err(sel_fault(cpu, vector::GP, d.selector, ext));
    }
    Ok(upper)
}

/// Sets the accessed bit of a code or data descriptor.
pub(super) fn set_accessed(cpu: &mut Cpu, d: &Descriptor) -> R<()> {
    if d.raw >> 40 & 1 == 0 {
        cpu.store_sys(d.addr.wrapping_add(5), (d.raw >> 40) as u8 | 1)?;
    }
    Ok(())
}

/// Sets or clears the busy bit of a TSS descriptor.
pub(super) fn set_busy(cpu: &mut Cpu, d: &Descriptor, busy: bool) -> R<()> {
    let byte = (d.raw >> 40) as u8;
    cpu.store_sys(d.addr.wrapping_add(5), if busy { byte | 2 } else { byte & !2 })
}

/// A stack that is pushed on before it becomes the current one, or the current one pushed on speculatively.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    /// SS. Its base and limit do not matter if `bits` is 64.
    pub seg: Segment,
    /// Stack pointer.
    pub sp: u64,
    /// Width of the stack pointer: 16, 32 or 64.
    pub bits: u32,
    /// The ring whose rights the pushes have.
    pub cpl: u8,
    /// Error code of #SS.
    pub code: u32,
}

impl Stack {
    /// The current stack.
    pub fn current(cpu: &Cpu, code: u32) -> Stack {
        let seg = cpu.seg[ringer_arch::seg::sreg::SS];
        Stack { seg, sp: cpu.regs[4], bits: cpu.stack_bits(), cpl: cpu.cpl, code }
    }

    /// A stack in `seg`, a protected-mode segment.
    pub fn of_segment(seg: Segment, sp: u64, cpl: u8, code: u32) -> Stack {
        Stack { seg, sp, bits: if seg.attr.big() { 32 } else { 16 }, cpl, code }
    }

    fn linear(&self, cpu: &mut Cpu, sp: u64, size: u32) -> R<u64> {
        let last = sp.wrapping_add(u64::from(size) - 1);
        let ok = if self.bits == 64 {
            cpu.canonical(sp) && cpu.canonical(last)
        } else {
            let limit = u64::from(self.seg.limit);
            if self.seg.attr.is_expand_down() {
                let top = if self.seg.attr.big() { 0xffff_ffff } else { 0xffff };
                sp > limit && last <= top
            } else {
                last <= limit
            }
        };
        if !ok {
            return Err(cpu.raise(Exception::coded(vector::SS, self.code)));
        }
        Ok(if self.bits == 64 { sp } else { self.seg.base.wrapping_add(sp) & 0xffff_ffff })
    }

    fn moved(&self, by: u64) -> u64 {
        let m = Cpu::width_mask(self.bits);
        self.sp & !m | self.sp.wrapping_add(by) & m
    }

    /// Pushes `size` (2, 4, 8) bytes.
    pub fn push(&mut self, cpu: &mut Cpu, size: u32, v: u64) -> R<()> {
        let sp = self.moved(u64::from(size).wrapping_neg());
        let lin = self.linear(cpu, sp & Cpu::width_mask(self.bits), size)?;
        cpu.as_cpl(self.cpl, |cpu| cpu.store_n(lin, size, v))?;
        self.sp = sp;
        Ok(())
    }

    /// Pops `size` bytes.
    pub fn pop(&mut self, cpu: &mut Cpu, size: u32) -> R<u64> {
        let lin = self.linear(cpu, self.sp & Cpu::width_mask(self.bits), size)?;
        let v = cpu.as_cpl(self.cpl, |cpu| cpu.load_n(lin, size))?;
        self.sp = self.moved(u64::from(size));
        Ok(v)
    }

    /// Pops a selector of `size` bytes. Intel's processors read no more than 16 bits of them.
    ///
    /// # Errors
    /// As [`Stack::pop`].
    pub fn pop_selector(&mut self, cpu: &mut Cpu, size: u32) -> R<u16> {
        if cpu.amd() {
            return Ok(self.pop(cpu, size)? as u16);
        }
        let v = self.pop(cpu, 2)?;
        self.skip(u64::from(size) - 2);
        Ok(v as u16)
    }

    /// Moves the stack pointer up by `n`.
    pub fn skip(&mut self, n: u64) {
        self.sp = self.moved(n);
    }

    /// Makes the stack pointer the processor's.
    pub fn commit(&self, cpu: &mut Cpu) {
        cpu.regs[4] = if self.bits == 32 { self.sp & 0xffff_ffff } else { self.sp };
    }
}
