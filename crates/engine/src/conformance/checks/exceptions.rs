//! Exceptions: vectors, error codes, return addresses (Intel SDM vol. 3A ch. 6).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "#DE of DIV by zero and of IDIV overflow", run: divide },
    Check { name: "#BP and #OF return behind INT3 and INTO", run: traps },
    Check { name: "#BR of BOUND", run: bound },
    Check {
        name: "#UD of UD2, of LOCK where it may not be, and of forms that 64-bit mode has not",
        run: undefined,
    },
    Check { name: "#GP of addresses that are not canonical, #SS through the stack pointer", run: canonical },
    Check { name: "#GP of an instruction of 16 bytes", run: too_long },
    Check { name: "#AC in ring 3 with CR0.AM and RFLAGS.AC", run: alignment },
    Check { name: "#GP of MOVAPS from a misaligned address", run: movaps },
    Check { name: "faults push RF, traps do not", run: resume_flag },
    Check { name: "exceptions in real mode push no error code", run: real },
];

fn divide(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; mov(eax, 5); xor(ecx, ecx); @at div(ecx); out(END, al))?;
    g.fault(vector::DE, None, at)?;
    same!(g.s.gpr[RAX], 5);
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        mov(eax, 0x8000_0000_u32); cdq(); mov(ecx, -1); @at idiv(ecx); out(END, al))?;
    g.fault(vector::DE, None, at)?;
    Ok(())
}

fn traps(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] = code!(g, 64, KCODE, [next]; int3(); @next out(END, al))?;
    g.fault(vector::BP, None, next)?;
    let mut g = t.guest(Flat)?;
    let [next] = code!(g, 32, KCODE, [next]; db(&[0xce]); mov(eax, 0x7fff_ffff); inc(eax); db(&[0xce]); @next out(END, al))?;
    g.fault(vector::OF, None, next)?;
    Ok(())
}

fn bound(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.mem.store(KDATA, 3u32)?;
    g.mem.store(KDATA + 4, 7u32)?;
    let [at] = code!(g, 32, KCODE, [at];
        mov(eax, 7); bound(eax, dword_ptr(KDATA)); mov(eax, 8); @at bound(eax, dword_ptr(KDATA)); out(END, al))?;
    g.fault(vector::BR, None, at)?;
    Ok(())
}

fn undefined(t: &Test) -> Res {
    let long: [&[u8]; 8] = [
        &[0x0f, 0x0b],
        // LOCK MOV [RAX], EAX; LOCK ADD EAX, ECX.
        &[0xf0, 0x89, 0x00],
        &[0xf0, 0x01, 0xc8],
        // PUSH ES, AAA, BOUND or EVEX with bad bits, MOV CS, AX; LDS.
        &[0x06],
        &[0x37],
        &[0x8e, 0xc8],
        &[0xc5, 0x00, 0x00],
        // MOV CR1, RAX.
        &[0x0f, 0x22, 0xc8],
    ];
    for bytes in long {
        let mut g = t.guest(Long)?;
        code!(g, 64, KCODE; db(bytes); out(END, al))?;
        g.s.gpr[RAX] = KDATA;
        // C5 is VEX in 64-bit mode, which must have vvvv all ones for this form.
        g.fault(vector::UD, None, KCODE)?;
    }
    Ok(())
}

/// Intel SDM vol. 1 §3.3.7.1.
fn canonical(t: &Test) -> Res {
    let bad = 0x8000_0000_0000;
    for (n, v) in [(0, vector::GP), (1, vector::SS), (2, vector::SS), (3, vector::GP)] {
        let mut g = t.guest(Long)?;
        let at = match n {
            0 => code!(g, 64, KCODE, [at]; @at mov(rbx, qword_ptr(rax)); out(END, al))?,
            1 => code!(g, 64, KCODE, [at]; @at push(rbx); out(END, al))?,
            2 => code!(g, 64, KCODE, [at]; @at mov(rbx, qword_ptr(rbp)); out(END, al))?,
            _ => code!(g, 64, KCODE, [at]; mov(rcx, rax); @at jmp(rcx); out(END, al))?,
        };
        g.s.gpr[RAX] = bad;
        g.s.gpr[RBP] = bad;
        if n == 1 {
            // The handler needs a stack.
            g.gate(vector::SS, 0x18e)?;
            g.s.gpr[RSP] = bad + 8;
        }
        let f = g.event(v)?;
        same!(f.code, Some(0));
        // A near JMP faults before RIP changes (Intel SDM vol. 2A JMP).
        same!(f.rip, at[0]);
    }
    Ok(())
}

fn too_long(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; db(&[0x2e; 14]); nop(); out(END, al))?;
    g.end()?;
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; db(&[0x2e; 15]); nop(); out(END, al))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

/// Intel SDM vol. 3A §6.15, interrupt 17.
fn alignment(t: &Test) -> Res {
    for (am, ring3, faults) in [(true, true, true), (false, true, false), (true, false, false)] {
        let mut g = t.guest(Long)?;
        if ring3 {
            g.ring3();
        }
        g.s.rflags |= rflags::AC;
        if am {
            g.s.cr0 |= cr0::AM;
        }
        let base = g.s.rip;
        let [at] = code!(g, 64, base, [at]; mov(eax, dword_ptr(UDATA)); @at mov(eax, dword_ptr(UDATA + 1)); out(END, al))?;
        if faults {
            g.fault(vector::AC, 0, at)?;
        } else {
            g.end()?;
        }
    }
    Ok(())
}

fn movaps(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        movups(xmm0, xmmword_ptr(KDATA + 8)); movaps(xmm0, xmmword_ptr(KDATA)); @at movaps(xmm0, xmmword_ptr(KDATA + 8));
        out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    Ok(())
}

/// Intel SDM vol. 3B §18.3.1.1.
fn resume_flag(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; ud2())?;
    same!(g.event(vector::UD)?.rflags & rflags::RF, rflags::RF);
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; int3())?;
    same!(g.event(vector::BP)?.rflags & rflags::RF, 0);
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; int(0x80))?;
    same!(g.event(CALL_VECTOR)?.rflags & rflags::RF, 0);
    Ok(())
}

fn real(t: &Test) -> Res {
    let mut g = t.guest(Real)?;
    let [at] = code!(g, 16, RCODE, [at]; xor(cx, cx); @at div(cx); out(END, al))?;
    let f = g.fault(vector::DE, None, at)?;
    same!(f.cs, 0);
    same!(g.s.gpr[RSP], STACK - 6);
    // A word at offset 0xffff passes the limit: #GP, without a code in real mode.
    let mut g = t.guest(Real)?;
    let [at] = code!(g, 16, RCODE, [at]; mov(bx, 0xffff_u32); @at mov(ax, word_ptr(bx)); out(END, al))?;
    g.fault(vector::GP, None, at)?;
    same!(g.s.gpr[RSP], STACK - 6);
    Ok(())
}
