//! Segments: limits, rights, loading (Intel SDM vol. 3A ch. 3 and 5).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "data beyond a segment's limit is #GP(0), on the stack #SS(0)", run: limits },
    Check { name: "expand-down segments end where others begin", run: expand_down },
    Check { name: "bases are added in 32-bit code, ignored in 64-bit code but for FS and GS", run: bases },
    Check { name: "writing to read-only and to code segments is #GP(0)", run: writes },
    Check {
        name: "loading: null, absent, beyond the table, of the wrong type, of an inner ring",
        run: loading,
    },
    Check { name: "loading sets the descriptor's accessed bit", run: accessed },
    Check { name: "a null segment may be loaded but not used", run: null },
    Check { name: "fetching beyond CS's limit is #GP(0)", run: code_limit },
    Check { name: "the LDT: LLDT, and selectors with TI", run: ldt },
    Check { name: "LAR, LSL, VERR, VERW and ARPL", run: look },
    Check { name: "real mode: selectors are bases, and protected mode's limits stay", run: unreal },
    Check { name: "SGDT, SIDT, LGDT and LIDT store and load bases and limits", run: tables },
    Check { name: "in 64-bit code limits do not count", run: long },
    Check { name: "16-bit addresses wrap at 64 KiB", run: wrap },
];

/// A selector that checks fill.
const X: u16 = sel::FREE;

fn limits(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.descriptor(X, make_descriptor(KDATA, 0xfff, 0x4093))?;
    let [at] = code!(g, 32, KCODE, [at];
        mov(ax, X as u32); mov(es, eax);
        mov(ebx, dword_ptr(0xffc).es()); @at mov(ebx, dword_ptr(0xffd).es()); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    let mut g = t.guest(Flat)?;
    // The stack pointer is at the base: the push wraps to the top, beyond the limit. The handler has a task of ring 0's stack.
    g.descriptor(X, make_descriptor(KDATA, 0xfff, 0x4093))?;
    let [at] = code!(g, 32, KCODE, [at];
        mov(ebp, 0xffe); mov(ax, X as u32); mov(esp, 0x800); mov(ss, eax); nop();
        @at mov(ebx, dword_ptr(ebp)); out(END, al))?;
    g.fault(vector::SS, 0, at)?;
    Ok(())
}

fn expand_down(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    // Offsets 0x1000 to 0xffff_ffff.
    g.descriptor(X, make_descriptor(0, 0xfff, 0x4097))?;
    let [at] = code!(g, 32, KCODE, [at];
        mov(ax, X as u32); mov(es, eax);
        mov(ebx, dword_ptr(0x1000).es()); @at mov(ebx, dword_ptr(0xfff).es()); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    Ok(())
}

fn bases(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    for n in 0..4u32 {
        g.mem.store(KDATA + 0x10 + u64::from(n) * 0x100, n + 1)?;
    }
    g.descriptor(X, make_descriptor(KDATA + 0x100, 0xfffff, 0xc093))?;
    code!(g, 32, KCODE;
        mov(ax, X as u32); mov(es, eax); mov(fs, eax); mov(ebx, dword_ptr(0x10).es()); mov(ecx, dword_ptr(0x110).fs());
        out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX]), (2, 3));
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 7u32)?;
    g.mem.store(KDATA + 0x40, 8u32)?;
    g.s.seg[sreg::ES].base = 0x40;
    g.s.seg[sreg::GS].base = 0x40;
    g.s.seg[sreg::FS].base = 0xffff_ffff_ffff_ffc0;
    code!(g, 64, KCODE;
        mov(ebx, dword_ptr(KDATA).es()); mov(ecx, dword_ptr(KDATA).gs()); mov(edx, dword_ptr(KDATA + 0x80).fs());
        out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RDX]), (7, 8, 8));
    Ok(())
}

fn writes(t: &Test) -> Res {
    // Read-only data; code, which may be read.
    for attr in [0xc091, 0xc09b] {
        let mut g = t.guest(Flat)?;
        g.descriptor(X, make_descriptor(0, 0xfffff, attr))?;
        let [at] = code!(g, 32, KCODE, [at];
            mov(ax, X as u32); mov(es, eax); mov(ebx, dword_ptr(KDATA).es()); @at mov(dword_ptr(KDATA).es(), ebx);
            out(END, al))?;
        g.fault(vector::GP, 0, at)?;
    }
    // Code that may only be executed cannot even be loaded.
    let mut g = t.guest(Flat)?;
    g.descriptor(X, make_descriptor(0, 0xfffff, 0xc099))?;
    let [at] = code!(g, 32, KCODE, [at]; mov(ax, X as u32); @at mov(es, eax); out(END, al))?;
    g.fault(vector::GP, u64::from(X), at)?;
    Ok(())
}

