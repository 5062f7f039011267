//! HLT, and what ends it (Intel SDM vol. 2A HLT).

use crate::conformance::prelude::*;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "HLT is left by an interrupt that another thread raises", run: interrupt },
    Check { name: "HLT with IF clear is left by an NMI, not by an interrupt", run: nmi },
    Check { name: "STI, HLT with an interrupt that waits does not sleep", run: idiom },
    Check { name: "a processor that is halted stops and goes on halted", run: stopped },
    Check { name: "HLT in ring 3 is #GP(0)", run: ring3 },
    Check { name: "a kick out of HLT goes on behind it", run: unhalt },
    Check { name: "a halted state wakes by a waiting interrupt", run: state },
];

fn interrupt(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] = code!(g, 64, KCODE, [next]; sti(); hlt(); @next mov(ebx, 1); out(END, al))?;
    let e = g.run_beside(|m| {
        std::thread::sleep(Duration::from_millis(3));
        m.interrupt(0, 0x41);
    })?;
    let Event::Vector(f) = e else { return Err(Fail::Wrong(format!("{e:x?}"))) };
    same!((f.vector, f.rip), (0x41, next));
    g.end()?;
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

/// Runs until the processor is halted; `next` is the address behind the HLT.
fn halted(g: &mut Guest, next: u64) -> Res {
    // How long the host's threads take is not ours to say.
    for _ in 0..2000 {
        let e = g.run_beside(|m| {
            std::thread::sleep(Duration::from_millis(1));
            m.stop_run();
        })?;
        same!(e, Event::Stopped);
        if g.s.mp_state == MpState::Halted {
            same!(g.s.rip, next);
            return Ok(());
        }
    }
    Err(Fail::Wrong("it never halts".to_owned()))
}

fn nmi(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] = code!(g, 64, KCODE, [next]; hlt(); @next mov(ebx, 1); out(END, al))?;
    halted(&mut g, next)?;
    let e = g.run_beside(|m| {
        m.interrupt(0, 0x41);
        std::thread::sleep(Duration::from_millis(3));
        m.nmi(0);
    })?;
    let Event::Vector(f) = e else { return Err(Fail::Wrong(format!("{e:x?}"))) };
    same!((f.vector, f.rip), (vector::NMI, next));
    same!(g.s.gpr[RBX], 0);
    same!(g.io.waiting(0), (Some(0x41), None));
    Ok(())
}

fn idiom(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [next] =
        code!(g, 64, KCODE, [next]; mov(al, 0x41); out(RAISE, al); sti(); hlt(); @next out(END, al))?;
    same!(g.event(0x41)?.rip, next);
    Ok(())
}

fn stopped(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; sti(); hlt(); mov(ebx, 1); out(END, al))?;
    for _ in 0..3 {
        halted(&mut g, KCODE + 2)?;
        same!(g.s.gpr[RBX], 0);
    }
    g.io.interrupt(0, 0x41);
    g.event(0x41)?;
    g.end()?;
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

fn ring3(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.ring3();
    code!(g, 64, UCODE; hlt(); out(END, al))?;
    g.fault(vector::GP, 0, UCODE)?;
    Ok(())
}

fn unhalt(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; hlt(); mov(ebx, 1); out(END, al))?;
    let e = g.run_beside(|m| {
        std::thread::sleep(Duration::from_millis(2));
        m.unhalt(0);
    })?;
    same!(e, Event::End);
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

fn state(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; out(END, al))?;
    g.s.mp_state = MpState::Halted;
    g.s.rflags |= rflags::IF;
    g.io.interrupt(0, 0x42);
    same!(g.event(0x42)?.rip, KCODE);
    same!(g.s.mp_state, MpState::Running);
    Ok(())
}
