//! Several processors: start-up, interprocessor interrupts, atomic accesses and memory ordering (Intel SDM vol. 3A ch. 8).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "INIT and start-up: the vector is the page, in real mode", run: start_up },
    Check { name: "a start-up IPI to a processor that runs is ignored", run: no_start_up },
    Check { name: "interrupts and NMIs from one processor to the other", run: ipi },
    Check { name: "LOCK XADD of two processors loses nothing", run: xadd },
    Check { name: "LOCK CMPXCHG and XCHG exclude", run: spin_lock },
    Check { name: "LOCK BTS, INC and OR of neighbouring bits", run: bits },
    Check { name: "CMPXCHG16B of two processors loses nothing", run: wide },
    Check { name: "store buffering: never both old, with MFENCE", run: store_buffer },
    Check { name: "message passing: stores are seen in order", run: messages },
    Check {
        name: "code that the other processor changes is seen after a serializing instruction",
        run: cross_modify,
    },
    Check { name: "a TLB shoot-down by interrupts: no access through the old entry", run: shoot_down },
    Check { name: "INIT stops a processor until the next start-up", run: init },
    Check { name: "LOCK to an address over two cache lines", run: split_lock },
];

/// Both processors in 64-bit mode, at KCODE and KCODE + 0x1000, with counters in RCX.
fn two(t: &Test) -> Result<Guest, Fail> {
    let mut g = t.guests(Long, 2)?;
    g.others[0] = g.s.clone();
    g.others[0].rip = KCODE + 0x1000;
    g.others[0].gpr[RSP] = STACK_IST;
    Ok(g)
}

/// The run ends when both processors have said so at KDATA + 0xf00: ends it if the other one is done.
fn finish(g: &Guest, at: u64) -> Res {
    code!(*g, 64, at;
        mov(eax, 1); lock().xadd(dword_ptr(KDATA + 0xf00), eax); test(eax, eax); je(at + 0x40); out(END, al))?;
    // The first waits for the end.
    code!(*g, 64, at + 0x40; pause(); jmp(at + 0x40))?;
    Ok(())
}

fn start_up(t: &Test) -> Res {
    let mut g = t.guests(Long, 2)?;
    code!(g, 64, KCODE;
        mov(eax, 0x0001_0200); out(SEND, eax); mov(eax, 0x0001_0306); out(SEND, eax); hlt())?;
    code!(g, 16, RCODE; mov(ax, cs); mov(ebx, cr0); out(END, al))?;
    g.end()?;
    let o = &g.others[0];
    same!((o.gpr[RAX] & 0xffff, o.gpr[RBX] & (cr0::PE | cr0::PG), o.mp_state), (0x600, 0, MpState::Running));
    same!((o.seg[sreg::CS].base, o.rip), (RCODE, 7));
    // The other registers are as INIT leaves them (Intel SDM vol. 3A table 9-1).
    same!(o.gpr[RDX], u64::from(g.model().signature()));
    Ok(())
}

fn no_start_up(t: &Test) -> Res {
    let mut g = two(t)?;
    g.mem.store(KDATA, 0u32)?;
    code!(g, 64, KCODE;
        mov(eax, dword_ptr(KDATA)); test(eax, eax); je(KCODE); mov(eax, 0x0001_0306); out(SEND, eax);
        mov(dword_ptr(KDATA + 4), 1); jmp(KCODE + 0x80))?;
    code!(g, 64, KCODE + 0x80; jmp(KCODE + 0x80))?;
    code!(g, 64, KCODE + 0x1000;
        mov(dword_ptr(KDATA), 1); mov(ecx, 50); db(&[0xf3, 0x90, 0xff, 0xc9, 0x75, 0xfa]);
        cmp(dword_ptr(KDATA + 4), 0); je(KCODE + 0x1000); out(END, al))?;
    code!(g, 16, RCODE; hlt())?;
    g.end()?;
    same!(g.others[0].cr0 & cr0::PE, cr0::PE);
    Ok(())
}

