//! External interrupts, NMIs, and when they are held off (Intel SDM vol. 3A ch. 6, ch. 11).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "an interrupt is taken between instructions when IF is set", run: taken },
    Check { name: "an interrupt waits while IF is clear", run: masked },
    Check { name: "STI holds interrupts off for one instruction", run: sti },
    Check { name: "a second STI holds nothing off", run: sti_again },
    Check { name: "MOV SS and POP SS hold interrupts off for one instruction", run: mov_ss },
    Check { name: "the higher vector comes first; the other after its EOI", run: priority },
    Check { name: "CR8 holds back interrupts of its class and below", run: tpr },
    Check { name: "interrupt gates clear IF, trap gates keep it", run: gates },
    Check { name: "an NMI comes in spite of IF and before an interrupt", run: nmi },
    Check { name: "NMIs are blocked until IRET", run: nmi_blocked },
    Check { name: "an NMI in ring 3 runs on the stack of its IST", run: nmi_ist },
    Check { name: "IRET that sets IF lets a waiting interrupt in at once", run: iret_window },
    Check { name: "POPF that sets IF lets a waiting interrupt in at once", run: popf_window },
    Check { name: "interrupts in real and in protected mode", run: legacy },
    Check { name: "spurious attention does nothing", run: spurious },
];

fn taken(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::IF;
    let [next] = code!(g, 64, KCODE, [next]; mov(al, 0x41); out(RAISE, al); @next mov(ebx, 1); out(END, al))?;
    let f = g.event(0x41)?;
    same!((f.rip, f.cs, f.rsp, f.ss), (next, sel::KCODE64, Some(STACK), Some(sel::KDATA)));
    same!(f.rflags, 2 | rflags::IF);
    same!(g.s.gpr[RBX], 0);
    // In service until its EOI; the handler returns to where it was.
    same!(g.io.waiting(0), (None, Some(0x41)));
    g.end()?;
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

fn masked(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        mov(al, 0x41); out(RAISE, al); mov(ebx, 1); nop(); sti(); nop(); @at mov(ebx, 2); out(END, al))?;
    let f = g.event(0x41)?;
    same!(f.rip, at);
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

/// Intel SDM vol. 2B STI.
fn sti(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        mov(al, 0x41); out(RAISE, al); sti(); inc(ebx); @at inc(ebx); out(END, al))?;
    same!(g.event(0x41)?.rip, at);
    same!(g.s.gpr[RBX], 1);
    // STI; CLI: the interrupt does not come.
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; mov(al, 0x41); out(RAISE, al); sti(); cli(); nop(); nop(); out(END, al))?;
    g.end()?;
    same!(g.io.waiting(0), (Some(0x41), None));
    Ok(())
}

/// IF was set already: the second STI has no shadow, and the interrupt comes behind the first's.
fn sti_again(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        mov(al, 0x41); out(RAISE, al); sti(); sti(); @at inc(ebx); inc(ebx); out(END, al))?;
    same!(g.event(0x41)?.rip, at);
    same!(g.s.gpr[RBX], 0);
    Ok(())
}

