//! Memory for translated code: an unsafe room. Code is one memfd mapped twice, writable and executable (W^X); behind the executable
//! mapping, within reach of RIP-relative operands, lie the sites' entries. Both lie in large pages where the host has them.

use super::ctx::{self, Ctx};
use crate::mapping::{LARGE, Mapping};
use crate::sites::{Bridge, Site};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, ptr};

/// Areas that may be alive at once in one process.
const MAX_AREAS: usize = 4096;
/// Asks for memory to be put in large pages now (Linux 6.1, `madvise(2)`), which shared memory is not by itself on most hosts.
const MADV_COLLAPSE: libc::c_int = 25;
/// Executable base, its length and the exit for faults of each live area, for the signal handler.
static AREAS: [[AtomicUsize; 3]; MAX_AREAS] =
    [const { [AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)] }; MAX_AREAS];
/// Areas below this index may be alive.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Code and sites of one processor.
pub struct Area {
    write: *mut u8,
    exec: *mut u8,
    code_len: usize,
    /// Bytes of each half: of what is executed mostly, and of what is seldom.
    half: usize,
    data: *mut u8,
    data_len: usize,
    /// Stands in for what an empty site maps.
    nothing: *mut u8,
    slot: usize,
    _maps: [Mapping; 2],
    /// Bytes of each half that lie in large pages, from the start on; none follow where the host has refused one.
    large: [usize; 2],
    refused: bool,
}

// SAFETY: the mappings belong to this value alone and have no thread affinity.
unsafe impl Send for Area {}

