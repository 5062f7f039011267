//! Debug registers, single step, and the host's own watching (Intel SDM vol. 3B ch. 18).

use crate::conformance::prelude::*;
use crate::{DebugRequest, DebugStop, EngineError, WatchKind, Watchpoint};

pub const CHECKS: &[Check] = &[
    Check { name: "a single step traps behind each instruction, and not in the handler", run: step },
    Check { name: "POPF that sets TF traps behind the next instruction", run: popf },
    Check { name: "MOV SS holds a single step's trap off for one instruction", run: mov_ss },
    Check { name: "an instruction breakpoint faults before, once, with RF", run: code },
    Check { name: "data breakpoints on writes and on both, by length and alignment", run: data },
    Check { name: "a breakpoint and a single step at once are both told", run: both },
    Check { name: "general detect: MOV DR is #DB before, and GD is cleared", run: detect },
    Check { name: "DR4 and DR5 are DR6 and DR7 without CR4.DE, and #UD with it", run: aliases },
    Check { name: "DR6 and DR7 have fixed bits; their upper halves are #GP", run: fixed },
    Check { name: "I/O breakpoints with CR4.DE", run: io_breakpoint },
    Check { name: "INT1 is #DB as a trap, without DR6", run: int1 },
    Check { name: "SYSCALL with TF in SFMASK is not stepped into", run: syscall },
    Check { name: "a data breakpoint in the middle of REP MOVS", run: repeated },
    Check { name: "the host's breakpoint stops before, invisibly, and is passed once", run: host_breakpoint },
    Check { name: "the host's watchpoint stops behind the write", run: host_watchpoint },
    Check { name: "the host's step is one instruction, and the guest sees no TF", run: host_step },
];

const BS: u64 = dr::DR6_FIXED | dr::DR6_BS;

fn step(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        let [a, b, c] = code!(g, mode.bits(), KCODE, [a, b, c]; nop(); @a mov(ebx, 1); @b jmp(c); nop(); @c out(END, al))?;
        g.s.rflags |= rflags::TF;
        for at in [a, b, c] {
            let f = g.fault(vector::DB, None, at)?;
            same!(g.s.dr[6], BS);
            // TF is clear in the handler.
            same!((g.s.rflags & rflags::TF, f.rflags & rflags::TF), (0, rflags::TF));
        }
        g.end()?;
        same!(g.s.gpr[RBX], 1);
    }
    Ok(())
}

fn popf(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] =
        code!(g, 64, KCODE, [at]; push(2 | rflags::TF as i32); popfq(); nop(); @at nop(); out(END, al))?;
    g.fault(vector::DB, None, at)?;
    Ok(())
}

/// Intel SDM vol. 3A §6.8.3.
fn mov_ss(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; mov(ss, ebx); nop(); @at nop(); out(END, al))?;
    g.s.gpr[RBX] = u64::from(sel::KDATA);
    g.s.rflags |= rflags::TF;
    g.fault(vector::DB, None, at)?;
    same!(g.s.dr[6], BS);
    Ok(())
}

fn code(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; nop(); @at inc(ebx); out(END, al))?;
    g.s.dr[1] = at;
    g.s.dr[7] |= 1 << 2;
    let f = g.fault(vector::DB, None, at)?;
    same!((g.s.dr[6], f.rflags & rflags::RF, g.s.gpr[RBX]), (dr::DR6_FIXED | 2, rflags::RF, 0));
    // The handler returns with RF: the instruction is executed.
    g.end()?;
    same!((g.s.gpr[RBX], g.s.rflags & rflags::RF), (1, 0));
    Ok(())
}

/// DR7 for breakpoint `n`: local, R/W `rw` (1 writes, 3 both), length field `len`.
fn watch(n: u64, rw: u64, len: u64) -> u64 {
    1 << (2 * n) | (rw | len << 2) << (16 + 4 * n)
}

