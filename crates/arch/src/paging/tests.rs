use super::*;
use std::cell::{Cell, RefCell};

/// 64 KiB of RAM at 0; the tables of the tests are in it.
struct Fake {
    ram: RefCell<Vec<u8>>,
    /// Another processor's write, made just before the next compare-exchange: address and value.
    race: Cell<Option<(u64, u64)>>,
}

impl Fake {
    fn new() -> Fake {
        Fake { ram: RefCell::new(vec![0; 0x1_0000]), race: Cell::new(None) }
    }
    fn get<const N: usize>(&self, gpa: u64) -> Option<[u8; N]> {
        assert_eq!(gpa % N as u64, 0);
        let at = usize::try_from(gpa).unwrap();
        self.ram.borrow().get(at..at + N).map(|b| b.try_into().unwrap())
    }
    fn put(&self, gpa: u64, v: u64) {
        self.ram.borrow_mut()[gpa as usize..][..8].copy_from_slice(&v.to_le_bytes());
    }
    fn put32(&self, gpa: u64, v: u32) {
        self.ram.borrow_mut()[gpa as usize..][..4].copy_from_slice(&v.to_le_bytes());
    }
}

impl PhysMemory for Fake {
    fn load_u32(&self, gpa: u64) -> Option<u32> {
        self.get(gpa).map(u32::from_le_bytes)
    }
    fn load_u64(&self, gpa: u64) -> Option<u64> {
        self.get(gpa).map(u64::from_le_bytes)
    }
    fn compare_exchange_u32(&self, gpa: u64, old: u32, new: u32) -> Option<u32> {
        let seen = self.load_u32(gpa)?;
        if seen == old {
            self.put32(gpa, new);
        }
        Some(seen)
    }
    fn compare_exchange_u64(&self, gpa: u64, old: u64, new: u64) -> Option<u64> {
        if let Some((at, v)) = self.race.take() {
            self.put(at, v);
        }
        let seen = self.load_u64(gpa)?;
        if seen == old {
            self.put(gpa, new);
        }
        Some(seen)
    }
}

use pte::{A, D, G, NX, P, PS, U, W};

const LINEAR: u64 = 0xffff_8123_4567_89ab;
/// Addresses of the entries that translate [`LINEAR`], by level, for tables at 0x1000 * level.
fn at(level: u64) -> u64 {
    0x1000 * level + (LINEAR >> (3 + 9 * level) & 0x1ff) * 8
}
const FRAME: u64 = 0x2f_edcb_a000;

fn access(kind: Kind, user: bool) -> Access {
    Access { kind, user, ac: false }
}
const READ: Access = Access { kind: Kind::Read, user: false, ac: false };
const WRITE: Access = Access { kind: Kind::Write, user: false, ac: false };
const FETCH: Access = Access { kind: Kind::Fetch, user: false, ac: false };

fn mmu() -> Mmu {
    Mmu {
        mode: PagingMode::Level4,
        cr3: 0x4000,
        wp: true,
        nxe: true,
        pge: true,
        page_1g: true,
        phys_bits: 46,
        ..Mmu::default()
    }
}

/// Tables of four (or five) levels that map LINEAR to FRAME with `leaf` in the last entry.
fn tables(leaf: u64) -> Fake {
    let m = Fake::new();
    for level in 2..=5 {
        m.put(at(level), (0x1000 * (level - 1)) | P | W | U);
    }
    m.put(at(1), FRAME | leaf);
    m
}

fn code(m: &Fake, mmu: &Mmu, a: Access) -> u32 {
    mmu.translate(m, LINEAR, a).unwrap_err().code
}

#[test]
fn modes() {
    let long = efer::LMA;
    for (c0, c4, e, want) in [
        (0, cr4::PAE, 0, PagingMode::Off),
        (cr0::PG, cr4::PSE, 0, PagingMode::Bits32),
        (cr0::PG, cr4::PAE, 0, PagingMode::Pae),
        (cr0::PG, cr4::PAE, long, PagingMode::Level4),
        (cr0::PG, cr4::PAE | cr4::LA57, long, PagingMode::Level5),
    ] {
        let mut m = Mmu::default();
        m.set_controls(c0, c4, e);
        assert_eq!(m.mode, want);
    }
    let t = Mmu::default().translate(&Fake::new(), 0x1234_5678, WRITE).unwrap();
    assert!(t.gpa == 0x1234_5678 && t.read && t.write && t.fetch);
}

