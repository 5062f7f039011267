//! Page-table formats and the page walker (Intel SDM vol. 3A ch. 4, AMD APM vol. 2 ch. 5).

use crate::exception::pf;
use crate::regs::{cr0, cr4, efer};

/// Guest-physical memory as the walker needs it. All accesses are naturally aligned, and must be atomic.
pub trait PhysMemory {
    /// The 4 bytes at `gpa`; `None` where there is no RAM.
    fn load_u32(&self, gpa: u64) -> Option<u32>;
    /// The 8 bytes at `gpa`; `None` where there is no RAM.
    fn load_u64(&self, gpa: u64) -> Option<u64>;
    /// Replaces the 4 bytes at `gpa` by `new` if they are `old`; what stood there, `None` where there is no RAM.
    fn compare_exchange_u32(&self, gpa: u64, old: u32, new: u32) -> Option<u32>;
    /// Replaces the 8 bytes at `gpa` by `new` if they are `old`; what stood there, `None` where there is no RAM.
    fn compare_exchange_u64(&self, gpa: u64, old: u64, new: u64) -> Option<u64>;
}

/// Bits of page-table entries.
#[allow(missing_docs)]
pub mod pte {
    pub const P: u64 = 1;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    /// Page size: the entry maps a large page.
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}

/// How linear addresses are translated (Intel SDM vol. 3A §4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses are guest-physical ones.
    #[default]
    Off,
    /// 32-bit paging: two levels of 4-byte entries.
    Bits32,
    /// PAE paging: four PDPTEs in registers, two levels of 8-byte entries.
    Pae,
    /// 4-level paging.
    Level4,
    /// 5-level paging.
    Level5,
}

impl PagingMode {
    /// The mode that the control registers choose.
    #[must_use]
    pub fn of(cr0: u64, cr4: u64, efer: u64) -> PagingMode {
        if cr0 & cr0::PG == 0 {
            PagingMode::Off
        } else if cr4 & cr4::PAE == 0 {
            PagingMode::Bits32
        } else if efer & efer::LMA == 0 {
            PagingMode::Pae
        } else if cr4 & cr4::LA57 == 0 {
            PagingMode::Level4
        } else {
            PagingMode::Level5
        }
    }
}

/// What the walker must know of a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mmu {
    /// How addresses are translated.
    pub mode: PagingMode,
    /// CR3.
    pub cr3: u64,
    /// The four PDPTEs, as [`load_pdptes`] got them; for [`PagingMode::Pae`].
    pub pdptes: [u64; 4],
    /// CR0.WP.
    pub wp: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// EFER.NXE.
    pub nxe: bool,
    /// The model has 1 GiB pages.
    pub page_1g: bool,
    /// Bit 8 of entries of the fourth level and above, and of the third that map no page, is reserved, as on AMD's
    /// processors (AMD APM vol. 2 fig. 5-20 and 5-21); on Intel's it is ignored.
    pub nonleaf_g_reserved: bool,
    /// Bits of a guest-physical address, 32 to 52.
    pub phys_bits: u32,
}

impl Mmu {
    /// Takes over what the control registers say: `mode`, `wp`, `pse`, `pge`, `smep`, `smap`, `nxe`. The rest stays.
    pub fn set_controls(&mut self, cr0: u64, cr4: u64, efer: u64) {
        self.mode = PagingMode::of(cr0, cr4, efer);
        self.wp = cr0 & cr0::WP != 0;
        self.pse = cr4 & cr4::PSE != 0;
        self.pge = cr4 & cr4::PGE != 0;
        self.smep = cr4 & cr4::SMEP != 0;
        self.smap = cr4 & cr4::SMAP != 0;
        self.nxe = efer & efer::NXE != 0;
    }
}

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Read,
    Write,
    Fetch,
}

