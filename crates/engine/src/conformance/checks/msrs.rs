//! RDMSR and WRMSR (Intel SDM vol. 4, AMD APM vol. 2 app. A).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "MSRs that are not there, and ring 3, are #GP(0)", run: refused },
    Check { name: "the MSRs of SYSCALL hold what is written; addresses must be canonical", run: syscall },
    Check { name: "FS_BASE, GS_BASE and KERNEL_GS_BASE; SWAPGS", run: bases },
    Check { name: "RDFSBASE and its family, by CR4.FSGSBASE", run: fsgsbase },
    Check { name: "EFER: LMA is read-only, LME stays while paging is on, reserved bits", run: efer_bits },
    Check { name: "PAT refuses types that there are not", run: pat },
    Check { name: "the model's MSRs have their reset values", run: model },
    Check { name: "SYSENTER's MSRs", run: sysenter },
];

/// WRMSR of `v` to MSR `n`, then RDMSR; the value read, or the fault.
fn write(t: &Test, n: u32, v: u64) -> Result<Option<u64>, Fail> {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        mov(ecx, n); mov(eax, v as u32); mov(edx, (v >> 32) as u32); @at wrmsr(); xor(eax, eax); xor(edx, edx); rdmsr();
        out(END, al))?;
    match g.run()? {
        Event::End => Ok(Some(g.s.gpr[RDX] << 32 | g.s.gpr[RAX])),
        Event::Vector(f) if (f.vector, f.code, f.rip) == (vector::GP, Some(0), at) => Ok(None),
        e => Err(Fail::Wrong(format!("MSR {n:#x}: {e:x?}"))),
    }
}

fn refused(t: &Test) -> Res {
    for n in [0x3fff_ffffu32, 0xc000_0fff, 0xbad] {
        same!(write(t, n, 0)?, None);
        let mut g = t.guest(Long)?;
        let [at] = code!(g, 64, KCODE, [at]; mov(ecx, n); @at rdmsr(); out(END, al))?;
        g.fault(vector::GP, 0, at)?;
    }
    for bytes in [[0x0f, 0x30], [0x0f, 0x32]] {
        let mut g = t.guest(Long)?;
        g.ring3();
        g.s.gpr[RCX] = u64::from(msr::LSTAR);
        code!(g, 64, UCODE; db(&bytes); out(END, al))?;
        g.fault(vector::GP, 0, UCODE)?;
    }
    Ok(())
}

fn syscall(t: &Test) -> Res {
    let high = 0xffff_8000_0000_1000u64;
    same!(write(t, msr::STAR, 0x1234_5678_9abc_def0)?, Some(0x1234_5678_9abc_def0));
    for n in [msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE] {
        same!(write(t, n, high)?, Some(high));
        same!(write(t, n, 1 << 63)?, None);
    }
    same!(write(t, msr::SFMASK, 0x0003_0700)?, Some(0x0003_0700));
    Ok(())
}

fn bases(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 1u32)?;
    g.mem.store(KDATA + 0x100, 2u32)?;
    g.s.msrs.insert(msr::KERNEL_GS_BASE, KDATA + 0x100);
    code!(g, 64, KCODE;
        mov(ecx, msr::GS_BASE); mov(eax, KDATA as u32); xor(edx, edx); wrmsr(); mov(ebx, dword_ptr(0).gs());
        swapgs(); mov(esi, dword_ptr(0).gs()); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RSI]), (1, 2));
    same!(g.s.seg[sreg::GS].base, KDATA + 0x100);
    same!(g.s.msrs.get(&msr::KERNEL_GS_BASE), Some(&KDATA));
    same!(write(t, msr::FS_BASE, 0xffff_ffff_8000_0000)?, Some(0xffff_ffff_8000_0000));
    same!(write(t, msr::FS_BASE, 0x0001_0000_0000_0000 << 11)?, None);
    // SWAPGS is for ring 0.
    let mut g = t.guest(Long)?;
    g.ring3();
    code!(g, 64, UCODE; swapgs(); out(END, al))?;
    g.fault(vector::GP, 0, UCODE)?;
    Ok(())
}

fn fsgsbase(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::FSGSBASE)?;
    g.ring3();
    code!(g, 64, UCODE;
        mov(rax, 0xffff_8000_1234_5678u64); wrfsbase(rax); rdfsbase(rbx); mov(eax, 0x8765_4321u32); wrgsbase(eax);
        rdgsbase(rcx); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX]), (0xffff_8000_1234_5678, 0x8765_4321));
    same!(g.s.seg[sreg::FS].base, 0xffff_8000_1234_5678);
    let mut g = t.guest(Long)?;
    g.s.cr4 &= !cr4::FSGSBASE;
    code!(g, 64, KCODE; rdfsbase(rbx); out(END, al))?;
    g.fault(vector::UD, None, KCODE)?;
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; mov(rax, 1u64 << 62); @at wrfsbase(rax); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    Ok(())
}

fn efer_bits(t: &Test) -> Res {
    let base = t.guest(Long)?.s.efer;
    same!(write(t, msr::EFER, base & !efer::SCE)?, Some(base & !efer::SCE));
    same!(write(t, msr::EFER, base & !efer::LMA)?, Some(base));
    same!(write(t, msr::EFER, base & !efer::LME)?, None);
    same!(write(t, msr::EFER, base | 1 << 40)?, None);
    Ok(())
}

fn pat(t: &Test) -> Res {
    same!(write(t, msr::PAT, 0x0007_0406_0501_0406)?, Some(0x0007_0406_0501_0406));
    same!(write(t, msr::PAT, 0x0007_0406_0200_0406)?, None);
    same!(write(t, msr::PAT, 8)?, None);
    Ok(())
}

fn model(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let all: Vec<_> = g.model().msrs().iter().filter(|m| m.readable()).map(|m| (m.index, m.reset)).collect();
    holds!(!all.is_empty());
    code!(g, 64, KCODE; rdmsr(); out(END, al))?;
    g.stay("this is about the values, and long");
    for (n, reset) in all {
        g.s.rip = KCODE;
        g.s.gpr[RCX] = u64::from(n);
        g.end()?;
        let got = g.s.gpr[RDX] << 32 | g.s.gpr[RAX];
        holds!(got == reset, "MSR {n:#x} is {got:#x}, not {reset:#x}");
    }
    Ok(())
}

fn sysenter(t: &Test) -> Res {
    same!(write(t, msr::SYSENTER_CS, 0x10)?, Some(0x10));
    for n in [msr::SYSENTER_ESP, msr::SYSENTER_EIP] {
        same!(write(t, n, 0x1234_5678)?, Some(0x1234_5678));
    }
    Ok(())
}
