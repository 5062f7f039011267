//! General registers: what each instruction leaves in them.

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "every general register holds what is set, in every mode", run: hold },
    Check { name: "32-bit results clear the upper halves, 8- and 16-bit ones keep them", run: halves },
];

fn hold(t: &Test) -> Res {
    for mode in [Long, Flat, Real] {
        let mut g = t.guest(mode)?;
        let n = if mode == Long { 16 } else { 8 };
        code!(g, mode.bits(), mode.entry(); nop(); out(END, al))?;
        for i in 0..n {
            g.s.gpr[i] = 0x1111_1111_1111_1111u64.wrapping_mul(i as u64 + 1)
                & if mode == Long { u64::MAX } else { 0xffff_ffff };
        }
        let want = g.s.gpr;
        g.end()?;
        same!(g.s.gpr, want);
    }
    Ok(())
}

/// Intel SDM vol. 1 §3.4.1.1.
fn halves(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    code!(g, 64, KCODE;
        mov(eax, 1); mov(bx, 2); mov(cl, 3); mov(dh, 4); movzx(esi, cx); movsx(rdi, dx); xchg(r8d, r9d); mov(r10b, 5);
        out(END, al))?;
    g.s.gpr = [0xaaaa_bbbb_cccc_dddd; 16];
    g.end()?;
    let top = 0xaaaa_bbbb_0000_0000;
    let want = [1, top | 0xcccc_dd03, top | 0xcccc_04dd, top | 0xcccc_0002];
    same!(g.s.gpr[..4], want);
    same!(g.s.gpr[RSI], 0xdd03);
    same!(g.s.gpr[RDI], 0x04dd);
    same!(g.s.gpr[8..11], [0xcccc_dddd, 0xcccc_dddd, top | 0xcccc_dd05]);
    Ok(())
}