impl Area {
    /// An area with two halves for at least `half` bytes of code each, in large pages if `large` says so, and for `sites` sites.
    ///
    /// # Errors
    /// The host's, when it gives no memory or the process has too many areas.
    pub fn new(half: usize, sites: usize, large: bool) -> io::Result<Area> {
        let page = 4096;
        let half = half.next_multiple_of(if large { LARGE } else { page });
        let code_len = 2 * half;
        let data_len = (sites * size_of::<Site>()).next_multiple_of(page);
        // SAFETY: a constant C string and flags; the result is checked.
        let fd = unsafe { libc::memfd_create(c"ringer-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a descriptor of our own.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), code_len as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let whole = code_len + data_len + page;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let rx = libc::PROT_READ | libc::PROT_EXEC;
        let maps = [Mapping::new(code_len)?, Mapping::new(whole)?];
        let [write, exec] = [maps[0].start(), maps[1].start()];
        maps[1].enlarge(code_len, code_len + data_len);
        // SAFETY: new mappings over our own reservations.
        let mapped = unsafe {
            libc::mmap(write.cast(), code_len, rw, flags, fd.as_raw_fd(), 0) != libc::MAP_FAILED
                && libc::mmap(exec.cast(), code_len, rx, flags, fd.as_raw_fd(), 0) != libc::MAP_FAILED
        };
        if !mapped {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: within the reservation.
        let (data, nothing) = unsafe { (exec.add(code_len), exec.add(code_len + data_len)) };
        let slot = usize::MAX;
        let mut area = Area {
            write,
            exec,
            code_len,
            half,
            data,
            data_len,
            nothing,
            slot,
            _maps: maps,
            large: [0; 2],
            refused: !large,
        };
        area.slot = (0..MAX_AREAS)
            .find(|&i| AREAS[i][1].compare_exchange(0, code_len, Ordering::SeqCst, Ordering::SeqCst).is_ok())
            .ok_or_else(|| io::Error::other("too many processors in one process"))?;
        USED.fetch_max(area.slot + 1, Ordering::SeqCst);
        Ok(area)
    }

    /// From now on faults in the code continue at host address `exit`, with RSP as it is.
    pub fn divert_faults(&self, exit: u64) {
        AREAS[self.slot][2].store(exit as usize, Ordering::SeqCst);
        AREAS[self.slot][0].store(self.exec as usize, Ordering::SeqCst);
    }

    /// Puts the memory of the first `used` bytes of a half in large pages, with what follows in the last of them, where the host does that: translated code
    /// is large, and its parts are far apart.
    pub fn enlarge(&mut self, half: usize, used: usize) {
        while used > self.large[half] && self.large[half] + LARGE <= self.half && !self.refused {
            let at = half * self.half + self.large[half];
            // SAFETY: advice about our own mappings, within both; a page must be there to be made larger.
            self.refused = unsafe {
                let (write, exec) = (self.write.add(at), self.exec.add(at));
                exec.read_volatile();
                libc::madvise(exec.cast(), LARGE, MADV_COLLAPSE) != 0
                    || libc::madvise(write.cast(), LARGE, MADV_COLLAPSE) != 0
            };
            self.large[half] += if self.refused { 0 } else { LARGE };
        }
    }

    /// Returns the memory behind the first `used` bytes of a half to the host: what comes next may want less code and larger tables.
    pub fn give_back(&mut self, half: usize, used: usize) {
        let from = self.taken(used).next_multiple_of(4096);
        if from < self.half {
            // SAFETY: a part of our own mapping, on page boundaries; nothing there is executed any more, and it reads as zeros from now on.
            unsafe {
                let start = self.write.add(half * self.half + from);
                libc::madvise(start.cast(), self.half - from, libc::MADV_REMOVE);
            }
            self.large[half] = self.large[half].min(from);
        }
    }

    /// Bytes of memory that the first `used` bytes of a half take.
    #[must_use]
    pub fn taken(&self, used: usize) -> usize {
        if self.refused { used } else { used.next_multiple_of(LARGE) }
    }

    /// Host address of the code.
    #[must_use]
    pub fn exec(&self) -> u64 {
        self.exec as u64
    }

    /// Bytes of code that fit in each half: the second one begins behind them.
    #[must_use]
    pub fn half(&self) -> usize {
        self.half
    }

    /// The first site.
    #[must_use]
    pub fn sites(&self) -> *mut Site {
        self.data.cast()
    }

    /// Sites that fit.
    #[must_use]
    pub fn site_count(&self) -> usize {
        self.data_len / size_of::<Site>()
    }

    /// Host address of site `n`.
    #[must_use]
    pub fn site(&self, n: u32) -> u64 {
        self.data as u64 + u64::from(n) * size_of::<Site>() as u64
    }

    /// The number of the site at host address `p`.
    #[must_use]
    pub fn site_index(&self, p: u64) -> u32 {
        (p.wrapping_sub(self.data as u64) / size_of::<Site>() as u64) as u32
    }

    /// Site `n`.
    #[must_use]
    pub fn read_site(&self, n: u32) -> Option<Site> {
        // SAFETY: checked to be inside; any bytes are a valid site.
        ((n as usize) < self.site_count()).then(|| unsafe { *self.sites().add(n as usize) })
    }

    /// Sets site `n`.
    pub fn write_site(&mut self, n: u32, s: Site) {
        if (n as usize) < self.site_count() {
            // SAFETY: checked to be inside.
            unsafe { *self.sites().add(n as usize) = s };
        }
    }

    /// The bridge in the place of site `n`.
    #[must_use]
    pub fn read_bridge(&self, n: u32) -> Option<Bridge> {
        // SAFETY: checked to be inside; any bytes are a valid bridge, which is as large as a site and aligned as one.
        ((n as usize) < self.site_count()).then(|| unsafe { *self.sites().cast::<Bridge>().add(n as usize) })
    }

    /// Sets the bridge in the place of site `n`.
    pub fn write_bridge(&mut self, n: u32, b: Bridge) {
        if (n as usize) < self.site_count() {
            // SAFETY: as in `read_bridge`.
            unsafe { *self.sites().cast::<Bridge>().add(n as usize) = b };
        }
    }

    /// Host address of the page that empty sites map.
    #[must_use]
    pub fn nothing(&self) -> u64 {
        self.nothing as u64
    }

    /// Puts code at offset `at`; false if it does not fit.
    #[must_use]
    pub fn put(&mut self, at: usize, code: &[u8]) -> bool {
        let fits = at.checked_add(code.len()).is_some_and(|end| end <= self.code_len);
        if fits {
            // SAFETY: inside the writable mapping, which nobody else refers to.
            unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        }
        fits
    }

    /// Code at `at..at+len`, for logs.
    #[must_use]
    pub fn code(&self, at: usize, len: usize) -> Vec<u8> {
        let len = len.min(self.code_len.saturating_sub(at));
        // SAFETY: clamped to the mapping.
        unsafe { std::slice::from_raw_parts(self.write.add(at.min(self.code_len)), len) }.to_vec()
    }

    /// The bytes of code at `at`, or zeros beyond its end.
    #[must_use]
    #[inline]
    pub fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        if at > self.code_len.saturating_sub(N) {
            return [0; N];
        }
        // SAFETY: within the mapping, as was just tested.
        unsafe { self.write.add(at).cast::<[u8; N]>().read_unaligned() }
    }

    /// Runs code from host address `to` on until it is left. `enter` is the entry stub.
    ///
    /// # Safety
    /// `enter` is the entry stub of this area, `to` the start of a block of it, or a place in one where the guest's state is all in
    /// the homes that the block expects; `c` is this area's context, and all its pointers are valid.
    pub unsafe fn run(&self, enter: u64, c: *mut Ctx, to: u64) {
        // SAFETY: the caller vouches for the code; it keeps to the System V ABI.
        unsafe {
            let f: extern "sysv64" fn(*mut Ctx, u64) = std::mem::transmute(enter as *const ());
            f(c, to);
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if let Some(a) = AREAS.get(self.slot) {
            a[0].store(0, Ordering::SeqCst);
            a[1].store(0, Ordering::SeqCst);
        }
    }
}

/// Gives large tables mappings of their own from now on: they grow by moving pages then, not by being copied. The allocator begins so, but not once
/// a large table was freed.
pub fn map_tables() {
    // SAFETY: it changes nothing that the program can see.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10) };
}

/// Returns memory that was freed to the host: large tables were, and may not be as large again.
pub fn give_back() {
    // SAFETY: it changes nothing that the program can see.
    unsafe { libc::malloc_trim(0) };
}

/// Diverts a fault in translated code to its area's exit; false if it is in none.
///
/// # Safety
/// `regs` are those of a fault that an instruction raised.
pub unsafe fn divert(regs: &mut [libc::greg_t; 23], sig: libc::c_int) -> bool {
    let pc = regs[libc::REG_RIP as usize] as usize;
    for [base, len, exit] in &AREAS[..USED.load(Ordering::SeqCst)] {
        let base = base.load(Ordering::SeqCst);
        if base == 0 || pc.wrapping_sub(base) >= len.load(Ordering::SeqCst) {
            continue;
        }
        let c = regs[libc::REG_RSP as usize] as *mut Ctx;
        // SAFETY: RSP is the context's address wherever guest instructions run.
        unsafe {
            (&raw mut (*c).fault_pc).write_volatile(pc as u64);
            (&raw mut (*c).fault_sig).write_volatile(sig as u32);
            (&raw mut (*c).kind).write_volatile(ctx::exit::FAULT);
        }
        regs[libc::REG_RIP as usize] = exit.load(Ordering::SeqCst) as i64;
        return true;
    }
    false
}

/// Loads the x87 state of an XSAVE area's legacy region into the host's registers.
///
/// # Safety
/// Nothing else may use the x87 registers of this thread until [`unload_x87`].
pub unsafe fn load_x87(from: &[u8; 160]) {
    #[repr(C, align(64))]
    struct Image([u8; 576]);
    let mut b = Image([0; 576]);
    b.0[..24].copy_from_slice(&from[..24]);
    b.0[32..160].copy_from_slice(&from[32..160]);
    b.0[512] = 1;
    // SAFETY: a valid image in standard form that holds x87 state alone; the host has XSAVE (checked by the caller).
    unsafe {
        core::arch::asm!("xrstor64 [{b}]", b = in(reg) b.0.as_ptr(), in("eax") 1, in("edx") 0, options(nostack));
    }
}

/// The host's x87 state, and the x87 unit back in its initial state.
#[must_use]
pub fn unload_x87() -> [u8; 512] {
    #[repr(C, align(64))]
    struct Image([u8; 512]);
    let mut b = Image([0; 512]);
    // SAFETY: 512 aligned bytes of our own; compiled code expects the x87 unit in its initial state.
    unsafe {
        core::arch::asm!("fxsave64 [{b}]", "fninit", b = in(reg) b.0.as_mut_ptr(), options(nostack));
    }
    b.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_stays_as_it_is_in_large_pages() {
        for large in [false, true] {
            let mut a = Area::new(2 * LARGE, 8, large).unwrap();
            let end = 4 * LARGE;
            assert!(a.put(100, &[1, 2, 3]) && a.put(end - 1, &[4]) && !a.put(end, &[5]));
            a.enlarge(0, 1);
            a.enlarge(1, LARGE + 1);
            // An old kernel refuses.
            assert_eq!(a.large, if a.refused { [0; 2] } else { [LARGE, 2 * LARGE] });
            assert!(large || a.refused);
            a.enlarge(1, 2 * LARGE);
            assert_eq!((a.bytes(100), a.bytes(end - 1)), ([1, 2, 3], [4]));
            assert_eq!(a.taken(LARGE + 1), if a.refused { LARGE + 1 } else { 2 * LARGE });
            assert!(a.put(100, &[6]));
            assert_eq!(a.bytes(100), [6, 2, 3]);
            // What is used stays, and the other half; the rest can be used again.
            assert!(a.put(LARGE, &[7]) && a.put(2 * LARGE - 4096, &[8]));
            a.give_back(0, LARGE);
            assert_eq!((a.bytes(100), a.bytes(end - 1)), ([6, 2, 3], [4]));
            assert_eq!((a.bytes(LARGE), a.bytes(2 * LARGE - 4096)), ([0], [0]));
            a.enlarge(0, LARGE + 1);
            assert!(a.put(LARGE, &[9]));
            assert_eq!(a.bytes(LARGE), [9]);
        }
    }
}
