//! Far transfers: jumps, calls, gates, returns, interrupts between rings (Intel SDM vol. 3A ch. 5 and 6).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "far jumps and calls to code of the same ring, and RETF", run: far },
    Check { name: "far transfers to what is no code, is absent or of another ring", run: far_bad },
    Check { name: "conforming code keeps the ring", run: conforming },
    Check { name: "a call gate to ring 0 switches stacks and copies parameters", run: call_gate },
    Check { name: "a call gate of 64-bit mode pushes eight-byte frames", run: call_gate_64 },
    Check { name: "INT n in ring 3 takes the stack of the TSS; IRET returns", run: int_ring },
    Check { name: "INT n through a gate of an inner ring is #GP", run: int_dpl },
    Check { name: "IRET to ring 3 makes data segments of inner rings null", run: iret_null },
    Check { name: "IRETQ in 64-bit mode always pops SS:RSP", run: iretq },
    Check { name: "IRET with bad selectors faults with their index", run: iret_bad },
    Check { name: "from 64-bit to compatibility code and back", run: compatibility },
    Check { name: "IRET clears NT tasks: #GP in long mode with NT", run: nt },
    Check { name: "real mode to protected mode and back", run: switch },
    Check { name: "near CALL, RET n, ENTER, LEAVE, PUSHA and POPA", run: near },
];

fn far(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.mem.store(KDATA, (KCODE + 0x100) as u32)?;
    g.mem.store(KDATA + 4, sel::KCODE32)?;
    code!(g, 32, KCODE; mov(ebx, esp); call(fword_ptr(KDATA)); mov(esi, esp); out(END, al))?;
    code!(g, 32, KCODE + 0x100; mov(ecx, dword_ptr(esp + 4)); sub(ebx, esp); retf())?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX] & 0xffff, g.s.gpr[RSI]), (8, u64::from(sel::KCODE32), STACK));
    Ok(())
}

fn far_bad(t: &Test) -> Res {
    let x = u64::from(sel::FREE);
    for (attr, selector, v, code) in [
        (0xc09b, 0u16, vector::GP, 0),
        (0xc093, sel::FREE, vector::GP, x),
        (0xc01b, sel::FREE, vector::NP, x),
        (0xc0fb, sel::FREE, vector::GP, x),
        (0xc09b, 0x200, vector::GP, 0x200),
    ] {
        let mut g = t.guest(Flat)?;
        g.descriptor(sel::FREE, make_descriptor(0, 0xfffff, attr))?;
        g.mem.store(KDATA, KCODE as u32)?;
        g.mem.store(KDATA + 4, selector)?;
        let [at] = code!(g, 32, KCODE, [at]; nop(); @at jmp(fword_ptr(KDATA)))?;
        g.fault(v, code, at)?;
    }
    Ok(())
}

fn conforming(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.ring3();
    g.descriptor(sel::FREE, make_descriptor(0, 0xfffff, 0xc09f))?;
    g.mem.store(UDATA, (UCODE + 0x100) as u32)?;
    g.mem.store(UDATA + 4, sel::FREE)?;
    code!(g, 32, UCODE; jmp(fword_ptr(UDATA)))?;
    code!(g, 32, UCODE + 0x100; mov(ebx, cs); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.cpl), (u64::from(sel::FREE | 3), 3));
    Ok(())
}

/// Intel SDM vol. 3A §5.8.5.
fn call_gate(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    g.ring3();
    // Two parameters; DPL 3.
    let target = KCODE + 0x100;
    g.descriptor(
        sel::FREE,
        target & 0xffff | u64::from(sel::KCODE32) << 16 | 2 << 32 | 0xec << 40 | (target >> 16) << 48,
    )?;
    g.mem.store(UDATA + 4, sel::FREE | 3)?;
    let [next] = code!(g, 32, UCODE, [next];
        push(0x11); push(0x22); call(fword_ptr(UDATA)); @next mov(esi, esp); out(END, al))?;
    code!(g, 32, target; mov(ebx, esp); mov(edx, cs); retf_1(8))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RDX]), (STACK_RING0 - 24, u64::from(sel::KCODE32)));
    let frame: Vec<u32> = (0..6).map(|n| g.mem.load(STACK_RING0 - 24 + 4 * n)).collect::<Result<_, _>>()?;
    same!(
        frame,
        [next as u32, u32::from(sel::UCODE32), 0x22, 0x11, (USTACK - 8) as u32, u32::from(sel::UDATA)]
    );
    same!((g.s.gpr[RSI], g.s.cpl), (USTACK, 3));
    Ok(())
}

