//! The arithmetic flags (Intel SDM vol. 1 §3.4.3.1, app. A).

use crate::conformance::prelude::*;
use rflags::{AF, CF, OF, PF, SF, ZF};

pub const CHECKS: &[Check] = &[
    Check { name: "arithmetic and logic set CF, PF, AF, ZF, SF and OF", run: arithmetic },
    Check { name: "shifts and rotates by zero leave all flags", run: shifts },
    Check { name: "INC and DEC keep CF; LAHF, SAHF, CLC, STC, CMC", run: keep },
    Check { name: "all sixteen conditions, by SETcc, CMOVcc and Jcc", run: conditions },
    Check { name: "POPF at ring 0 and ring 3 changes what it may", run: popf },
    Check { name: "PUSHF clears RF and VM in the image", run: pushf },
];

/// Instruction, EAX, ECX, flags before, result, flags after.
type Case = (&'static [u8], u32, u32, u64, u32, u64);

/// What two operands and the flags before become: EAX op ECX.
fn arithmetic(t: &Test) -> Res {
    let cases: &[Case] = &[
        (&[0x01, 0xc8], 0x7fff_ffff, 1, 0, 0x8000_0000, OF | SF | AF | PF),
        (&[0x01, 0xc8], 0xffff_ffff, 1, 0, 0, CF | ZF | AF | PF),
        (&[0x01, 0xc8], 0x8000_0000, 0x8000_0000, 0, 0, CF | ZF | OF | PF),
        (&[0x11, 0xc8], 0xffff_ffff, 0, CF, 0, CF | ZF | AF | PF),
        (&[0x11, 0xc8], 5, 0xffff_ffff, CF, 5, CF | AF | PF),
        (&[0x29, 0xc8], 0, 1, 0, 0xffff_ffff, CF | SF | AF | PF),
        (&[0x29, 0xc8], 0x8000_0000, 1, 0, 0x7fff_ffff, OF | AF | PF),
        (&[0x19, 0xc8], 0, 0xffff_ffff, CF, 0, CF | ZF | AF | PF),
        (&[0x39, 0xc8], 7, 7, CF, 7, ZF | PF),
        // AND leaves AF undefined.
        (&[0x21, 0xc8], 0xf000_0001, 0x8000_0001, CF | OF, 0x8000_0001, SF),
        (&[0x31, 0xc8], 3, 0, CF, 3, PF),
        // NEG: CF tells that the operand was not zero.
        (&[0xf7, 0xd8], 0, 0, CF, 0, ZF | PF),
        (&[0xf7, 0xd8], 0x8000_0000, 0, 0, 0x8000_0000, CF | OF | SF | PF),
        // SHL EAX, 1 and SAR EAX, 1.
        (&[0xd1, 0xe0], 0xc000_0000, 0, 0, 0x8000_0000, CF | SF | PF),
        (&[0xd1, 0xf8], 0x8000_0003, 0, 0, 0xc000_0001, CF | SF),
    ];
    let mut g = t.guest(Long)?;
    for (n, (bytes, a, c, before, result, after)) in cases.iter().enumerate() {
        code!(g, 64, KCODE; db(bytes); out(END, al))?;
        g.s.rip = KCODE;
        g.s.rflags = before | 2;
        g.s.gpr[RAX] = u64::from(*a);
        g.s.gpr[RCX] = u64::from(*c);
        g.end()?;
        holds!(g.s.gpr[RAX] == u64::from(*result), "case {n}: {:#x}, not {result:#x}", g.s.gpr[RAX]);
        let defined = if n == 9 || n == 10 || n >= 13 { rflags::ARITH & !AF } else { rflags::ARITH };
        let got = g.s.rflags & defined;
        holds!(got == *after & defined, "case {n}: flags {got:#x}, not {after:#x}");
    }
    Ok(())
}

fn shifts(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(ecx, 0x40); shl(eax, cl); shr(rbx, cl); sar(edx, cl); rol(esi, cl); rcr(edi, cl); shld(r8d, r9d, cl);
        out(END, al))?;
    for before in [rflags::ARITH, 0] {
        g.s.rip = KCODE;
        g.s.rflags = before | 2;
        g.s.gpr[RBX] = 3;
        g.end()?;
        same!(g.s.rflags, before | 2);
        same!(g.s.gpr[RBX], 3);
    }
    Ok(())
}