/// An access to be translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What it does; read-modify-write counts as a write.
    pub kind: Kind,
    /// A user-mode access: CPL 3, and not one of the processor's own to GDT, LDT, IDT or TSS.
    pub user: bool,
    /// SMAP lets it reach user pages: a supervisor-mode access of an instruction's own operand (not an implicit one) while
    /// RFLAGS.AC is 1 (Intel SDM vol. 3A §4.6.1). Of no effect for user-mode accesses.
    pub ac: bool,
}

/// A page as the walker found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Guest-physical address, offset included.
    pub gpa: u64,
    /// log2 of the page's size: 12, 21, 22 or 30.
    pub shift: u8,
    /// Accesses with the same `user` and `ac` may read here.
    pub read: bool,
    /// They may write here, and the page is marked dirty already: no walk is needed before they do.
    pub write: bool,
    /// They may fetch here.
    pub fetch: bool,
    /// A user page: U is set on all levels.
    pub user_page: bool,
    /// The translation is global: CR4.PGE and the G bit.
    pub global: bool,
}

/// A page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// The error code ([`pf`]).
    pub code: u32,
}

/// Reads the four PDPTEs that CR3 points at, as loading CR3 with PAE paging does; `None` if a present one has reserved
/// bits set: #GP(0) (Intel SDM vol. 3A §4.4.1).
pub fn load_pdptes<M: PhysMemory + ?Sized>(mem: &M, cr3: u64, phys_bits: u32) -> Option<[u64; 4]> {
    let mut pdptes = [0; 4];
    for (i, p) in (0..).zip(&mut pdptes) {
        *p = mem.load_u64((cr3 & 0xffff_ffe0) + 8 * i).unwrap_or(u64::MAX);
        if *p & pte::P != 0 && *p & pdpte_reserved(phys_bits) != 0 {
            return None;
        }
    }
    Some(pdptes)
}

/// Reserved bits of a PDPTE of PAE paging: 2:1, 8:5, and those from the physical-address width up.
fn pdpte_reserved(phys_bits: u32) -> u64 {
    0x1e6 | !low_bits(phys_bits)
}