fn call_gate_64(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    let target = KCODE + 0x100;
    g.descriptor(
        sel::FREE,
        target & 0xffff | u64::from(sel::KCODE64) << 16 | 0xec << 40 | (target >> 16) << 48,
    )?;
    g.descriptor(sel::FREE + 8, 0)?;
    g.mem.store(UDATA + 4, sel::FREE | 3)?;
    let [next] = code!(g, 64, UCODE, [next]; call(fword_ptr(UDATA)); @next mov(rsi, rsp); out(END, al))?;
    // RETF with a 64-bit operand.
    code!(g, 64, target; mov(rbx, rsp); mov(edx, ss); db(&[0x48, 0xcb]))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RDX]), (STACK_RING0 - 32, 0));
    let frame: Vec<u64> = (0..4).map(|n| g.mem.load(STACK_RING0 - 32 + 8 * n)).collect::<Result<_, _>>()?;
    same!(frame, [next, u64::from(sel::UCODE64), USTACK, u64::from(sel::UDATA)]);
    same!((g.s.gpr[RSI], g.s.cpl), (USTACK, 3));
    Ok(())
}

fn int_ring(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        g.ring3();
        let [next] = code!(g, mode.bits(), UCODE, [next]; int(0x80); @next mov(ebx, 1); out(END, al))?;
        let f = g.fault(CALL_VECTOR, None, next)?;
        same!((f.rsp, f.ss), (Some(USTACK), Some(sel::UDATA)));
        same!(g.s.gpr[RSP], STACK_RING0 - if mode == Long { 40 } else { 20 });
        // A null SS in long mode (Intel SDM vol. 3A §6.14.4), the TSS's otherwise.
        same!(g.s.seg[sreg::SS].selector, if mode == Long { 0 } else { sel::KDATA });
        g.end()?;
        same!((g.s.gpr[RBX], g.s.cpl, g.s.gpr[RSP]), (1, 3, USTACK));
    }
    Ok(())
}

fn int_dpl(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        g.ring3();
        code!(g, mode.bits(), UCODE; int(0x85))?;
        g.fault(vector::GP, 0x85 * 8 + 2, UCODE)?;
    }
    Ok(())
}

/// Intel SDM vol. 2A IRET.
fn iret_null(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    code!(g, 32, KCODE;
        mov(eax, sel::UDATA as i32); mov(es, eax);
        push(sel::UDATA as i32); push(USTACK as i32); push(2 | rflags::IOPL as i32); push(sel::UCODE32 as i32); push(UCODE as i32);
        iretd())?;
    code!(g, 32, UCODE; out(END, al))?;
    g.end()?;
    same!((g.s.cpl, g.s.seg[sreg::ES].selector), (3, sel::UDATA));
    for n in [sreg::DS, sreg::FS, sreg::GS] {
        same!(g.s.seg[n].selector, 0);
        holds!(g.s.seg[n].attr.unusable());
    }
    Ok(())
}

fn iretq(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        push(sel::KDATA as i32); push((STACK - 0x100) as i32); push(2 | rflags::CF as i32); push(sel::KCODE64 as i32);
        push((KCODE + 0x100) as i32); iretq())?;
    code!(g, 64, KCODE + 0x100; mov(rbx, rsp); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.rflags & rflags::CF), (STACK - 0x100, rflags::CF));
    Ok(())
}

fn iret_bad(t: &Test) -> Res {
    // CS, SS, exception, code.
    for (to, stack, v, code) in [
        (0u16, sel::KDATA, vector::GP, 0u64),
        (sel::KDATA, sel::KDATA, vector::GP, u64::from(sel::KDATA)),
        (sel::UCODE64 & !3, sel::KDATA, vector::GP, u64::from(sel::UCODE64 & !3)),
        (sel::UCODE64, sel::KDATA | 3, vector::GP, u64::from(sel::KDATA)),
        (0x1f8, sel::KDATA, vector::GP, 0x1f8),
    ] {
        let mut g = t.guest(Long)?;
        let [at] = code!(g, 64, KCODE, [at];
            push(stack as i32); push(USTACK as i32); push(2); push(to as i32); push(UCODE as i32); @at iretq())?;
        g.fault(v, code, at)?;
    }
    Ok(())
}

