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
