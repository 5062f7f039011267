//! System instructions that fit nowhere else: HLT, TLB and cache control, the TSC, CPUID, hypercalls.

use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use crate::operand::sreg_index;
use iced_x86::{Instruction, Mnemonic as M};
use ringer_arch::MpState;
use ringer_arch::cpu::Feature;
use ringer_arch::regs::cr4;
use ringer_arch::seg::sreg;

/// A hypercall's answer outside ring 0 (Linux Documentation/virt/kvm/x86/hypercalls.rst).
const KVM_EPERM: u64 = 1;

pub(super) fn hlt(cpu: &mut Cpu) -> R<()> {
    cpu.require_cpl0()?;
    cpu.mp_state = MpState::Halted;
    cpu.leave = true;
    Ok(())
}

pub(super) fn invlpg(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    cpu.require_cpl0()?;
    // Limits and rights of the segment are not checked; a non-canonical address does nothing (Intel SDM vol. 2A).
    let off = cpu.ea(i);
    let seg = sreg_index(i.memory_segment());
    let lin = if !cpu.is64() {
        cpu.seg[seg].base.wrapping_add(off) & 0xffff_ffff
    } else if seg >= sreg::FS {
        cpu.seg[seg].base.wrapping_add(off)
    } else {
        off
    };
    if cpu.canonical(lin) {
        cpu.stats.tlb_flushes += 1;
        cpu.mmu.flush_page(lin);
        cpu.leave = true;
    }
    Ok(())
}

pub(super) fn invpcid(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if !cpu.has(Feature::INVPCID) {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let kind = cpu.reg(i.op0_register());
    let lin = cpu.mem_lin(i, 16, Acc::Read)?;
    let mut buf = [0; 16];
    cpu.read_bytes(lin, &mut buf)?;
    let d = u128::from_le_bytes(buf);
    let (pcid, address) = (d as u64, (d >> 64) as u64);
    let bad = pcid >> 12 != 0
        || kind > 3
        || (kind <= 1 && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0)
        || (kind == 0 && !cpu.canonical_base(address));
    if bad {
        return Err(cpu.gp(0));
    }
    cpu.stats.tlb_flushes += 1;
    match kind {
        0 => cpu.mmu.flush_page(address),
        1 => cpu.mmu.flush_pcid(pcid),
        2 => cpu.mmu.flush_all(),
        _ => cpu.mmu.flush_nonglobal(),
    }
    cpu.leave = true;
    Ok(())
}

/// WBINVD, WBNOINVD and INVD: guest memory has no cache that could differ from it.
pub(super) fn cache_all(cpu: &mut Cpu) -> R<()> {
    cpu.require_cpl0()
}

/// CLFLUSH, CLFLUSHOPT and CLWB: checked as a load of a byte (execute-only code may be flushed, too).
pub(super) fn cache_line(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let feature = match i.mnemonic() {
        M::Clflush => Feature::CLFSH,
        M::Clflushopt => Feature::CLFLUSHOPT,
        _ => Feature::CLWB,
    };
    if !cpu.has(feature) {
        return Err(cpu.ud());
    }
    let seg = sreg_index(i.memory_segment());
    let code = cpu.protected() && cpu.seg[seg].attr.is_code();
    let lin = cpu.mem_lin(i, 1, if code { Acc::Fetch } else { Acc::Read })?;
    cpu.translate(lin, Acc::Read).map(|_| ())
}

/// MONITOR arms nothing: MWAIT, which may end at any time, does so at once.
pub(super) fn monitor(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if !cpu.has(Feature::MONITOR) || cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    if cpu.regs[1] & 0xffff_ffff != 0 {
        return Err(cpu.gp(0));
    }
    let off = cpu.reg(i.op0_register());
    let lin = cpu.seg_lin(cpu.memory_seg(i), off, 1, Acc::Read)?;
    cpu.load::<u8>(lin).map(|_| ())
}

pub(super) fn mwait(cpu: &mut Cpu) -> R<()> {
    if !cpu.has(Feature::MONITOR) || cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    if cpu.regs[1] & 0xffff_fffe != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

pub(super) fn rdtsc(cpu: &mut Cpu, with_aux: bool) -> R<()> {
    if with_aux && !cpu.has(Feature::RDTSCP) {
        return Err(cpu.ud());
    }
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let t = cpu.tsc();
    cpu.set_edx_eax(t);
    if with_aux {
        cpu.regs[1] = cpu.fast.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

/// The models have no performance counters: every number is out of range.
pub(super) fn rdpmc(cpu: &mut Cpu) -> R<()> {
    Err(cpu.gp(0))
}

pub(super) fn rdpid(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if !cpu.has(Feature::RDPID) {
        return Err(cpu.ud());
    }
    let v = cpu.fast.tsc_aux;
    cpu.set_reg(i.op0_register(), v);
    Ok(())
}

pub(super) fn cpuid(cpu: &mut Cpu) -> R<()> {
    let mut dynamic = cpu.io.cpuid();
    dynamic.apic_id = cpu.index;
    dynamic.vcpus = cpu.vcpus;
    dynamic.osxsave = cpu.cr4 & cr4::OSXSAVE != 0;
    dynamic.xcr0 = cpu.xcr0;
    let (leaf, subleaf) = (cpu.regs[0] as u32, cpu.regs[1] as u32);
    let [a, b, c, d] = cpu.model.cpuid(leaf, subleaf, &dynamic);
    cpu.regs[0] = u64::from(a);
    cpu.regs[3] = u64::from(b);
    cpu.regs[1] = u64::from(c);
    cpu.regs[2] = u64::from(d);
    Ok(())
}

/// VMCALL and VMMCALL: a KVM hypercall, whichever of the two the vendor has.
pub(super) fn hypercall(cpu: &mut Cpu) -> R<()> {
    if !cpu.has(Feature::HYPERVISOR) {
        return Err(cpu.ud());
    }
    let m = if cpu.is64() { u64::MAX } else { 0xffff_ffff };
    let [nr, b, c, d, s] = [0, 3, 1, 2, 6].map(|n| cpu.regs[n] & m);
    let result = if cpu.cpl == 0 { cpu.io.hypercall(nr, [b, c, d, s]) } else { KVM_EPERM.wrapping_neg() };
    cpu.regs[0] = result & m;
    // A hypercall may have raised an interrupt for this processor.
    cpu.leave = true;
    Ok(())
}
