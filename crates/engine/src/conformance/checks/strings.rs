//! String instructions, and what comes in their middle (Intel SDM vol. 2B REP).

use crate::conformance::prelude::*;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "MOVS, STOS, LODS, SCAS and CMPS with their counts and flags", run: all },
    Check { name: "REP MOVS that overlaps moves one element at a time", run: overlap },
    Check { name: "REP MOVS faults in the middle and goes on", run: fault },
    Check { name: "REP STOS is interrupted and goes on", run: interrupted },
    Check { name: "32-bit addresses in 64-bit code: ECX, ESI and EDI count", run: narrow },
    Check { name: "a single step of a REP instruction stops at each iteration", run: step },
    Check { name: "REPE CMPS stops at the first difference, REPNE SCAS at the first match", run: until },
];

fn all(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 0x0807_0605_0403_0201u64)?;
    code!(g, 64, KCODE;
        mov(esi, KDATA as u32); mov(edi, (KDATA + 0x100) as u32); movsb(); movsw(); movsd(); lodsb(); stosb();
        mov(rax, -1i64); mov(ecx, 3); rep().stosq(); std(); sub(rdi, 8); scasq(); cld(); out(END, al))?;
    g.end()?;
    same!(g.mem.load::<u64>(KDATA + 0x100)?, 0x0807_0605_0403_0201);
    same!(g.mem.load::<u64>(KDATA + 0x118)?, u64::MAX);
    same!((g.s.gpr[RSI], g.s.gpr[RDI], g.s.gpr[RCX]), (KDATA + 8, KDATA + 0x110, 0));
    holds!(g.s.rflags & rflags::ZF != 0);
    Ok(())
}

fn overlap(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(KDATA, 0x77u8)?;
    code!(g, 64, KCODE;
        mov(esi, KDATA as u32); mov(edi, (KDATA + 1) as u32); mov(ecx, 100); rep().movsb(); out(END, al))?;
    g.end()?;
    let mut got = [0; 102];
    g.mem.read(KDATA, &mut got)?;
    same!(got[..101], [0x77; 101]);
    same!(got[101], 0);
    Ok(())
}

fn fault(t: &Test) -> Res {
    for mode in t.modes(&[Long, Paged32])? {
        for down in [false, true] {
            let mut g = t.guest(mode)?;
            let page = KDATA + 0x2000;
            let absent = if down { page - 0x1000 } else { page };
            let data: Vec<u8> = (0..64).collect();
            g.mem.write(KDATA, &data)?;
            g.set_pte(absent, absent)?;
            code!(g, mode.bits(), KCODE; rep().movsd(); out(END, al))?;
            let (from, to) = if down { (KDATA + 60, page + 28) } else { (KDATA, page - 32) };
            (g.s.gpr[RSI], g.s.gpr[RDI], g.s.gpr[RCX]) = (from, to, 16);
            if down {
                g.s.rflags |= rflags::DF;
            }
            let f = g.page_fault(pf::W, if down { page - 4 } else { page }, KCODE)?;
            same!(g.s.gpr[RCX], 8);
            same!(g.s.gpr[RSI], if down { from - 32 } else { from + 32 });
            same!(g.s.gpr[RDI], if down { to - 32 } else { to + 32 });
            g.set_pte(absent, absent | pte::KERNEL)?;
            g.return_to(&f, KCODE)?;
            g.end()?;
            let mut got = [0; 64];
            g.mem.read(page - 32, &mut got)?;
            same!(got[..], data[..]);
        }
    }
    Ok(())
}

/// An interrupt in the middle finds RIP at the instruction and the registers at some iteration.
fn interrupted(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let n = 0x1_0000u64;
    code!(g, 64, KCODE; sti(); rep().stosb(); out(END, al))?;
    (g.s.gpr[RAX], g.s.gpr[RCX], g.s.gpr[RDI]) = (0xee, n, LARGE);
    let mut e = g.run_beside(|m| {
        std::thread::sleep(Duration::from_micros(200));
        m.interrupt(0, 0x41);
    })?;
    let mut events = 0;
    while let Event::Vector(f) = e {
        same!(f.vector, 0x41);
        // Before the STI took effect nothing comes; after the end neither.
        holds!(f.rip > KCODE && f.rip <= KCODE + 3, "interrupted at {:#x}", f.rip);
        same!(g.s.gpr[RDI] - LARGE, n - g.s.gpr[RCX]);
        events += 1;
        g.io.eoi(0);
        e = g.run()?;
    }
    same!(e, Event::End);
    holds!(events <= 1);
    let mut got = vec![0; n as usize + 1];
    g.mem.read(LARGE, &mut got)?;
    holds!(got[..n as usize].iter().all(|b| *b == 0xee) && got[n as usize] == 0);
    Ok(())
}

fn narrow(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    // REP STOSB with a 67 prefix.
    code!(g, 64, KCODE; db(&[0x67, 0xf3, 0xaa]); out(END, al))?;
    let top = 0xdead_0000_0000_0000u64;
    (g.s.gpr[RCX], g.s.gpr[RDI], g.s.gpr[RAX]) = (top | 2, top | KDATA, 0x31);
    g.end()?;
    // Results of 32 bits clear the upper halves.
    same!((g.s.gpr[RCX], g.s.gpr[RDI]), (0, KDATA + 2));
    same!(g.mem.load::<u32>(KDATA)?, 0x3131);
    Ok(())
}

/// Intel SDM vol. 3B §18.3.1.4.
fn step(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; rep().stosb(); out(END, al))?;
    (g.s.gpr[RCX], g.s.gpr[RDI]) = (3, KDATA);
    g.s.rflags |= rflags::TF;
    for left in [2, 1, 0] {
        g.fault(vector::DB, None, if left == 0 { KCODE + 2 } else { KCODE })?;
        same!((g.s.gpr[RCX], g.s.gpr[RDI]), (left, KDATA + 3 - left));
    }
    Ok(())
}

fn until(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.write(KDATA, b"abcdefgh")?;
    g.mem.write(KDATA + 0x100, b"abcdEfgh")?;
    code!(g, 64, KCODE;
        mov(esi, KDATA as u32); mov(edi, (KDATA + 0x100) as u32); mov(ecx, 8); repe().cmpsb(); pushfq(); pop(rbx);
        mov(r8d, ecx); mov(edi, KDATA as u32); mov(ecx, 8); mov(al, b'c' as u32); repne().scasb(); mov(r9d, ecx);
        xor(ecx, ecx); cmp(eax, eax); repne().scasb(); pushfq(); pop(rdx); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[8], g.s.gpr[9]), (3, 5));
    // 'e' above 'E': neither zero nor carry.
    same!(g.s.gpr[RBX] & (rflags::ZF | rflags::CF), 0);
    // With a count of zero the flags stay.
    holds!(g.s.gpr[RDX] & rflags::ZF != 0);
    Ok(())
}
