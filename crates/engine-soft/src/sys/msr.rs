//! RDMSR and WRMSR. Those with an effect on the processor are here, those of the machine are [`CpuIo`]'s, and those that only
//! hold a value are the model's (Intel SDM vol. 4, AMD APM vol. 2 app. A).
//!
//! [`CpuIo`]: ringer_engine::CpuIo

use super::{control, segment_ops};
use crate::cpu::{Cpu, R};
use ringer_arch::cpu::Feature;
use ringer_arch::msr;
use ringer_arch::seg::sreg;

/// MSRs that the machine answers.
fn is_machine(n: u32) -> bool {
    matches!(
        n,
        msr::APIC_BASE
            | msr::TSC_DEADLINE
            | msr::X2APIC_FIRST..=msr::X2APIC_LAST
            | msr::KVM_SYSTEM_TIME_OLD
            | msr::KVM_WALL_CLOCK_OLD
            | 0x4b56_4d00..=0x4b56_4dff
    )
}

pub(super) fn rdmsr(cpu: &mut Cpu) -> R<()> {
    cpu.require_cpl0()?;
    let n = cpu.regs[1] as u32;
    match read(cpu, n) {
        Some(v) => {
            cpu.set_edx_eax(v);
            Ok(())
        }
        None => Err(cpu.gp(0)),
    }
}

/// The value of MSR `n`; `None`: there is none that can be read.
pub(super) fn read(cpu: &Cpu, n: u32) -> Option<u64> {
    Some(match n {
        msr::TSC => cpu.tsc(),
        msr::TSC_ADJUST if cpu.has(Feature::TSC_ADJUST) => cpu.fast.tsc_adjust,
        msr::TSC_AUX if has_tsc_aux(cpu) => cpu.fast.tsc_aux,
        msr::EFER => cpu.efer,
        msr::STAR => cpu.fast.star,
        msr::LSTAR if cpu.has(Feature::LM) => cpu.fast.lstar,
        msr::CSTAR if cpu.has(Feature::LM) => cpu.fast.cstar,
        msr::SFMASK if cpu.has(Feature::LM) => cpu.fast.sfmask,
        msr::FS_BASE if cpu.has(Feature::LM) => cpu.seg[sreg::FS].base,
        msr::GS_BASE if cpu.has(Feature::LM) => cpu.seg[sreg::GS].base,
        msr::KERNEL_GS_BASE if cpu.has(Feature::LM) => cpu.fast.kernel_gs_base,
        msr::SYSENTER_CS => cpu.fast.sysenter_cs,
        msr::SYSENTER_ESP => cpu.fast.sysenter_esp,
        msr::SYSENTER_EIP => cpu.fast.sysenter_eip,
        // The guest's TSC is the machine's plus TSC_ADJUST, and so is its deadline. Zero is "none".
        msr::TSC_DEADLINE => match cpu.io.msr_read(n)? {
            0 => 0,
            t => t.wrapping_add(cpu.fast.tsc_adjust),
        },
        _ if is_machine(n) => return cpu.io.msr_read(n),
        _ => {
            let m = cpu.model.msr(n).filter(|m| m.readable())?;
            cpu.msrs.get(&n).copied().unwrap_or(m.reset)
        }
    })
}

fn has_tsc_aux(cpu: &Cpu) -> bool {
    cpu.has(Feature::RDTSCP) || cpu.has(Feature::RDPID)
}

pub(super) fn wrmsr(cpu: &mut Cpu) -> R<()> {
    cpu.require_cpl0()?;
    let (n, v) = (cpu.regs[1] as u32, cpu.edx_eax());
    if n == msr::EFER {
        return control::write_efer(cpu, v);
    }
    match write(cpu, n, v) {
        Some(()) => Ok(()),
        None => Err(cpu.gp(0)),
    }
}

/// `v` if it is canonical.
fn address(cpu: &Cpu, v: u64) -> Option<u64> {
    cpu.canonical_base(v).then_some(v)
}

/// Writes MSR `n`, all but EFER; `None`: no such MSR, or not this value.
pub(super) fn write(cpu: &mut Cpu, n: u32, v: u64) -> Option<()> {
    match n {
        // Changes TSC_ADJUST by as much (Intel SDM vol. 3B §18.17.3).
        msr::TSC => cpu.fast.tsc_adjust = v.wrapping_sub(cpu.io.tsc()),
        msr::TSC_ADJUST if cpu.has(Feature::TSC_ADJUST) => cpu.fast.tsc_adjust = v,
        msr::TSC_AUX if has_tsc_aux(cpu) => {
            cpu.fast.tsc_aux = (v >> 32 == 0).then_some(v)?;
        }
        msr::STAR => cpu.fast.star = v,
        msr::LSTAR if cpu.has(Feature::LM) => cpu.fast.lstar = address(cpu, v)?,
        msr::CSTAR if cpu.has(Feature::LM) => cpu.fast.cstar = address(cpu, v)?,
        msr::SFMASK if cpu.has(Feature::LM) => cpu.fast.sfmask = v & 0xffff_ffff,
        msr::FS_BASE if cpu.has(Feature::LM) => {
            let v = address(cpu, v)?;
            segment_ops::set_base(cpu, sreg::FS, v);
        }
        msr::GS_BASE if cpu.has(Feature::LM) => {
            let v = address(cpu, v)?;
            segment_ops::set_base(cpu, sreg::GS, v);
        }
        msr::KERNEL_GS_BASE if cpu.has(Feature::LM) => cpu.fast.kernel_gs_base = address(cpu, v)?,
        msr::SYSENTER_CS => cpu.fast.sysenter_cs = v & 0xffff_ffff,
        msr::SYSENTER_ESP => cpu.fast.sysenter_esp = address(cpu, v)?,
        msr::SYSENTER_EIP => cpu.fast.sysenter_eip = address(cpu, v)?,
        msr::TSC_DEADLINE => {
            let raw = if v == 0 { 0 } else { v.wrapping_sub(cpu.fast.tsc_adjust).max(1) };
            cpu.io.msr_write(n, raw)?;
            cpu.leave = true;
        }
        _ if is_machine(n) => {
            cpu.io.msr_write(n, v)?;
            // It may have raised an interrupt for this processor.
            cpu.leave = true;
        }
        _ => {
            let m = cpu.model.msr(n)?;
            let old = cpu.msrs.get(&n).copied().unwrap_or(m.reset);
            let new = m.write(old, v)?;
            if new != old {
                cpu.msrs.insert(n, new);
            }
        }
    }
    Some(())
}