/// Intel SDM vol. 3A §6.8.3.
fn mov_ss(t: &Test) -> Res {
    for pop in [false, true] {
        let mut g = t.guest(if pop { Flat } else { Long })?;
        g.s.rflags |= rflags::IF;
        g.s.gpr[RCX] = u64::from(sel::KDATA);
        // The interrupt is made pending by the host: the shadow is in the state.
        let [at] = if pop {
            code!(g, 32, KCODE, [at]; push(ecx); cli(); mov(al, 0x41); out(RAISE, al); push(2 | rflags::IF as i32);
                popfd(); @at nop(); out(END, al))?
        } else {
            code!(g, 64, KCODE, [at]; nop(); @at nop(); out(END, al))?
        };
        if pop {
            // POPF sets IF: the interrupt comes right behind it.
            same!(g.event(0x41)?.rip, at);
            let mut g = t.guest(Flat)?;
            let [at] = code!(g, 32, KCODE, [at];
                push(sel::KDATA as i32); push(2 | rflags::IF as i32); mov(al, 0x41); out(RAISE, al);
                // STI's shadow ends behind POP SS, whose own begins there.
                sti(); add(esp, 4); @at pop(ecx); nop(); out(END, al))?;
            same!(g.event(0x41)?.rip, at);
            let mut g = t.guest(Flat)?;
            let [at] = code!(g, 32, KCODE, [at];
                push(sel::KDATA as i32); mov(al, 0x41); out(RAISE, al); sti(); pop(ss); inc(ebx); @at inc(ebx); out(END, al))?;
            same!(g.event(0x41)?.rip, at);
            same!(g.s.gpr[RBX], 1);
        } else {
            g.s.interrupt_shadow = true;
            g.io.interrupt(0, 0x41);
            same!(g.event(0x41)?.rip, at);
            let mut g = t.guest(Long)?;
            let [at] = code!(g, 64, KCODE, [at];
                mov(al, 0x41); out(RAISE, al); mov(ecx, sel::KDATA as i32); sti(); mov(ss, ecx); inc(ebx); @at inc(ebx);
                out(END, al))?;
            same!(g.event(0x41)?.rip, at);
            same!(g.s.gpr[RBX], 1);
        }
    }
    Ok(())
}

fn priority(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::IF;
    code!(g, 64, KCODE; nop(); nop(); nop(); out(END, al))?;
    g.io.interrupt(0, 0x41);
    g.io.interrupt(0, 0x61);
    g.io.interrupt(0, 0x42);
    g.event(0x61)?;
    g.io.eoi(0);
    g.event(0x42)?;
    // Of the same class: waits for the EOI.
    g.s.rflags |= rflags::IF;
    same!(g.io.waiting(0), (Some(0x41), Some(0x42)));
    g.io.eoi(0);
    g.event(0x41)?;
    g.io.eoi(0);
    g.s.rflags &= !rflags::IF;
    // Three handlers are left one by one.
    g.end()
}

/// Intel SDM vol. 3A §11.8.3.1.
fn tpr(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::IF;
    let [at] = code!(g, 64, KCODE, [at];
        mov(ecx, 4); mov(cr8, rcx); mov(al, 0x4f); out(RAISE, al); nop(); mov(rbx, cr8);
        mov(ecx, 3); mov(cr8, rcx); @at mov(edx, 1); out(END, al))?;
    same!(g.event(0x4f)?.rip, at);
    same!((g.s.gpr[RBX], g.s.gpr[RDX]), (4, 0));
    same!(g.io.tpr(0), 3);
    // Above the class it comes at once; bits 63:4 are reserved.
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::IF;
    let [at] = code!(g, 64, KCODE, [at]; mov(ecx, 4); mov(cr8, rcx); mov(al, 0x50); out(RAISE, al); @at nop(); out(END, al))?;
    same!(g.event(0x50)?.rip, at);
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; mov(ecx, 16); @at mov(cr8, rcx); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    Ok(())
}

fn gates(t: &Test) -> Res {
    for mode in [Long, Flat] {
        for (rights, left) in [(0x8e, 0), (0x8f, rflags::IF)] {
            let mut g = t.guest(mode)?;
            g.gate(0x41, rights)?;
            g.s.rflags |= rflags::IF;
            g.io.interrupt(0, 0x41);
            code!(g, mode.bits(), KCODE; nop(); out(END, al))?;
            g.event(0x41)?;
            same!(g.s.rflags & rflags::IF, left);
        }
    }
    Ok(())
}

fn nmi(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; out(NMI, al); @at nop(); out(END, al))?;
    same!(g.event(vector::NMI)?.rip, at);
    holds!(g.s.nmi_blocked);
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::IF;
    code!(g, 64, KCODE; nop(); nop(); out(END, al))?;
    g.io.interrupt(0, 0x41);
    g.io.nmi(0);
    g.event(vector::NMI)?;
    // The gate has cleared IF; once it is left the interrupt comes.
    same!(g.event(0x41)?.rip, KCODE);
    g.end()
}

