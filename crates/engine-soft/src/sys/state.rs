//! Reset, INIT, start-up IPI, and the conversion to and from [`VcpuState`].

use super::{control, debug, msr};
use crate::cpu::{Cpu, FastMsrs};
use ringer_arch::regs::{cr0, cr4, dr, efer, rflags, xcr0};
use ringer_arch::seg::{Segment, sreg};
use ringer_arch::{MpState, VcpuState, msr as number};
use ringer_engine::EngineError;
use std::collections::BTreeMap;

/// MSRs with a field of their own in [`Cpu`] that are part of the state.
const FAST: [u32; 10] = [
    number::STAR,
    number::LSTAR,
    number::CSTAR,
    number::SFMASK,
    number::KERNEL_GS_BASE,
    number::SYSENTER_CS,
    number::SYSENTER_ESP,
    number::SYSENTER_EIP,
    number::TSC_AUX,
    number::TSC_ADJUST,
];

/// Puts the processor in its state after power-up; application processors wait for a SIPI.
pub fn reset(cpu: &mut Cpu) {
    let s = VcpuState::reset(cpu.model.signature(), cpu.index == 0);
    apply(cpu, &s);
    cpu.fast = FastMsrs::default();
    cpu.msrs.clear();
}

/// INIT (Intel SDM vol. 3A table 10-1): as reset, but x87 and vector state, CR0.CD and NW, XCR0, MSRs and the TSC stay. The
/// boot processor runs on at the reset vector.
pub fn init(cpu: &mut Cpu) {
    let mut s = VcpuState::reset(cpu.model.signature(), cpu.index == 0);
    let cache = cr0::CD | cr0::NW;
    s.cr0 = s.cr0 & !cache | cpu.cr0 & cache;
    s.xcr0 = cpu.xcr0;
    s.xsave.copy_from_slice(&cpu.xsave.0);
    apply(cpu, &s);
}

/// A start-up IPI: real mode at page `vector`.
pub fn start_up(cpu: &mut Cpu, vector: u8) {
    cpu.seg[sreg::CS].selector = u16::from(vector) << 8;
    cpu.seg[sreg::CS].base = u64::from(vector) << 12;
    cpu.rip = 0;
    cpu.mp_state = MpState::Running;
    cpu.update_mode();
}

fn saved_msrs(cpu: &Cpu) -> BTreeMap<u32, u64> {
    let mut m = cpu.msrs.clone();
    m.extend(FAST.iter().filter_map(|&n| msr::read(cpu, n).map(|v| (n, v))));
    m
}

/// The architectural state.
#[must_use]
pub fn save(cpu: &Cpu) -> VcpuState {
    let mut gpr = [0; 16];
    gpr.copy_from_slice(&cpu.regs[..16]);
    VcpuState {
        gpr,
        rip: cpu.rip,
        rflags: cpu.rflags(),
        seg: cpu.seg,
        ldtr: cpu.ldtr,
        tr: cpu.tr,
        gdtr: cpu.gdtr,
        idtr: cpu.idtr,
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        efer: cpu.efer,
        xcr0: cpu.xcr0,
        dr: cpu.dr,
        xsave: Box::new(cpu.xsave.0),
        mp_state: cpu.mp_state,
        cpl: cpu.cpl,
        interrupt_shadow: cpu.shadow,
        nmi_blocked: cpu.nmi_blocked,
        nmi_pending: cpu.nmi_pending,
        pending_debug: cpu.debug_trap,
        unhalt: cpu.unhalt,
        pdptes: uses_pdptes(cpu).then_some(cpu.pdptes),
        tsc: cpu.tsc(),
        msrs: saved_msrs(cpu),
    }
}

/// Replaces the state. The TSC itself is the machine's clock's: of the state only TSC_ADJUST counts.
///
/// # Errors
/// [`EngineError::BadState`] for a state that no processor of the model can be in; nothing has changed then.
pub fn load(cpu: &mut Cpu, s: &VcpuState) -> Result<(), EngineError> {
    check(cpu, s).map_err(EngineError::BadState)?;
    let before = save(cpu);
    apply(cpu, s);
    if let Err(why) = apply_msrs(cpu, s).and_then(|()| apply_pdptes(cpu, s)) {
        apply(cpu, &before);
        // They were accepted before.
        let _same = apply_msrs(cpu, &before).and_then(|()| apply_pdptes(cpu, &before));
        return Err(EngineError::BadState(why));
    }
    Ok(())
}

