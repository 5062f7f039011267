//! Task switches and virtual-8086 mode (Intel SDM vol. 3A ch. 7, ch. 20).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "JMP to a TSS switches tasks and saves the old one", run: jump },
    Check { name: "CALL to a TSS nests; IRET goes back", run: call },
    Check { name: "a task gate takes a double fault", run: gate },
    Check { name: "LTR marks the TSS busy; a busy one is refused", run: ltr },
    Check { name: "a task switch in long mode is #GP", run: long },
    Check { name: "IRET enters virtual-8086 mode; its faults leave it", run: v86 },
    Check { name: "INT n in virtual-8086 mode needs IOPL 3", run: v86_int },
];

/// A task that starts at `eip` with CR3 as it is; selector [`sel::FREE`].
fn task(g: &mut Guest, eip: u64) -> Res {
    g.descriptor(sel::FREE, make_descriptor(TSS2, 0x67, 0x89))?;
    let put = |at: u64, v: u32| g.mem.store(TSS2 + at, v);
    put(0x1c, 0)?;
    put(0x20, eip as u32)?;
    put(0x24, 2)?;
    put(0x28, 0x1111)?;
    put(0x38, STACK_IST as u32)?;
    for (n, s) in
        [sel::KDATA, sel::KCODE32, sel::KDATA, sel::KDATA, sel::KDATA, sel::KDATA].into_iter().enumerate()
    {
        put(0x48 + 4 * n as u64, s.into())?;
    }
    put(0x60, 0)?;
    Ok(())
}

fn far_pointer(g: &Guest, selector: u16) -> Res {
    g.mem.store(KDATA, 0u32)?;
    Ok(g.mem.store(KDATA + 4, selector)?)
}

fn jump(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    task(&mut g, KCODE + 0x100)?;
    far_pointer(&g, sel::FREE)?;
    let [next] = code!(g, 32, KCODE, [next]; mov(ebx, 0x77); jmp(fword_ptr(KDATA)); @next nop())?;
    code!(g, 32, KCODE + 0x100; str(ecx); mov(edx, cr0); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RAX], g.s.gpr[RSP], g.s.gpr[RCX] & 0xffff), (0x1111, STACK_IST, u64::from(sel::FREE)));
    // TS is set, the old task saved and no longer busy, the new one is.
    same!(g.s.gpr[RDX] & cr0::TS, cr0::TS);
    same!((g.mem.load::<u32>(TSS + 0x34)?, g.mem.load::<u32>(TSS + 0x20)?), (0x77, next as u32));
    let busy = |s: u16| g.mem.load::<u8>(GDT + u64::from(s) + 5).map(|b| b & 2 != 0);
    same!((busy(sel::TSS)?, busy(sel::FREE)?), (false, true));
    Ok(())
}

fn call(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    task(&mut g, KCODE + 0x100)?;
    far_pointer(&g, sel::FREE)?;
    code!(g, 32, KCODE; mov(ebx, 1); call(fword_ptr(KDATA)); str(ecx); out(END, al))?;
    code!(g, 32, KCODE + 0x100; pushfd(); pop(dword_ptr(KDATA + 8)); mov(eax, 0x2222); iretd())?;
    g.end()?;
    same!((g.s.gpr[RAX], g.s.gpr[RBX], g.s.gpr[RCX] & 0xffff), (0, 1, u64::from(sel::TSS)));
    same!(u64::from(g.mem.load::<u32>(KDATA + 8)?) & rflags::NT, rflags::NT);
    same!((g.mem.load::<u16>(TSS2)?, g.mem.load::<u32>(TSS2 + 0x28)?), (sel::TSS, 0x2222));
    same!(g.s.rflags & rflags::NT, 0);
    Ok(())
}

fn gate(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    task(&mut g, KCODE + 0x100)?;
    g.mem.store(IDT + 8 * 8, u64::from(sel::FREE) << 16 | 0x85 << 40)?;
    // #DE through a gate that is not present.
    g.gate(vector::DE, 0x0e)?;
    let [at] = code!(g, 32, KCODE, [at]; xor(ecx, ecx); @at div(ecx))?;
    code!(g, 32, KCODE + 0x100; pop(ebx); out(END, al))?;
    g.end()?;
    // The error code is on the new task's stack; the old one is saved where it was.
    same!((g.s.gpr[RBX], g.s.gpr[RSP]), (0, STACK_IST));
    same!(g.mem.load::<u32>(TSS + 0x20)?, at as u32);
    Ok(())
}

