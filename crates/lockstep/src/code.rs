//! The guest's instructions as text.

use iced_x86::{Decoder, FastFormatter, Instruction};
use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuModel;
use ringer_arch::paging::{Access, Kind, Mmu, PagingMode, PhysMemory, load_pdptes};
use ringer_arch::regs::{cr0, efer};
use ringer_arch::seg::sreg;
use ringer_memory::GuestMemory;
use std::fmt::Write as _;

struct Phys<'a>(&'a GuestMemory);

impl PhysMemory for Phys<'_> {
    fn load_u32(&self, gpa: u64) -> Option<u32> {
        self.0.load(gpa).ok()
    }
    fn load_u64(&self, gpa: u64) -> Option<u64> {
        self.0.load(gpa).ok()
    }
    fn compare_exchange_u32(&self, _: u64, old: u32, _: u32) -> Option<u32> {
        // Looking leaves no accessed bits.
        Some(old)
    }
    fn compare_exchange_u64(&self, _: u64, old: u64, _: u64) -> Option<u64> {
        Some(old)
    }
}

/// Bits of the code at `s`.
fn bits(s: &VcpuState) -> u32 {
    let cs = s.seg[sreg::CS].attr;
    if s.efer & efer::LMA != 0 && cs.long() {
        64
    } else if s.cr0 & cr0::PE != 0 && cs.big() {
        32
    } else {
        16
    }
}

/// The byte of code at linear address `lin`.
fn byte(s: &VcpuState, model: &CpuModel, memory: &GuestMemory, lin: u64) -> Option<u8> {
    let mut mmu = Mmu { cr3: s.cr3, phys_bits: model.max_phys_bits(), page_1g: true, ..Mmu::default() };
    mmu.set_controls(s.cr0, s.cr4, s.efer);
    let phys = Phys(memory);
    if mmu.mode == PagingMode::Pae {
        mmu.pdptes = load_pdptes(&phys, s.cr3, mmu.phys_bits)?;
    }
    let gpa = if mmu.mode == PagingMode::Off {
        lin
    } else {
        mmu.translate(&phys, lin, Access { kind: Kind::Read, user: false, ac: true }).ok()?.gpa
    };
    memory.load(gpa).ok()
}

/// Up to `count` instructions from `rip` on, in the mode that `s` has.
pub(crate) fn text(s: &VcpuState, model: &CpuModel, memory: &GuestMemory, rip: u64, count: u64) -> String {
    let bits = bits(s);
    let base = if bits == 64 { 0 } else { s.seg[sreg::CS].base };
    let mut out = String::new();
    let mut at = rip;
    for _ in 0..count.min(64) {
        let bytes: Vec<u8> =
            (0..15).map_while(|n| byte(s, model, memory, base.wrapping_add(at + n))).collect();
        let mut i = Instruction::default();
        Decoder::with_ip(bits, &bytes, at, 0).decode_out(&mut i);
        let len = i.len().max(1).min(bytes.len());
        let mut line = String::new();
        FastFormatter::new().format(&i, &mut line);
        let hex: String = bytes[..len].iter().map(|b| format!("{b:02x}")).collect();
        let _infallible = writeln!(out, "  {at:x}  {hex:30}  {line}");
        if len == 0 {
            break;
        }
        at = at.wrapping_add(len as u64);
    }
    out
}
