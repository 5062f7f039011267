//! IN, OUT, INS and OUTS (Intel SDM vol. 1 ch. 19).

use crate::conformance::io::Access;
use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "IN and OUT of 1, 2 and 4 bytes, by immediate and DX", run: sizes },
    Check { name: "IN of less than 4 bytes keeps the rest of EAX", run: merge },
    Check { name: "REP OUTS and REP INS of all sizes, both directions", run: strings },
    Check { name: "REP INS faults in the middle with its registers exact", run: fault_inside },
    Check { name: "REP INS and OUTS with a count of zero do nothing", run: none },
    Check { name: "ring 3 without IOPL needs the I/O permission map", run: map },
    Check { name: "OUTS with a segment prefix reads through that segment", run: segment },
];

fn write(at: u64, data: &[u8]) -> Access {
    Access { way: Way::Out, at, data: data.to_vec() }
}

fn read(at: u64, len: usize) -> Access {
    Access { way: Way::In, at, data: vec![0; len] }
}

fn sizes(t: &Test) -> Res {
    for mode in [Long, Flat, Real] {
        let mut g = t.guest(mode)?;
        code!(g, mode.bits(), mode.entry();
            mov(eax, 0x1234_5678); out(0x70, al); out(0x72, ax); out(0x74, eax);
            mov(dx, 0x1f0_u32); out(dx, al); out(dx, ax); out(dx, eax);
            in_(al, 0x40); in_(ax, 0x42); in_(eax, dx); out(END, al))?;
        g.end()?;
        let want = [
            write(0x70, &[0x78]),
            write(0x72, &[0x78, 0x56]),
            write(0x74, &[0x78, 0x56, 0x34, 0x12]),
            write(0x1f0, &[0x78]),
            write(0x1f0, &[0x78, 0x56]),
            write(0x1f0, &[0x78, 0x56, 0x34, 0x12]),
            read(0x40, 1),
            read(0x42, 2),
            read(0x1f0, 4),
        ];
        same!(g.io.take_log(), want);
        same!(g.s.gpr[RAX], io::value(0x1f0, 4));
    }
    Ok(())
}

fn merge(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; in_(al, 0x40); mov(rbx, rax); in_(ax, 0x42); mov(rcx, rax); in_(eax, 0x44); out(END, al))?;
    g.s.gpr[RAX] = u64::MAX;
    g.end()?;
    same!(g.s.gpr[RBX], !0xff | io::value(0x40, 1));
    same!(g.s.gpr[RCX], !0xffff | io::value(0x42, 2));
    same!(g.s.gpr[RAX], io::value(0x44, 4));
    Ok(())
}

fn strings(t: &Test) -> Res {
    for (size, outs, ins) in [(1u64, 0x6eu8, 0x6cu8), (2, 0x6f, 0x6d), (4, 0x6f, 0x6d)] {
        for down in [false, true] {
            let mut g = t.guest(Long)?;
            let op = |b: u8| if size == 2 { vec![0x66, 0xf3, b] } else { vec![0xf3, b] };
            code!(g, 64, KCODE; db(&op(outs)); mov(ecx, 3); db(&op(ins)); out(END, al))?;
            g.mem.store(KDATA, 0x8877_6655_4433_2211u64)?;
            g.mem.store(KDATA + 8, 0x00ff_eedd_ccbb_aa99u64)?;
            let start = if down { 2 * size } else { 0 };
            (g.s.gpr[RCX], g.s.gpr[RDX], g.s.gpr[RSI], g.s.gpr[RDI]) =
                (3, 0x60, KDATA + start, KDATA + 0x100 + start);
            if down {
                g.s.rflags |= rflags::DF;
            }
            g.end()?;
            let mut all = [0; 16];
            g.mem.read(KDATA, &mut all)?;
            let item = |n: u64| &all[(n * size) as usize..][..size as usize];
            let order = if down { [2, 1, 0] } else { [0, 1, 2] };
            let mut want: Vec<Access> = order.iter().map(|n| write(0x60, item(*n))).collect();
            want.extend([(); 3].map(|()| read(0x60, size as usize)));
            same!(g.io.take_log(), want);
            for n in 0..3 {
                let mut got = [0; 8];
                g.mem.read(KDATA + 0x100 + n * size, &mut got[..size as usize])?;
                same!(u64::from_le_bytes(got), io::value(0x60, size));
            }
            let moved = if down { (3 * size).wrapping_neg() } else { 3 * size };
            same!(g.s.gpr[RCX], 0);
            same!(g.s.gpr[RSI], (KDATA + start).wrapping_add(moved));
            same!(g.s.gpr[RDI], (KDATA + 0x100 + start).wrapping_add(moved));
        }
    }
    Ok(())
}

