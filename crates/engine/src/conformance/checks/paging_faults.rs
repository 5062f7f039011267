//! Page faults: error codes, CR2, return address (Intel SDM vol. 3A §4.6, §4.7), in every mode with paging.

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "a page that is not there: reads, writes, fetches, at both rings", run: absent },
    Check { name: "a read-only page, by CR0.WP and ring", run: read_only },
    Check { name: "a supervisor page from ring 3", run: supervisor },
    Check { name: "reserved bits in a page-table entry", run: reserved },
    Check { name: "a page that may not be executed", run: no_execute },
    Check { name: "rights are those of all levels together", run: levels },
    Check { name: "a write over two pages faults at the second and writes nothing", run: straddle },
    Check { name: "an instruction over two pages faults at the second", run: fetch_straddle },
];

const MODES: [Mode; 4] = [Paged32, Pae, Long, La57];
/// A page of each ring's data.
const K: u64 = KDATA + 0x1000;
const U: u64 = UDATA + 0x1000;

/// Instructions that access [`at`]: reads and writes EAX, or jumps there.
fn access(g: &Guest, at: u64, what: u32) -> Result<u64, Fail> {
    let (base, bits) = (g.s.rip, g.mode.bits());
    let at = at as u32;
    let [fault] = match what {
        0 => code!(g, bits, base, [f]; @f mov(eax, dword_ptr(at)); out(END, al))?,
        pf::W => code!(g, bits, base, [f]; @f mov(dword_ptr(at), eax); out(END, al))?,
        _ if bits == 64 => code!(g, 64, base, [f]; mov(eax, at); @f jmp(rax))?,
        _ => code!(g, 32, base, [f]; mov(eax, at); @f jmp(eax))?,
    };
    Ok(if what == pf::I { u64::from(at) } else { fault })
}

fn absent(t: &Test) -> Res {
    for mode in t.modes(&MODES)? {
        for (ring3, at) in [(false, K), (true, U)] {
            for what in [0, pf::W, pf::I] {
                let mut g = t.guest(mode)?;
                if ring3 {
                    g.ring3();
                }
                g.set_pte(at, pte::USER & !pte::P | at)?;
                let rip = access(&g, at + 0x123, what)?;
                // Without NXE and SMEP fetches are told as reads (Intel SDM vol. 3A §4.7).
                let code = if mode == Paged32 { what & !pf::I } else { what };
                g.page_fault(code | if ring3 { pf::U } else { 0 }, at + 0x123, rip)?;
            }
        }
    }
    Ok(())
}

fn read_only(t: &Test) -> Res {
    for mode in t.modes(&MODES)? {
        for (wp, ring3) in [(true, false), (false, false), (true, true), (false, true)] {
            let mut g = t.guest(mode)?;
            if ring3 {
                g.ring3();
            }
            if !wp {
                g.s.cr0 &= !cr0::WP;
            }
            g.set_pte(U, pte::USER & !pte::W | U)?;
            g.s.gpr[RAX] = 0x5555;
            let rip = access(&g, U, pf::W)?;
            if ring3 {
                g.page_fault(pf::P | pf::W | pf::U, U, rip)?;
            } else if wp {
                g.page_fault(pf::P | pf::W, U, rip)?;
            } else {
                g.end()?;
                same!(g.mem.load::<u32>(U)?, 0x5555);
            }
        }
    }
    Ok(())
}

fn supervisor(t: &Test) -> Res {
    for mode in t.modes(&MODES)? {
        for what in [0, pf::W, pf::I] {
            let mut g = t.guest(mode)?;
            g.ring3();
            let rip = access(&g, K, what)?;
            let code = if mode == Paged32 { what & !pf::I } else { what };
            g.page_fault(pf::P | pf::U | code, K, rip)?;
        }
    }
    Ok(())
}

fn reserved(t: &Test) -> Res {
    for mode in t.modes(&[Pae, Long, La57])? {
        // Above the widest physical address; and NX while EFER.NXE is clear.
        let width = t.guest(mode)?.model().max_phys_bits();
        for (bit, nxe) in [(51, true), (63, false)] {
            if bit < width {
                continue;
            }
            let mut g = t.guest(mode)?;
            if !nxe {
                g.s.efer &= !efer::NXE;
            }
            g.set_pte(K, pte::KERNEL | K | 1 << bit)?;
            let rip = access(&g, K + 8, pf::W)?;
            g.page_fault(pf::P | pf::W | pf::RSVD, K + 8, rip)?;
        }
    }
    Ok(())
}

