//! [`GuestMemory`]: the regions, checked accessors, the dirty log and the code versions.

use crate::large;
use crate::raw::{self, Backing, GuestInt, Mapping};
use crate::{GRANULE, MemoryError, PAGE_SIZE, PageFlags};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, Weak};

/// RAM below the 32-bit hole ends here at the latest (3 GiB); the rest starts at [`HIGH_START`].
pub const LOW_LIMIT: u64 = 0xc000_0000;
/// First guest-physical address of RAM above the 32-bit hole (4 GiB).
pub const HIGH_START: u64 = 1 << 32;
/// The most RAM a guest can have (1 TiB).
pub const MAX_RAM: u64 = 1 << 40;
/// Inaccessible bytes on both sides of guest RAM in the host's address space.
const GUARD: u64 = 1 << 20;

/// A run of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes, a multiple of [`PAGE_SIZE`].
    pub size: u64,
    /// Offset in the memfd.
    pub file_offset: u64,
}

#[derive(Debug)]
struct Inner {
    mapping: Mapping,
    regions: Vec<Region>,
    low_end: u64,
    high_end: u64,
    flags: Box<[AtomicU8]>,
    versions: Box<[AtomicU32]>,
    granules: Box<[AtomicU64]>,
    watchers: RwLock<Vec<Weak<dyn CodeWatch>>>,
}

/// Who wants to know at once when decoded code has been written over.
pub trait CodeWatch: std::fmt::Debug + Send + Sync {
    /// The code of page number `page` has a new version. Called on the writer's thread, after the write.
    fn code_dropped(&self, page: u64);
}

/// Guest RAM, shared by all processors and devices of a machine. Cloning shares it.
#[derive(Clone, Debug)]
pub struct GuestMemory(Arc<Inner>);

impl GuestMemory {
    /// Makes `size` bytes of zeroed guest RAM, split around the 32-bit hole.
    ///
    /// # Errors
    /// [`MemoryError::BadSize`] for a size that is not a multiple of 4096 in 1 MiB..=1 TiB,
    /// [`MemoryError::Host`] if the host has no room.
    pub fn new(size: u64) -> Result<GuestMemory, MemoryError> {
        GuestMemory::with(size, large::best_backing())
    }

    fn with(size: u64, backing: Backing) -> Result<GuestMemory, MemoryError> {
        if !size.is_multiple_of(PAGE_SIZE) || !((1 << 20)..=MAX_RAM).contains(&size) {
            return Err(MemoryError::BadSize(size));
        }
        let low = size.min(LOW_LIMIT);
        let mut regions = vec![Region { gpa: 0, size: low, file_offset: 0 }];
        let mut high_end = HIGH_START;
        if size > low {
            regions.push(Region { gpa: HIGH_START, size: size - low, file_offset: low });
            high_end += size - low;
        }
        let span = if size > low { high_end } else { low };
        let parts: Vec<_> = regions.iter().map(|r| (r.gpa, r.size)).collect();
        let mapping = Mapping::new(span, GUARD, &parts, backing)
            .map_err(|(what, source)| MemoryError::Host { size, what, source })?;
        let pages = (span / PAGE_SIZE) as usize;
        Ok(GuestMemory(Arc::new(Inner {
            mapping,
            regions,
            low_end: low,
            high_end,
            flags: raw::zeroed_u8(pages),
            versions: raw::zeroed_u32(pages),
            granules: raw::zeroed_u64(pages),
            watchers: RwLock::default(),
        })))
    }

