//! [`Sites`]: the one-entry caches of translated code's memory accesses. An unsafe room: the entries live in memory that
//! translated code reads and fills.
//!
//! A site that is hot has an entry of its own (tag and host page) right where its code can name it, so that a hit takes no
//! index computation. Sites that were filled stand in a log, so that dropping them costs what filling them did.

use std::ptr;

/// One site's entry. Translated code knows the layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Site {
    /// Linear address of the page, or [`Sites::nowhere`].
    pub tag: u64,
    /// Its host address.
    pub host: u64,
    /// Where the code goes on behind the site's check, from the start of the code.
    pub resume: u32,
    /// 4096 less the bytes of the access.
    pub limit: u16,
    /// Refills left before the site is taken for one that has no locality.
    pub refills: i8,
    /// [`LOGGED`], [`WRITE`], [`EARLY`].
    pub flags: u8,
}

/// What a jump to another page knows, in the place of a site. Translated code knows the layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Bridge {
    /// Generation of code addresses and mode under which it is good, or 0.
    pub gen_key: u64,
    /// The page that it leads to, as translated code names it, or 0.
    pub page: u64,
    /// Where the code is that it leads to, from the start of the code.
    pub code: u32,
    /// Guest address that it leads to, from the start of the page that it is in.
    pub target: i32,
}

const _: () = assert!(size_of::<Bridge>() == size_of::<Site>());

/// In [`Site::flags`]: it stands in the log.
pub const LOGGED: u8 = 1;
/// In [`Site::flags`]: it is a write's.
pub const WRITE: u8 = 2;
/// In [`Site::flags`]: from this bit on, two that say what may be looked up for it.
pub const EARLY: u32 = 2;

impl Site {
    /// Whether it is a write's.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.flags & WRITE != 0
    }
}

/// A cache of one page for all accesses of a kind off the stack pointer. Translated code knows the layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackSite {
    /// Linear address of the page, or [`Sites::nowhere`].
    pub tag: u64,
    /// Its host address.
    pub host: u64,
}

/// User reads and writes, supervisor reads and writes.
pub const STACK_SITES: usize = 4;

/// The most sites in one log.
pub const LOG_LEN: usize = 8192;
/// There is a log for each half of the address space: the upper one's sites outlive a change of address space.
pub const LOGS: usize = 2;

/// All sites of one processor's translated code, or none.
#[derive(Debug)]
pub struct Sites {
    base: *mut Site,
    /// Low halves of the addresses, as translated code sees them, of the sites that were filled.
    log: *mut u32,
    len: *mut u32,
    stack: *mut StackSite,
    /// The low half of `base` in translated code's view.
    low: u32,
    nowhere: u64,
    nothing: u64,
}

impl Sites {
    /// For an engine without translated code.
    #[must_use]
    pub fn none() -> Sites {
        Sites {
            base: ptr::null_mut(),
            log: ptr::null_mut(),
            len: ptr::null_mut(),
            stack: ptr::null_mut(),
            low: 0,
            nowhere: 0,
            nothing: 0,
        }
    }

    /// Sites from `base` on, logged in the [`LOGS`] logs at `log`, whose lengths are at `len`, and the [`STACK_SITES`] at `stack`, which are emptied. An empty site has the tag `nowhere` (a page that no
    /// guest can name but by guessing) and the host page `nothing` (which holds nothing).
    ///
    /// # Safety
    /// `base` is the start of an array of initialised sites that covers every site that is ever logged, each log at `log` has
    /// room for [`LOG_LEN`] entries; both, `len` and `stack` are valid for as long as this value is used, on one thread at a time. `low` is the low
    /// half of the address that translated code logs for the first site.
    #[must_use]
    pub unsafe fn new(
        base: *mut Site,
        low: u32,
        log: *mut u32,
        len: *mut u32,
        stack: *mut StackSite,
        nowhere: u64,
        nothing: u64,
    ) -> Sites {
        let mut sites = Sites { base, log, len, stack, low, nowhere, nothing };
        sites.drop_stack(|_, _| true);
        sites
    }

