//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (Intel SDM vol. 2B, AMD APM vol. 3).

use crate::conformance::prelude::*;
use ringer_arch::cpu::Vendor;

pub const CHECKS: &[Check] = &[
    Check { name: "SYSCALL from ring 3 and SYSRET back", run: there_and_back },
    Check { name: "SYSCALL clears the flags of SFMASK", run: mask },
    Check { name: "SYSCALL and SYSRET are #UD without EFER.SCE", run: off },
    Check { name: "SYSRET in ring 3 is #GP(0)", run: ring3 },
    Check { name: "SYSRET to an address that is not canonical faults", run: canonical },
    Check { name: "SYSRET to 32-bit code", run: narrow },
    Check { name: "SYSENTER and SYSEXIT in protected mode", run: sysenter },
    Check { name: "SYSENTER with a null SYSENTER_CS is #GP(0)", run: sysenter_null },
];

fn there_and_back(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    g.s.msrs.insert(msr::LSTAR, KCODE);
    g.s.msrs.insert(msr::SFMASK, rflags::IF);
    g.s.rflags |= rflags::IF | rflags::CF;
    let [next] = code!(g, 64, UCODE, [next]; syscall(); @next mov(esi, cs); mov(edi, ss); out(END, al))?;
    code!(g, 64, KCODE; mov(r8d, cs); mov(r9d, ss); pushfq(); pop(r10); mov(rbx, rcx); sysretq())?;
    // The stack is not switched.
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[8], g.s.gpr[9]), (next, next, 0x08, 0x10));
    same!((g.s.gpr[RSI], g.s.gpr[RDI], g.s.cpl), (u64::from(sel::UCODE64), u64::from(sel::UDATA), 3));
    same!(g.s.gpr[10] & (rflags::IF | rflags::CF), rflags::CF);
    same!(g.s.rflags & (rflags::IF | rflags::CF), rflags::IF | rflags::CF);
    same!(g.s.gpr[11], g.s.rflags);
    Ok(())
}

fn mask(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    g.s.msrs.insert(msr::LSTAR, KCODE);
    g.s.msrs.insert(msr::SFMASK, rflags::CF | rflags::DF | rflags::AC | rflags::IF);
    let all = rflags::CF | rflags::ZF | rflags::DF | rflags::AC;
    g.s.rflags |= all;
    code!(g, 64, UCODE; syscall())?;
    code!(g, 64, KCODE; out(END, al))?;
    g.end()?;
    same!(g.s.rflags & all, rflags::ZF);
    same!(g.s.gpr[11] & all, all);
    Ok(())
}

fn off(t: &Test) -> Res {
    for bytes in [&[0x0f, 0x05][..], &[0x48, 0x0f, 0x07]] {
        let mut g = t.guest(Long)?;
        g.s.efer &= !efer::SCE;
        code!(g, 64, KCODE; db(bytes))?;
        g.fault(vector::UD, None, KCODE)?;
    }
    Ok(())
}

fn ring3(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    code!(g, 64, UCODE; sysretq())?;
    g.fault(vector::GP, 0, UCODE)?;
    Ok(())
}

/// Intel's processors fault in ring 0 at the SYSRET, AMD's at the fetch in ring 3.
fn canonical(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let bad = 1u64 << 47;
    code!(g, 64, KCODE; sysretq())?;
    (g.s.gpr[RCX], g.s.gpr[11]) = (bad, 2);
    let intel = g.model().vendor() == Vendor::Intel;
    let f = g.fault(vector::GP, 0, if intel { KCODE } else { bad })?;
    same!(f.cs & 3, if intel { 0 } else { 3 });
    Ok(())
}

fn narrow(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; db(&[0x0f, 0x07]))?;
    // INC EAX; in 64-bit code it would be a prefix.
    g.mem.write(UCODE, &[0x40, 0xe6, 0xf4])?;
    (g.s.gpr[RCX], g.s.gpr[11]) = (UCODE, 2 | rflags::IOPL);
    g.end()?;
    same!((g.s.gpr[RAX], g.s.seg[sreg::CS].selector, g.s.cpl), (1, sel::UCODE32, 3));
    Ok(())
}

fn sysenter(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    // CS, then SS, code and stack of ring 3 (Intel SDM vol. 2B SYSENTER).
    let base = 0x80u16;
    for (n, d) in [(0, sel::KCODE32), (1, sel::KDATA), (2, sel::UCODE32), (3, sel::UDATA)] {
        g.descriptor(base + 8 * n, descriptor(d))?;
    }
    g.ring3();
    for (n, v) in
        [(msr::SYSENTER_CS, u64::from(base)), (msr::SYSENTER_ESP, STACK), (msr::SYSENTER_EIP, KCODE)]
    {
        g.s.msrs.insert(n, v);
    }
    g.s.rflags |= rflags::IF;
    let [next] =
        code!(g, 32, UCODE, [next]; db(&[0x0f, 0x34]); @next mov(esi, cs); mov(edi, ss); out(END, al))?;
    code!(g, 32, KCODE;
        mov(ebx, cs); mov(ebp, esp); mov(ecx, USTACK as u32); mov(edx, next as u32); pushfd(); pop(eax); db(&[0x0f, 0x35]))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RBP]), (u64::from(base), STACK));
    same!((g.s.gpr[RSI], g.s.gpr[RDI], g.s.cpl), (u64::from(base) + 0x13, u64::from(base) + 0x1b, 3));
    // IF is cleared on the way in.
    same!(g.s.gpr[RAX] & rflags::IF, 0);
    same!(g.s.gpr[RSP], USTACK);
    Ok(())
}

fn sysenter_null(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    code!(g, 32, KCODE; db(&[0x0f, 0x34]))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}