#[test]
fn four_and_five_levels() {
    for (mode, cr3, top) in [(PagingMode::Level4, 0x4000, 4), (PagingMode::Level5, 0x5000, 5)] {
        let m = tables(P | W | G);
        // The low bits of CR3 are the PCID, or cache attributes.
        let mmu = Mmu { mode, cr3: cr3 | 0xfff, ..mmu() };
        let t = mmu.translate(&m, LINEAR, READ).unwrap();
        let want = Translation {
            gpa: FRAME | 0x9ab,
            shift: 12,
            read: true,
            write: false,
            fetch: true,
            user_page: false,
            global: true,
        };
        assert_eq!(t, want);
        for level in 1..=top {
            assert_eq!(m.load_u64(at(level)).unwrap() & (A | D), A, "level {level}");
        }
        let t = mmu.translate(&m, LINEAR, WRITE).unwrap();
        assert!(t.write);
        assert_eq!(m.load_u64(at(1)), Some(FRAME | P | W | G | A | D));
        assert_eq!(m.load_u64(at(2)).unwrap() & D, 0);
        // Now a read may fill the write right too.
        assert!(mmu.translate(&m, LINEAR, READ).unwrap().write);
        assert!(!Mmu { pge: false, ..mmu }.translate(&m, LINEAR, READ).unwrap().global);
    }
}

#[test]
fn not_present_at_each_level() {
    for level in 1..=4 {
        let m = tables(P | W);
        // Nothing else of an entry counts when P is 0.
        m.put(at(level), !P);
        assert_eq!(code(&m, &mmu(), READ), 0);
        assert_eq!(code(&m, &mmu(), WRITE), pf::W);
        assert_eq!(code(&m, &mmu(), FETCH), pf::I);
        assert_eq!(code(&m, &mmu(), access(Kind::Write, true)), pf::W | pf::U);
        for other in (1..=4).filter(|l| *l != level) {
            assert_eq!(m.load_u64(at(other)).unwrap() & A, 0);
        }
    }
}

#[test]
fn reserved_bits() {
    let bad = |level: u64, bits: u64, mmu: &Mmu| {
        let m = tables(P | W | U);
        m.put(at(level), m.load_u64(at(level)).unwrap() | bits);
        mmu.translate(&m, LINEAR, access(Kind::Read, true)).err().map(|f| f.code)
    };
    const RSVD: Option<u32> = Some(pf::P | pf::U | pf::RSVD);
    for level in 1..=4 {
        assert_eq!(bad(level, 1 << 46, &mmu()), RSVD);
        assert_eq!(bad(level, 1 << 51, &mmu()), RSVD);
        assert_eq!(bad(level, 0x7ff << 52, &mmu()), None);
        assert_eq!(bad(level, NX, &mmu()), None);
        assert_eq!(bad(level, NX, &Mmu { nxe: false, ..mmu() }), RSVD);
        assert_eq!(bad(level, 0xe00, &mmu()), None);
        let amd = Mmu { nonleaf_g_reserved: true, ..mmu() };
        assert_eq!(bad(level, G, &amd), if level >= 3 { RSVD } else { None });
        assert_eq!(bad(level, G, &mmu()), None);
    }
    assert_eq!(bad(4, PS, &mmu()), RSVD);
    assert_eq!(bad(3, PS, &Mmu { page_1g: false, ..mmu() }), RSVD);
    assert_eq!(bad(5, PS, &Mmu { mode: PagingMode::Level5, cr3: 0x5000, ..mmu() }), RSVD);
    // PAT stands at bit 7 in the last level.
    assert_eq!(bad(1, PS, &mmu()), None);
    // The error code of a fetch.
    let m = tables(P | 1 << 50);
    assert_eq!(code(&m, &mmu(), FETCH), pf::P | pf::RSVD | pf::I);
}

#[test]
fn large_pages() {
    for (level, shift) in [(2, 21), (3, 30)] {
        let size = 1u64 << shift;
        let m = tables(0);
        let base = (5 << 30) | P | W | PS;
        m.put(at(level), base | 1 << 12);
        let t = mmu().translate(&m, LINEAR, WRITE).unwrap();
        assert_eq!((t.gpa, t.shift), (5 << 30 | (LINEAR & (size - 1)), shift));
        assert_eq!(m.load_u64(at(level)), Some(base | 1 << 12 | A | D));
        assert_eq!(m.load_u64(at(level - 1)).unwrap() & A, 0);
        for bit in 13..shift {
            m.put(at(level), base | 1 << bit);
            assert_eq!(code(&m, &mmu(), READ), pf::P | pf::RSVD, "bit {bit}");
        }
    }
}

