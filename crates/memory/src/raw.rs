//! The crate's unsafe room: mapping the memfd and touching guest bytes by host pointer.
//!
//! Guest RAM is written by other processors at any time, so no Rust reference to it is ever made: loads and
//! stores are single x86 moves (inline assembly), whose atomicity and order are the guest's own (TSO).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// An integer that one x86 move loads or stores.
pub trait GuestInt: Copy + Send + Sync + 'static {
    /// Bytes.
    const SIZE: u64;
    /// Loads from `p` with one move.
    ///
    /// # Safety
    /// `p..p+SIZE` is mapped and readable.
    unsafe fn load(p: *const u8) -> Self;
    /// Stores to `p` with one move.
    ///
    /// # Safety
    /// `p..p+SIZE` is mapped and writable.
    unsafe fn store(p: *mut u8, v: Self);
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Truncates.
    fn of_u64(v: u64) -> Self;
}

macro_rules! guest_int {
    ($t:ty, $reg:ident, $load:literal, $store:literal) => {
        impl GuestInt for $t {
            const SIZE: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            unsafe fn load(p: *const u8) -> Self {
                let v: $t;
                // SAFETY: the caller vouches for p; one plain load.
                unsafe {
                    core::arch::asm!($load, p = in(reg) p, v = out($reg) v,
                        options(nostack, preserves_flags, readonly));
                }
                v
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: Self) {
                // SAFETY: the caller vouches for p; one plain store.
                unsafe {
                    core::arch::asm!($store, p = in(reg) p, v = in($reg) v, options(nostack, preserves_flags));
                }
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn of_u64(v: u64) -> Self {
                v as $t
            }
        }
    };
}
guest_int!(u8, reg_byte, "mov {v}, byte ptr [{p}]", "mov byte ptr [{p}], {v}");
guest_int!(u16, reg, "mov {v:x}, word ptr [{p}]", "mov word ptr [{p}], {v:x}");
guest_int!(u32, reg, "mov {v:e}, dword ptr [{p}]", "mov dword ptr [{p}], {v:e}");
guest_int!(u64, reg, "mov {v}, qword ptr [{p}]", "mov qword ptr [{p}], {v}");

/// Copies `dst.len()` bytes out of guest RAM, in no particular order.
///
/// # Safety
/// `src..src+dst.len()` is mapped and readable.
pub unsafe fn copy_out(src: *const u8, dst: &mut [u8]) {
    // SAFETY: the caller vouches for src; `rep movsb` reads racing bytes without forming a reference.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") dst.len() => _, inout("rsi") src => _,
            inout("rdi") dst.as_mut_ptr() => _, options(nostack, preserves_flags));
    }
}

/// Copies `src` into guest RAM, in no particular order.
///
/// # Safety
/// `dst..dst+src.len()` is mapped and writable.
pub unsafe fn copy_in(dst: *mut u8, src: &[u8]) {
    // SAFETY: the caller vouches for dst.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") src.len() => _, inout("rsi") src.as_ptr() => _,
            inout("rdi") dst => _, options(nostack, preserves_flags));
    }
}

/// A new memfd of `size` bytes, which whoever is handed it can not make smaller.
fn sealed_file(size: u64) -> Result<File, (&'static str, io::Error)> {
    let fail = |what| move || (what, io::Error::last_os_error());
    // SAFETY: a constant C string and flags; the result is checked.
    let fd = unsafe {
        libc::memfd_create(c"ringer-guest-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    };
    if fd < 0 {
        return Err(fail("memfd_create")());
    }
    // SAFETY: fd is a fresh descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).map_err(|e| ("ftruncate", e))?;
    // Nobody must be able to take pages from under the mapping.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a descriptor of our own and constant flags; the result is checked.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(fail("fcntl(F_ADD_SEALS)")());
    }
    Ok(file)
}

/// What RAM is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// A memfd, which other processes can be handed.
    File,
    /// Memory of this process alone.
    Private,
}

/// One reservation of host address space with RAM mapped into parts of it. Unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    /// The reservation.
    start: *mut u8,
    len: usize,
    file: Option<File>,
}

/// Bytes of the host's large pages. It maps a file by them where addresses and offsets agree in what is less.
const LARGE: usize = 2 << 20;

