//! Code that changes: by itself, through other addresses, from outside (Intel SDM vol. 3A §8.1.3, §11.6).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "an instruction that changes the next one", run: next },
    Check { name: "a loop that changes its own immediate", run: immediate },
    Check { name: "code changed through another linear address", run: alias },
    Check { name: "code that the host writes between runs", run: host },
    Check { name: "a page of code that is remapped", run: remap },
    Check { name: "REP MOVS over the code that follows", run: string },
    Check { name: "an instruction over two pages of which the second changes", run: straddle },
    Check { name: "the same bytes in 64-, 32- and 16-bit code are what each makes of them", run: modes },
];

fn next(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        // The byte of MOV BL, imm8.
        let [at] =
            code!(g, mode.bits(), KCODE, [at]; mov(byte_ptr(KCODE + 0x21), 2); jmp(KCODE + 0x20); @at nop())?;
        holds!(at < KCODE + 0x20);
        code!(g, mode.bits(), KCODE + 0x20; mov(bl, 1); out(END, al))?;
        g.end()?;
        same!(g.s.gpr[RBX], 2);
        // Without a jump between.
        let mut g = t.guest(Long)?;
        code!(g, 64, KCODE; mov(byte_ptr(KCODE + 9), 2); mov(bl, 1); out(END, al))?;
        same!(g.mem.load::<u16>(KCODE + 8)?, 0x01b3);
        g.end()?;
        same!(g.s.gpr[RBX], 2);
    }
    Ok(())
}

fn immediate(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        add(eax, 0x1000); add(dword_ptr(KCODE + 1), 1); dec(ecx); jne(KCODE); out(END, al))?;
    g.s.gpr[RCX] = 50;
    g.end()?;
    same!(g.s.gpr[RAX], 50 * 0x1000 + 49 * 50 / 2);
    Ok(())
}

fn alias(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    // KDATA's page is the code's.
    g.set_pte(KDATA, KCODE | pte::KERNEL)?;
    code!(g, 64, KCODE; jmp(KCODE + 0x100))?;
    code!(g, 64, KCODE + 0x100; mov(bl, 1); add(esi, ebx); mov(byte_ptr(KDATA + 0x101), 4); dec(ecx); jne(KCODE); out(END, al))?;
    g.s.gpr[RCX] = 3;
    g.end()?;
    same!(g.s.gpr[RSI], 9);
    Ok(())
}

fn host(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    for n in 1..20u32 {
        code!(g, 64, KCODE; mov(ebx, n); out(END, al))?;
        g.s.rip = KCODE;
        g.end()?;
        same!(g.s.gpr[RBX], u64::from(n));
    }
    Ok(())
}

fn remap(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let page = KCODE + 0x2000;
    code!(g, 64, page; add(ebx, 1); ret())?;
    code!(g, 64, page + 0x1000; add(ebx, 0x10); ret())?;
    let entry = g.pte_at(page);
    code!(g, 64, KCODE;
        call(page); call(page); mov(dword_ptr(entry), ((page + 0x1000) | pte::KERNEL) as i32); invlpg(byte_ptr(page));
        call(page); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RBX], 0x12);
    Ok(())
}

fn string(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.write(KDATA, &[0xb3, 7, 0xe6, 0xf4])?;
    let [at] = code!(g, 64, KCODE, [at]; rep().movsb(); @at mov(bl, 1); out(END, al))?;
    (g.s.gpr[RSI], g.s.gpr[RDI], g.s.gpr[RCX]) = (KDATA, at, 4);
    g.end()?;
    same!(g.s.gpr[RBX], 7);
    Ok(())
}

fn straddle(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let page = KCODE + 0x1000;
    // MOV EBX, imm32 of which the last two bytes lie in the next page; then RET.
    g.mem.write(page - 3, &[0xbb, 1, 0, 0, 0, 0xc3])?;
    code!(g, 64, KCODE;
        call(page - 3); mov(esi, ebx); mov(word_ptr(page), 0x77); call(page - 3); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RSI], g.s.gpr[RBX]), (1, 0x0077_0001));
    Ok(())
}

/// 40 is REX in 64-bit code and INC EAX in others; B8 takes 4 bytes, or 2.
fn modes(t: &Test) -> Res {
    for (mode, want) in [(Long, 0x9090_9090u64), (Flat, 0x9090_9090), (Real, 0x9090)] {
        let mut g = t.guest(mode)?;
        g.mem.write(mode.entry(), &[0x40, 0xb8, 0x90, 0x90, 0x90, 0x90, 0xe6, 0xf4])?;
        g.end()?;
        same!(g.s.gpr[RAX], want);
    }
    // The same place in one machine: compatibility code jumps over what 64-bit code has run.
    let mut g = t.guest(Long)?;
    g.mem.write(KCODE, &[0x40, 0x90, 0xe6, 0xf4])?;
    g.end()?;
    same!(g.s.gpr[RAX], 0);
    g.s.rip = KCODE;
    g.s.seg[sreg::CS] = segment(sel::KCODE32);
    g.end()?;
    same!(g.s.gpr[RAX], 1);
    Ok(())
}
