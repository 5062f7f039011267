//! x87, SSE and AVX: state, exceptions, and how their areas are saved (Intel SDM vol. 1 ch. 8, 10, 13).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "an unmasked x87 exception is #MF at the next waiting instruction", run: x87 },
    Check { name: "an x87 stack fault sets IE, SF and C1", run: stack },
    Check { name: "an unmasked SIMD exception is #XM, or #UD without OSXMMEXCPT", run: simd },
    Check { name: "masked SIMD exceptions only set their flags", run: masked },
    Check { name: "LDMXCSR refuses reserved bits", run: mxcsr },
    Check { name: "FXSAVE and FXRSTOR; a misaligned area is #GP(0)", run: fxsave },
    Check { name: "XSAVE writes what is asked for, XRSTOR makes the rest initial", run: xsave },
    Check { name: "XRSTOR refuses bits that XCR0 has not", run: xrstor_bad },
    Check { name: "XSETBV refuses what it must; XGETBV reads it", run: xsetbv },
    Check { name: "AVX needs XCR0.AVX; VZEROUPPER; SSE keeps the upper halves", run: avx },
    Check { name: "FNINIT, FNSTCW, FNSTSW, FNSAVE and FRSTOR", run: control },
];

fn x87(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 0x033bu16)?;
    // Zero divide is unmasked: 1 / 0 is noted, FNSTSW does not wait, FLD1 does.
    let [at] = code!(g, 64, KCODE, [at];
        fldcw(word_ptr(KDATA)); fld1(); fldz(); fdivp(st1, st0); fnstsw(ax); nop(); @at fld1(); out(END, al))?;
    g.fault(vector::MF, None, at)?;
    // ES, B and ZE, and the stack of two.
    same!(g.s.gpr[RAX] & 0x80ff, 0x8084);
    Ok(())
}

fn stack(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        db(&[0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8]);
        fld1(); fnstsw(ax); fninit(); db(&[0xdd, 0xd8]); fnstsw(word_ptr(KDATA)); out(END, al))?;
    g.end()?;
    // Overflow: C1 is 1; underflow: C1 is 0.
    same!(g.s.gpr[RAX] & 0x0241, 0x0241);
    same!(g.mem.load::<u16>(KDATA)? & 0x0241, 0x0041);
    Ok(())
}

fn simd(t: &Test) -> Res {
    for (osxmm, v) in [(true, vector::XM), (false, vector::UD)] {
        let mut g = t.guest(Long)?;
        if !osxmm {
            g.s.cr4 &= !cr4::OSXMMEXCPT;
        }
        // Zero divide is unmasked.
        g.mem.store(KDATA, 0x1d80u32)?;
        g.mem.store(KDATA + 16, 1.0f32.to_bits())?;
        let [at] = code!(g, 64, KCODE, [at];
            ldmxcsr(dword_ptr(KDATA)); movss(xmm0, dword_ptr(KDATA + 16)); xorps(xmm1, xmm1); @at divss(xmm0, xmm1); out(END, al))?;
        g.fault(v, None, at)?;
        if osxmm {
            same!(g.s.xsave[24], 0x84);
        }
        same!(g.s.xsave[160..164], 1.0f32.to_bits().to_le_bytes());
    }
    Ok(())
}

fn masked(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA + 16, 1.0f32.to_bits())?;
    code!(g, 64, KCODE;
        movss(xmm0, dword_ptr(KDATA + 16)); xorps(xmm1, xmm1); divss(xmm0, xmm1); stmxcsr(dword_ptr(KDATA)); out(END, al))?;
    g.end()?;
    same!(g.mem.load::<u32>(KDATA)?, 0x1f84);
    same!(g.s.xsave[160..164], f32::INFINITY.to_bits().to_le_bytes());
    Ok(())
}

fn mxcsr(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 0x0001_1f80u32)?;
    code!(g, 64, KCODE; ldmxcsr(dword_ptr(KDATA)); out(END, al))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

fn fxsave(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(rax, 0x1122_3344_5566_7788u64); movq(xmm15, rax); fld1(); fxsave64(ptr(KDATA)); fninit(); pxor(xmm15, xmm15);
        fxrstor64(ptr(KDATA)); movq(rbx, xmm15); fnstsw(ax); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RBX], 0x1122_3344_5566_7788);
    // TOP is 7.
    same!(g.s.gpr[RAX] & 0x3800, 0x3800);
    same!(g.mem.load::<u64>(KDATA + 160 + 240)?, 0x1122_3344_5566_7788);
    same!(g.mem.load::<u8>(KDATA + 4)?, 0x80);
    same!(g.mem.load::<u64>(KDATA + 32)?, 1 << 63);
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; fxsave64(ptr(KDATA + 8)); out(END, al))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