/// The element whose page is not there is not asked of the port again and again: the fault comes before (Intel SDM vol. 2A INS).
fn fault_inside(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    let page = KDATA + 0x1000;
    g.set_pte(page, page | pte::W)?;
    code!(g, 64, KCODE; rep().insd(); out(END, al))?;
    (g.s.gpr[RCX], g.s.gpr[RDX], g.s.gpr[RDI]) = (5, 0x60, page - 8);
    let f = g.page_fault(pf::W, page, KCODE)?;
    same!((g.s.gpr[RCX], g.s.gpr[RDI]), (3, page));
    g.set_pte(page, page | pte::KERNEL)?;
    g.return_to(&f, KCODE)?;
    g.end()?;
    same!((g.s.gpr[RCX], g.s.gpr[RDI]), (0, page + 12));
    let mut got = [0; 20];
    g.mem.read(page - 8, &mut got)?;
    for d in got.chunks_exact(4) {
        same!(*d, io::value(0x60, 4).to_le_bytes()[..4]);
    }
    Ok(())
}

fn none(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE; rep().insb(); rep().outsd(); out(END, al))?;
    (g.s.gpr[RDX], g.s.gpr[RDI], g.s.gpr[RSI]) = (0x60, KDATA, KDATA);
    g.end()?;
    same!(g.io.take_log(), []);
    same!((g.s.gpr[RCX], g.s.gpr[RDI], g.s.gpr[RSI]), (0, KDATA, KDATA));
    Ok(())
}

/// Intel SDM vol. 1 §19.5.2: a clear bit for each byte of the port, and a byte behind the map's last.
fn map(t: &Test) -> Res {
    for mode in [Long, Flat] {
        let mut g = t.guest(mode)?;
        g.ring3();
        g.s.rflags = 2;
        // Ports 0x60 to 0x62 are open.
        g.s.tr.limit = 0x68 + 0x20;
        for n in 0..0x21 {
            g.mem.store(TSS + 0x68 + n, 0xffu8)?;
        }
        g.mem.store(TSS + 0x68 + 0x60 / 8, 0xf8u8)?;
        let [at] = code!(g, mode.bits(), UCODE, [at];
            in_(al, 0x60); in_(ax, 0x61); @at in_(ax, 0x62); int(0x80))?;
        g.fault(vector::GP, 0, at)?;
        same!(g.io.take_log(), [read(0x60, 1), read(0x61, 2)]);
        // Beyond the map's end nothing is open.
        let mut g = t.guest(mode)?;
        g.ring3();
        g.s.rflags = 2;
        code!(g, mode.bits(), UCODE; in_(al, 0x60); int(0x80))?;
        g.fault(vector::GP, 0, UCODE)?;
    }
    Ok(())
}

fn segment(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.s.seg[sreg::FS].base = 0x100;
    g.mem.store(KDATA + 0x100, 0x5au8)?;
    code!(g, 64, KCODE; db(&[0x64, 0x6e]); out(END, al))?;
    (g.s.gpr[RDX], g.s.gpr[RSI]) = (0x61, KDATA);
    g.end()?;
    same!(g.io.take_log(), [write(0x61, &[0x5a])]);
    Ok(())
}