#[test]
fn rights_are_those_of_all_levels() {
    for level in 1..=4 {
        let user = |kind| access(kind, true);
        let with = |clear: u64, set: u64| {
            let m = tables(P | W | U);
            m.put(at(level), m.load_u64(at(level)).unwrap() & !clear | set);
            m
        };
        let m = with(U, 0);
        assert_eq!(code(&m, &mmu(), user(Kind::Read)), pf::P | pf::U);
        assert!(mmu().translate(&m, LINEAR, WRITE).is_ok());
        let m = with(W, 0);
        assert_eq!(code(&m, &mmu(), user(Kind::Write)), pf::P | pf::U | pf::W);
        assert_eq!(code(&m, &mmu(), WRITE), pf::P | pf::W);
        // A refused access leaves no trace.
        assert_eq!(m.load_u64(at(1)).unwrap() & (A | D), 0);
        assert!(Mmu { wp: false, ..mmu() }.translate(&m, LINEAR, WRITE).unwrap().write);
        let m = with(0, NX);
        assert_eq!(code(&m, &mmu(), FETCH), pf::P | pf::I);
        assert_eq!(code(&m, &mmu(), user(Kind::Fetch)), pf::P | pf::I | pf::U);
        let t = mmu().translate(&m, LINEAR, user(Kind::Write)).unwrap();
        assert!(t.read && t.write && !t.fetch);
    }
}

#[test]
fn smep_smap_and_wp_in_all_combinations() {
    for n in 0u32..512 {
        let bit = |i: u32| n >> i & 1 != 0;
        let (wp, smep, smap, user, ac) = (bit(0), bit(1), bit(2), bit(3), bit(4));
        let (page_u, page_w, page_nx, nxe) = (bit(5), bit(6), bit(7) && bit(8), bit(8));
        let leaf =
            P | D | if page_u { U } else { 0 } | if page_w { W } else { 0 } | if page_nx { NX } else { 0 };
        let mmu = Mmu { wp, smep, smap, nxe, ..mmu() };
        for kind in [Kind::Read, Kind::Write, Kind::Fetch] {
            let blocked = !user && smap && page_u && !ac;
            let want = match (kind, user) {
                (Kind::Read, true) => page_u,
                (Kind::Write, true) => page_u && page_w,
                (Kind::Fetch, true) => page_u && !page_nx,
                (Kind::Read, false) => !blocked,
                (Kind::Write, false) => !blocked && (page_w || !wp),
                (Kind::Fetch, false) => !(page_nx || smep && page_u),
            };
            let m = tables(leaf);
            let got = mmu.translate(&m, LINEAR, Access { kind, user, ac });
            assert_eq!(got.is_ok(), want, "{n:#x} {kind:?}");
            match got {
                // What a walk says of the other kinds of access is what their own walks say.
                Ok(t) => {
                    for (other, right) in
                        [(Kind::Read, t.read), (Kind::Write, t.write), (Kind::Fetch, t.fetch)]
                    {
                        let own = mmu.translate(&m, LINEAR, Access { kind: other, user, ac });
                        assert_eq!(own.is_ok(), right, "{n:#x} {kind:?} {other:?}");
                    }
                }
                Err(f) => {
                    assert_eq!(f.code & pf::I != 0, kind == Kind::Fetch && (smep || nxe));
                    assert_eq!(f.code & (pf::P | pf::RSVD), pf::P);
                }
            }
        }
    }
}

#[test]
fn an_entry_that_changes_meanwhile_is_walked_again() {
    let m = tables(P | W);
    m.race.set(Some((at(1), 0x7000 | P | W)));
    assert_eq!(mmu().translate(&m, LINEAR, WRITE).unwrap().gpa, 0x79ab);
    assert_eq!(m.load_u64(at(1)), Some(0x7000 | P | W | A | D));
    let m = tables(P | W);
    m.race.set(Some((at(1), 0)));
    assert_eq!(code(&m, &mmu(), WRITE), pf::W);
    // Set by the other processor already.
    let m = tables(P | W);
    m.race.set(Some((at(4), 0x3000 | P | W | A)));
    assert!(mmu().translate(&m, LINEAR, WRITE).is_ok());
}

#[test]
fn tables_outside_ram_read_as_ones() {
    let m = tables(P);
    let out = Mmu { cr3: 0x2_0000, ..mmu() };
    assert_eq!(code(&m, &out, READ), pf::P | pf::RSVD);
    m.put(at(3), 0xffff_f000 | P);
    assert_eq!(code(&m, &mmu(), READ), pf::P | pf::RSVD);
}

