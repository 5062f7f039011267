//! The TSC, its adjustment, its deadline, and time that stands still (Intel SDM vol. 3B §18.17, vol. 3A §11.5.4.1).

use crate::conformance::prelude::*;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "RDTSC does not go back and runs with the machine's clock", run: runs },
    Check { name: "RDTSCP and RDPID give TSC_AUX", run: aux },
    Check { name: "CR4.TSD keeps RDTSC and RDTSCP from ring 3", run: disable },
    Check { name: "TSC_ADJUST is added; a write of the TSC changes it", run: adjust },
    Check { name: "the TSC deadline interrupts, and is disarmed", run: deadline },
    Check { name: "the guest's time stands still while the machine does", run: pause },
];

fn runs(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        rdtsc(); mov(r8d, eax); mov(r9d, edx); mov(ecx, 20); db(&[0xff, 0xc9, 0x75, 0xfc]);
        rdtsc(); out(END, al))?;
    let before = g.io.clock.tsc();
    g.end()?;
    let after = g.io.clock.tsc();
    let (first, second) = (g.s.gpr[9] << 32 | g.s.gpr[8], g.s.gpr[RDX] << 32 | g.s.gpr[RAX]);
    holds!(
        before <= first && first < second && second <= after,
        "{before} {first} {second} {after} are not in order"
    );
    Ok(())
}

fn aux(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::RDTSCP)?;
    g.s.msrs.insert(msr::TSC_AUX, 0x1234_5678);
    code!(g, 64, KCODE; rdtscp(); mov(ebx, ecx); out(END, al))?;
    g.s.gpr[RCX] = u64::MAX;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX]), (0x1234_5678, 0x1234_5678));
    g.needs(Feature::RDPID)?;
    let mut g = t.guest(Long)?;
    g.s.msrs.insert(msr::TSC_AUX, 0x8765_4321);
    code!(g, 64, KCODE; rdpid(rbx); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RBX], 0x8765_4321);
    Ok(())
}

fn disable(t: &Test) -> Res {
    for bytes in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xf9]] {
        for (ring3, faults) in [(true, true), (false, false)] {
            let mut g = t.guest(Long)?;
            g.needs(Feature::RDTSCP)?;
            if ring3 {
                g.ring3();
            }
            g.s.cr4 |= cr4::TSD;
            let at = g.s.rip;
            code!(g, 64, at; db(bytes); out(END, al))?;
            if faults {
                g.fault(vector::GP, 0, at)?;
            } else {
                g.end()?;
            }
        }
    }
    Ok(())
}

fn adjust(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::TSC_ADJUST)?;
    // Time stands, so that the numbers are exact.
    g.io.clock.stop();
    g.io.clock.set_ns(1_000_000);
    let base = g.io.clock.tsc();
    code!(g, 64, KCODE;
        mov(ecx, msr::TSC_ADJUST); mov(eax, 0x1000); xor(edx, edx); wrmsr(); rdtsc(); mov(r8, rax);
        mov(ecx, msr::TSC); mov(eax, 0x7000); xor(edx, edx); wrmsr(); rdtsc(); mov(r9, rax);
        mov(ecx, msr::TSC_ADJUST); rdmsr(); shl(rdx, 32); or(rax, rdx); mov(r10, rax); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[8], (base + 0x1000) & 0xffff_ffff);
    same!(g.s.gpr[9], 0x7000);
    same!(g.s.gpr[10], 0x7000u64.wrapping_sub(base));
    Ok(())
}

fn deadline(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::TSC_DEADLINE)?;
    let ahead = g.io.clock.tsc_khz() as u32;
    let [sleeping] = code!(g, 64, KCODE, [sleeping];
        rdtsc(); shl(rdx, 32); or(rax, rdx); add(rax, ahead as i32); mov(r8, rax); mov(rdx, rax); shr(rdx, 32);
        mov(ecx, msr::TSC_DEADLINE); wrmsr(); sti(); hlt(); @sleeping rdtsc(); shl(rdx, 32); or(rax, rdx); mov(r9, rax);
        mov(ecx, msr::TSC_DEADLINE); rdmsr(); out(END, al))?;
    let f = g.event(TIMER_VECTOR)?;
    same!(f.rip, sleeping);
    g.end()?;
    holds!(g.s.gpr[9] >= g.s.gpr[8], "it fired {} ticks early", g.s.gpr[8] - g.s.gpr[9]);
    same!((g.s.gpr[RAX], g.s.gpr[RDX]), (0, 0));
    Ok(())
}

fn pause(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; rdtsc(); shl(rdx, 32); or(rax, rdx); mov(rbx, rax); out(END, al))?;
    g.end()?;
    g.io.clock.stop();
    let stood = g.io.clock.tsc();
    std::thread::sleep(Duration::from_millis(30));
    g.s.rip = KCODE;
    g.end()?;
    // Nothing passed between the stop and this run.
    same!(g.s.gpr[RBX], stood);
    g.io.clock.start();
    g.s.rip = KCODE;
    g.end()?;
    let passed = g.s.gpr[RBX] - stood;
    holds!(passed > 0 && passed <= g.io.clock.tsc() - stood, "{passed} ticks passed");
    Ok(())
}