/// Sets everything but MSRs and PDPTEs.
fn apply(cpu: &mut Cpu, s: &VcpuState) {
    cpu.regs[..16].copy_from_slice(&s.gpr);
    cpu.rip = s.rip;
    cpu.next_rip = s.rip;
    cpu.seg = s.seg;
    cpu.ldtr = s.ldtr;
    cpu.tr = s.tr;
    cpu.gdtr = s.gdtr;
    cpu.idtr = s.idtr;
    cpu.cr0 = s.cr0;
    cpu.cr2 = s.cr2;
    cpu.cr3 = s.cr3;
    cpu.cr4 = s.cr4;
    cpu.efer = s.efer;
    cpu.xcr0 = s.xcr0;
    cpu.dr = s.dr;
    cpu.xsave.0.copy_from_slice(&s.xsave[..]);
    crate::host::sanitize(cpu);
    cpu.mp_state = s.mp_state;
    cpu.cpl = s.cpl;
    cpu.shadow = s.interrupt_shadow;
    cpu.nmi_blocked = s.nmi_blocked;
    cpu.nmi_pending = s.nmi_pending;
    cpu.debug_trap = s.pending_debug;
    cpu.unhalt = s.unhalt;
    cpu.exc = None;
    cpu.soft_int = None;
    cpu.triple_fault = false;
    cpu.set_rflags(s.rflags);
    cpu.mmu.flush_all();
    cpu.mmu.forget_changes();
    cpu.update_mode();
}

/// Sets the MSRs to what `s` says, or to their reset values.
fn apply_msrs(cpu: &mut Cpu, s: &VcpuState) -> Result<(), &'static str> {
    cpu.fast = FastMsrs::default();
    cpu.msrs.clear();
    for (&n, &v) in &s.msrs {
        if FAST.contains(&n) {
            msr::write(cpu, n, v).ok_or("an MSR holds a value that it cannot take")?;
        } else if let Some(m) = cpu.model.msr(n) {
            let keep = v == m.reset;
            if !keep {
                m.write(m.reset, v).ok_or("an MSR of the model holds a value that it cannot take")?;
                cpu.msrs.insert(n, v);
            }
        } else {
            return Err("the processor model has not all of the MSRs");
        }
    }
    Ok(())
}

fn uses_pdptes(cpu: &Cpu) -> bool {
    control::uses_pdptes(cpu.cr0, cpu.cr4, cpu.efer)
}

/// PAE paging keeps its first level in registers: a state that does not hold them has them read from memory.
fn apply_pdptes(cpu: &mut Cpu, s: &VcpuState) -> Result<(), &'static str> {
    if !uses_pdptes(cpu) {
        return Ok(());
    }
    if let Some(given) = s.pdptes {
        if !given.iter().all(|&e| control::pdpte_ok(cpu, e)) {
            return Err("reserved bits are set in the PDPTEs");
        }
        cpu.pdptes = given;
    } else if control::load_pdptes(cpu, cpu.cr3).is_err() {
        cpu.exc = None;
        return Err("reserved bits are set in the PDPTEs that CR3 points to");
    }
    Ok(())
}

type Check = Result<(), &'static str>;

fn ensure(ok: bool, why: &'static str) -> Check {
    if ok { Ok(()) } else { Err(why) }
}

fn check(cpu: &Cpu, s: &VcpuState) -> Check {
    check_control(cpu, s)?;
    check_flags(s)?;
    check_segments(cpu, s)?;
    ensure(s.cpl <= 3, "CPL is above 3")?;
    ensure(s.cr0 & cr0::PE != 0 || s.cpl == 0, "CPL is not 0 in real mode")?;
    ensure(s.dr[6] >> 32 == 0 && s.dr[7] >> 32 == 0, "reserved bits are set in DR6 or DR7")?;
    ensure(debug::fixed(s.dr[6], s.dr[7]) == (s.dr[6], s.dr[7]), "fixed bits are wrong in DR6 or DR7")?;
    ensure(s.pending_debug & !dr::DR6_TRAPS == 0, "pending debug traps have bits that no trap has")?;
    let mxcsr = u32::from_le_bytes([s.xsave[24], s.xsave[25], s.xsave[26], s.xsave[27]]);
    ensure(mxcsr & !crate::host::mxcsr_mask(cpu) == 0, "reserved bits are set in MXCSR")
}