fn xsave(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::AVX)?;
    g.mem.store(KDATA + 512, 0u64)?;
    code!(g, 64, KCODE;
        mov(rax, 0x55u64); movq(xmm3, rax); vinsertf128(ymm3, ymm3, xmm3, 1);
        xor(edx, edx); mov(eax, 6); xsave(ptr(KDATA));
        // Only AVX is restored to what was saved, SSE stays, and then all becomes initial.
        pxor(xmm3, xmm3); mov(eax, 4); xrstor(ptr(KDATA)); vextractf128(xmm4, ymm3, 1); movq(rbx, xmm4); movq(rcx, xmm3);
        mov(qword_ptr(KDATA + 512), 0); mov(eax, 7); xrstor(ptr(KDATA)); movq(rsi, xmm3); fnstcw(word_ptr(KDATA + 0x800));
        out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RSI]), (0x55, 0, 0));
    same!(g.mem.load::<u64>(KDATA + 160 + 48)?, 0x55);
    same!(g.mem.load::<u64>(KDATA + 576 + 48)?, 0x55);
    // Not asked for: the x87 part was not written.
    same!(g.mem.load::<u16>(KDATA)?, 0);
    same!(g.mem.load::<u16>(KDATA + 0x800)?, 0x37f);
    Ok(())
}

/// Intel SDM vol. 1 §13.8.1.
fn xrstor_bad(t: &Test) -> Res {
    for (at, v) in [(512, 1u64 << 40), (512 + 16, 1), (512 + 8, 1)] {
        let mut g = t.guest(Long)?;
        g.needs(Feature::XSAVE)?;
        g.mem.store(KDATA + at, v)?;
        let [at] =
            code!(g, 64, KCODE, [at]; xor(edx, edx); mov(eax, 7); @at xrstor(ptr(KDATA)); out(END, al))?;
        g.fault(vector::GP, 0, at)?;
    }
    // A misaligned area; XSAVE without OSXSAVE.
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; xsave(ptr(KDATA + 16)); out(END, al))?;
    g.fault(vector::GP, 0, KCODE)?;
    let mut g = t.guest(Long)?;
    g.s.cr4 &= !cr4::OSXSAVE;
    code!(g, 64, KCODE; xsave(ptr(KDATA)); out(END, al))?;
    g.fault(vector::UD, None, KCODE)?;
    Ok(())
}

fn xsetbv(t: &Test) -> Res {
    for (n, v, fine) in
        [(0, 3u64, true), (0, 7, true), (0, 2, false), (0, 5, false), (0, 1 << 40 | 1, false), (1, 1, false)]
    {
        let mut g = t.guest(Long)?;
        g.needs(Feature::AVX)?;
        let [at] = code!(g, 64, KCODE, [at];
            mov(ecx, n); mov(eax, v as u32); mov(edx, (v >> 32) as u32); @at xsetbv(); xor(eax, eax); xgetbv(); out(END, al))?;
        if fine {
            g.end()?;
            same!((g.s.gpr[RAX], g.s.gpr[RDX], g.s.xcr0), (v, 0, v));
        } else {
            g.fault(vector::GP, 0, at)?;
        }
    }
    let mut g = t.guest(Long)?;
    g.ring3();
    code!(g, 64, UCODE; xor(ecx, ecx); xgetbv(); xsetbv(); out(END, al))?;
    let f = g.event(vector::GP)?;
    same!(f.rip, UCODE + 5);
    Ok(())
}

fn avx(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::AVX)?;
    g.s.xsave[576..584].copy_from_slice(&0x99u64.to_le_bytes());
    code!(g, 64, KCODE;
        mov(eax, 1); movq(xmm0, rax); vextractf128(xmm1, ymm0, 1); movq(rbx, xmm1); vzeroupper();
        vextractf128(xmm1, ymm0, 1); movq(rcx, xmm1); movq(rdx, xmm0); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RDX]), (0x99, 0, 1));
    let mut g = t.guest(Long)?;
    g.s.xcr0 = 3;
    code!(g, 64, KCODE; vzeroupper(); out(END, al))?;
    g.fault(vector::UD, None, KCODE)?;
    let mut g = t.guest(Long)?;
    g.s.cr0 |= cr0::TS;
    code!(g, 64, KCODE; vzeroupper(); out(END, al))?;
    g.fault(vector::NM, None, KCODE)?;
    Ok(())
}

fn control(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 0x027fu16)?;
    code!(g, 64, KCODE;
        fldcw(word_ptr(KDATA)); fldpi(); fnstcw(word_ptr(KDATA + 2)); fnsave(ptr(KDATA + 0x100)); fnstcw(word_ptr(KDATA + 4));
        fnstsw(word_ptr(KDATA + 6)); frstor(ptr(KDATA + 0x100)); fnstcw(word_ptr(KDATA + 8)); fnstsw(word_ptr(KDATA + 10));
        out(END, al))?;
    g.end()?;
    let words: Vec<u16> = (1..6).map(|n| g.mem.load(KDATA + 2 * n)).collect::<Result<_, _>>()?;
    same!(words, [0x027f, 0x037f, 0, 0x027f, 0x3800]);
    // The tag word of FNSAVE is the full one: ST0 valid, the rest empty.
    same!(g.mem.load::<u16>(KDATA + 0x108)?, 0x3fff);
    Ok(())
}