fn keep(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        stc(); mov(eax, -1); inc(eax); pushfq(); pop(r8);
        clc(); mov(eax, 0); dec(eax); pushfq(); pop(r9);
        mov(ah, 0xff_u32); sahf(); lahf(); mov(r10d, eax);
        cmc(); pushfq(); pop(r11);
        out(END, al))?;
    g.end()?;
    same!(g.s.gpr[8] & rflags::ARITH, CF | ZF | AF | PF);
    same!(g.s.gpr[9] & rflags::ARITH, SF | AF | PF);
    // Bits 1, 3 and 5 of the flags are fixed.
    same!(g.s.gpr[10] >> 8 & 0xff, 0xd7);
    same!(g.s.gpr[11] & rflags::ARITH & !OF, ZF | SF | PF | AF);
    Ok(())
}

fn conditions(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    for cc in 0..16u8 {
        // setcc bl; cmovcc ecx, edx; jcc over mov esi, 1.
        code!(g, 64, KCODE;
            db(&[0x0f, 0x90 | cc, 0xc3]);
            db(&[0x0f, 0x40 | cc, 0xca]);
            db(&[0x70 | cc, 5]);
            mov(esi, 1);
            out(END, al))?;
        for f in [0, CF, ZF, SF, OF, PF, SF | OF, CF | ZF, ZF | SF | OF] {
            let on = |m| f & m != 0;
            let less = on(SF) != on(OF);
            let base = [on(OF), on(CF), on(ZF), on(CF | ZF), on(SF), on(PF), less, less || on(ZF)];
            let want = base[usize::from(cc / 2)] != (cc & 1 != 0);
            g.s.rip = KCODE;
            g.s.rflags = f | 2;
            (g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RDX], g.s.gpr[RSI]) = (0, 1, 2, 0);
            g.end()?;
            let got = (g.s.gpr[RBX] == 1, g.s.gpr[RCX] == 2, g.s.gpr[RSI] == 0);
            holds!(got == (want, want, want), "condition {cc:x} with flags {f:#x}: {got:?}, not {want}");
        }
    }
    Ok(())
}

/// Intel SDM vol. 2B POPF, table 4-16: ring 3 with IOPL 0 changes neither IF nor IOPL, and no ring changes VM or RF so.
fn popf(t: &Test) -> Res {
    let all = rflags::ALL & !rflags::TF & !rflags::VIF & !rflags::VIP & !rflags::VM;
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; push(rax); popfq(); pushfq(); pop(rbx); out(END, al))?;
    g.s.gpr[RAX] = all;
    g.end()?;
    same!(g.s.gpr[RBX], all & !rflags::RF | 2);
    let mut g = t.guest(Long)?;
    g.ring3();
    g.s.rflags = 2;
    code!(g, 64, UCODE; push(rax); popfq(); pushfq(); pop(rbx); int(0x80))?;
    g.s.gpr[RAX] = all;
    g.event(CALL_VECTOR)?;
    same!(g.s.gpr[RBX], all & !rflags::RF & !rflags::IF & !rflags::IOPL | 2);
    Ok(())
}

/// Intel SDM vol. 2B PUSHF.
fn pushf(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; pushfq(); pop(rax); out(END, al))?;
    g.s.rflags |= rflags::RF | rflags::CF;
    g.end()?;
    same!(g.s.gpr[RAX], 2 | rflags::CF);
    Ok(())
}
