//! Paging: what the walk finds and what it leaves (Intel SDM vol. 3A ch. 4).

use crate::conformance::prelude::*;

pub const CHECKS: &[Check] = &[
    Check { name: "accessed and dirty bits are set by the accesses that must, on all levels", run: accessed },
    Check { name: "large pages of 2 MiB and, with PSE, 4 MiB", run: large },
    Check { name: "large pages of 1 GiB, and their reserved bits", run: huge },
    Check { name: "PSE-36: bits 39:32 of a 4 MiB page's frame", run: pse36 },
    Check { name: "INVLPG and MOV CR3 let a changed entry be seen", run: invalidate },
    Check { name: "global pages survive MOV CR3 but not CR4.PGE", run: global },
    Check { name: "SMEP: ring 0 does not fetch from pages of ring 3", run: smep },
    Check { name: "SMAP: ring 0 does not touch pages of ring 3 but under AC", run: smap },
    Check { name: "linear addresses of 57 bits", run: wide },
    Check { name: "PCIDs keep address spaces apart", run: pcid },
    Check { name: "PAE loads its PDPTEs with CR3, and refuses reserved bits", run: pdptes },
    Check { name: "paging is turned on and off by CR0", run: turn_on },
    Check { name: "CR3, CR4 and CR0 refuse what they must", run: refused },
];

const K: u64 = KDATA + 0x1000;

fn accessed(t: &Test) -> Res {
    for mode in t.modes(&[Paged32, Pae, Long, La57])? {
        for write in [false, true] {
            let mut g = t.guest(mode)?;
            g.set_pte(K, K | pte::P | pte::W)?;
            let rip = mode.entry();
            if write {
                code!(g, mode.bits(), rip; mov(dword_ptr(K), eax); out(END, al))?;
            } else {
                code!(g, mode.bits(), rip; mov(eax, dword_ptr(K)); out(END, al))?;
            }
            g.end()?;
            same!(g.pte(K)?, K | pte::P | pte::W | pte::A | if write { pte::D } else { 0 });
        }
    }
    // Read first, then written: the second access sets D, through a TLB that has the page.
    let mut g = t.guest(Long)?;
    g.set_pte(K, K | pte::P | pte::W)?;
    g.mem.store(TABLES, g.mem.load::<u64>(TABLES)? & !pte::A)?;
    g.mem.store(TABLES + 0x2000, g.mem.load::<u64>(TABLES + 0x2000)? & !pte::A)?;
    code!(g, 64, KCODE;
        mov(eax, dword_ptr(K)); mov(ebx, dword_ptr(g.pte_at(K))); mov(dword_ptr(K), eax); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RBX], K | pte::P | pte::W | pte::A);
    same!(g.pte(K)?, K | pte::P | pte::W | pte::A | pte::D);
    for level in [0, 0x2000] {
        // Entries that lead to tables have no D (Intel SDM vol. 3A §4.8).
        same!(g.mem.load::<u64>(TABLES + level)? & (pte::A | pte::D), pte::A);
    }
    // A fault leaves D alone.
    let mut g = t.guest(Long)?;
    g.set_pte(K, K | pte::P)?;
    code!(g, 64, KCODE; mov(dword_ptr(K), eax); out(END, al))?;
    g.page_fault(pf::P | pf::W, K, KCODE)?;
    same!(g.pte(K)? & pte::D, 0);
    Ok(())
}

