//! The page walker over random tables.

use crate::input::{Input, Rng};
use ringer_arch::paging::{Access, Kind, Mmu, PhysMemory, load_pdptes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Memory whose quadwords are what a seed makes of their addresses, until written.
struct Memory {
    seed: u64,
    ram_bits: u32,
    phys_bits: u32,
    written: RefCell<BTreeMap<u64, u64>>,
    /// Accesses so far, and the one at which another processor writes in between.
    count: Cell<u32>,
    racer: u32,
}

impl Memory {
    fn quad(&self, gpa: u64) -> Option<u64> {
        assert!(gpa >> 52 == 0, "{gpa:#x}");
        self.count.set(self.count.get() + 1);
        assert!(self.count.get() < 1000, "a walk does not end");
        if gpa >> self.ram_bits != 0 {
            return None;
        }
        let q = gpa & !7;
        if let Some(v) = self.written.borrow().get(&q) {
            return Some(*v);
        }
        let mut rng = Rng::new(self.seed ^ q);
        let mut v = rng.u64() & ((1 << self.phys_bits) - 1) & !(0xfff & rng.u64()) | 7;
        for bit in [0, 1, 2, 5, 6, 7, 8, 12, 63] {
            if rng.one_in(6) {
                v ^= 1 << bit;
            }
        }
        if !rng.one_in(8) {
            v &= !(u64::MAX << self.ram_bits) | 1 << 63 | 0xfff;
        }
        Some(v)
    }

    fn exchange(&self, gpa: u64, old: u64, new: u64) -> Option<u64> {
        let now = self.quad(gpa)?;
        if self.count.get() == self.racer {
            self.written.borrow_mut().insert(gpa & !7, now ^ 0x1000);
            return Some(now ^ 0x1000);
        }
        if now == old {
            self.written.borrow_mut().insert(gpa & !7, new);
        }
        Some(now)
    }
}

impl PhysMemory for Memory {
    fn load_u32(&self, gpa: u64) -> Option<u32> {
        assert!(gpa.is_multiple_of(4));
        self.quad(gpa).map(|q| (q >> ((gpa & 4) * 8)) as u32)
    }
    fn load_u64(&self, gpa: u64) -> Option<u64> {
        assert!(gpa.is_multiple_of(8));
        self.quad(gpa)
    }
    fn compare_exchange_u32(&self, gpa: u64, old: u32, new: u32) -> Option<u32> {
        assert!(gpa.is_multiple_of(4));
        let shift = (gpa & 4) * 8;
        let put = |q: u64, v: u32| q & !(0xffff_ffff << shift) | u64::from(v) << shift;
        let q = self.quad(gpa)?;
        self.exchange(gpa & !7, put(q, old), put(q, new)).map(|q| (q >> shift) as u32)
    }
    fn compare_exchange_u64(&self, gpa: u64, old: u64, new: u64) -> Option<u64> {
        assert!(gpa.is_multiple_of(8));
        self.exchange(gpa, old, new)
    }
}

/// Translates addresses by random tables under random control registers.
pub fn page_walk(data: &[u8]) {
    let mut input = Input(data);
    let phys_bits = 32 + u32::from(input.u8()) % 21;
    let mem = Memory {
        seed: input.u64(),
        ram_bits: 13 + u32::from(input.u8()) % 40,
        phys_bits,
        written: RefCell::default(),
        count: Cell::new(0),
        racer: input.u8().into(),
    };
    let bits = input.u8();
    let mut mmu = Mmu {
        cr3: input.u64(),
        page_1g: bits & 1 != 0,
        nonleaf_g_reserved: bits & 2 != 0,
        phys_bits,
        ..Mmu::default()
    };
    mmu.set_controls(input.u64() | 1 << 31, input.u64(), input.u64());
    mmu.pdptes = match load_pdptes(&mem, mmu.cr3, phys_bits) {
        Some(p) => p,
        None => [input.u64(), input.u64(), input.u64(), input.u64()],
    };
    for _ in 0..8 {
        let (linear, how) = (input.u64(), input.u8());
        let kind = [Kind::Read, Kind::Write, Kind::Fetch][usize::from(how % 3)];
        let access = Access { kind, user: how & 0x40 != 0, ac: how & 0x80 != 0 };
        mem.count.set(0);
        let Ok(t) = mmu.translate(&mem, linear, access) else { continue };
        assert!(matches!(t.shift, 12 | 21 | 22 | 30));
        assert!(t.gpa >> phys_bits.max(40) == 0, "{:#x}", t.gpa);
        assert!(t.gpa & 0xfff == linear & 0xfff);
        // What was allowed once is allowed again, with nothing left to mark.
        mem.count.set(0);
        let again = mmu.translate(&mem, linear, access);
        assert_eq!(again.map(|a| (a.gpa, a.shift)), Ok((t.gpa, t.shift)));
    }
}