/// Intel SDM vol. 3A §6.7.1.
fn nmi_blocked(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    // The handler makes another one pending, and goes on for a while.
    code!(g, 64, HANDLERS + 0x20; inc(ebx); cmp(ebx, 2); je(KCODE + 0x100); out(NMI, al); nop(); nop(); jmp(KCODE + 0x80))?;
    let [window] = code!(g, 64, KCODE + 0x80, [window]; mov(ecx, ebx); inc(esi); @window iretq())?;
    let [back] = code!(g, 64, KCODE, [back]; out(NMI, al); @back mov(edi, 1); out(END, al))?;
    code!(g, 64, KCODE + 0x100; out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RSI], g.s.gpr[RDI]), (2, 1, 1, 0));
    // The second one came behind the IRET: it returns to where the first did.
    same!(g.mem.load::<u64>(g.s.gpr[RSP])?, back);
    holds!(window != back);
    Ok(())
}

fn nmi_ist(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.gate(vector::NMI, 0x18e)?;
    g.ring3();
    code!(g, 64, UCODE; out(NMI, al); nop(); out(END, al))?;
    let f = g.event(vector::NMI)?;
    same!(g.s.gpr[RSP], STACK_IST - 40);
    same!((f.rsp, f.ss, f.cs), (Some(USTACK), Some(sel::UDATA), sel::UCODE64));
    // A stack switch to an inner ring loads a null SS with that RPL (Intel SDM vol. 3A §6.14.4).
    same!((g.s.cpl, g.s.seg[sreg::SS].selector), (0, 0));
    g.end()?;
    same!((g.s.cpl, g.s.gpr[RSP]), (3, USTACK));
    Ok(())
}

fn iret_window(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [target] = code!(g, 64, KCODE + 0x80, [t]; @t mov(ebx, 1); out(END, al))?;
    code!(g, 64, KCODE;
        mov(al, 0x41); out(RAISE, al); mov(rcx, rsp); push(sel::KDATA as i32); push(rcx); push(2 | rflags::IF as i32);
        push(sel::KCODE64 as i32); push(target as i32); iretq())?;
    same!(g.event(0x41)?.rip, target);
    same!(g.s.gpr[RBX], 0);
    Ok(())
}

fn popf_window(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at];
        mov(al, 0x41); out(RAISE, al); push(2 | rflags::IF as i32); popfq(); @at mov(ebx, 1); out(END, al))?;
    same!(g.event(0x41)?.rip, at);
    same!(g.s.gpr[RBX], 0);
    Ok(())
}

fn legacy(t: &Test) -> Res {
    for (mode, frame) in [(Real, 6), (Flat, 12)] {
        let mut g = t.guest(mode)?;
        g.s.rflags |= rflags::IF;
        let base = mode.entry();
        let [at] =
            code!(g, mode.bits(), base, [at]; mov(al, 0x41); out(RAISE, al); @at mov(bl, 1); out(END, al))?;
        let f = g.event(0x41)?;
        same!(f.rip, at);
        same!(g.s.gpr[RSP], STACK - frame);
        same!(f.rflags & (rflags::IF | 2), rflags::IF | 2);
        g.end()?;
        same!(g.s.gpr[RBX], 1);
        same!(g.s.gpr[RSP], STACK);
    }
    Ok(())
}

fn spurious(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.rflags |= rflags::IF;
    code!(g, 64, KCODE; mov(ecx, 200); db(&[0xff, 0xc9, 0x75, 0xfc]); out(END, al))?;
    let e = g.run_beside(|m| {
        for _ in 0..20 {
            m.stop(0).raise(crate::StopToken::ATTENTION);
        }
    })?;
    same!(e, Event::End);
    same!(g.s.gpr[RCX], 0);
    Ok(())
}