#[test]
fn pae() {
    let m = Fake::new();
    let linear = LINEAR & 0xffff_ffff;
    for i in 0..4 {
        m.put(0x6020 + 8 * i, if i == linear >> 30 { 0x2000 | P | 0xe00 } else { 0 });
    }
    m.put(at(2), 0x1000 | P | W);
    m.put(at(1), FRAME | P | W | NX);
    let pdptes = load_pdptes(&m, 0x6020, 46).unwrap();
    let mmu = Mmu { mode: PagingMode::Pae, pdptes, ..mmu() };
    let t = mmu.translate(&m, LINEAR, WRITE).unwrap();
    assert_eq!((t.gpa, t.shift, t.fetch), (FRAME | 0x9ab, 12, false));
    assert_eq!(code(&m, &mmu, FETCH), pf::P | pf::I);
    // The PDPTE is not marked.
    assert_eq!(m.load_u64(0x6020 + 8 * (linear >> 30)), Some(0x2e01));
    // Bits 62:52 are reserved here.
    m.put(at(1), FRAME | P | 1 << 52);
    assert_eq!(code(&m, &mmu, READ), pf::P | pf::RSVD);
    m.put(at(2), 0x0060_0000 | P | PS | W);
    let t = mmu.translate(&m, LINEAR, READ).unwrap();
    assert_eq!((t.gpa, t.shift), (0x0060_0000 | (LINEAR & 0x1f_ffff), 21));
    assert_eq!(mmu.translate(&m, linear ^ 0x8000_0000, READ), Err(PageFault { code: 0 }));
    for bit in [1, 2, 5, 6, 7, 8, 46, 62, 63] {
        m.put(0x6020, P | 1 << bit);
        assert_eq!(load_pdptes(&m, 0x6020, 46), None, "bit {bit}");
        m.put(0x6020, 1 << bit);
        assert!(load_pdptes(&m, 0x6020, 46).is_some());
    }
    assert_eq!(load_pdptes(&m, 0xf000_0000, 46), None);
}

#[test]
fn bits_32() {
    let linear = 0x8040_3456;
    let (pde, pt) = (0x1000 + 0x201 * 4, 0x2000 + 3 * 4);
    let m = Fake::new();
    m.put32(pde, 0x2000 | (P | W | U) as u32);
    m.put32(pt, 0xfedc_b000 | (P | U | G) as u32);
    let mmu = Mmu { mode: PagingMode::Bits32, cr3: 0x1fff, ..mmu() };
    let t = mmu.translate(&m, linear, access(Kind::Read, true)).unwrap();
    assert!(t.gpa == 0xfedc_b456 && t.shift == 12 && t.global && t.user_page && !t.write && t.fetch);
    assert_eq!(m.load_u32(pde).unwrap() & (A | D) as u32, A as u32);
    let go = |m: &Fake, mmu: &Mmu, a| mmu.translate(m, linear, a).map_err(|f| f.code);
    assert_eq!(go(&m, &mmu, access(Kind::Write, true)), Err(pf::P | pf::W | pf::U));
    let t = go(&m, &Mmu { wp: false, ..mmu }, WRITE).unwrap();
    assert!(t.write && m.load_u32(pt).unwrap() & D as u32 != 0);
    // No I bit without SMEP: NX is not there.
    m.put32(pt, 0);
    assert_eq!(go(&m, &mmu, FETCH), Err(0));
    assert_eq!(go(&m, &Mmu { smep: true, ..mmu }, FETCH), Err(pf::I));
    // PS counts with CR4.PSE alone.
    m.put32(pde, 0x2000 | (P | W | PS) as u32);
    assert_eq!(go(&m, &mmu, READ), Err(0));
    let mmu = Mmu { pse: true, ..mmu };
    let large = (P | W | PS) as u32 | 0x0040_0000 | 1 << 12;
    m.put32(pde, large | 0xa5 << 13);
    let t = go(&m, &mmu, WRITE).unwrap();
    assert_eq!((t.gpa, t.shift), (0xa5_0040_0000 | (linear & 0x3f_ffff), 22));
    m.put32(pde, large | 1 << 21);
    assert_eq!(go(&m, &mmu, READ), Err(pf::P | pf::RSVD));
    // 36 bits: bits 20:17 are reserved.
    let mmu = Mmu { phys_bits: 36, ..mmu };
    m.put32(pde, large | 1 << 17);
    assert_eq!(go(&m, &mmu, READ), Err(pf::P | pf::RSVD));
    m.put32(pde, large | 1 << 16);
    assert_eq!(go(&m, &mmu, READ).unwrap().gpa >> 32, 8);
}
