//! Exceptions while exceptions are delivered (Intel SDM vol. 3A §6.15, tables 6-4 and 6-5).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "a contributory exception in a contributory one is #DF(0)", run: contributory },
    Check { name: "a page fault in a page fault is #DF(0)", run: page_fault },
    Check { name: "#NP in the delivery of #UD is #NP with the gate's index", run: benign },
    Check { name: "#PF in the delivery of #DE is #PF", run: serial },
    Check { name: "an IDT without entries is a triple fault", run: triple },
    Check { name: "a #DF that cannot be delivered is a triple fault", run: df_fails },
];

/// A gate that is not present.
const ABSENT: u32 = 0x0e;

fn contributory(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        // #DE, whose gate gives #NP.
        g.gate(vector::DE, ABSENT)?;
        code!(g, mode.bits(), KCODE; xor(ecx, ecx); div(ecx); out(END, al))?;
        let f = g.event(vector::DF)?;
        same!(f.code, Some(0));
    }
    Ok(())
}

fn page_fault(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    // The stack of the handler is not there; that of #DF is another.
    g.gate(vector::DF, 0x18e)?;
    g.set_pte(STACK - 8, 0)?;
    code!(g, 64, KCODE; mov(eax, dword_ptr(0x7f00_0000)); out(END, al))?;
    let f = g.event(vector::DF)?;
    same!(f.code, Some(0));
    same!(g.s.cr2, STACK - 8);
    Ok(())
}

/// Error code: the vector in bits 15:3, IDT, EXT (Intel SDM vol. 3A §6.13).
fn benign(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        g.gate(vector::UD, ABSENT)?;
        code!(g, mode.bits(), KCODE; ud2())?;
        g.fault(vector::NP, u64::from(vector::UD) * 8 + 2 + 1, KCODE)?;
    }
    // INT n: EXT is clear, and the return address is the instruction's.
    let mut g = t.guest(Long)?;
    g.gate(0x85, ABSENT | 0x60)?;
    code!(g, 64, KCODE; int(0x85))?;
    g.fault(vector::NP, 0x85 * 8 + 2, KCODE)?;
    Ok(())
}

fn serial(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.gate(vector::PF, 0x18e)?;
    g.set_pte(STACK - 8, 0)?;
    let [at] = code!(g, 64, KCODE, [at]; xor(ecx, ecx); @at div(ecx); out(END, al))?;
    g.page_fault(pf::W, STACK - 8, at)?;
    Ok(())
}

fn triple(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        g.s.idtr.limit = 0;
        code!(g, mode.bits(), KCODE; ud2())?;
        g.triple_fault()?;
    }
    Ok(())
}

fn df_fails(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.gate(vector::DE, ABSENT)?;
    g.gate(vector::DF, ABSENT)?;
    code!(g, 64, KCODE; xor(ecx, ecx); div(ecx))?;
    g.triple_fault()
}