fn no_execute(t: &Test) -> Res {
    for mode in t.modes(&[Pae, Long, La57])? {
        let mut g = t.guest(mode)?;
        g.set_pte(K, pte::KERNEL | K | pte::NX)?;
        g.mem.write(K, &[0xe6, 0xf4])?;
        let rip = access(&g, K, pf::I)?;
        g.page_fault(pf::P | pf::I, K, rip)?;
        // Data accesses do not mind.
        let mut g = t.guest(mode)?;
        g.set_pte(K, pte::KERNEL | K | pte::NX)?;
        access(&g, K, pf::W)?;
        g.end()?;
    }
    Ok(())
}

/// Intel SDM vol. 3A §4.6: a page is for ring 3, or writable, only if all entries that lead to it say so.
fn levels(t: &Test) -> Res {
    for mode in t.modes(&[Long, La57])? {
        let top = if mode == La57 { 4 } else { 3 };
        for level in 0..top {
            let entry = TABLES + 0x1000 * level;
            for (clear, code) in [(pte::U, pf::P | pf::U), (pte::W, pf::P | pf::U | pf::W), (pte::P, pf::U)] {
                let mut g = t.guest(mode)?;
                g.ring3();
                // Code, handlers and stacks must stay: another tree, in which the root is a copy.
                let old: u64 = g.mem.load(entry)?;
                let mut root = [0; 4096];
                for n in 0..=level {
                    g.mem.read(TABLES + 0x1000 * n, &mut root)?;
                    g.mem.write(MORE_TABLES + 0x1000 * n, &root)?;
                }
                // The page is reached at 1 GiB, or 512 GiB, or 256 TiB higher: by entry 1 of this level.
                for n in 0..level {
                    g.mem.store(MORE_TABLES + 0x1000 * n, (MORE_TABLES + 0x1000 * (n + 1)) | pte::USER)?;
                }
                g.mem.store(
                    MORE_TABLES + 0x1000 * level + 8 * if level + 1 == top { 200 } else { 1 },
                    old & !clear,
                )?;
                g.s.cr3 = MORE_TABLES;
                let shift = 12 + 9 * (top - level);
                let lin = (if level + 1 == top { 200u64 } else { 1 } << shift) + (U & 0x1f_ffff);
                let rip =
                    code!(g, 64, UCODE, [f]; mov(rax, lin); @f mov(dword_ptr(rax), ecx); out(END, al))?[0];
                g.page_fault(code | if clear == pte::U || clear == pte::P { pf::W } else { 0 }, lin, rip)?;
            }
        }
    }
    Ok(())
}

fn straddle(t: &Test) -> Res {
    for mode in t.modes(&MODES)? {
        let mut g = t.guest(mode)?;
        g.set_pte(K + 0x1000, pte::KERNEL & !pte::W | (K + 0x1000))?;
        g.mem.store(K + 0xffc, 0x1111_1111u32)?;
        g.s.gpr[RAX] = 0x2222_2222;
        let rip = access(&g, K + 0xffe, pf::W)?;
        g.page_fault(pf::P | pf::W, K + 0x1000, rip)?;
        same!(g.mem.load::<u32>(K + 0xffc)?, 0x1111_1111);
    }
    Ok(())
}

fn fetch_straddle(t: &Test) -> Res {
    for mode in t.modes(&MODES)? {
        let mut g = t.guest(mode)?;
        let page = KCODE + 0x1000;
        // A MOV EAX, imm32 whose last two bytes lie in a page that is not there.
        g.mem.write(page - 3, &[0xb8, 1, 2, 3, 4, 0xe6, 0xf4])?;
        g.set_pte(page, page | pte::KERNEL & !pte::P)?;
        g.s.rip = page - 3;
        let code = if mode == Paged32 { 0 } else { pf::I };
        let f = g.page_fault(code, page, page - 3)?;
        // Once it is there, the instruction is executed.
        g.set_pte(page, page | pte::KERNEL)?;
        g.return_to(&f, page - 3)?;
        g.end()?;
        same!(g.s.gpr[RAX], 0x0403_0201);
    }
    Ok(())
}
