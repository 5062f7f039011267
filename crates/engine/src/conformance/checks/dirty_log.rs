//! The dirty log of guest RAM.

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "pages that the guest writes are in the log, others are not", run: written },
    Check { name: "a page is in the log again after the log was taken", run: again },
    Check { name: "writes by the page walker, by string and by atomic instructions", run: others },
    Check { name: "pages that the host writes are in the log", run: host },
];

/// Pages of the log, after all fast ways to RAM are dropped.
fn log(g: &mut Guest) -> Result<Vec<u64>, Fail> {
    g.load()?;
    g.io.stop(0).raise(crate::StopToken::STOP);
    same!(g.vcpu(0).run(), crate::Exit::Stopped);
    let bits = g.mem.take_dirty();
    let all = bits.first().into_iter().flatten().zip(0u64..);
    Ok(all
        .flat_map(|(w, n)| (0..64).filter(move |b| w >> b & 1 != 0).map(move |b| (n * 64 + b) << 12))
        .collect())
}

fn written(t: &Test) -> Res {
    for mode in [Flat, Long] {
        let mut g = t.guest(mode)?;
        code!(g, mode.bits(), KCODE;
            mov(byte_ptr(KDATA + 0x2fff), 1); mov(dword_ptr(LARGE + 0x1ffe), 1); mov(eax, dword_ptr(KDATA + 0x5000)); push(1);
            out(END, al))?;
        g.log_writes()?;
        let _before = log(&mut g)?;
        g.end()?;
        same!(log(&mut g)?, [STACK - 0x1000, KDATA + 0x2000, LARGE + 0x1000, LARGE + 0x2000]);
        same!(log(&mut g)?, []);
    }
    Ok(())
}

fn again(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; inc(dword_ptr(KDATA)); out(END, al))?;
    g.log_writes()?;
    let _before = log(&mut g)?;
    for n in 1..5u32 {
        g.s.rip = KCODE;
        g.end()?;
        same!(g.mem.load::<u32>(KDATA)?, n);
        same!(log(&mut g)?, [KDATA]);
    }
    Ok(())
}

fn others(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.set_pte(KDATA, KDATA | pte::P | pte::W)?;
    code!(g, 64, KCODE;
        mov(edi, (KDATA + 0x1ffc) as u32); mov(ecx, 8); rep().stosb(); lock().inc(dword_ptr(KDATA + 0x4000));
        movups(xmmword_ptr(KDATA + 0x5ff8), xmm0); mov(eax, dword_ptr(KDATA)); out(END, al))?;
    g.log_writes()?;
    let _before = log(&mut g)?;
    g.end()?;
    let got = log(&mut g)?;
    let want = [1, 2, 4, 5, 6].map(|n| KDATA + 0x1000 * n);
    // The walker's accessed bit of KDATA's entry.
    let table = g.pte_at(KDATA) & !0xfff;
    same!(got, [&want[..], &[table]].concat());
    Ok(())
}

fn host(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; out(END, al))?;
    g.log_writes()?;
    let _before = log(&mut g)?;
    g.mem.store(KDATA + 0x3000, 1u8)?;
    same!(log(&mut g)?, [KDATA + 0x3000]);
    Ok(())
}