fn loading(t: &Test) -> Res {
    let x = u64::from(X);
    // Descriptor, selector, MOV SS instead of MOV ES, exception and its code.
    let cases = [
        (0xc093, X, false, None),
        (0xc013, X, false, Some((vector::NP, x))),
        (0xc013, X, true, Some((vector::SS, x))),
        (0xc093, 0x200, false, Some((vector::GP, 0x200))),
        (0x0082, X, false, Some((vector::GP, x))),
        (0xc091, X, true, Some((vector::GP, x))),
        (0xc0f3, X, true, Some((vector::GP, x))),
        (0xc0f3, X | 3, false, None),
        (0xc093, X | 3, false, Some((vector::GP, x))),
        (0xc093, 3, true, Some((vector::GP, 0))),
    ];
    for mode in [Flat, Long] {
        for (attr, selector, stack, want) in cases {
            let mut g = t.guest(mode)?;
            g.descriptor(X, make_descriptor(0, 0xfffff, attr))?;
            let null_ss_is_fine = mode == Long && selector == 3;
            if null_ss_is_fine {
                continue;
            }
            let [at] = code!(g, mode.bits(), KCODE, [at];
                mov(eax, u32::from(selector)); @at db(&[0x8e, if stack { 0xd0 } else { 0xc0 }]); out(END, al))?;
            match want {
                None => g.end()?,
                Some((v, code)) => drop(g.fault(v, code, at)?),
            }
        }
    }
    Ok(())
}

fn accessed(t: &Test) -> Res {
    for mode in [Flat, Long] {
        let mut g = t.guest(mode)?;
        let clear = make_descriptor(0, 0xfffff, 0xc092);
        g.descriptor(X, clear)?;
        code!(g, mode.bits(), KCODE; mov(eax, X as u32); mov(es, eax); out(END, al))?;
        g.end()?;
        same!(g.mem.load::<u64>(GDT + u64::from(X))?, clear | 1 << 40);
        same!(g.s.seg[sreg::ES].attr.0, 0xc093);
    }
    Ok(())
}

fn null(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    let [at] = code!(g, 32, KCODE, [at]; xor(eax, eax); mov(es, eax); @at mov(ebx, dword_ptr(KDATA).es()); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    holds!(g.s.seg[sreg::ES].attr.unusable());
    // In 64-bit mode it may be used.
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; xor(eax, eax); mov(es, eax); mov(ds, eax); mov(ebx, dword_ptr(KDATA)); out(END, al))?;
    g.end()
}