fn ipi(t: &Test) -> Res {
    for (command, v, flags) in [(0x0001_0045u32, 0x45u8, rflags::IF), (0x0001_0100, vector::NMI, 0)] {
        let mut g = two(t)?;
        g.others[0].rflags |= flags;
        code!(g, 64, KCODE; mov(eax, command); out(SEND, eax); hlt())?;
        code!(g, 64, KCODE + 0x1000; jmp(KCODE + 0x1000))?;
        // The handler of the other processor ends the run.
        let e = g.run()?;
        same!(e, Event::End);
        let o = &g.others[0];
        same!(o.rip, HANDLERS + 16 * u64::from(v) + 2);
        same!(g.mem.load::<u64>(o.gpr[RSP])?, KCODE + 0x1000);
    }
    Ok(())
}

const TURNS: i32 = 200;

fn xadd(t: &Test) -> Res {
    let mut g = two(t)?;
    finish(&g, KCODE + 0x200)?;
    for at in [KCODE, KCODE + 0x1000] {
        code!(g, 64, at; mov(eax, 1); lock().xadd(qword_ptr(KDATA), rax); dec(ecx); jne(at); jmp(KCODE + 0x200))?;
    }
    g.s.gpr[RCX] = TURNS as u64;
    g.others[0].gpr[RCX] = TURNS as u64;
    g.end()?;
    same!(g.mem.load::<u64>(KDATA)?, 2 * TURNS as u64);
    Ok(())
}

fn spin_lock(t: &Test) -> Res {
    for cmpxchg in [false, true] {
        let mut g = two(t)?;
        finish(&g, KCODE + 0x200)?;
        for at in [KCODE, KCODE + 0x1000] {
            let take = at + 0x10;
            code!(g, 64, at; nop(); jmp(take))?;
            if cmpxchg {
                code!(g, 64, take;
                    xor(eax, eax); mov(edx, 1); lock().cmpxchg(dword_ptr(KDATA), edx); jne(at + 0x100); jmp(at + 0x80))?;
            } else {
                code!(g, 64, take;
                    mov(eax, 1); xchg(dword_ptr(KDATA), eax); test(eax, eax); jne(at + 0x100); jmp(at + 0x80))?;
            }
            code!(g, 64, at + 0x100; pause(); jmp(take))?;
            // Not atomic: only the lock keeps it right.
            code!(g, 64, at + 0x80;
                mov(eax, dword_ptr(KDATA + 0x40)); inc(eax); mov(dword_ptr(KDATA + 0x40), eax);
                mov(dword_ptr(KDATA), 0); dec(ecx); jne(take); jmp(KCODE + 0x200))?;
        }
        g.s.gpr[RCX] = TURNS as u64;
        g.others[0].gpr[RCX] = TURNS as u64;
        g.end()?;
        same!(g.mem.load::<u32>(KDATA + 0x40)?, 2 * TURNS as u32);
    }
    Ok(())
}

fn bits(t: &Test) -> Res {
    let mut g = two(t)?;
    finish(&g, KCODE + 0x200)?;
    for (at, bit) in [(KCODE, 0), (KCODE + 0x1000, 1)] {
        // Each sets and clears its own bit, and counts how often it found it as it left it.
        code!(g, 64, at;
            lock().bts(dword_ptr(KDATA), bit); adc(esi, 0); lock().btr(dword_ptr(KDATA), bit); adc(edi, 0);
            lock().inc(word_ptr(KDATA + 2)); dec(ecx); jne(at); jmp(KCODE + 0x200))?;
    }
    g.s.gpr[RCX] = TURNS as u64;
    g.others[0].gpr[RCX] = TURNS as u64;
    g.end()?;
    for s in [&g.s, &g.others[0]] {
        same!((s.gpr[RSI], s.gpr[RDI]), (0, TURNS as u64));
    }
    same!(g.mem.load::<u32>(KDATA)?, (2 * TURNS as u32) << 16);
    Ok(())
}