fn check_control(cpu: &Cpu, s: &VcpuState) -> Check {
    let model = &cpu.model;
    let long = s.efer & efer::LMA != 0;
    ensure(s.cr0 & !cr0::ALL == 0, "reserved bits are set in CR0")?;
    ensure(s.cr0 & (cr0::PG | cr0::PE) != cr0::PG, "CR0 has PG without PE")?;
    ensure(s.cr0 & (cr0::NW | cr0::CD) != cr0::NW, "CR0 has NW without CD")?;
    ensure(s.cr4 & !model.cr4_mask() == 0, "CR4 has bits that the processor model has not")?;
    ensure(s.efer & !model.efer_mask() == 0, "EFER has bits that the processor model has not")?;
    let active = s.efer & efer::LME != 0 && s.cr0 & cr0::PG != 0;
    ensure(long == active, "EFER.LMA does not follow from EFER.LME and CR0.PG")?;
    ensure(!long || s.cr4 & cr4::PAE != 0, "long mode is active without CR4.PAE")?;
    ensure(long || s.cr4 & cr4::PCIDE == 0, "CR4.PCIDE is set outside long mode")?;
    let cr3_bits = if long { model.max_phys_bits() } else { 32 };
    ensure(s.cr3 >> cr3_bits == 0, "reserved bits are set in CR3")?;
    let xcr0_ok = s.xcr0 & !(model.xcr0_mask() | xcr0::X87) == 0
        && s.xcr0 & xcr0::X87 != 0
        && s.xcr0 & (xcr0::AVX | xcr0::SSE) != xcr0::AVX;
    ensure(xcr0_ok, "XCR0 has a value that the processor model cannot take")
}

fn check_flags(s: &VcpuState) -> Check {
    let f = s.rflags;
    ensure(f & !(rflags::ALL | rflags::FIXED) == 0, "reserved bits are set in RFLAGS")?;
    ensure(f & rflags::FIXED != 0, "RFLAGS bit 1 is not set")?;
    if f & rflags::VM != 0 {
        let ok = s.cr0 & cr0::PE != 0 && s.efer & efer::LMA == 0 && s.cpl == 3;
        ensure(ok, "virtual-8086 mode outside ring 3 of protected mode")?;
    }
    Ok(())
}

fn check_segments(cpu: &Cpu, s: &VcpuState) -> Check {
    const KNOWN: u32 = 0x1_f0ff;
    let long = s.efer & efer::LMA != 0;
    let all = || s.seg.iter().chain([&s.ldtr, &s.tr]);
    ensure(all().all(|g: &Segment| g.attr.0 & !KNOWN == 0), "unknown bits in a segment's rights")?;
    let data = [sreg::ES, sreg::CS, sreg::SS, sreg::DS].iter().all(|&n| s.seg[n].base >> 32 == 0);
    ensure(data, "the base of ES, CS, SS or DS is beyond 4 GiB")?;
    let wide = [s.seg[sreg::FS].base, s.seg[sreg::GS].base, s.ldtr.base, s.tr.base, s.gdtr.base, s.idtr.base];
    // Outside long mode what MSRs and earlier long mode left in the upper half of FS and GS is not used.
    ensure(wide.iter().all(|&b| cpu.canonical_base(b)), "a base is not canonical")?;
    let code64 = long && s.seg[sreg::CS].attr.long();
    // In 64-bit mode it may be anything: SYSRET on AMD, or SYSCALL to an address of 57 bits, faults at the fetch that follows.
    ensure(code64 || s.rip >> 32 == 0, "RIP is beyond 4 GiB outside 64-bit mode")?;
    ensure(!code64 || !s.seg[sreg::CS].attr.big(), "CS has both L and D set")
}