fn code_limit(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    // The last byte of the NOPs is the limit: the next instruction is beyond it.
    g.s.seg[sreg::CS].limit = KCODE as u32 + 0xf;
    code!(g, 32, KCODE; db(&[0x90; 16]); out(END, al))?;
    g.fault(vector::GP, 0, KCODE + 16)?;
    // A near jump beyond it faults where it stands.
    let mut g = t.guest(Flat)?;
    g.s.seg[sreg::CS].limit = KCODE as u32 + 0xff;
    let target = KCODE + 0x200;
    code!(g, 32, KCODE; jmp(target))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

fn ldt(t: &Test) -> Res {
    for mode in [Flat, Long] {
        let mut g = t.guest(mode)?;
        g.mem.store(LDT + 8, make_descriptor(0x1234_0000, 0xffff, 0x4093))?;
        g.descriptor(X, make_descriptor(LDT, 0xf, 0x82))?;
        g.descriptor(X + 8, 0)?;
        code!(g, mode.bits(), KCODE;
            mov(eax, X as u32); lldt(ax); mov(ebx, 0xc); mov(fs, ebx); sldt(ecx); out(END, al))?;
        g.end()?;
        same!(
            g.s.seg[sreg::FS],
            Segment { selector: 0xc, base: 0x1234_0000, limit: 0xffff, attr: Attr(0x4093) }
        );
        same!((g.s.ldtr.selector, g.s.ldtr.base, g.s.ldtr.limit), (X, LDT, 0xf));
        same!(g.s.gpr[RCX], u64::from(X));
        // Beyond its limit.
        let mut g = t.guest(mode)?;
        g.descriptor(X, make_descriptor(LDT, 0xf, 0x82))?;
        g.descriptor(X + 8, 0)?;
        let [at] = code!(g, mode.bits(), KCODE, [at];
            mov(eax, X as u32); lldt(ax); mov(ebx, 0x14); @at mov(fs, ebx); out(END, al))?;
        g.fault(vector::GP, 0x14, at)?;
    }
    Ok(())
}

fn look(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.descriptor(X, make_descriptor(0, 0x12345, 0xc0f1))?;
    code!(g, 32, KCODE;
        mov(eax, X as u32); lar(ebx, eax); setz(dl); lsl(ecx, eax); setz(dh);
        verr(ax); setz(byte_ptr(KDATA)); verw(ax); setz(byte_ptr(KDATA + 1));
        mov(si, 0x1f0_u32); lar(edi, esi); setz(byte_ptr(KDATA + 2));
        mov(si, 0x48_u32); mov(bp, 0x53_u32); arpl(si, bp); setz(byte_ptr(KDATA + 3));
        out(END, al))?;
    g.s.gpr[RDI] = 0x777;
    g.end()?;
    same!(g.s.gpr[RBX], 0x00c0_f100 | 1 << 16);
    same!(g.s.gpr[RCX], 0x1234_5fff);
    same!(g.s.gpr[RDX] & 0xffff, 0x0101);
    same!(g.s.gpr[RDI], 0x777);
    same!(g.s.gpr[RSI] & 0xffff, 0x4b);
    same!(g.mem.load::<u32>(KDATA)?, 0x0100_0001);
    Ok(())
}

/// Intel SDM vol. 3A §20.1.1, §9.9.
fn unreal(t: &Test) -> Res {
    let mut g = t.guest(Real)?;
    g.mem.store(0x12345, 0x5au8)?;
    code!(g, 16, RCODE; mov(ax, 0x1234_u32); mov(es, eax); mov(bl, byte_ptr(5).es()); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RBX], 0x5a);
    same!((g.s.seg[sreg::ES].selector, g.s.seg[sreg::ES].base), (0x1234, 0x12340));
    let mut g = t.guest(Real)?;
    g.s.seg[sreg::DS].limit = u32::MAX;
    g.mem.store(0x0030_0000, 0x5bu8)?;
    // MOV BL, [00300000h] with a 32-bit address.
    code!(g, 16, RCODE;
        xor(ax, ax); mov(ds, eax); db(&[0x67, 0x8a, 0x1d, 0, 0, 0x30, 0]); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RBX], 0x5b);
    Ok(())
}

fn tables(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        let long = mode == Long;
        g.mem.store(KDATA, 0x77u16)?;
        let base = if long { 0xffff_8000_1234_5678u64 } else { 0x1234_5678 };
        g.mem.store(KDATA + 2, base)?;
        code!(g, mode.bits(), KCODE;
            sgdt(fword_ptr(KDATA + 0x20)); sidt(fword_ptr(KDATA + 0x30)); lidt(fword_ptr(KDATA)); out(END, al))?;
        g.end()?;
        let (gdt, idt): (u64, u64) = (g.mem.load(KDATA + 0x22)?, g.mem.load(KDATA + 0x32)?);
        same!((g.mem.load::<u16>(KDATA + 0x20)?, gdt), (0x1ff, GDT));
        same!((g.mem.load::<u16>(KDATA + 0x30)?, idt), (if long { 0xfff } else { 0x7ff }, IDT));
        same!(g.s.idtr, TableReg { base, limit: 0x77 });
    }
    // Bases that are not canonical are refused.
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA + 2, 0x8000_0000_0000_0000u64)?;
    code!(g, 64, KCODE; lgdt(fword_ptr(KDATA)); out(END, al))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

fn long(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    for n in [sreg::CS, sreg::DS, sreg::ES, sreg::SS, sreg::FS] {
        g.s.seg[n].limit = 0;
        g.s.seg[n].attr.0 &= !0x8000;
    }
    code!(g, 64, KCODE; mov(ebx, dword_ptr(KDATA)); push(rax); mov(ecx, dword_ptr(KDATA).fs()); out(END, al))?;
    g.end()
}

/// Intel SDM vol. 1 §3.3.7: effective addresses are truncated to the address size.
fn wrap(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.mem.store(0x0ff0, 0x66u8)?;
    code!(g, 32, KCODE;
        mov(ebx, 0xfff0); mov(esi, 0x1000);
        // MOV CL, [BX+SI].
        db(&[0x67, 0x8a, 0x08]); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RCX], 0x66);
    Ok(())
}
