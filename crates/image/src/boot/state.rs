//! The boot processor's state at a protocol's entry, and the GDT that it runs on.

use super::placement::Placement;
use super::{GDT, STACK_TOP};
use crate::ImageError;
use ringer_arch::regs::{cr0, cr4, efer, gpr};
use ringer_arch::seg::{Segment, TableReg, sreg};
use ringer_arch::{Attr, VcpuState};

/// Linux's __BOOT_CS, which its boot protocol requires; other protocols ask for no number.
const CS: u16 = 0x10;
/// Linux's __BOOT_DS.
const DS: u16 = 0x18;
const TR: u16 = 0x20;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy 32-bit TSS of 0x68 bytes at 0: the task register must hold one, nothing uses it.
const TSS: u64 = 0x0000_8b00_0000_0067;

/// Writes the boot GDT and loads the segment registers from it.
fn flat(placement: &mut Placement, signature: u32, code: u64, entry: u64) -> Result<VcpuState, ImageError> {
    let gdt = [0, 0, code, DATA, TSS];
    let bytes: Vec<u8> = gdt.iter().flat_map(|d: &u64| d.to_le_bytes()).collect();
    placement.put(GDT, &bytes, "the boot GDT")?;
    let mut s = VcpuState::reset(signature, true);
    let data = Segment::from_descriptor(DS, DATA);
    s.seg = [data; 6];
    s.seg[sreg::CS] = Segment::from_descriptor(CS, code);
    s.tr = Segment::from_descriptor(TR, TSS);
    s.ldtr = Segment { attr: Attr(Attr::UNUSABLE), ..Segment::default() };
    s.gdtr = TableReg { base: GDT, limit: (bytes.len() - 1) as u16 };
    s.idtr = TableReg { base: 0, limit: 0 };
    s.rip = entry;
    s.gpr = [0; 16];
    s.gpr[gpr::RSP] = STACK_TOP;
    s.cr0 = cr0::PE | cr0::ET;
    Ok(s)
}

/// Flat 32-bit protected mode, paging off, interrupts off.
pub(crate) fn flat_32(
    placement: &mut Placement,
    signature: u32,
    entry: u32,
) -> Result<VcpuState, ImageError> {
    flat(placement, signature, CODE_32, u64::from(entry))
}

/// 64-bit mode over an identity mapping of the low 4 GiB, interrupts off.
pub(crate) fn long_64(
    placement: &mut Placement,
    signature: u32,
    entry: u64,
) -> Result<VcpuState, ImageError> {
    let cr3 = placement.identity_map()?;
    let mut s = flat(placement, signature, CODE_64, entry)?;
    s.cr0 |= cr0::PG | cr0::MP | cr0::NE | cr0::WP;
    s.cr3 = cr3;
    s.cr4 = cr4::PAE;
    s.efer = efer::LME | efer::LMA;
    Ok(s)
}