fn large(t: &Test) -> Res {
    // Directory entry for LARGE + 2 or 4 MiB leads to LARGE.
    for mode in t.modes(&[Paged32, Pae, Long])? {
        let (size, lin) = if mode == Paged32 { (4, 0x0080_0000u32) } else { (8, 0x0060_0000) };
        let mut g = t.guest(mode)?;
        let directory = TABLES
            + match mode {
                Paged32 => 0,
                Pae => 0x1000,
                _ => 0x2000,
            };
        let entry = LARGE | pte::P | pte::W | pte::PS;
        if size == 4 {
            g.s.cr4 |= cr4::PSE;
            g.mem.store(directory + 4 * u64::from(lin >> 22), entry as u32)?;
        } else {
            g.mem.store(directory + 8 * u64::from(lin >> 21), entry)?;
        }
        g.mem.store(LARGE + 0x1234, 0xcafe_f00du32)?;
        code!(g, mode.bits(), mode.entry();
            mov(eax, dword_ptr(lin + 0x1234)); mov(dword_ptr(lin + 0x1_fff8), eax); out(END, al))?;
        g.end()?;
        same!(g.s.gpr[RAX], 0xcafe_f00d);
        same!(g.mem.load::<u32>(LARGE + 0x1_fff8)?, 0xcafe_f00d);
    }
    Ok(())
}

fn huge(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::PDPE1GB)?;
    g.mem.store(TABLES + 0x1000 + 8, pte::KERNEL | pte::PS)?;
    g.mem.store(LARGE + 0x10, 0x77u32)?;
    code!(g, 64, KCODE; mov(eax, dword_ptr(0x4000_0000 + LARGE + 0x10)); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RAX], 0x77);
    // Bits between PAT (12) and the frame are reserved.
    let mut g = t.guest(Long)?;
    g.mem.store(TABLES + 0x1000 + 8, pte::KERNEL | pte::PS | 1 << 20)?;
    code!(g, 64, KCODE; mov(eax, dword_ptr(0x4000_0000)); out(END, al))?;
    g.page_fault(pf::P | pf::RSVD, 0x4000_0000, KCODE)?;
    Ok(())
}

/// Intel SDM vol. 3A table 4-4: bits 20:13 of the entry are bits 39:32 of the address, which here lies beyond RAM.
fn pse36(t: &Test) -> Res {
    let mut g = t.guest(Paged32)?;
    g.needs(Feature::PSE36)?;
    g.s.cr4 |= cr4::PSE;
    g.mem.store(TABLES + 4 * 8, (1u32 << 13) | (pte::P | pte::W | pte::PS) as u32)?;
    code!(g, 32, KCODE; mov(eax, dword_ptr(0x0200_0040)); out(END, al))?;
    g.end()?;
    same!(g.io.take_log().first().map(|a| (a.way, a.at)), Some((Way::Load, 0x1_0000_0040)));
    same!(g.s.gpr[RAX], io::value(0x1_0000_0040, 4));
    Ok(())
}

fn invalidate(t: &Test) -> Res {
    for mode in t.modes(&[Paged32, Pae, Long])? {
        for by_cr3 in [false, true] {
            let mut g = t.guest(mode)?;
            g.mem.store(K, 1u32)?;
            g.mem.store(K + 0x1000, 2u32)?;
            let entry = g.pte_at(K);
            let new = (pte::KERNEL | (K + 0x1000)) as i32;
            match (by_cr3, mode == Long) {
                (false, _) => code!(g, mode.bits(), KCODE;
                    mov(eax, dword_ptr(K)); mov(dword_ptr(entry), new); invlpg(byte_ptr(K + 0x800));
                    mov(ebx, dword_ptr(K)); out(END, al))?,
                (true, true) => code!(g, 64, KCODE;
                    mov(eax, dword_ptr(K)); mov(dword_ptr(entry), new); mov(rcx, cr3); mov(cr3, rcx);
                    mov(ebx, dword_ptr(K)); out(END, al))?,
                (true, false) => code!(g, 32, KCODE;
                    mov(eax, dword_ptr(K)); mov(dword_ptr(entry), new); mov(ecx, cr3); mov(cr3, ecx);
                    mov(ebx, dword_ptr(K)); out(END, al))?,
            }
            g.end()?;
            same!((g.s.gpr[RAX], g.s.gpr[RBX]), (1, 2));
        }
    }
    Ok(())
}

