//! Which of several exceptions of one instruction is raised (Intel SDM vol. 3A §6.9, table 6-2; vol. 2 of each instruction).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "x87: #NM by CR0.EM and TS; #UD of SSE by EM and OSFXSR before #NM by TS", run: fpu },
    Check { name: "WAIT raises #NM only with MP and TS", run: wait },
    Check { name: "a fetch that faults comes before the #UD of what would be fetched", run: fetch },
    Check { name: "#GP of a misaligned MOVAPS comes before the page fault", run: aligned },
    Check { name: "a misaligned access to a page that is not there is one of #AC and #PF", run: page_and_ac },
    Check { name: "#UD of LOCK comes before the page fault of the operand", run: lock },
    Check { name: "#GP of a privileged instruction comes before the fault of its operand", run: privileged },
    Check { name: "of two pages the lower one faults first", run: two_pages },
    Check { name: "an instruction breakpoint comes before the fault of its instruction", run: breakpoint },
    Check { name: "a single step comes after a completed instruction only", run: step },
];

fn fpu(t: &Test) -> Res {
    let fld1: &[u8] = &[0xd9, 0xe8];
    let addps: &[u8] = &[0x0f, 0x58, 0xc1];
    let cases = [
        (fld1, cr0::TS, cr4::OSFXSR, vector::NM),
        (fld1, cr0::EM, cr4::OSFXSR, vector::NM),
        (addps, cr0::TS, cr4::OSFXSR, vector::NM),
        (addps, cr0::EM | cr0::TS, cr4::OSFXSR, vector::UD),
        (addps, cr0::TS, 0, vector::UD),
    ];
    for (bytes, bits, osfxsr, v) in cases {
        let mut g = t.guest(Long)?;
        g.s.cr0 |= bits;
        g.s.cr4 = g.s.cr4 & !cr4::OSFXSR | osfxsr;
        code!(g, 64, KCODE; db(bytes); out(END, al))?;
        g.fault(v, None, KCODE)?;
    }
    Ok(())
}

/// Intel SDM vol. 3A table 2-2.
fn wait(t: &Test) -> Res {
    for (bits, faults) in [(cr0::TS | cr0::MP, true), (cr0::TS, false), (cr0::MP, false)] {
        let mut g = t.guest(Long)?;
        g.s.cr0 = g.s.cr0 & !cr0::MP | bits;
        code!(g, 64, KCODE; wait(); out(END, al))?;
        if faults {
            g.fault(vector::NM, None, KCODE)?;
        } else {
            g.end()?;
        }
    }
    Ok(())
}

fn fetch(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let page = KCODE + 0x1000;
    // UD2 over the end of a page: only its first byte is there.
    g.mem.write(page - 1, &[0x0f, 0x0b])?;
    g.set_pte(page, 0)?;
    g.s.rip = page - 1;
    g.page_fault(pf::I, page, page - 1)?;
    Ok(())
}

fn aligned(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.set_pte(KDATA + 0x1000, 0)?;
    code!(g, 64, KCODE; movaps(xmm0, xmmword_ptr(KDATA + 0x1008)); out(END, al))?;
    g.fault(vector::GP, 0, KCODE)?;
    Ok(())
}

/// Both are of one class, in which the order is the processor's own (Intel SDM vol. 3A §6.9): Zen 4 raises #AC.
fn page_and_ac(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    g.s.cr0 |= cr0::AM;
    g.s.rflags |= rflags::AC;
    g.set_pte(UDATA + 0x1000, 0)?;
    code!(g, 64, UCODE; mov(eax, dword_ptr(UDATA + 0x1001)); out(END, al))?;
    let Event::Vector(f) = g.run()? else { return Err(Fail::Wrong("no fault".to_owned())) };
    same!(f.rip, UCODE);
    match f.vector {
        vector::AC => same!(f.code, Some(0)),
        vector::PF => same!((f.code, g.s.cr2), (Some(pf::U.into()), UDATA + 0x1001)),
        v => return Err(Fail::Wrong(format!("vector {v}"))),
    }
    Ok(())
}

fn lock(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.set_pte(KDATA + 0x1000, 0)?;
    // LOCK MOV [RCX], EAX.
    code!(g, 64, KCODE; db(&[0xf0, 0x89, 0x01]); out(END, al))?;
    g.s.gpr[RCX] = KDATA + 0x1000;
    g.fault(vector::UD, None, KCODE)?;
    Ok(())
}

fn privileged(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    code!(g, 64, UCODE; lgdt(fword_ptr(0x7f00_0000)); out(END, al))?;
    g.fault(vector::GP, 0, UCODE)?;
    Ok(())
}

fn two_pages(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let page = KDATA + 0x2000;
    g.set_pte(page - 0x1000, 0)?;
    g.set_pte(page, 0)?;
    code!(g, 64, KCODE; mov(rax, qword_ptr(page - 4)); out(END, al))?;
    g.page_fault(0, page - 4, KCODE)?;
    Ok(())
}

/// Table 6-2: code breakpoints are of class 7, faults of the instruction of class 8 and 9.
fn breakpoint(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; ud2())?;
    g.s.dr[0] = KCODE;
    g.s.dr[7] |= 2;
    let f = g.fault(vector::DB, None, KCODE)?;
    same!(f.rflags & rflags::RF, rflags::RF);
    same!(g.s.dr[6], dr::DR6_FIXED | 1);
    // RF holds it off once: the instruction's own fault is next.
    g.s.idtr.base = IDT;
    g.fault(vector::UD, None, KCODE)?;
    Ok(())
}

fn step(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::TF;
    let [at] = code!(g, 64, KCODE, [at]; nop(); @at ud2())?;
    let f = g.fault(vector::DB, None, at)?;
    same!(g.s.dr[6], dr::DR6_FIXED | dr::DR6_BS);
    same!(f.rflags & rflags::TF, rflags::TF);
    // The frame's TF steps the next one, which does not complete.
    let f = g.fault(vector::UD, None, at)?;
    same!(f.rflags & rflags::TF, rflags::TF);
    Ok(())
}