    /// The runs of RAM, by address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.0.regions
    }

    /// Bytes of RAM in all.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.regions.iter().map(|r| r.size).sum()
    }

    /// How many bytes of RAM the host holds: those of pages that have been touched; 0 if it does not tell.
    #[must_use]
    pub fn resident(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let held = match self.file() {
            Some(f) => f.metadata().map_or(0, |m| m.blocks() * 512),
            None => self.0.regions.iter().map(|r| self.0.mapping.resident(r.gpa, r.size)).sum(),
        };
        held.min(self.size())
    }

    /// The memfd that holds the RAM, for handing to other processes, if one does.
    #[must_use]
    pub fn file(&self) -> Option<&std::fs::File> {
        self.0.mapping.file()
    }

    /// Whether all of `gpa..gpa+len` is RAM.
    #[must_use]
    #[inline]
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else { return false };
        end <= self.0.low_end || (gpa >= HIGH_START && end <= self.0.high_end)
    }

    /// Host address of guest-physical 0; RAM at `gpa` is at `host_base() + gpa`, for addresses that
    /// [`contains`](Self::contains) accepts.
    #[must_use]
    #[inline]
    pub fn host_base(&self) -> *mut u8 {
        self.0.mapping.base()
    }

    fn check(&self, gpa: u64, len: u64) -> Result<*mut u8, MemoryError> {
        if self.contains(gpa, len) {
            Ok(self.host_base().wrapping_add(gpa as usize))
        } else {
            Err(MemoryError::OutOfRange { gpa, len })
        }
    }

    /// Copies RAM at `gpa` into `buf`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; nothing is copied then.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let p = self.check(gpa, buf.len() as u64)?;
        // SAFETY: checked to be mapped RAM.
        unsafe { raw::copy_out(p, buf) };
        Ok(())
    }

    /// Copies `buf` into RAM at `gpa`, marks the pages dirty and drops code decoded from them.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; nothing is written then.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let p = self.check(gpa, buf.len() as u64)?;
        // SAFETY: checked to be mapped RAM.
        unsafe { raw::copy_in(p, buf) };
        self.note_write(gpa, buf.len() as u64);
        Ok(())
    }

    /// Loads an integer with one move (atomic when aligned).
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    #[inline]
    pub fn load<T: GuestInt>(&self, gpa: u64) -> Result<T, MemoryError> {
        let p = self.check(gpa, T::SIZE)?;
        // SAFETY: checked to be mapped RAM.
        Ok(unsafe { T::load(p) })
    }

    /// Stores an integer with one move (atomic when aligned), as [`write`](Self::write) does.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    #[inline]
    pub fn store<T: GuestInt>(&self, gpa: u64, v: T) -> Result<(), MemoryError> {
        let p = self.check(gpa, T::SIZE)?;
        // SAFETY: checked to be mapped RAM.
        unsafe { T::store(p, v) };
        self.note_write(gpa, T::SIZE);
        Ok(())
    }

    /// Replaces the 8 bytes at `gpa` (8-aligned) by `new` if they are `old`, atomically; returns what stood there.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], also for a misaligned address.
    pub fn compare_exchange(&self, gpa: u64, old: u64, new: u64) -> Result<u64, MemoryError> {
        if !gpa.is_multiple_of(8) {
            return Err(MemoryError::OutOfRange { gpa, len: 8 });
        }
        let p = self.check(gpa, 8)?;
        // SAFETY: mapped RAM, aligned; the atomic lives as long as the mapping, which self keeps.
        let a = unsafe { AtomicU64::from_ptr(p.cast()) };
        let got = a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|v| v);
        if got == old {
            self.note_write(gpa, 8);
        }
        Ok(got)
    }

    /// The flags of the page at `gpa`; none for what is not RAM.
    #[must_use]
    #[inline]
    pub fn page_flags(&self, gpa: u64) -> PageFlags {
        PageFlags(self.0.flags.get((gpa / PAGE_SIZE) as usize).map_or(0, |f| f.load(Ordering::SeqCst)))
    }

    /// Sets `bits` in the flags of the page at `gpa` and returns the flags before.
    #[inline]
    pub fn set_page_flags(&self, gpa: u64, bits: u8) -> PageFlags {
        PageFlags(
            self.0.flags.get((gpa / PAGE_SIZE) as usize).map_or(0, |f| f.fetch_or(bits, Ordering::SeqCst)),
        )
    }

    /// Clears `bits` in the flags of the page at `gpa` and returns the flags before.
    pub fn clear_page_flags(&self, gpa: u64, bits: u8) -> PageFlags {
        PageFlags(
            self.0.flags.get((gpa / PAGE_SIZE) as usize).map_or(0, |f| f.fetch_and(!bits, Ordering::SeqCst)),
        )
    }

    /// Version of the code in the page at `gpa`: code decoded under another version is stale.
    #[must_use]
    #[inline]
    pub fn code_version(&self, gpa: u64) -> u32 {
        self.0.versions.get((gpa / PAGE_SIZE) as usize).map_or(0, |v| v.load(Ordering::SeqCst))
    }

    /// The code versions of all pages, by page number, for checks on a hot path.
    #[must_use]
    pub fn code_versions(&self) -> &[AtomicU32] {
        &self.0.versions
    }

    /// Declares that code of `gpa..gpa+len` (within one page) is about to be decoded, and returns the version to
    /// file it under. Call before reading the bytes. Writes that go through this type from now on raise the
    /// version. Writes through a soft TLB do so only after those entries are dropped: if the returned flag is
    /// true, the page has only now become CODE and some processor may hold one; the code must not be trusted until
    /// all have been flushed.
    #[must_use]
    pub fn mark_code(&self, gpa: u64, len: u64) -> (u32, bool) {
        let page = (gpa / PAGE_SIZE) as usize;
        let Some(granules) = self.0.granules.get(page) else { return (0, false) };
        let bits = granule_bits(gpa % PAGE_SIZE, len);
        let mut newly = false;
        loop {
            granules.fetch_or(bits, Ordering::SeqCst);
            let before = self.0.flags[page].fetch_or(PageFlags::CODE, Ordering::SeqCst);
            newly |= !PageFlags(before).has(PageFlags::CODE);
            let version = self.0.versions[page].load(Ordering::SeqCst);
            // A writer that raced with us clears the bits before it raises the version: if they still stand
            // after the version was read, a later write will see them.
            if granules.load(Ordering::SeqCst) & bits == bits
                && PageFlags(self.0.flags[page].load(Ordering::SeqCst)).has(PageFlags::CODE)
            {
                // Whoever is told drops those entries; ones made later set the flag anew.
                let cached = newly
                    && PageFlags(self.0.flags[page].fetch_and(!PageFlags::WCACHED, Ordering::SeqCst))
                        .has(PageFlags::WCACHED);
                return (version, cached);
            }
        }
    }

    /// Tells that `gpa..gpa+len` was written: marks pages dirty and raises the code version of pages whose
    /// decoded code the write may have hit. Call after the bytes are written.
    #[inline]
    pub fn note_write(&self, gpa: u64, len: u64) {
        if len == 0 {
            return;
        }
        fence(Ordering::SeqCst);
        let (first, last) = (gpa / PAGE_SIZE, (gpa + len - 1) / PAGE_SIZE);
        for page in first..=last {
            let Some(flags) = self.0.flags.get(page as usize) else { return };
            let f = flags.load(Ordering::SeqCst);
            if f & PageFlags::DIRTY == 0 {
                flags.fetch_or(PageFlags::DIRTY, Ordering::SeqCst);
            }
            if f & PageFlags::CODE != 0 {
                let start = gpa.max(page * PAGE_SIZE);
                let end = (gpa + len).min((page + 1) * PAGE_SIZE);
                self.drop_code(page as usize, granule_bits(start % PAGE_SIZE, end - start));
            }
        }
    }

    #[cold]
    fn drop_code(&self, page: usize, bits: u64) {
        if self.0.granules[page].load(Ordering::SeqCst) & bits == 0 {
            return;
        }
        self.0.flags[page].fetch_and(!PageFlags::CODE, Ordering::SeqCst);
        self.0.granules[page].store(0, Ordering::SeqCst);
        self.0.versions[page].fetch_add(1, Ordering::SeqCst);
        for w in &*self.0.watchers.read().unwrap_or_else(PoisonError::into_inner) {
            if let Some(w) = w.upgrade() {
                w.code_dropped(page as u64);
            }
        }
    }

    /// Lets `watcher` know of code that is written over, as long as it lives.
    pub fn watch_code(&self, watcher: Weak<dyn CodeWatch>) {
        let mut w = self.0.watchers.write().unwrap_or_else(PoisonError::into_inner);
        w.retain(|w| w.strong_count() != 0);
        w.push(watcher);
    }

    /// Takes the dirty log: one bit a page of each region, in order, lowest page first; clears what it reports.
    /// The engine must drop its fast write entries first, or later writes go unseen.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<Vec<u64>> {
        let mut out = Vec::new();
        for r in self.regions() {
            let pages = (r.size / PAGE_SIZE) as usize;
            let mut bits = vec![0u64; pages.div_ceil(64)];
            let first = (r.gpa / PAGE_SIZE) as usize;
            for i in 0..pages {
                let f = &self.0.flags[first + i];
                if f.load(Ordering::SeqCst) & PageFlags::DIRTY != 0 {
                    f.fetch_and(!PageFlags::DIRTY, Ordering::SeqCst);
                    bits[i / 64] |= 1 << (i % 64);
                }
            }
            out.push(bits);
        }
        out
    }
}

