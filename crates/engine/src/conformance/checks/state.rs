//! States: what is set is what is read, what no processor can be in is refused, and a fresh processor is reset.

use crate::EngineError;
use crate::conformance::prelude::*;
use crate::states;
use ringer_arch::VcpuState;

pub const CHECKS: &[Check] = &[
    Check { name: "a fresh processor is in its reset state", run: fresh },
    Check { name: "what is set is read back, bit for bit, in every mode", run: identity },
    Check { name: "states that no processor can be in are refused, and the old one stays", run: refused },
    Check { name: "setting the reset state resets a processor", run: reset },
    Check { name: "an NMI and its blocking are part of the state", run: nmi },
    Check { name: "debug traps that are pending are part of the state", run: debug },
    Check { name: "hand-over at every instruction of a program ends as the program does", run: every_step },
];

fn differences(a: &VcpuState, b: &VcpuState) -> String {
    let (mut a, mut b) = (a.clone(), b.clone());
    states::normalise(&mut a);
    states::normalise(&mut b);
    let mut out = Vec::new();
    if a != b {
        out.push("they differ".to_owned());
        states::differences(&a, &b, ["wanted", "got"], &mut out);
    }
    out.join("; ")
}

fn fresh(t: &Test) -> Res {
    let mut g = t.guests(Long, 2)?;
    for n in 0..2 {
        let mut want = VcpuState::reset(g.model().signature(), n == 0);
        let got = g.vcpu(n).state();
        // Which MSRs are listed is told by no reset state: all have their reset values.
        want.msrs = got.msrs.clone();
        for (number, v) in &got.msrs {
            let reset = g.model().msr_reset(*number).unwrap_or(0);
            holds!(*v == reset, "MSR {number:#x} is {v:#x}, not {reset:#x}");
        }
        let told = differences(&want, &got);
        holds!(told.is_empty(), "processor {n}: {told}");
    }
    Ok(())
}

/// A state in which nothing is zero.
fn full(g: &Guest) -> VcpuState {
    let mut s = g.s.clone();
    for n in 0..16 {
        s.gpr[n] = 0x0123_4567_89ab_cdef_u64.rotate_left(4 * n as u32);
        for (i, b) in s.xsave[160 + 16 * n..][..16].iter_mut().enumerate() {
            *b = (16 * n + i) as u8;
        }
        if s.xcr0 & xcr0::AVX != 0 {
            for (i, b) in s.xsave[576 + 16 * n..][..16].iter_mut().enumerate() {
                *b = (16 * n + i) as u8 ^ 0xff;
            }
        }
    }
    s.gpr[RSP] = STACK - 0x10;
    s.rflags = 2 | rflags::CF | rflags::OF | rflags::ID | rflags::IOPL;
    s.cr2 = 0x0000_7fff_1234_5678;
    (s.dr[0], s.dr[3]) = (0x1234, 0xffff_8000_0000_0000);
    s.dr[6] |= 1;
    // A number on the x87 stack, at 3 of 8: FSW.TOP 3, its tag valid.
    s.xsave[2..4].copy_from_slice(&0x1800u16.to_le_bytes());
    s.xsave[4] = 1 << 3;
    s.xsave[32..42].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x88, 0xff, 0x3f]);
    s.xsave[24..28].copy_from_slice(&0x1fbfu32.to_le_bytes());
    s
}

fn identity(t: &Test) -> Res {
    for mode in t.modes(&[Long, La57, Pae, Paged32, Flat])? {
        let mut g = t.guest(mode)?;
        let mut s = full(&g);
        if mode.long() {
            s.seg[sreg::FS].base = 0xffff_8000_0000_1000;
            s.seg[sreg::GS].base = 0x7fff_0000_1000;
            for (n, v) in
                [(msr::LSTAR, 0xffff_8000_1111_0000u64), (msr::KERNEL_GS_BASE, 0x1000), (msr::SFMASK, 0x700)]
            {
                s.msrs.insert(n, v);
            }
        } else {
            for r in &mut s.gpr[..8] {
                *r &= 0xffff_ffff;
            }
            s.gpr[8..].fill(0);
            s.cr2 &= 0xffff_ffff;
            s.dr[3] &= 0xffff_ffff;
            s.xsave[160 + 128..416].fill(0);
            s.xsave[576 + 128..].fill(0);
        }
        g.vcpu(0).set_state(&s)?;
        let got = g.vcpu(0).state();
        for (n, v) in &s.msrs {
            same!(got.msrs.get(n), Some(v));
        }
        s.msrs = got.msrs.clone();
        // Which PDPTEs are loaded is told though it was not asked.
        s.pdptes = got.pdptes;
        let told = differences(&s, &got);
        holds!(told.is_empty(), "{mode:?}: {told}");
        // Twice is once.
        g.vcpu(0).set_state(&got)?;
        let told = differences(&got, &g.vcpu(0).state());
        holds!(told.is_empty(), "{mode:?}, again: {told}");
    }
    Ok(())
}

type Change = fn(&mut VcpuState);

