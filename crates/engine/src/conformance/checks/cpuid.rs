//! CPUID (Intel SDM vol. 2A CPUID).

use crate::conformance::prelude::*;
use ringer_arch::cpu::CpuidDynamic;

pub const CHECKS: &[Check] = &[
    Check { name: "every leaf is as the model says", run: leaves },
    Check { name: "OSXSAVE follows CR4, and the XSAVE area's size XCR0", run: dynamic },
    Check { name: "every processor tells its own APIC id", run: apic_ids },
    Check { name: "CPUID in ring 3, and the upper halves of its results", run: ring3 },
];

fn ask(g: &mut Guest, leaf: u32, sub: u32) -> Result<[u32; 4], Fail> {
    code!(*g, 64, KCODE; cpuid(); out(END, al))?;
    g.s.rip = KCODE;
    (g.s.gpr[RAX], g.s.gpr[RCX]) = (leaf.into(), sub.into());
    g.end()?;
    Ok([RAX, RBX, RCX, RDX].map(|n| g.s.gpr[n] as u32))
}

fn leaves(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.stay("this is about the values, and long");
    let dynamic = CpuidDynamic {
        apic_id: 0,
        vcpus: 1,
        osxsave: g.s.cr4 & cr4::OSXSAVE != 0,
        xcr0: g.s.xcr0,
        apic_enabled: true,
        tsc_khz: g.io.clock.tsc_khz() as u32,
        ..CpuidDynamic::default()
    };
    let mut all: Vec<_> = g.model().leaves().iter().map(|l| (l.leaf, l.subleaf.unwrap_or(0))).collect();
    all.extend([(0x7fff_ffff, 0), (0x8fff_ffff, 0), (0x4000_0000, 0), (0xd, 5), (7, 9)]);
    for (leaf, sub) in all {
        let got = ask(&mut g, leaf, sub)?;
        let want = g.model().cpuid(leaf, sub, &dynamic);
        holds!(got == want, "leaf {leaf:#x}, {sub}: {got:x?}, not {want:x?}");
    }
    Ok(())
}

fn dynamic(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::XSAVE)?;
    for on in [true, false, true] {
        g.s.cr4 = g.s.cr4 & !cr4::OSXSAVE | if on { cr4::OSXSAVE } else { 0 };
        same!(ask(&mut g, 1, 0)?[2] >> 27 & 1, u32::from(on));
    }
    g.needs(Feature::AVX)?;
    for (x, size) in [(3, 576), (7, 832), (1, 576)] {
        g.s.xcr0 = x;
        same!(ask(&mut g, 0xd, 0)?[1], size);
    }
    Ok(())
}

fn apic_ids(t: &Test) -> Res {
    let mut g = t.guests(Long, 2)?;
    code!(g, 16, RCODE;
        db(&[0x66, 0xb8, 1, 0, 0, 0]); cpuid(); db(&[0x66, 0x89, 0x1e, 0x00, 0x58]); out(END, al))?;
    code!(g, 64, KCODE; mov(eax, 1); cpuid(); mov(r8d, ebx); mov(eax, 0x0001_0306); out(SEND, eax); hlt())?;
    g.end()?;
    same!(g.s.gpr[8] as u32 >> 24, 0);
    same!(g.mem.load::<u32>(0x5800)? >> 24, 1);
    Ok(())
}

fn ring3(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    for n in [RBX, RDX] {
        g.s.gpr[n] = u64::MAX;
    }
    code!(g, 64, UCODE; xor(eax, eax); cpuid(); out(END, al))?;
    g.end()?;
    holds!([RAX, RBX, RCX, RDX].iter().all(|n| g.s.gpr[*n] >> 32 == 0));
    let vendor = [RBX, RDX, RCX].map(|n| (g.s.gpr[n] as u32).to_le_bytes()).concat();
    holds!(vendor == b"GenuineIntel" || vendor == b"AuthenticAMD", "the vendor is {vendor:x?}");
    Ok(())
}
