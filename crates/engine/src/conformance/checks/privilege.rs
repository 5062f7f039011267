//! What ring 3 may not do, and what CR4 lets it (Intel SDM vol. 3A §5.9).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "privileged instructions in ring 3 are #GP(0)", run: privileged },
    Check { name: "CLI and STI need IOPL", run: iopl },
    Check { name: "UMIP keeps SGDT, SIDT, SLDT, STR and SMSW from ring 3", run: umip },
    Check { name: "LMSW sets PE but does not clear it", run: lmsw },
    Check { name: "CLTS clears TS", run: clts },
    Check { name: "VMCALL is a hypercall of the machine, where there are any", run: hypercall },
    Check { name: "MONITOR, RDPMC and others that the model has not", run: absent },
];

fn privileged(t: &Test) -> Res {
    let all: [&[u8]; 13] = [
        &[0x0f, 0x22, 0xc0],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x23, 0xc0],
        &[0x0f, 0x01, 0x55, 0x00],
        &[0x0f, 0x01, 0x5d, 0x00],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x06],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x01, 0x7d, 0x00],
        &[0x44, 0x0f, 0x20, 0xc0],
    ];
    for bytes in all {
        let mut g = t.guest(Long)?;
        g.ring3();
        g.s.gpr[RBP] = UDATA;
        code!(g, 64, UCODE; db(bytes); out(END, al))?;
        match g.fault(vector::GP, 0, UCODE) {
            Ok(_) => {}
            Err(Fail::Wrong(why)) => return Err(Fail::Wrong(format!("{bytes:02x?}: {why}"))),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn iopl(t: &Test) -> Res {
    for mode in [Long, Flat] {
        for bytes in [[0xfa], [0xfb]] {
            let mut g = t.guest(mode)?;
            g.ring3();
            g.s.rflags &= !rflags::IOPL;
            code!(g, mode.bits(), UCODE; db(&bytes); int(0x80))?;
            g.fault(vector::GP, 0, UCODE)?;
            let mut g = t.guest(mode)?;
            g.ring3();
            code!(g, mode.bits(), UCODE; db(&bytes); int(0x80))?;
            let f = g.event(CALL_VECTOR)?;
            same!(f.rflags & rflags::IF != 0, bytes[0] == 0xfb);
        }
    }
    Ok(())
}

fn umip(t: &Test) -> Res {
    for bytes in [
        &[0x0f, 0x01, 0x45, 0][..],
        &[0x0f, 0x01, 0x4d, 0],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x01, 0xe0],
    ] {
        for on in [true, false] {
            let mut g = t.guest(Long)?;
            g.needs(Feature::UMIP)?;
            g.ring3();
            g.s.gpr[RBP] = UDATA;
            if on {
                g.s.cr4 |= cr4::UMIP;
            }
            code!(g, 64, UCODE; db(bytes); out(END, al))?;
            if on {
                g.fault(vector::GP, 0, UCODE)?;
            } else {
                g.end()?;
            }
        }
    }
    Ok(())
}

fn lmsw(t: &Test) -> Res {
    let mut g = t.guest(Flat)?;
    code!(g, 32, KCODE; mov(eax, 0); lmsw(ax); mov(ebx, cr0); mov(eax, 0xb); lmsw(ax); smsw(ecx); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX] & 0xf, g.s.gpr[RCX] & 0xf), (1, 0xb));
    Ok(())
}

fn clts(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.cr0 |= cr0::TS;
    code!(g, 64, KCODE; clts(); fld1(); out(END, al))?;
    g.end()?;
    same!(g.s.cr0 & cr0::TS, 0);
    Ok(())
}

fn hypercall(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    if g.engine_needs()?.no_hypercalls {
        return Err(Fail::Skip("this engine passes no hypercalls on".to_owned()));
    }
    code!(g, 64, KCODE; db(&[0x0f, 0x01, 0xc1]); out(END, al))?;
    (g.s.gpr[RAX], g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RDX], g.s.gpr[RSI]) = (0x1, 0x2, 0x3, 0x4, 0x5);
    g.end()?;
    // As the machine of the suite answers: number and arguments, mixed.
    same!(g.s.gpr[RAX], [2u64, 3, 4, 5].iter().fold(1u64, |a, b| a.rotate_left(8) ^ b));
    Ok(())
}

fn absent(t: &Test) -> Res {
    for (f, bytes) in [
        (Feature::MONITOR, &[0x0f, 0x01, 0xc8][..]),
        (Feature::CLZERO, &[0x0f, 0x01, 0xfc]),
        (Feature::SVM, &[0x0f, 0x01, 0xd8]),
    ] {
        let mut g = t.guest(Long)?;
        if g.model().has(f) {
            continue;
        }
        code!(g, 64, KCODE; db(bytes); out(END, al))?;
        g.s.gpr[RAX] = KDATA;
        g.fault(vector::UD, None, KCODE)?;
    }
    Ok(())
}