// SAFETY: the mapping is shared memory with no thread affinity; all access is by raw moves.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `span` bytes (plus at least `guard` inaccessible bytes on both sides) and maps each of `parts`
    /// (offset in the span, bytes) to consecutive ranges of a new memfd, or to private memory.
    ///
    /// # Errors
    /// The host's error and the call that failed.
    pub fn new(
        span: u64,
        guard: u64,
        parts: &[(u64, u64)],
        backing: Backing,
    ) -> Result<Mapping, (&'static str, io::Error)> {
        let fail = |what| move || (what, io::Error::last_os_error());
        let total = parts.iter().map(|p| p.1).sum();
        let file = match backing {
            Backing::File => Some(sealed_file(total)?),
            Backing::Private => None,
        };
        let too_big = || ("mmap", io::Error::from_raw_os_error(libc::ENOMEM));
        let len = usize::try_from(span).map_err(|_| too_big())?;
        let guard = usize::try_from(guard).map_err(|_| too_big())?;
        let whole = len.checked_add(2 * guard + LARGE).ok_or_else(too_big)?;
        // SAFETY: a fresh inaccessible reservation at an address of the kernel's choice.
        let res = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                whole,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if res == libc::MAP_FAILED {
            return Err(fail("mmap")());
        }
        let start = res.cast::<u8>();
        let to_large = (start as usize + guard).next_multiple_of(LARGE) - start as usize;
        // SAFETY: into our own reservation, at least `guard` and less than LARGE more.
        let base = unsafe { start.add(to_large) };
        let mapping = Mapping { base, start, len: whole, file };
        let (kind, fd) = match &mapping.file {
            Some(f) => (libc::MAP_SHARED, f.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let mut offset = 0;
        for &(at, size) in parts {
            assert!(at + size <= span, "part outside the span");
            // SAFETY: MAP_FIXED inside our own reservation, checked above.
            let p = unsafe {
                libc::mmap(
                    base.add(at as usize).cast(),
                    size as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    kind | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    fd,
                    offset as libc::off_t,
                )
            };
            if p == libc::MAP_FAILED {
                return Err(fail("mmap")());
            }
            // SAFETY: advice over the range just mapped; a refusal only costs speed.
            unsafe {
                libc::madvise(p, size as usize, libc::MADV_HUGEPAGE);
                libc::madvise(p, size as usize, libc::MADV_DONTDUMP);
            }
            offset += size;
        }
        Ok(mapping)
    }

    /// Host address of offset 0 of the span.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// The memfd behind the mapping, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// How many of the `size` bytes at `at` of the span, whole pages, the host holds; 0 if it does not tell.
    #[must_use]
    pub fn resident(&self, at: u64, size: u64) -> u64 {
        /// Pages asked for at once.
        const AT_ONCE: usize = 1 << 16;
        let mut seen = vec![0u8; AT_ONCE];
        let mut pages = 0;
        for from in (at..at + size).step_by(AT_ONCE << 12) {
            let len = (at + size - from).min((AT_ONCE as u64) << 12);
            // SAFETY: a range of our own mapping, and a byte for each of its pages.
            let done = unsafe {
                libc::mincore(self.base.add(from as usize).cast(), len as usize, seen.as_mut_ptr())
            };
            if done == 0 {
                pages += seen[..(len >> 12) as usize].iter().map(|s| u64::from(s & 1)).sum::<u64>();
            }
        }
        pages << 12
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the reservation made in `new`.
        unsafe {
            libc::munmap(self.start.cast(), self.len);
        }
    }
}

macro_rules! zeroed {
    ($name:ident, $t:ty) => {
        /// A boxed slice of zero atomics whose pages the host only provides when touched.
        #[must_use]
        pub fn $name(n: usize) -> Box<[$t]> {
            // SAFETY: all-zero bytes are a valid value of an atomic integer.
            unsafe { Box::<[$t]>::new_zeroed_slice(n).assume_init() }
        }
    };
}
zeroed!(zeroed_u8, AtomicU8);
zeroed!(zeroed_u32, AtomicU32);
zeroed!(zeroed_u64, AtomicU64);