fn ltr(t: &Test) -> Res {
    for mode in [Flat, Long] {
        let mut g = t.guest(mode)?;
        let d = make_descriptor(TSS2, 0x67, 0x89);
        g.descriptor(sel::FREE, d)?;
        g.descriptor(sel::FREE + 8, 0)?;
        let [at] = code!(g, mode.bits(), KCODE, [at]; mov(eax, sel::FREE as i32); ltr(ax); str(ebx); @at ltr(ax); out(END, al))?;
        g.fault(vector::GP, u64::from(sel::FREE), at)?;
        same!((g.s.gpr[RBX] & 0xffff, g.s.tr.base, g.s.tr.attr.typ()), (u64::from(sel::FREE), TSS2, 0xb));
        same!(g.mem.load::<u64>(GDT + u64::from(sel::FREE))?, d | 2 << 40);
    }
    Ok(())
}

fn long(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.descriptor(sel::FREE, make_descriptor(TSS2, 0x67, 0x89))?;
    g.descriptor(sel::FREE + 8, 0)?;
    far_pointer(&g, sel::FREE)?;
    code!(g, 64, KCODE; jmp(fword_ptr(KDATA)))?;
    g.fault(vector::GP, u64::from(sel::FREE), KCODE)?;
    Ok(())
}

/// Enters virtual-8086 mode at 0:RCODE.
fn enter(g: &Guest, flags: u64) -> Res {
    let flags = flags | rflags::VM | 2;
    code!(*g, 32, KCODE;
        push(0x4000); push(0x3000); push(0x2000); push(0x1000); push(0x100); push(0xff0); push(flags as i32); push(0); push(RCODE as i32);
        iretd())?;
    Ok(())
}

fn v86(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    enter(&g, rflags::IOPL)?;
    g.mem.store(0x2_0005, 0x77u8)?;
    let [at] = code!(g, 16, RCODE, [at]; mov(bx, ds); mov(cl, byte_ptr(5).ds()); mov(dx, ss); @at hlt())?;
    let f = g.fault(vector::GP, 0, at)?;
    same!((g.s.gpr[RBX] & 0xffff, g.s.gpr[RCX] & 0xff, g.s.gpr[RDX] & 0xffff), (0x2000, 0x77, 0x100));
    same!((f.cs, f.rsp, f.ss, f.rflags & rflags::VM), (0, Some(0xff0), Some(0x100), rflags::VM));
    // ES, DS, FS and GS are behind SS, and null in the handler.
    let saved: Vec<u32> = (0..4).map(|n| g.mem.load(STACK_RING0 - 16 + 4 * n)).collect::<Result<_, _>>()?;
    same!(saved, [0x1000, 0x2000, 0x3000, 0x4000]);
    same!((g.s.seg[sreg::DS].selector, g.s.seg[sreg::FS].selector, g.s.cpl), (0, 0, 0));
    same!(g.s.rflags & rflags::VM, 0);
    // And back.
    code!(g, 16, RCODE + 0x80; mov(si, es); int(0x80))?;
    g.return_to(&f, RCODE + 0x80)?;
    let f = g.fault(CALL_VECTOR, None, RCODE + 0x84)?;
    same!((g.s.gpr[RSI] & 0xffff, f.cs, f.rflags & rflags::VM), (0x1000, 0, rflags::VM));
    Ok(())
}

fn v86_int(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    enter(&g, rflags::IOPL)?;
    let [next] = code!(g, 16, RCODE, [next]; int(0x80); @next nop())?;
    g.fault(CALL_VECTOR, None, next)?;
    let mut g = t.guest(Flat)?;
    enter(&g, 0)?;
    code!(g, 16, RCODE; int(0x80))?;
    g.fault(vector::GP, 0, RCODE)?;
    Ok(())
}