fn wide(t: &Test) -> Res {
    let mut g = two(t)?;
    g.needs(Feature::CMPXCHG16B)?;
    finish(&g, KCODE + 0x300)?;
    for at in [KCODE, KCODE + 0x1000] {
        // Adds 1 to the low and 3 to the high half; a lost race goes on with what was found.
        let [_] = code!(g, 64, at, [again];
            mov(rax, qword_ptr(KDATA)); mov(rdx, qword_ptr(KDATA + 8));
            @again mov(rbx, rax); mov(rcx, rdx); add(rbx, 1); add(rcx, 3);
            lock().cmpxchg16b(xmmword_ptr(KDATA)); jne(again); dec(esi); jne(at); jmp(KCODE + 0x300))?;
    }
    g.s.gpr[RSI] = TURNS as u64;
    g.others[0].gpr[RSI] = TURNS as u64;
    g.end()?;
    same!((g.mem.load::<u64>(KDATA)?, g.mem.load::<u64>(KDATA + 8)?), (2 * TURNS as u64, 6 * TURNS as u64));
    Ok(())
}

/// Intel SDM vol. 3A §8.2.3.4: loads may pass earlier stores to other addresses, but not MFENCE. The processors meet before each turn.
fn store_buffer(t: &Test) -> Res {
    let mut g = two(t)?;
    finish(&g, KCODE + 0x300)?;
    for (at, mine, other) in [(KCODE, KDATA, KDATA + 0x40), (KCODE + 0x1000, KDATA + 0x40, KDATA)] {
        // R8 is the turn: each writes it, and reads the other's; who reads an older turn counts it in the turn's byte.
        code!(g, 64, at;
            inc(r8d);
            mov(dword_ptr(mine), r8d); mfence(); mov(eax, dword_ptr(other)); cmp(eax, r8d); adc(r9d, 0);
            jb(at + 0x80); jmp(at + 0xc0))?;
        code!(g, 64, at + 0x80; lock().inc(byte_ptr(r8 + FREE as i32)); jmp(at + 0xc0))?;
        // A barrier: both have done the turn.
        code!(g, 64, at + 0xc0;
            lock().inc(dword_ptr(KDATA + 0x80)); nop(); jmp(at + 0x100))?;
        code!(g, 64, at + 0x100;
            mov(eax, dword_ptr(KDATA + 0x80)); lea(edx, ptr(r8 + r8)); cmp(eax, edx); jb(at + 0x140); dec(ecx); jne(at);
            jmp(KCODE + 0x300))?;
        code!(g, 64, at + 0x140; pause(); jmp(at + 0x100))?;
    }
    g.s.gpr[RCX] = 60;
    g.others[0].gpr[RCX] = 60;
    g.end()?;
    for turn in 1..=60 {
        let old: u8 = g.mem.load(FREE + turn)?;
        holds!(old < 2, "in turn {turn} both read the old value");
    }
    Ok(())
}

/// Intel SDM vol. 3A §8.2.3.2.
fn messages(t: &Test) -> Res {
    let mut g = two(t)?;
    // One writes data, then the flag; the other waits for each flag and compares the data.
    code!(g, 64, KCODE; inc(eax); mov(dword_ptr(KDATA), eax); mov(dword_ptr(KDATA + 0x40), eax); jmp(KCODE))?;
    code!(g, 64, KCODE + 0x1000;
        mov(eax, dword_ptr(KDATA + 0x40)); mov(edx, dword_ptr(KDATA)); cmp(edx, eax); adc(ebx, 0);
        cmp(eax, r8d); mov(r8d, eax); je(KCODE + 0x1000); dec(ecx); jne(KCODE + 0x1000); out(END, al))?;
    g.others[0].gpr[RCX] = 30;
    g.others[0].gpr[8] = 0;
    g.end()?;
    same!(g.others[0].gpr[RBX], 0);
    Ok(())
}

