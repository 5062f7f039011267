//! Control registers, XCR0 and EFER: their validity rules, what they flush, and the way into and out of long mode
//! (Intel SDM vol. 3A ch. 2, §4.10.4, §10.8.5; AMD APM vol. 2 §3.1, §14.6).

use super::segment_ops::check_umip;
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use iced_x86::{Instruction, OpKind, Register};
use ringer_arch::cpu::Feature;
use ringer_arch::regs::{cr0, cr4, efer, xcr0};
use ringer_arch::seg::sreg;

/// CR3 bit 63: keep the TLB entries of the PCID.
const CR3_NO_FLUSH: u64 = 1 << 63;

pub(super) fn mov_cr(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let write = i.op0_register().is_cr();
    let (cr, gpr) =
        if write { (i.op0_register(), i.op1_register()) } else { (i.op1_register(), i.op0_register()) };
    if !matches!(cr, Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8) {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    if write {
        let v = cpu.reg(gpr);
        return match cr {
            Register::CR0 => write_cr0(cpu, v),
            Register::CR2 => {
                cpu.cr2 = v;
                Ok(())
            }
            Register::CR3 => write_cr3(cpu, v),
            Register::CR4 => write_cr4(cpu, v),
            _ => write_cr8(cpu, v),
        };
    }
    let v = match cr {
        Register::CR0 => cpu.cr0,
        Register::CR2 => cpu.cr2,
        Register::CR3 => cpu.cr3,
        Register::CR4 => cpu.cr4,
        _ => cpu.io.cr8(),
    };
    cpu.set_reg(gpr, v);
    Ok(())
}

fn write_cr8(cpu: &mut Cpu, v: u64) -> R<()> {
    if v > 15 {
        return Err(cpu.gp(0));
    }
    cpu.io.set_cr8(v);
    // A lower priority may let a waiting interrupt through.
    cpu.leave = true;
    Ok(())
}

impl Cpu {
    fn flush_everything(&mut self) {
        self.stats.tlb_flushes += 1;
        self.mmu.flush_all();
    }
}

/// Whether PAE paging outside long mode will be in force.
pub(super) fn uses_pdptes(cr0v: u64, cr4v: u64, eferv: u64) -> bool {
    cr0v & cr0::PG != 0 && cr4v & cr4::PAE != 0 && eferv & efer::LMA == 0
}

/// Whether a PDPTE is absent, or present without reserved bits (Intel SDM vol. 3A table 4-8).
pub(super) fn pdpte_ok(cpu: &Cpu, e: u64) -> bool {
    let reserved = !((1u64 << cpu.model.max_phys_bits()) - 1) | 0x1e6;
    e & 1 == 0 || e & reserved == 0
}

/// Loads the four PDPTEs that `cr3` points to (Intel SDM vol. 3A §4.4.1).
pub(super) fn load_pdptes(cpu: &mut Cpu, cr3: u64) -> R<()> {
    let mut out = [0; 4];
    let base = cr3 & 0xffff_ffe0;
    for (n, slot) in (0u64..).zip(out.iter_mut()) {
        let mut bytes = [0; 8];
        cpu.phys_read(base + 8 * n, &mut bytes);
        let e = u64::from_le_bytes(bytes);
        if !pdpte_ok(cpu, e) {
            return Err(cpu.gp(0));
        }
        *slot = e;
    }
    cpu.pdptes = out;
    Ok(())
}

/// MOV to CR0, and what LMSW, CLTS and task switches make of it.
pub(super) fn write_cr0(cpu: &mut Cpu, v: u64) -> R<()> {
    let old = cpu.cr0;
    if v >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    let new = v & cr0::ALL | cr0::ET;
    let changed = old ^ new;
    let bad = new & (cr0::PG | cr0::PE) == cr0::PG
        || new & (cr0::NW | cr0::CD) == cr0::NW
        || (changed & cr0::PG != 0 && !paging_switch_allowed(cpu, new & cr0::PG != 0));
    if bad {
        return Err(cpu.gp(0));
    }
    let mut new_efer = cpu.efer;
    if changed & cr0::PG != 0 {
        let active = new & cr0::PG != 0 && new_efer & efer::LME != 0;
        new_efer = if active { new_efer | efer::LMA } else { new_efer & !efer::LMA };
    }
    if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && uses_pdptes(new, cpu.cr4, new_efer) {
        load_pdptes(cpu, cpu.cr3)?;
    }
    cpu.cr0 = new;
    cpu.efer = new_efer;
    if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
        cpu.flush_everything();
    }
    cpu.update_mode();
    Ok(())
}

fn paging_switch_allowed(cpu: &Cpu, on: bool) -> bool {
    if !on {
        return !cpu.is64() && cpu.cr4 & cr4::PCIDE == 0;
    }
    if cpu.efer & efer::LME == 0 {
        return true;
    }
    // Intel SDM vol. 3A §10.8.5: PAE first; CS.L must be 0; a 16-bit TSS is of no use in long mode.
    let tss16 = matches!(cpu.tr.attr.typ(), 1 | 3) && cpu.tr.attr.present();
    cpu.cr4 & cr4::PAE != 0 && !cpu.seg[sreg::CS].attr.long() && !tss16
}