    /// An empty site for accesses of `size` bytes.
    #[must_use]
    pub fn empty(&self, size: u64, write: bool, refills: i8) -> Site {
        Site {
            tag: self.nowhere,
            host: self.nothing,
            resume: 0,
            limit: (4096 - size.min(4096)) as u16,
            refills,
            flags: if write { WRITE } else { 0 },
        }
    }

    /// Fills site `index` with a page.
    pub fn fill(&mut self, index: u32, tag: u64, host: u64) {
        // SAFETY: the type's contract; there are two logs.
        unsafe {
            let s = self.base.add(index as usize);
            let half = (tag >> 63) as usize;
            if (*s).flags & LOGGED != 0 && (*s).tag >> 63 != tag >> 63 {
                // It changes its log.
                self.drop_if(1 - half, |other| std::ptr::eq(other, s));
            }
            if (*s).flags & LOGGED == 0 {
                if *self.len.add(half) as usize >= LOG_LEN {
                    self.drop_if(half, |_| true);
                }
                let n = *self.len.add(half) as usize;
                *self.log.add(half * LOG_LEN + n) = self.low.wrapping_add(index * size_of::<Site>() as u32);
                *self.len.add(half) += 1;
                (*s).flags |= LOGGED;
            }
            (*s).tag = tag;
            (*s).host = host;
        }
    }

    /// Empties the sites of a half that `gone` names.
    fn drop_if(&mut self, half: usize, mut gone: impl FnMut(&Site) -> bool) {
        if self.base.is_null() {
            return;
        }
        // SAFETY: the type's contract; every logged value is that of a site.
        unsafe {
            let n = (*self.len.add(half) as usize).min(LOG_LEN);
            let log = self.log.add(half * LOG_LEN);
            let mut kept = 0;
            for i in 0..n {
                let at = *log.add(i);
                let index = at.wrapping_sub(self.low) as usize / size_of::<Site>();
                let s = self.base.add(index);
                if gone(&*s) {
                    (*s).tag = self.nowhere;
                    (*s).host = self.nothing;
                    (*s).flags &= !LOGGED;
                } else {
                    *log.add(kept) = at;
                    kept += 1;
                }
            }
            *self.len.add(half) = kept as u32;
        }
    }

    /// Empties the stack's sites that `gone` names; it is told whether they are for writes.
    fn drop_stack(&mut self, mut gone: impl FnMut(&StackSite, bool) -> bool) {
        if self.stack.is_null() {
            return;
        }
        for n in 0..STACK_SITES {
            // SAFETY: the type's contract; there are so many.
            let s = unsafe { &mut *self.stack.add(n) };
            if gone(s, n % 2 == 1) {
                *s = StackSite { tag: self.nowhere, host: self.nothing };
            }
        }
    }

    /// Empties all.
    pub fn drop_all(&mut self) {
        self.drop_stack(|_, _| true);
        self.drop_if(0, |_| true);
        self.drop_if(1, |_| true);
    }

    /// Empties those of the lower half of the address space.
    pub fn drop_low(&mut self) {
        self.drop_stack(|s, _| s.tag >> 63 == 0);
        self.drop_if(0, |_| true);
    }

    /// Empties those of the region of `1 << shift` bytes around linear address `lin`.
    pub fn drop_region(&mut self, lin: u64, shift: u8) {
        self.drop_stack(|s, _| s.tag >> shift == lin >> shift);
        self.drop_if((lin >> 63) as usize, |s| s.tag >> shift == lin >> shift);
    }

    /// Empties those of writes.
    pub fn drop_writes(&mut self) {
        self.drop_stack(|_, writes| writes);
        self.drop_if(0, Site::writes);
        self.drop_if(1, Site::writes);
    }

    /// Empties those of writes to the host page `host`.
    pub fn drop_writes_to(&mut self, host: u64) {
        self.drop_stack(|s, writes| writes && s.host == host);
        self.drop_if(0, |s| s.writes() && s.host == host);
        self.drop_if(1, |s| s.writes() && s.host == host);
    }
}
