//! Loads and stores of what is not RAM.

use crate::conformance::io::Access;
use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "loads and stores of 1, 2, 4 and 8 bytes", run: sizes },
    Check { name: "vector loads and stores of 16 bytes", run: vectors },
    Check { name: "read-modify-write instructions load and store once", run: modify },
    Check { name: "REP MOVS and STOS from and to registers of a device", run: strings },
    Check { name: "MMIO without paging, with 32-bit paging and with PAE", run: modes },
    Check { name: "sign- and zero-extending loads", run: extend },
    Check { name: "PUSH, POP and compare-and-exchange with memory that is not RAM", run: others },
];

fn load(at: u64, len: usize) -> Access {
    Access { way: Way::Load, at, data: vec![0; len] }
}

fn store(at: u64, data: &[u8]) -> Access {
    Access { way: Way::Store, at, data: data.to_vec() }
}

/// The log with neighbouring accesses of one way put together: an engine may split what is wider than a bus.
fn joined(log: Vec<Access>) -> Vec<Access> {
    let mut out: Vec<Access> = Vec::new();
    for a in log {
        match out.last_mut() {
            Some(l) if l.way == a.way && l.at + l.data.len() as u64 == a.at => l.data.extend(a.data),
            _ => out.push(a),
        }
    }
    out
}

fn sizes(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let v = 0x8877_6655_4433_2211u64;
    code!(g, 64, KCODE;
        mov(rax, v); mov(edi, MMIO as u32);
        mov(byte_ptr(rdi + 1), al); mov(word_ptr(rdi + 2), ax); mov(dword_ptr(rdi + 4), eax); mov(qword_ptr(rdi + 8), rax);
        mov(dl, byte_ptr(rdi + 0x11)); mov(bx, word_ptr(rdi + 0x12)); mov(ecx, dword_ptr(rdi + 0x14));
        mov(rsi, qword_ptr(rdi + 0x18)); out(END, al))?;
    g.end()?;
    let b = v.to_le_bytes();
    same!(
        g.io.take_log(),
        [
            store(MMIO + 1, &b[..1]),
            store(MMIO + 2, &b[..2]),
            store(MMIO + 4, &b[..4]),
            store(MMIO + 8, &b),
            load(MMIO + 0x11, 1),
            load(MMIO + 0x12, 2),
            load(MMIO + 0x14, 4),
            load(MMIO + 0x18, 8),
        ]
    );
    same!(g.s.gpr[RDX], io::value(MMIO + 0x11, 1));
    same!(g.s.gpr[RBX], io::value(MMIO + 0x12, 2));
    same!(g.s.gpr[RCX], io::value(MMIO + 0x14, 4));
    same!(g.s.gpr[RSI], io::value(MMIO + 0x18, 8));
    Ok(())
}

fn vectors(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(edi, MMIO as u32); movups(xmm1, xmmword_ptr(rdi)); movaps(xmmword_ptr(rdi + 0x40), xmm1); out(END, al))?;
    g.end()?;
    let want: Vec<u8> = (0..16).map(|i| io::byte(MMIO + i)).collect();
    same!(g.s.xsave[176..192], want[..]);
    same!(joined(g.io.take_log()), [load(MMIO, 16), store(MMIO + 0x40, &want)]);
    Ok(())
}

fn modify(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(edi, MMIO as u32); mov(eax, 1); add(dword_ptr(rdi), eax); not(word_ptr(rdi + 8)); xchg(dword_ptr(rdi + 16), eax);
        out(END, al))?;
    g.end()?;
    let v = |at, n| io::value(MMIO + at, n);
    same!(
        g.io.take_log(),
        [
            load(MMIO, 4),
            store(MMIO, &(v(0, 4) as u32 + 1).to_le_bytes()),
            load(MMIO + 8, 2),
            store(MMIO + 8, &(!v(8, 2) as u16).to_le_bytes()),
            load(MMIO + 16, 4),
            store(MMIO + 16, &1u32.to_le_bytes()),
        ]
    );
    same!(g.s.gpr[RAX], v(16, 4));
    Ok(())
}

fn strings(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(esi, MMIO as u32); mov(edi, KDATA as u32); mov(ecx, 3); rep().movsd();
        mov(esi, KDATA as u32); mov(edi, (MMIO + 0x100) as u32); mov(ecx, 2); rep().movsb();
        mov(eax, 0x55); mov(ecx, 2); rep().stosw(); out(END, al))?;
    g.end()?;
    let mut got = [0; 12];
    g.mem.read(KDATA, &mut got)?;
    let want: Vec<u8> = (0..12).map(|i| io::byte(MMIO + i)).collect();
    same!(got[..], want[..]);
    let mut all = want[..2].to_vec();
    all.extend([0x55, 0, 0x55, 0]);
    same!(joined(g.io.take_log()), [load(MMIO, 12), store(MMIO + 0x100, &all)]);
    Ok(())
}

fn modes(t: &Test) -> Res {
    for mode in t.modes(&[Flat, Paged32, Pae])? {
        let mut g = t.guest(mode)?;
        code!(g, 32, KCODE; mov(eax, dword_ptr(MMIO + 4)); mov(dword_ptr(MMIO + 8), eax); out(END, al))?;
        g.end()?;
        let v = io::value(MMIO + 4, 4);
        same!(g.s.gpr[RAX], v);
        same!(g.io.take_log(), [load(MMIO + 4, 4), store(MMIO + 8, &(v as u32).to_le_bytes())]);
    }
    Ok(())
}

fn extend(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(edi, MMIO as u32); movzx(eax, byte_ptr(rdi)); movsx(rbx, byte_ptr(rdi)); movsxd(rcx, dword_ptr(rdi + 4));
        movzx(edx, word_ptr(rdi + 2)); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RAX], io::value(MMIO, 1));
    same!(g.s.gpr[RBX], io::byte(MMIO) as i8 as u64);
    same!(g.s.gpr[RCX], io::value(MMIO + 4, 4) as i32 as u64);
    same!(g.s.gpr[RDX], io::value(MMIO + 2, 2));
    Ok(())
}

fn others(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(edi, MMIO as u32); push(qword_ptr(rdi)); pop(rbx); push(rbx); pop(qword_ptr(rdi + 8));
        mov(ecx, 7); mov(eax, dword_ptr(rdi + 16)); lock().cmpxchg(dword_ptr(rdi + 16), ecx);
        out(END, al))?;
    g.end()?;
    let v = io::value(MMIO, 8);
    same!(g.s.gpr[RBX], v);
    same!(
        g.io.take_log(),
        [
            load(MMIO, 8),
            store(MMIO + 8, &v.to_le_bytes()),
            load(MMIO + 16, 4),
            load(MMIO + 16, 4),
            store(MMIO + 16, &7u32.to_le_bytes()),
        ]
    );
    holds!(g.s.rflags & rflags::ZF != 0);
    Ok(())
}