fn write_cr3(cpu: &mut Cpu, v: u64) -> R<()> {
    let pcide = cpu.cr4 & cr4::PCIDE != 0;
    let keep = pcide && v & CR3_NO_FLUSH != 0;
    let new = if pcide { v & !CR3_NO_FLUSH } else { v };
    if cpu.long_active() && new >> cpu.model.max_phys_bits() != 0 {
        return Err(cpu.gp(0));
    }
    set_cr3(cpu, new, keep)
}

/// Makes a valid `v` CR3, as MOV and task switches do.
pub(super) fn set_cr3(cpu: &mut Cpu, v: u64, keep_tlb: bool) -> R<()> {
    if uses_pdptes(cpu.cr0, cpu.cr4, cpu.efer) {
        load_pdptes(cpu, v)?;
    }
    cpu.cr3 = v;
    // Selects the PCID's tables, which are then what is flushed.
    cpu.update_mode();
    if !keep_tlb {
        cpu.stats.tlb_flushes += 1;
        cpu.mmu.flush_current();
    }
    Ok(())
}

fn write_cr4(cpu: &mut Cpu, v: u64) -> R<()> {
    let changed = cpu.cr4 ^ v;
    let long = cpu.long_active();
    let bad = v & !cpu.model.cr4_mask() != 0
        || (long && (v & cr4::PAE == 0 || changed & cr4::LA57 != 0))
        || (changed & v & cr4::PCIDE != 0 && (!long || cpu.cr3 & 0xfff != 0));
    if bad {
        return Err(cpu.gp(0));
    }
    if changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 && uses_pdptes(cpu.cr0, v, cpu.efer) {
        load_pdptes(cpu, cpu.cr3)?;
    }
    cpu.cr4 = v;
    // SMEP and SMAP are in the entries of the soft TLB, which a processor's own need not have.
    let paging = cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
    if changed & paging != 0 {
        cpu.flush_everything();
    }
    cpu.update_mode();
    Ok(())
}

/// WRMSR to EFER.
pub(super) fn write_efer(cpu: &mut Cpu, v: u64) -> R<()> {
    // LMA follows LME and CR0.PG; what is written to it is ignored.
    let new = v & !efer::LMA | cpu.efer & efer::LMA;
    let changed = cpu.efer ^ new;
    let bad = v & !cpu.model.efer_mask() != 0 || (changed & efer::LME != 0 && cpu.cr0 & cr0::PG != 0);
    if bad {
        return Err(cpu.gp(0));
    }
    cpu.efer = new;
    if changed & efer::NXE != 0 {
        cpu.flush_everything();
    }
    cpu.update_mode();
    Ok(())
}

pub(super) fn lmsw(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    cpu.require_cpl0()?;
    let v = if i.op0_kind() == OpKind::Register {
        cpu.reg(i.op0_register())
    } else {
        let lin = cpu.mem_lin(i, 2, Acc::Read)?;
        u64::from(cpu.load::<u16>(lin)?)
    };
    // PE can be set, not cleared.
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    write_cr0(cpu, cpu.cr0 & !low | v & low | cpu.cr0 & cr0::PE)
}

pub(super) fn smsw(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    check_umip(cpu)?;
    let v = cpu.cr0;
    if i.op0_kind() == OpKind::Register {
        cpu.set_reg(i.op0_register(), v);
        return Ok(());
    }
    let lin = cpu.mem_lin(i, 2, Acc::Write)?;
    cpu.store(lin, v as u16)
}

pub(super) fn clts(cpu: &mut Cpu) -> R<()> {
    cpu.require_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    cpu.leave = true;
    Ok(())
}

pub(super) fn xsetbv(cpu: &mut Cpu) -> R<()> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let v = cpu.edx_eax();
    let bad = cpu.regs[1] & 0xffff_ffff != 0
        || v & !cpu.model.xcr0_mask() != 0
        || v & xcr0::X87 == 0
        || v & (xcr0::SSE | xcr0::AVX) == xcr0::AVX;
    if bad {
        return Err(cpu.gp(0));
    }
    cpu.xcr0 = v;
    cpu.leave = true;
    Ok(())
}

pub(super) fn xgetbv(cpu: &mut Cpu) -> R<()> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let v = match cpu.regs[1] & 0xffff_ffff {
        0 => cpu.xcr0,
        1 if cpu.has(Feature::XGETBV1) => cpu.xcr0 & crate::host::xinuse(cpu),
        _ => return Err(cpu.gp(0)),
    };
    cpu.set_edx_eax(v);
    Ok(())
}

impl Cpu {
    /// EDX:EAX.
    pub(super) fn edx_eax(&self) -> u64 {
        self.regs[2] << 32 | self.regs[0] & 0xffff_ffff
    }
    /// Sets EDX:EAX; the upper halves of RAX and RDX become zero.
    pub(super) fn set_edx_eax(&mut self, v: u64) {
        self.regs[0] = v & 0xffff_ffff;
        self.regs[2] = v >> 32;
    }
}
