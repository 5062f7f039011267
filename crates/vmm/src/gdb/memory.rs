//! Guest memory by linear address, as a debugger sees it: through the page tables of one processor, without a trace in them.

use ringer_arch::VcpuState;
use ringer_arch::cpu::{CpuModel, Feature, Vendor};
use ringer_arch::paging::{self, Access, Kind, PagingMode, PhysMemory};
use ringer_memory::{GuestMemory, PAGE_SIZE};

/// Guest RAM for the page walker, which marks nothing as accessed.
struct Unmarked<'a>(&'a GuestMemory);

impl PhysMemory for Unmarked<'_> {
    fn load_u32(&self, gpa: u64) -> Option<u32> {
        self.0.load(gpa).ok()
    }
    fn load_u64(&self, gpa: u64) -> Option<u64> {
        self.0.load(gpa).ok()
    }
    fn compare_exchange_u32(&self, gpa: u64, old: u32, _new: u32) -> Option<u32> {
        self.0.contains(gpa, 4).then_some(old)
    }
    fn compare_exchange_u64(&self, gpa: u64, old: u64, _new: u64) -> Option<u64> {
        self.0.contains(gpa, 8).then_some(old)
    }
}

/// What one processor's linear addresses mean.
pub struct View<'a> {
    memory: &'a GuestMemory,
    paging: paging::Mmu,
}