fn data(t: &Test) -> Res {
    // R/W, length field, watched offset; access offset, write; hit.
    let cases = [
        (1u64, 3u64, 0u64, 0u64, true, true),
        (1, 3, 0, 3, true, true),
        (1, 3, 0, 4, true, false),
        (1, 3, 0, 0, false, false),
        (3, 3, 0, 1, false, true),
        (3, 0, 5, 2, true, true),
        (3, 0, 6, 2, true, false),
        (1, 2, 8, 13, true, true),
        (1, 1, 2, 0, true, true),
    ];
    for (rw, len, watched, at, write, hit) in cases {
        let mut g = t.guest(Long)?;
        let to = KDATA + at;
        let [next] = if write {
            code!(g, 64, KCODE, [next]; mov(dword_ptr(to), ebx); @next out(END, al))?
        } else {
            code!(g, 64, KCODE, [next]; mov(ebx, dword_ptr(to)); @next out(END, al))?
        };
        g.s.dr[2] = KDATA + watched;
        g.s.dr[7] |= watch(2, rw, len);
        if hit {
            // A trap: the access has been made.
            let f = g.fault(vector::DB, None, next)?;
            same!((g.s.dr[6], f.rflags & rflags::RF), (dr::DR6_FIXED | 4, 0));
        } else {
            g.end()?;
            same!(g.s.dr[6] & 0xf, 0);
        }
    }
    Ok(())
}

fn both(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] = code!(g, 64, KCODE, [next]; mov(dword_ptr(KDATA), ebx); @next out(END, al))?;
    g.s.dr[0] = KDATA;
    g.s.dr[7] |= watch(0, 1, 3);
    g.s.rflags |= rflags::TF;
    g.fault(vector::DB, None, next)?;
    same!(g.s.dr[6], BS | 1);
    Ok(())
}

fn detect(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; nop(); @at mov(rax, dr0); mov(rbx, dr6); out(END, al))?;
    g.s.dr[7] |= dr::DR7_GD;
    g.fault(vector::DB, None, at)?;
    same!((g.s.dr[6], g.s.dr[7] & dr::DR7_GD), (dr::DR6_FIXED | dr::DR6_BD, 0));
    g.end()?;
    same!(g.s.gpr[RBX], dr::DR6_FIXED | dr::DR6_BD);
    Ok(())
}

fn aliases(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    // MOV RAX, DR4; MOV RBX, DR5.
    code!(g, 64, KCODE; db(&[0x0f, 0x21, 0xe0]); db(&[0x0f, 0x21, 0xeb]); out(END, al))?;
    g.s.dr[7] |= 0x300;
    g.end()?;
    same!((g.s.gpr[RAX], g.s.gpr[RBX]), (dr::DR6_FIXED, dr::DR7_FIXED | 0x300));
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; db(&[0x0f, 0x21, 0xe0]); out(END, al))?;
    g.s.cr4 |= cr4::DE;
    g.fault(vector::UD, None, KCODE)?;
    Ok(())
}

fn fixed(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        xor(eax, eax); mov(dr6, rax); mov(rbx, dr6); mov(dr7, rax); mov(rcx, dr7);
        mov(eax, 0xffff_ffffu32); mov(dr6, rax); mov(rsi, dr6); mov(eax, 0xd000u32); mov(dr7, rax); mov(rdi, dr7); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX]), (dr::DR6_FIXED, dr::DR7_FIXED));
    // Bit 12 is always 0.
    same!(g.s.gpr[RSI] & 0x1000, 0);
    same!(g.s.gpr[RDI], dr::DR7_FIXED);
    for n in [6u8, 7] {
        let mut g = t.guest(Long)?;
        code!(g, 64, KCODE; db(&[0x0f, 0x23, 0xc0 | n << 3]); out(END, al))?;
        g.s.gpr[RAX] = 1 << 32;
        g.fault(vector::GP, 0, KCODE)?;
    }
    Ok(())
}

fn io_breakpoint(t: &Test) -> Res {
    for de in [true, false] {
        let mut g = t.guest(Long)?;
        let [next] = code!(g, 64, KCODE, [next]; in_(al, 0x60); @next nop(); out(END, al))?;
        g.s.dr[0] = 0x60;
        g.s.dr[7] |= watch(0, 2, 0);
        if de {
            g.s.cr4 |= cr4::DE;
            g.fault(vector::DB, None, next)?;
            same!(g.s.dr[6], dr::DR6_FIXED | 1);
        } else {
            g.end()?;
        }
    }
    Ok(())
}