fn compatibility(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, (KCODE + 0x100) as u32)?;
    g.mem.store(KDATA + 4, sel::KCODE32)?;
    g.mem.store(KDATA + 8, (KCODE + 0x200) as u32)?;
    g.mem.store(KDATA + 12, sel::KCODE64)?;
    code!(g, 64, KCODE; mov(rax, 0xffff_ffff_0000_0000u64); mov(rsi, rax); jmp(fword_ptr(KDATA)))?;
    // INC EAX by its short form clears the upper half; ESI's is kept.
    code!(g, 32, KCODE + 0x100; db(&[0x40]); mov(ebx, cs); mov(ecx, dword_ptr(0xffff_fff0u32)); out(END, al))?;
    // That address is not mapped: the fault shows it to be below 4 GiB.
    let f = g.event(vector::PF)?;
    same!(
        (g.s.cr2, f.cs, g.s.gpr[RAX], g.s.gpr[RBX]),
        (0xffff_fff0, sel::KCODE32, 1, u64::from(sel::KCODE32))
    );
    code!(g, 32, KCODE + 0x180; jmp(fword_ptr(KDATA + 8)))?;
    code!(g, 64, KCODE + 0x200; mov(r8d, cs); mov(r9, rsi); out(END, al))?;
    g.return_to(&f, KCODE + 0x180)?;
    g.end()?;
    same!((g.s.gpr[8], g.s.gpr[9]), (u64::from(sel::KCODE64), 0xffff_ffff_0000_0000));
    Ok(())
}

fn nt(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::NT;
    code!(g, 64, KCODE; iretq())?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

/// Intel SDM vol. 3A §9.9.
fn switch(t: &Test) -> Res {
    let mut g = t.guest(Real)?;
    g.mem.store(0x5800, RCODE as u32 + 0x100)?;
    g.mem.store(0x5804, sel::KCODE32)?;
    g.mem.store(0x5808, RCODE as u32 + 0x200)?;
    g.mem.store(0x580c, sel::KCODE16)?;
    g.mem.store(0x5810, RCODE as u32 + 0x280)?;
    g.mem.store(0x5814, 0u16)?;
    code!(g, 16, RCODE; mov(eax, cr0); or(al, 1); mov(cr0, eax); db(&[0x66]); jmp(dword_ptr(0x5800)))?;
    // 66 FF /5: a far jump with a 32-bit offset.
    g.mem.write(RCODE, &[0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0x66, 0xff, 0x2e, 0x00, 0x58])?;
    code!(g, 32, RCODE + 0x100;
        mov(ebx, cs); mov(ecx, sel::KDATA as i32); mov(ds, ecx); mov(esi, dword_ptr(0x5800)); mov(ecx, sel::KDATA16 as i32); mov(ds, ecx);
        jmp(fword_ptr(0x5808)))?;
    // Back through 16-bit code.
    g.mem.write(
        RCODE + 0x200,
        &[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0x66, 0xff, 0x2e, 0x10, 0x58],
    )?;
    code!(g, 16, RCODE + 0x280; mov(dx, cs); mov(edi, cr0); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RSI]), (u64::from(sel::KCODE32), RCODE + 0x100));
    same!((g.s.gpr[RDX] & 0xffff, g.s.gpr[RDI] & 1), (0, 0));
    Ok(())
}

fn near(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    code!(g, 32, KCODE;
        push(1); push(2); call(KCODE + 0x100); mov(edx, esp); enter(0x20, 0); mov(esi, esp); leave(); mov(edi, esp);
        pushad(); mov(ebx, dword_ptr(esp + 12)); popad(); out(END, al))?;
    code!(g, 32, KCODE + 0x100; mov(ecx, dword_ptr(esp + 4)); ret_1(8))?;
    g.s.gpr[RBP] = 0x777;
    g.end()?;
    same!((g.s.gpr[RCX], g.s.gpr[RDX], g.s.gpr[RSI], g.s.gpr[RDI]), (2, STACK, STACK - 0x24, STACK));
    // POPAD drops the saved ESP, and EBX comes back.
    same!((g.s.gpr[RBX], g.s.gpr[RBP], g.s.gpr[RSP]), (0, 0x777, STACK));
    Ok(())
}