fn refused(t: &Test) -> Res {
    let cases: &[(&str, Change)] = &[
        ("CR0.PG without PE", |s| s.cr0 &= !cr0::PE),
        ("CR0.NW without CD", |s| s.cr0 |= cr0::NW),
        ("reserved bits of CR4", |s| s.cr4 |= 1 << 40),
        ("reserved bits of EFER", |s| s.efer |= 1 << 40),
        ("LMA without LME", |s| s.efer &= !efer::LME),
        ("long mode without PAE", |s| s.cr4 &= !cr4::PAE),
        ("RFLAGS bit 1", |s| s.rflags &= !2),
        ("reserved bits of RFLAGS", |s| s.rflags |= 1 << 40),
        ("CPL 4", |s| s.cpl = 4),
        ("an MSR that there is not", |s| {
            s.msrs.insert(0x3fff_ffff, 1);
        }),
        ("LSTAR that is not canonical", |s| {
            s.msrs.insert(msr::LSTAR, 1 << 62);
        }),
        ("reserved bits of MXCSR", |s| s.xsave[27] = 0x80),
        ("XCR0 without x87", |s| s.xcr0 &= !xcr0::X87),
        ("reserved bits of DR7", |s| s.dr[7] |= 1 << 40),
        ("CS with both L and D", |s| s.seg[sreg::CS].attr.0 |= 0x4000),
    ];
    let mut g = t.guest(Long)?;
    let s = full(&g);
    g.vcpu(0).set_state(&s)?;
    let before = g.vcpu(0).state();
    for (what, change) in cases {
        let mut s = before.clone();
        change(&mut s);
        s.gpr[RBX] ^= 1;
        match g.vcpu(0).set_state(&s) {
            Err(EngineError::BadState(_)) => {}
            r => return Err(Fail::Wrong(format!("{what}: {r:?}"))),
        }
        let told = differences(&before, &g.vcpu(0).state());
        holds!(told.is_empty(), "{what}: {told}");
    }
    Ok(())
}

fn reset(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let first = g.vcpu(0).state();
    code!(g, 64, KCODE; mov(eax, 5); fld1(); movq(xmm0, rax); out(END, al))?;
    g.s.msrs.insert(msr::LSTAR, 0x1234);
    g.end()?;
    let mut s = VcpuState::reset(g.model().signature(), true);
    s.pdptes = first.pdptes;
    g.vcpu(0).set_state(&s)?;
    let told = differences(&first, &g.vcpu(0).state());
    holds!(told.is_empty(), "{told}");
    Ok(())
}

fn nmi(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; nop(); nop(); out(END, al))?;
    g.s.nmi_pending = true;
    same!(g.event(vector::NMI)?.rip, KCODE);
    holds!(g.s.nmi_blocked && !g.s.nmi_pending);
    // Blocked: it waits for the IRET.
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; nop(); nop(); out(END, al))?;
    g.s.nmi_pending = true;
    g.s.nmi_blocked = true;
    g.end()?;
    holds!(g.s.nmi_blocked && g.s.nmi_pending);
    Ok(())
}

fn debug(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; nop(); out(END, al))?;
    g.s.pending_debug = dr::DR6_BS;
    g.fault(vector::DB, None, KCODE)?;
    same!(g.s.dr[6], dr::DR6_FIXED | dr::DR6_BS);
    same!(g.s.pending_debug, 0);
    Ok(())
}

/// A program of all sorts, stopped after each instruction by a step and handed to fresh processors; where the engine has no steps, by
/// its debug interface.
fn every_step(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.stay("it is handed over by hand");
    code!(g, 64, KCODE;
        mov(eax, 7); fld1(); fldpi(); faddp(st1, st0); movq(xmm1, rax); pshufd(xmm2, xmm1, 0); mov(ecx, 3); mov(edi, KDATA as u32);
        rep().stosb(); push(rax); popfq(); sti(); nop(); mov(ebx, sel::KDATA as i32); mov(ss, ebx); int3(); nop();
        out(END, al))?;
    // The handler of the breakpoint goes on at once.
    g.mem.write(HANDLERS + 0x30, &[0x48, 0xcf])?;
    g.load()?;
    let mut steps = 0;
    loop {
        let s = g.vcpu(0).step(crate::Until::Instruction(1));
        let ended = match s {
            Some(s) => s.exit.is_some(),
            None => return Err(Fail::Skip("this engine has no steps".to_owned())),
        };
        if ended || g.io.has_ended() {
            break;
        }
        g.hand_over()?;
        steps += 1;
        holds!(steps < 100, "it never ends");
    }
    g.save();
    // The handler's IRETQ is among them.
    holds!(steps >= 18, "{steps} steps");
    same!((g.s.gpr[RAX], g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RDI]), (7, u64::from(sel::KDATA), 0, KDATA + 3));
    same!(g.s.xsave[192..208], [7, 0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0]);
    same!(g.mem.load::<u32>(KDATA)?, 0x0007_0707);
    Ok(())
}