fn int1(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] = code!(g, 64, KCODE, [next]; int1(); @next out(END, al))?;
    g.fault(vector::DB, None, next)?;
    same!(g.s.dr[6], dr::DR6_FIXED);
    Ok(())
}

fn syscall(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    let [target] = code!(g, 64, KCODE, [target]; @target nop(); nop(); out(END, al))?;
    code!(g, 64, UCODE; syscall())?;
    g.s.msrs.insert(msr::LSTAR, target);
    g.s.msrs.insert(msr::SFMASK, rflags::TF);
    g.s.rflags |= rflags::TF;
    g.end()?;
    same!(g.s.gpr[11] & rflags::TF, rflags::TF);
    Ok(())
}

fn repeated(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; rep().movsb(); out(END, al))?;
    (g.s.gpr[RSI], g.s.gpr[RDI], g.s.gpr[RCX]) = (KDATA + 0x100, KDATA, 8);
    g.s.dr[0] = KDATA + 3;
    g.s.dr[7] |= watch(0, 1, 0);
    // Behind the iteration that hit it (Intel SDM vol. 3B §18.3.1.2: or at a later one).
    let f = g.event(vector::DB)?;
    holds!(g.s.gpr[RCX] <= 4, "{} are left", g.s.gpr[RCX]);
    same!(f.rip, if g.s.gpr[RCX] == 0 { KCODE + 2 } else { KCODE });
    same!(g.s.dr[6], dr::DR6_FIXED | 1);
    g.end()?;
    same!((g.s.gpr[RCX], g.s.gpr[RDI]), (0, KDATA + 8));
    Ok(())
}

/// Asks the engine, or skips the check.
fn ask(g: &mut Guest, r: &DebugRequest) -> Res {
    g.stay("what a debugger asks of a processor is not its state");
    match g.vcpu(0).set_debug(r) {
        Err(EngineError::NoDebug(why)) => Err(Fail::Skip(why)),
        r => Ok(r?),
    }
}

fn host_breakpoint(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [top] =
        code!(g, 64, KCODE, [top]; @top inc(ebx); pushfq(); pop(rsi); dec(ecx); jne(top); out(END, al))?;
    g.s.gpr[RCX] = 3;
    ask(&mut g, &DebugRequest { breakpoints: vec![top], ..DebugRequest::default() })?;
    for n in 0..3 {
        same!(g.run()?, Event::Debug(DebugStop::Breakpoint));
        same!((g.s.rip, g.s.gpr[RBX], g.s.dr[6]), (top, n, dr::DR6_FIXED));
        same!(g.mem.load::<u16>(KCODE)?, 0xc3ff);
    }
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RSI] & rflags::TF), (3, 0));
    Ok(())
}

fn host_watchpoint(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] = code!(g, 64, KCODE, [next];
        mov(ecx, dword_ptr(KDATA)); mov(dword_ptr(KDATA + 8), eax); mov(dword_ptr(KDATA), eax); @next inc(ebx); out(END, al))?;
    g.s.gpr[RAX] = 5;
    let w = Watchpoint { at: KDATA + 2, len: 1, kind: WatchKind::Write };
    ask(&mut g, &DebugRequest { watchpoints: vec![w], ..DebugRequest::default() })?;
    same!(g.run()?, Event::Debug(DebugStop::Watchpoint(w)));
    same!((g.s.rip, g.s.gpr[RBX], g.s.dr[6]), (next, 0, dr::DR6_FIXED));
    same!(g.mem.load::<u32>(KDATA)?, 5);
    g.end()?;
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

fn host_step(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [a, b, c] = code!(g, 64, KCODE, [a, b, c]; nop(); @a pushfq(); @b pop(rbx); @c out(END, al))?;
    ask(&mut g, &DebugRequest { step: true, ..DebugRequest::default() })?;
    for at in [a, b, c] {
        same!(g.run()?, Event::Debug(DebugStop::Step));
        same!((g.s.rip, g.s.rflags & rflags::TF), (at, 0));
    }
    same!(g.s.gpr[RBX] & rflags::TF, 0);
    Ok(())
}