/// Intel SDM vol. 3A §8.1.3.
fn cross_modify(t: &Test) -> Res {
    let mut g = two(t)?;
    // MOV EBX, imm32 at KCODE + 0x1100, called after CPUID; the other processor counts the immediate up.
    code!(g, 64, KCODE + 0x1100; mov(ebx, 0); ret())?;
    code!(g, 64, KCODE;
        inc(esi); mov(dword_ptr(KCODE + 0x1101), esi); mov(dword_ptr(KDATA), esi); jmp(KCODE + 0x80))?;
    code!(g, 64, KCODE + 0x80;
        cmp(dword_ptr(KDATA + 0x40), esi); jne(KCODE + 0x80); jmp(KCODE))?;
    code!(g, 64, KCODE + 0x1000;
        cmp(dword_ptr(KDATA), ebp); je(KCODE + 0x1000); mov(ebp, dword_ptr(KDATA)); jmp(KCODE + 0x1040))?;
    code!(g, 64, KCODE + 0x1040;
        xor(eax, eax); cpuid(); call(KCODE + 0x1100); cmp(ebx, ebp); jne(KCODE + 0x1080);
        mov(dword_ptr(KDATA + 0x40), ebp); cmp(ebp, 15); jb(KCODE + 0x1000); out(END, al))?;
    code!(g, 64, KCODE + 0x1080; mov(r15d, 1); out(END, al))?;
    g.end()?;
    let o = &g.others[0];
    same!((o.gpr[15], o.gpr[RBX], o.gpr[RBP]), (0, 15, 15));
    Ok(())
}

fn shoot_down(t: &Test) -> Res {
    let mut g = two(t)?;
    let (page, new) = (KDATA + 0x2000, KDATA + 0x3000);
    g.mem.store(page, 1u32)?;
    g.mem.store(new, 2u32)?;
    g.others[0].rflags |= rflags::IF;
    // The handler drops the entry and tells so.
    code!(g, 64, HANDLERS + 0x460; invlpg(byte_ptr(page)); jmp(KCODE + 0x400))?;
    code!(g, 64, KCODE + 0x400; mov(dword_ptr(KDATA), 1); out(EOI, al); iretq())?;
    let entry = g.pte_at(page);
    code!(g, 64, KCODE;
        cmp(dword_ptr(KDATA + 4), 10); jb(KCODE); mov(dword_ptr(entry), (new | pte::KERNEL) as i32); mov(eax, 0x0001_0046);
        out(SEND, eax); jmp(KCODE + 0x80))?;
    // Once the other has answered, the old page is its no more.
    code!(g, 64, KCODE + 0x80;
        cmp(dword_ptr(KDATA), 1); jne(KCODE + 0x80); mov(dword_ptr(KDATA + 8), 1); jmp(KCODE + 0x100))?;
    code!(g, 64, KCODE + 0x100; pause(); jmp(KCODE + 0x100))?;
    code!(g, 64, KCODE + 0x1000;
        mov(edi, dword_ptr(KDATA + 8)); mov(eax, dword_ptr(page)); inc(dword_ptr(KDATA + 4)); test(edi, edi);
        je(KCODE + 0x1000); mov(ebx, eax); out(END, al))?;
    g.end()?;
    same!(g.others[0].gpr[RBX], 2);
    Ok(())
}

fn init(t: &Test) -> Res {
    let mut g = two(t)?;
    code!(g, 64, KCODE + 0x1000; inc(dword_ptr(KDATA)); jmp(KCODE + 0x1000))?;
    code!(g, 64, KCODE;
        cmp(dword_ptr(KDATA), 5); jb(KCODE); mov(eax, 0x0001_0200); out(SEND, eax); mov(eax, 0x0001_0307);
        out(SEND, eax); hlt())?;
    code!(g, 16, RCODE + 0x1000; out(END, al))?;
    g.end()?;
    let o = &g.others[0];
    same!((o.seg[sreg::CS].base, o.rip, o.cr0 & (cr0::PE | cr0::PG), o.cpl), (RCODE + 0x1000, 2, 0, 0));
    same!(o.efer, 0);
    Ok(())
}

fn split_lock(t: &Test) -> Res {
    let mut g = two(t)?;
    finish(&g, KCODE + 0x200)?;
    // Over two lines, and over two pages.
    for at in [KCODE, KCODE + 0x1000] {
        code!(g, 64, at;
            lock().add(dword_ptr(KDATA + 0x3e), 1); lock().inc(qword_ptr(KDATA + 0xffc)); dec(ecx); jne(at); jmp(KCODE + 0x200))?;
    }
    g.s.gpr[RCX] = TURNS as u64;
    g.others[0].gpr[RCX] = TURNS as u64;
    g.end()?;
    same!(g.mem.load::<u32>(KDATA + 0x3e)?, 2 * TURNS as u32);
    same!(g.mem.load::<u64>(KDATA + 0xffc)?, 2 * TURNS as u64);
    Ok(())
}
