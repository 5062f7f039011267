//! [`VcpuState`] to KVM's structures and back.
//!
//! What KVM keeps in another form has one canonical form here, so that what was loaded is what is saved: KVM takes CPL from SS's DPL, a
//! segment that is not present for an unusable one, and leaves out of the XSAVE area what is in its initial state.

use crate::raw;
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Error, VcpuFd};
use ringer_arch::regs::{cr0, cr4, dr, efer, rflags, xcr0};
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
use ringer_arch::state::{XSAVE_LEN, XSAVE_YMM_HI};
use ringer_arch::{MpState, VcpuState};
use std::collections::BTreeMap;

/// Bytes of the XSAVE area that are the processor's legacy x87 and SSE state; what follows up to 512 belongs to software.
const LEGACY: usize = 416;
const XSTATE_BV: usize = 512;
const MXCSR_MASK: usize = 28;

/// What of a processor's state KVM holds. The rest (MSRs that KVM does not know, halting, requests) is this engine's.
pub struct InKvm {
    /// The model has XSAVE.
    pub xsave: bool,
    /// The model has AVX.
    pub avx: bool,
}

fn to_segment(s: &Segment, dpl: Option<u8>) -> kvm_segment {
    let a = s.attr;
    let bit = |n: u32| (a.0 >> n & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: a.typ(),
        present: bit(7),
        dpl: dpl.unwrap_or(a.dpl()),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: u8::from(a.unusable()),
        padding: 0,
    }
}

fn from_segment(s: &kvm_segment) -> Segment {
    let bit = |v: u8, n: u32| u32::from(v & 1) << n;
    let attr = u32::from(s.type_ & 15)
        | bit(s.s, 4)
        | u32::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15)
        | if s.unusable != 0 { Attr::UNUSABLE } else { 0 };
    Segment { selector: s.selector, base: s.base, limit: s.limit, attr: Attr(attr) }
}

fn to_table(t: TableReg) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

fn to_regs(s: &VcpuState) -> kvm_regs {
    let g = &s.gpr;
    kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: s.rip,
        rflags: s.rflags,
    }
}

fn gprs(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ]
}

/// Whether paging keeps PDPTEs in registers: PAE paging outside long mode.
fn uses_pdptes(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}

fn to_sregs(s: &VcpuState, cr8: u64, apic_base: u64) -> kvm_sregs2 {
    let seg = |n: usize| to_segment(&s.seg[n], (n == sreg::SS).then_some(s.cpl));
    let pdptes = s.pdptes.filter(|_| uses_pdptes(s.cr0, s.cr4, s.efer));
    kvm_sregs2 {
        cs: seg(sreg::CS),
        ds: seg(sreg::DS),
        es: seg(sreg::ES),
        fs: seg(sreg::FS),
        gs: seg(sreg::GS),
        ss: seg(sreg::SS),
        tr: to_segment(&s.tr, None),
        ldt: to_segment(&s.ldtr, None),
        gdt: to_table(s.gdtr),
        idt: to_table(s.idtr),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8,
        efer: s.efer,
        apic_base,
        flags: if pdptes.is_some() { raw::PDPTES_VALID } else { 0 },
        pdptrs: pdptes.unwrap_or_default(),
    }
}