/// That a global entry *stays* cached is the processor's freedom; that MOV CR4 drops it is not (Intel SDM vol. 3A §4.10.4.1).
fn global(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.mem.store(K, 1u32)?;
    g.mem.store(K + 0x1000, 2u32)?;
    g.set_pte(K, K | pte::KERNEL | pte::G)?;
    let new = (pte::KERNEL | pte::G | (K + 0x1000)) as i32;
    code!(g, 64, KCODE;
        mov(eax, dword_ptr(K)); mov(dword_ptr(g.pte_at(K)), new);
        mov(rcx, cr4); mov(rdx, rcx); and(edx, !(cr4::PGE as i32)); mov(cr4, rdx); mov(ebx, dword_ptr(K)); mov(cr4, rcx);
        out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RAX], g.s.gpr[RBX]), (1, 2));
    Ok(())
}

fn smep(t: &Test) -> Res {
    for mode in t.modes(&[Paged32, Pae, Long])? {
        let mut g = t.guest(mode)?;
        g.needs(Feature::SMEP)?;
        g.s.cr4 |= cr4::SMEP;
        code!(g, mode.bits(), UCODE; out(END, al))?;
        let to = UCODE;
        code!(g, mode.bits(), KCODE; jmp(to))?;
        // With SMEP fetches are told as such in every mode (Intel SDM vol. 3A §4.7).
        g.page_fault(pf::P | pf::I, UCODE, UCODE)?;
        let mut g = t.guest(mode)?;
        g.s.cr4 |= cr4::SMEP;
        g.ring3();
        code!(g, mode.bits(), UCODE; out(END, al))?;
        g.end()?;
    }
    Ok(())
}

fn smap(t: &Test) -> Res {
    for mode in t.modes(&[Paged32, Pae, Long])? {
        let mut g = t.guest(mode)?;
        g.needs(Feature::SMAP)?;
        g.s.cr4 |= cr4::SMAP;
        g.mem.store(UDATA, 9u32)?;
        let [at] = code!(g, mode.bits(), KCODE, [at];
            stac(); mov(eax, dword_ptr(UDATA)); clac(); @at mov(ebx, dword_ptr(UDATA)); out(END, al))?;
        g.page_fault(pf::P, UDATA, at)?;
        same!(g.s.gpr[RAX], 9);
        // A handler's frame on a page of ring 3 is an implicit access: AC does not help (Intel SDM vol. 3A §4.6.1).
        let mut g = t.guest(mode)?;
        g.s.cr4 |= cr4::SMAP;
        g.ring3();
        code!(g, mode.bits(), UCODE; mov(eax, dword_ptr(UDATA)); out(END, al))?;
        g.end()?;
    }
    Ok(())
}

