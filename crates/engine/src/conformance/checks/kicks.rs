//! Stop requests and other kicks from outside, at any time.

use crate::StopToken;
use crate::conformance::prelude::*;
use std::time::Duration;

pub const CHECKS: &[Check] = &[
    Check { name: "a stop request ends a busy loop at an instruction boundary", run: busy },
    Check {
        name: "a stop request that came before the run ends it before the first instruction",
        run: early,
    },
    Check { name: "many stops in a computation change nothing", run: many },
    Check { name: "interrupts from another thread reach a busy loop, each once", run: interrupts },
    Check { name: "a stop request reaches processors that wait for a start-up", run: waiting },
];

fn busy(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let [top] = code!(g, 64, KCODE, [top]; @top inc(rax); jmp(KCODE))?;
    let e = g.run_beside(|m| {
        std::thread::sleep(Duration::from_millis(2));
        m.stop_run();
    })?;
    same!(e, Event::Stopped);
    holds!(g.s.rip == top || g.s.rip == top + 3, "stopped at {:#x}", g.s.rip);
    Ok(())
}

fn early(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; mov(ebx, 1); out(END, al))?;
    g.load()?;
    g.io.stop(0).raise(StopToken::STOP);
    same!(g.vcpu(0).run(), crate::Exit::Stopped);
    g.save();
    same!((g.s.rip, g.s.gpr[RBX]), (KCODE, 0));
    g.end()?;
    same!(g.s.gpr[RBX], 1);
    Ok(())
}

fn many(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    // A checksum of 2,000 steps.
    let [top] = code!(g, 64, KCODE, [top];
        mov(ecx, 2000); mov(eax, 1); @top imul_3(eax, eax, 1_103_515_245); add(eax, 12345); ror(eax, 3);
        add(dword_ptr(KDATA), eax); dec(ecx); jne(KCODE + 10); out(END, al))?;
    same!(top, KCODE + 10);
    let (mut x, mut sum) = (1u32, 0u32);
    for _ in 0..2000 {
        x = x.wrapping_mul(1_103_515_245).wrapping_add(12345).rotate_right(3);
        sum = sum.wrapping_add(x);
    }
    let mut stops = 0;
    loop {
        let e = g.run_beside(|m| {
            std::thread::sleep(Duration::from_micros(20));
            m.stop_run();
        })?;
        if e == Event::End {
            break;
        }
        same!(e, Event::Stopped);
        stops += 1;
        if stops == 100 {
            g.end()?;
            break;
        }
    }
    same!(g.s.gpr[RAX], u64::from(x));
    same!(g.mem.load::<u32>(KDATA)?, sum);
    Ok(())
}

fn interrupts(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, HANDLERS + 0x410; inc(dword_ptr(KDATA)); jmp(KCODE + 0x200))?;
    code!(g, 64, KCODE + 0x200; out(EOI, al); iretq())?;
    code!(g, 64, KCODE; sti(); nop(); cmp(dword_ptr(KDATA), 20); jb(KCODE); out(END, al))?;
    let e = g.run_beside(|m| {
        for n in 0..20 {
            // The next once the last is done: one vector is remembered once.
            while m.waiting(0) != (None, None) && !m.has_ended() {
                std::thread::yield_now();
            }
            if n % 4 == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
            m.interrupt(0, 0x41);
        }
    })?;
    same!(e, Event::End);
    same!(g.mem.load::<u32>(KDATA)?, 20);
    Ok(())
}

fn waiting(t: &Test) -> Res {
    let mut g = t.guests(Long, 2)?;
    code!(g, 64, KCODE; mov(ecx, 100); db(&[0xff, 0xc9, 0x75, 0xfc]); out(END, al))?;
    for _ in 0..5 {
        g.s.rip = KCODE;
        g.end()?;
        same!(g.others[0].mp_state, MpState::WaitForSipi);
    }
    Ok(())
}