fn to_xsave(s: &VcpuState, avx: bool) -> kvm_xsave {
    let mut x = kvm_xsave::default();
    for (to, from) in x.region.iter_mut().zip(s.xsave.chunks_exact(4)) {
        *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    let bits = xcr0::X87 | xcr0::SSE | if avx { xcr0::AVX } else { 0 };
    x.region[XSTATE_BV / 4] = bits as u32;
    x.region[XSTATE_BV / 4 + 1] = 0;
    x
}

/// The area with what KVM left out filled in. `mask` is the MXCSR mask that the state had: KVM's is the host's.
fn from_xsave(x: &kvm_xsave, mask: [u8; 4]) -> Box<[u8; XSAVE_LEN]> {
    let mut area = Box::new([0; XSAVE_LEN]);
    for (to, from) in area.chunks_exact_mut(4).zip(&x.region) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let bits = u64::from(area[XSTATE_BV]);
    area[LEGACY..XSAVE_YMM_HI].fill(0);
    area[XSTATE_BV] = 7;
    let initial = VcpuState::reset(0, true).xsave;
    let mut restore = |range: std::ops::Range<usize>| area[range.clone()].copy_from_slice(&initial[range]);
    if bits & xcr0::X87 == 0 {
        restore(0..24);
        restore(32..160);
    }
    if bits & xcr0::SSE == 0 {
        restore(160..LEGACY);
    }
    // MXCSR belongs to AVX too (Intel SDM vol. 1 §13.6).
    if bits & (xcr0::SSE | xcr0::AVX) == 0 {
        restore(24..28);
    }
    if bits & xcr0::AVX == 0 {
        restore(XSAVE_YMM_HI..XSAVE_LEN);
    }
    area[MXCSR_MASK..MXCSR_MASK + 4].copy_from_slice(&mask);
    area
}

fn shadow(s: &VcpuState) -> u8 {
    match (s.interrupt_shadow, s.rflags & rflags::IF != 0) {
        (false, _) => 0,
        // Processors refuse a shadow of STI with interrupts off (Intel SDM vol. 3C §26.3.1.5).
        (true, true) => KVM_X86_SHADOW_INT_STI as u8,
        (true, false) => KVM_X86_SHADOW_INT_MOV_SS as u8,
    }
}

/// Gives KVM the state. MSRs are set apart.
pub fn load(fd: &VcpuFd, of: &InKvm, s: &VcpuState, cr8: u64, apic_base: u64) -> Result<(), Error> {
    raw::set_sregs2(fd, &to_sregs(s, cr8, apic_base))?;
    fd.set_regs(&to_regs(s))?;
    raw::set_xsave(fd, &to_xsave(s, of.avx))?;
    if of.xsave {
        let mut x = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        x.xcrs[0].value = s.xcr0;
        fd.set_xcrs(&x)?;
    }
    let d = &s.dr;
    fd.set_debug_regs(&kvm_debugregs {
        db: [d[0], d[1], d[2], d[3]],
        dr6: d[6],
        dr7: d[7],
        ..Default::default()
    })?;
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    e.interrupt.shadow = shadow(s);
    e.nmi.masked = u8::from(s.nmi_blocked);
    e.nmi.pending = u8::from(s.nmi_pending);
    fd.set_vcpu_events(&e)
}

/// DR6 as a processor of the model has it. KVM on paging-only virtualization (PVM) lets the guest clear bit 16 where the host has RTM (Intel
/// SDM vol. 3B §17.2.3), which no model has.
fn dr6(v: u64) -> u64 {
    v | dr::DR6_FIXED
}

/// The state that KVM holds, with no MSRs; `mask` is for [`from_xsave`].
pub fn save(fd: &VcpuFd, of: &InKvm, mask: [u8; 4]) -> Result<VcpuState, Error> {
    let r = fd.get_regs()?;
    let s = raw::sregs2(fd)?;
    let d = fd.get_debug_regs()?;
    let e = fd.get_vcpu_events()?;
    let xcr0 = if of.xsave { fd.get_xcrs()?.xcrs[0].value } else { xcr0::X87 };
    let mut seg = [Segment::default(); 6];
    for (n, from) in [
        (sreg::ES, s.es),
        (sreg::CS, s.cs),
        (sreg::SS, s.ss),
        (sreg::DS, s.ds),
        (sreg::FS, s.fs),
        (sreg::GS, s.gs),
    ] {
        seg[n] = from_segment(&from);
    }
    let table = |t: &kvm_dtable| TableReg { base: t.base, limit: t.limit };
    let valid = s.flags & raw::PDPTES_VALID != 0 && uses_pdptes(s.cr0, s.cr4, s.efer);
    Ok(VcpuState {
        gpr: gprs(&r),
        rip: r.rip,
        rflags: r.rflags,
        seg,
        ldtr: from_segment(&s.ldt),
        tr: from_segment(&s.tr),
        gdtr: table(&s.gdt),
        idtr: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        efer: s.efer,
        xcr0,
        dr: [d.db[0], d.db[1], d.db[2], d.db[3], 0, 0, dr6(d.dr6), d.dr7],
        xsave: from_xsave(&fd.get_xsave()?, mask),
        mp_state: MpState::Running,
        cpl: s.ss.dpl & 3,
        interrupt_shadow: e.interrupt.shadow != 0,
        nmi_blocked: e.nmi.masked != 0,
        nmi_pending: e.nmi.pending != 0,
        pending_debug: 0,
        unhalt: false,
        pdptes: valid.then_some(s.pdptrs),
        tsc: 0,
        msrs: BTreeMap::new(),
    })
}

/// Whether KVM is in the middle of delivering something, or has an exception to deliver that is not in the state.
pub fn in_flight(e: &kvm_vcpu_events) -> bool {
    e.exception.injected != 0 || e.exception.pending != 0 || e.interrupt.injected != 0 || e.nmi.injected != 0
}

/// Whether an NMI is what the processor takes next.
pub fn nmi_next(e: &kvm_vcpu_events) -> bool {
    e.nmi.pending != 0 && e.nmi.masked == 0 && e.interrupt.shadow == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_go_there_and_back() {
        for attr in [0x93, 0x9b, 0x82, 0x8b, 0xc093, 0xa09b, 0xf0f3, 0x1_0000, 0x1_c0f3, 0x1093] {
            let s = Segment { selector: 0x1234, base: 0x1_2345_6789, limit: 0xfffff, attr: Attr(attr) };
            assert_eq!(from_segment(&to_segment(&s, None)), s, "{attr:#x}");
        }
        assert_eq!(to_segment(&Segment { attr: Attr(0x93), ..Segment::default() }, Some(3)).dpl, 3);
    }

    #[test]
    fn what_xsave_leaves_out_is_filled_in() {
        let mut s = VcpuState::reset(0, true);
        s.xsave[0] = 0x7e;
        s.xsave[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
        s.xsave[160] = 5;
        s.xsave[XSAVE_YMM_HI] = 6;
        let mask = [0xff, 0xff, 0, 0];
        let mut x = to_xsave(&s, true);
        assert_eq!(x.region[XSTATE_BV / 4], 7);
        assert_eq!(from_xsave(&x, mask), s.xsave);
        // Initial state: whatever stands in the area does not count.
        x.region[XSTATE_BV / 4] = 0;
        assert_eq!(from_xsave(&x, mask), VcpuState::reset(0, true).xsave);
        x.region[XSTATE_BV / 4] = xcr0::AVX as u32;
        let got = from_xsave(&x, mask);
        assert_eq!((got[0], got[24], got[160], got[XSAVE_YMM_HI]), (0x7f, 0xa0, 0, 6));
    }

    #[test]
    fn dr6_has_its_fixed_bits() {
        assert_eq!(dr6(0xfffe_0ff0), dr::DR6_FIXED);
        assert_eq!(dr6(0xffff_4ff1), 0xffff_4ff1);
    }

    #[test]
    fn the_general_registers_keep_their_places() {
        let mut s = VcpuState::reset(0, true);
        for (n, r) in s.gpr.iter_mut().enumerate() {
            *r = n as u64 + 1;
        }
        assert_eq!(gprs(&to_regs(&s)), s.gpr);
    }
}