/// The bits of the granules that `offset..offset+len` of a page touches.
fn granule_bits(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = offset / GRANULE;
    let last = ((offset + len - 1) / GRANULE).min(63);
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_around_the_hole() {
        let m = GuestMemory::new(4 << 30).unwrap();
        assert_eq!(m.regions().len(), 2);
        assert_eq!(m.regions()[1], Region { gpa: HIGH_START, size: 1 << 30, file_offset: LOW_LIMIT });
        assert!(m.contains(LOW_LIMIT - 1, 1));
        assert!(!m.contains(LOW_LIMIT - 1, 2));
        assert!(m.contains(HIGH_START, 1 << 30));
        assert!(!m.contains(HIGH_START, (1 << 30) + 1));
        assert!(!m.contains(u64::MAX, 2));
        m.store::<u64>(HIGH_START + 8, 7).unwrap();
        assert_eq!(m.load::<u64>(HIGH_START + 8).unwrap(), 7);
        assert!(m.store::<u8>(LOW_LIMIT, 1).is_err());
    }

    #[test]
    fn its_file_keeps_its_size() {
        let m = GuestMemory::with(1 << 20, Backing::File).unwrap();
        let f = m.file().unwrap();
        assert!(f.set_len(0).is_err() && f.set_len(1 << 21).is_err());
    }

    #[test]
    fn either_backing_is_zeroed_and_lies_at_large_pages() {
        for backing in [Backing::File, Backing::Private] {
            let m = GuestMemory::with(8 << 20, backing).unwrap();
            assert_eq!(m.file().is_some(), backing == Backing::File);
            assert_eq!((m.host_base() as usize % (2 << 20), m.resident()), (0, 0));
            assert_eq!(m.load::<u64>(5 << 20).unwrap(), 0);
            m.store::<u64>(3 << 20, 7).unwrap();
            assert!((4096..=8 << 20).contains(&m.resident()));
            assert_eq!(m.load::<u64>(3 << 20).unwrap(), 7);
        }
    }

    #[test]
    fn refuses_odd_sizes() {
        for size in [0, 4096, (1 << 20) + 1, MAX_RAM + 4096] {
            assert!(matches!(GuestMemory::new(size), Err(MemoryError::BadSize(_))), "{size}");
        }
    }

    #[test]
    fn writes_mark_pages_dirty_once_taken() {
        let m = GuestMemory::new(1 << 20).unwrap();
        m.write(4095, &[1, 2]).unwrap();
        assert_eq!(m.take_dirty()[0][0], 0b11);
        assert_eq!(m.take_dirty()[0][0], 0);
    }

    #[test]
    fn code_version_rises_only_for_hit_granules() {
        let m = GuestMemory::new(1 << 20).unwrap();
        let (v, _) = m.mark_code(0x1040, 20);
        m.write(0x1000, &[0; 64]).unwrap();
        m.write(0x1080, &[0; 64]).unwrap();
        assert_eq!(m.code_version(0x1000), v);
        m.write(0x107f, &[0]).unwrap();
        assert_eq!(m.code_version(0x1000), v + 1);
        assert!(!m.page_flags(0x1000).has(PageFlags::CODE));
    }

    #[test]
    fn mark_code_tells_of_cached_writers() {
        let m = GuestMemory::new(1 << 20).unwrap();
        assert!(!m.mark_code(0x2000, 1).1);
        m.set_page_flags(0x2000, PageFlags::WCACHED);
        assert!(!m.mark_code(0x2000, 1).1, "was code already");
        m.store::<u8>(0x2000, 0).unwrap();
        m.set_page_flags(0x2000, PageFlags::WCACHED);
        assert!(m.mark_code(0x2000, 1).1);
        m.store::<u8>(0x2000, 0).unwrap();
        assert!(!m.mark_code(0x2000, 1).1, "was told");
    }

    #[test]
    fn granules() {
        assert_eq!(granule_bits(0, 1), 1);
        assert_eq!(granule_bits(63, 2), 3);
        assert_eq!(granule_bits(0, 4096), u64::MAX);
        assert_eq!(granule_bits(4095, 1), 1 << 63);
    }
}