fn low_bits(n: u32) -> u64 {
    1u64.checked_shl(n).unwrap_or(0).wrapping_sub(1)
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The most levels that a walk reads from memory.
const LEVELS: usize = 5;

/// Entries that a walk used, and what they say together.
struct Walk {
    /// Address and value of each entry in memory, root first.
    steps: [(u64, u64); LEVELS],
    used: usize,
    gpa: u64,
    shift: u8,
    /// The AND of all entries: U and W.
    all: u64,
    /// NX in any entry.
    nx: bool,
}

impl Walk {
    fn new() -> Walk {
        Walk { steps: [(0, 0); LEVELS], used: 0, gpa: 0, shift: 12, all: u64::MAX, nx: false }
    }
    fn step(&mut self, at: u64, entry: u64) {
        self.steps[self.used] = (at, entry);
        self.used += 1;
        self.all &= entry;
    }
    fn leaf(&self) -> u64 {
        self.steps[self.used - 1].1
    }
}

/// Why a walk ended early: error-code bits P and RSVD.
struct Broken(u32);
const NOT_PRESENT: Broken = Broken(0);
const RESERVED: Broken = Broken(pf::P | pf::RSVD);

impl Mmu {
    /// Translates a linear address for `access`, and sets the accessed and dirty bits that it needs. In 64-bit modes the
    /// caller has checked that the address is canonical; in the others bits 63:32 are ignored.
    ///
    /// The bits are set once the walk has succeeded and the access is allowed: "used as part of linear-address
    /// translation" (Intel SDM vol. 3A §4.8) does not ask for them when it ends in a fault. An entry that changed in
    /// between starts the walk anew. Entries outside RAM read as ones, as unclaimed addresses do on a PC's bus, which
    /// mostly ends in a reserved-bit fault.
    ///
    /// # Errors
    /// [`PageFault`] with the architectural error code (Intel SDM vol. 3A §4.7).
    pub fn translate<M: PhysMemory + ?Sized>(
        &self,
        mem: &M,
        linear: u64,
        access: Access,
    ) -> Result<Translation, PageFault> {
        loop {
            let walk = match self.mode {
                PagingMode::Off => return Ok(identity(linear)),
                PagingMode::Bits32 => self.walk_32(mem, linear),
                PagingMode::Pae => self.walk_pae(mem, linear),
                PagingMode::Level4 => self.walk_64(mem, linear, 4),
                PagingMode::Level5 => self.walk_64(mem, linear, 5),
            };
            let walk = walk.map_err(|Broken(code)| self.fault(code, access))?;
            let (read, write, fetch) = self.rights(&walk, access);
            let allowed = match access.kind {
                Kind::Read => read,
                Kind::Write => write,
                Kind::Fetch => fetch,
            };
            if !allowed {
                return Err(self.fault(pf::P, access));
            }
            let dirties = access.kind == Kind::Write;
            if self.mark(mem, &walk, dirties) {
                let leaf = walk.leaf();
                return Ok(Translation {
                    gpa: walk.gpa,
                    shift: walk.shift,
                    read,
                    write: write && (dirties || leaf & pte::D != 0),
                    fetch,
                    user_page: walk.all & pte::U != 0,
                    global: self.pge && leaf & pte::G != 0,
                });
            }
        }
    }

    /// The error code of a fault: I only where instruction fetches can fault on their own account.
    fn fault(&self, code: u32, access: Access) -> PageFault {
        let by_kind = match access.kind {
            Kind::Read => 0,
            Kind::Write => pf::W,
            Kind::Fetch if self.smep || (self.nxe && self.mode != PagingMode::Bits32) => pf::I,
            Kind::Fetch => 0,
        };
        PageFault { code: code | by_kind | if access.user { pf::U } else { 0 } }
    }

    /// Whether accesses of that privilege may read, write, fetch (Intel SDM vol. 3A §4.6).
    fn rights(&self, walk: &Walk, access: Access) -> (bool, bool, bool) {
        let user_page = walk.all & pte::U != 0;
        let writable = walk.all & pte::W != 0;
        if access.user {
            return (user_page, user_page && writable, user_page && !walk.nx);
        }
        let data = !(self.smap && user_page && !access.ac);
        (data, data && (writable || !self.wp), !(walk.nx || self.smep && user_page))
    }

    /// Sets A in all entries of a walk, and D in the last one if asked to; false if one of them has changed.
    fn mark<M: PhysMemory + ?Sized>(&self, mem: &M, walk: &Walk, dirty: bool) -> bool {
        for (i, &(at, old)) in walk.steps[..walk.used].iter().enumerate() {
            let last = i + 1 == walk.used;
            let new = old | pte::A | if dirty && last { pte::D } else { 0 };
            if new == old {
                continue;
            }
            let same = if self.mode == PagingMode::Bits32 {
                let (old, new) = (old as u32, new as u32);
                mem.compare_exchange_u32(at, old, new).is_none_or(|seen| seen == old)
            } else {
                mem.compare_exchange_u64(at, old, new).is_none_or(|seen| seen == old)
            };
            if !same {
                return false;
            }
        }
        true
    }

    /// 32-bit paging (Intel SDM vol. 3A §4.3).
    fn walk_32<M: PhysMemory + ?Sized>(&self, mem: &M, linear: u64) -> Result<Walk, Broken> {
        let mut w = Walk::new();
        let at = (self.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
        let pde = u64::from(mem.load_u32(at).unwrap_or(u32::MAX));
        if pde & pte::P == 0 {
            return Err(NOT_PRESENT);
        }
        if self.pse && pde & pte::PS != 0 {
            // PSE-36: bits 20:13 are bits 39:32 of the address, as far as the physical width goes; bit 21 is reserved.
            let high_bits = self.phys_bits.clamp(32, 40) - 32;
            if pde & (0x3f_e000 & !(low_bits(high_bits) << 13)) != 0 {
                return Err(RESERVED);
            }
            w.step(at, pde);
            w.shift = 22;
            w.gpa = (pde & 0xffc0_0000) | (pde >> 13 & 0xff) << 32 | (linear & 0x3f_ffff);
            return Ok(w);
        }
        w.step(at, pde);
        let at = (pde & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
        let entry = u64::from(mem.load_u32(at).unwrap_or(u32::MAX));
        if entry & pte::P == 0 {
            return Err(NOT_PRESENT);
        }
        w.step(at, entry);
        w.gpa = (entry & 0xffff_f000) | (linear & 0xfff);
        Ok(w)
    }

    /// PAE paging (Intel SDM vol. 3A §4.4).
    fn walk_pae<M: PhysMemory + ?Sized>(&self, mem: &M, linear: u64) -> Result<Walk, Broken> {
        let pdpte = self.pdptes[(linear >> 30 & 3) as usize];
        if pdpte & pte::P == 0 {
            return Err(NOT_PRESENT);
        }
        if pdpte & pdpte_reserved(self.phys_bits) != 0 {
            return Err(RESERVED);
        }
        let reserved = !low_bits(self.phys_bits) & !pte::NX;
        self.walk_tables(mem, linear, pdpte & ADDRESS, 2, reserved)
    }

    /// 4-level and 5-level paging (Intel SDM vol. 3A §4.5).
    fn walk_64<M: PhysMemory + ?Sized>(&self, mem: &M, linear: u64, levels: u32) -> Result<Walk, Broken> {
        let reserved = !low_bits(self.phys_bits) & ADDRESS;
        self.walk_tables(mem, linear, self.cr3 & ADDRESS & low_bits(self.phys_bits), levels, reserved)
    }

    /// Tables of 512 8-byte entries from `level` down; `reserved` are the reserved bits above the address.
    fn walk_tables<M: PhysMemory + ?Sized>(
        &self,
        mem: &M,
        linear: u64,
        root: u64,
        levels: u32,
        mut reserved: u64,
    ) -> Result<Walk, Broken> {
        if !self.nxe {
            reserved |= pte::NX;
        }
        let mut w = Walk::new();
        let mut table = root;
        for level in (1..=levels).rev() {
            let shift = 3 + 9 * level;
            let at = table | (linear >> shift & 0x1ff) << 3;
            let entry = mem.load_u64(at).unwrap_or(u64::MAX);
            if entry & pte::P == 0 {
                return Err(NOT_PRESENT);
            }
            let large = level == 2 || (level == 3 && self.page_1g);
            let leaf = level == 1 || (large && entry & pte::PS != 0);
            if entry & (reserved | self.reserved_low(level, leaf)) != 0 {
                return Err(RESERVED);
            }
            w.step(at, entry);
            w.nx |= entry & pte::NX != 0;
            if leaf {
                let offset = low_bits(shift);
                w.shift = shift as u8;
                w.gpa = (entry & ADDRESS & !offset) | (linear & offset);
                return Ok(w);
            }
            table = entry & ADDRESS;
        }
        // Not reached: level 1 is a leaf. As good as an entry that is not there.
        Err(NOT_PRESENT)
    }

    /// Reserved bits below the address: PS where no large page can be, the low address bits of large pages (bit 12 is
    /// PAT), G where AMD reserves it.
    fn reserved_low(&self, level: u32, leaf: bool) -> u64 {
        match (level, leaf) {
            (1, _) | (2, false) => 0,
            (_, true) => low_bits(3 + 9 * level) & !0x1fff,
            (_, false) => pte::PS | if self.nonleaf_g_reserved { pte::G } else { 0 },
        }
    }
}

/// Without paging everything is allowed.
fn identity(linear: u64) -> Translation {
    let gpa = linear & 0xffff_ffff;
    Translation { gpa, shift: 12, read: true, write: true, fetch: true, user_page: true, global: false }
}

#[cfg(test)]
mod tests;