fn wide(t: &Test) -> Res {
    let high = 1u64 << 48;
    let mut g = t.guest(La57)?;
    g.mem.store(TABLES + 8, g.mem.load::<u64>(TABLES)?)?;
    g.mem.store(KDATA, 0x1234u32)?;
    code!(g, 64, KCODE; mov(rcx, high + KDATA); mov(eax, dword_ptr(rcx)); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[RAX], 0x1234);
    let mut g = t.guest(La57)?;
    let [at] = code!(g, 64, KCODE, [at]; mov(rcx, 1u64 << 56); @at mov(eax, dword_ptr(rcx)); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    // With four levels 48 bits are all.
    let mut g = t.guest(Long)?;
    let [at] = code!(g, 64, KCODE, [at]; mov(rcx, high); @at mov(eax, dword_ptr(rcx)); out(END, al))?;
    g.fault(vector::GP, 0, at)?;
    Ok(())
}

/// Two roots, of which the second has KDATA elsewhere; switched by MOV CR3 with bit 63 and without.
fn pcid(t: &Test) -> Res {
    let mut g = t.guest(Long)?;
    g.needs(Feature::PCID)?;
    g.s.cr4 |= cr4::PCIDE;
    let mut page = [0; 4096];
    for n in 0..4 {
        g.mem.read(TABLES + 0x1000 * n, &mut page)?;
        g.mem.write(MORE_TABLES + 0x1000 * n, &page)?;
        if n > 0 {
            g.mem.store(MORE_TABLES + 0x1000 * (n - 1), (MORE_TABLES + 0x1000 * n) | pte::USER)?;
        }
    }
    g.mem.store(MORE_TABLES + 0x3000 + 8 * (K >> 12), pte::KERNEL | (K + 0x1000))?;
    g.mem.store(K, 1u32)?;
    g.mem.store(K + 0x1000, 2u32)?;
    g.s.cr3 |= 1;
    let keep = 1u64 << 63;
    code!(g, 64, KCODE;
        mov(r8d, dword_ptr(K));
        mov(rcx, MORE_TABLES | 2); mov(cr3, rcx); mov(r9d, dword_ptr(K));
        mov(rcx, TABLES | 1 | keep); mov(cr3, rcx); mov(r10d, dword_ptr(K));
        mov(rcx, MORE_TABLES | 2 | keep); mov(cr3, rcx); mov(r11d, dword_ptr(K));
        mov(rax, cr3); out(END, al))?;
    g.end()?;
    same!(g.s.gpr[8..12], [1, 2, 1, 2]);
    // Bit 63 is not kept.
    same!(g.s.gpr[RAX], MORE_TABLES | 2);
    Ok(())
}

/// Intel SDM vol. 3A §4.4.1.
fn pdptes(t: &Test) -> Res {
    let mut g = t.guest(Pae)?;
    // PDPTE 1 is written while it is not in the registers: seen only after MOV CR3.
    let [at] = code!(g, 32, KCODE, [at];
        mov(eax, dword_ptr(TABLES)); mov(dword_ptr(TABLES + 8), eax); mov(ecx, cr3); mov(cr3, ecx);
        mov(ebx, dword_ptr(0x4000_0000 + K));
        mov(dword_ptr(TABLES + 8), 3); @at mov(cr3, ecx); out(END, al))?;
    g.mem.store(K, 0x99u32)?;
    // Bit 1 is reserved in a PDPTE that is present.
    g.fault(vector::GP, 0, at)?;
    same!(g.s.gpr[RBX], 0x99);
    Ok(())
}

fn turn_on(t: &Test) -> Res {
    let mut g = t.guest(Paged32)?;
    // KDATA + 0x1000 leads elsewhere while paging is on.
    g.set_pte(K, (K + 0x1000) | pte::KERNEL)?;
    g.mem.store(K, 1u32)?;
    g.mem.store(K + 0x1000, 2u32)?;
    g.s.cr0 &= !cr0::PG;
    code!(g, 32, KCODE;
        mov(ebx, dword_ptr(K)); mov(eax, cr0); or(eax, 0x8000_0000_u32); mov(cr0, eax); mov(ecx, dword_ptr(K));
        and(eax, 0x7fff_ffff); mov(cr0, eax); mov(edx, dword_ptr(K)); out(END, al))?;
    g.end()?;
    same!((g.s.gpr[RBX], g.s.gpr[RCX], g.s.gpr[RDX]), (1, 2, 1));
    Ok(())
}

/// Intel SDM vol. 3A §2.5, §4.1.2.
fn refused(t: &Test) -> Res {
    let (pg, pe, nw) = (cr0::PG, cr0::PE, cr0::NW);
    let base = t.guest(Long)?.s;
    let cases = [
        (0u8, base.cr0 & !pe),
        (0, base.cr0 & !pe | pg),
        (0, base.cr0 | nw),
        (0, base.cr0 | 1 << 32),
        (4, base.cr4 & !cr4::PAE),
        (4, base.cr4 | 1 << 63),
        (4, base.cr4 ^ cr4::LA57),
        (3, 1 << 60),
    ];
    for (n, v) in cases {
        let mut g = t.guest(Long)?;
        // MOV CRn, RAX.
        let [at] = code!(g, 64, KCODE, [at]; @at db(&[0x0f, 0x22, 0xc0 | n << 3]); out(END, al))?;
        g.s.gpr[RAX] = v;
        g.fault(vector::GP, 0, at)?;
        same!((g.s.cr0, g.s.cr3, g.s.cr4), (base.cr0, base.cr3, base.cr4));
    }
    Ok(())
}