impl View<'_> {
    /// The view of a processor of `model` in `state`.
    #[must_use]
    pub fn new<'a>(memory: &'a GuestMemory, model: &CpuModel, state: &VcpuState) -> View<'a> {
        let mut paging = paging::Mmu {
            cr3: state.cr3,
            page_1g: model.has(Feature::PDPE1GB),
            nonleaf_g_reserved: model.vendor() == Vendor::Amd,
            phys_bits: model.max_phys_bits(),
            ..paging::Mmu::default()
        };
        paging.set_controls(state.cr0, state.cr4, state.efer);
        if paging.mode == PagingMode::Pae {
            let load = || paging::load_pdptes(&Unmarked(memory), state.cr3, paging.phys_bits);
            paging.pdptes = state.pdptes.or_else(load).unwrap_or_default();
        }
        View { memory, paging }
    }

    /// Guest-physical address of the byte at `lin`, whatever its page permits; `None` if none is mapped, or the address is not
    /// canonical.
    #[must_use]
    pub fn translate(&self, lin: u64) -> Option<u64> {
        let bits = match self.paging.mode {
            PagingMode::Level4 => 48,
            PagingMode::Level5 => 57,
            // Addresses have 32 bits there; a debugger may have extended their sign.
            _ => {
                let access = Access { kind: Kind::Read, user: false, ac: true };
                return Some(
                    self.paging.translate(&Unmarked(self.memory), lin & 0xffff_ffff, access).ok()?.gpa,
                );
            }
        };
        let unused = 64 - bits;
        if ((lin << unused) as i64 >> unused) as u64 != lin {
            return None;
        }
        let access = Access { kind: Kind::Read, user: false, ac: true };
        Some(self.paging.translate(&Unmarked(self.memory), lin, access).ok()?.gpa)
    }

    /// Goes through `len` bytes from `lin` on, page by page: guest-physical address and range of each piece; how many bytes `f` took.
    fn pieces(&self, lin: u64, len: usize, mut f: impl FnMut(u64, std::ops::Range<usize>) -> bool) -> usize {
        let mut done = 0;
        while done < len {
            let at = lin.wrapping_add(done as u64);
            let n = (len - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            match self.translate(at) {
                Some(gpa) if f(gpa, done..done + n) => done += n,
                _ => break,
            }
        }
        done
    }

    /// Reads RAM from `lin` on; how many bytes could be read. What is not RAM cannot: reading a device may change it.
    pub fn read(&self, lin: u64, buf: &mut [u8]) -> usize {
        self.pieces(lin, buf.len(), |gpa, r| self.memory.read(gpa, &mut buf[r]).is_ok())
    }

    /// Writes RAM, read-only pages too; how many bytes could be written.
    pub fn write(&self, lin: u64, bytes: &[u8]) -> usize {
        self.pieces(lin, bytes.len(), |gpa, r| self.memory.write(gpa, &bytes[r]).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringer_arch::regs::{cr0, cr4, efer};

    const SIZE: u64 = 2 << 20;

    fn model() -> CpuModel {
        crate::engines::cpu_model("x86-64-v2", &ringer_engine::Needs::default()).unwrap()
    }

    /// 4-level paging: the pages at linear 0x40_0000 and 0x40_1000 are at 0x9000 (read-only) and 0x7000; what follows is missing, and
    /// another maps what is not RAM.
    fn long() -> (GuestMemory, VcpuState) {
        let memory = GuestMemory::new(SIZE).unwrap();
        for (at, entry) in [
            (0x1000, 0x2003u64),
            (0x2000, 0x3003),
            (0x3000 + 8 * 2, 0x4003),
            (0x4000, 0x9001),
            (0x4008, 0x7003),
            (0x4018, 0xfee0_0003),
        ] {
            memory.store(at, entry).unwrap();
        }
        let mut s = VcpuState::reset(0, true);
        s.cr0 = cr0::PE | cr0::PG | cr0::WP;
        s.cr3 = 0x1000;
        s.cr4 = cr4::PAE | cr4::SMAP;
        s.efer = efer::LME | efer::LMA;
        (memory, s)
    }

    #[test]
    fn pages_are_gone_through_and_left_as_they_are() {
        let (memory, s) = long();
        let v = View::new(&memory, &model(), &s);
        memory.write(0x9ffe, b"ab").unwrap();
        memory.write(0x7000, b"cd").unwrap();
        let mut buf = [0; 4];
        assert_eq!(v.read(0x40_0ffe, &mut buf), 4);
        assert_eq!(&buf, b"abcd");
        assert_eq!(v.write(0x40_0fff, b"xyz"), 3);
        assert_eq!(v.read(0x40_0ffe, &mut buf), 4);
        assert_eq!(&buf, b"axyz");
        // As far as it goes.
        assert_eq!(v.read(0x40_1ffe, &mut buf), 2);
        assert_eq!(v.write(0x40_1fff, b"12"), 1);
        assert_eq!(v.read(0x40_3000, &mut buf), 0);
        assert_eq!((v.translate(0x40_3008), v.translate(0x40_2000)), (Some(0xfee0_0008), None));
        for lin in [0x8000_0000_0000, 0xffff_0000_0040_0000, u64::MAX - 1] {
            assert_eq!(v.read(lin, &mut buf), 0, "{lin:#x}");
        }
        // Neither accessed nor dirty.
        for (at, entry) in [(0x1000, 0x2003u64), (0x4000, 0x9001), (0x4008, 0x7003)] {
            assert_eq!(memory.load::<u64>(at).unwrap(), entry);
        }
    }

    #[test]
    fn narrow_modes() {
        let (memory, mut s) = long();
        s.efer = 0;
        s.cr4 = cr4::PAE;
        // The PDPTEs of PAE paging have fewer bits.
        memory.store(0x5000, 0x3001u64).unwrap();
        s.cr3 = 0x5000;
        assert_eq!(View::new(&memory, &model(), &s).translate(0x40_1234), Some(0x7234));
        s.pdptes = Some([0; 4]);
        assert_eq!(View::new(&memory, &model(), &s).translate(0x40_1234), None);
        s.cr0 = cr0::PE;
        let v = View::new(&memory, &model(), &s);
        assert_eq!(v.translate(0xffff_ffff_ffff_fff0), Some(0xffff_fff0));
        let mut buf = [0; 16];
        assert_eq!(v.read(SIZE - 8, &mut buf), 8);
        assert_eq!(v.read(SIZE, &mut buf), 0);
    }
}
