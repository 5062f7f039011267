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

/// One reservation of host address space with parts of a memfd mapped into it. Unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: *mut u8,
    guard: usize,
    len: usize,
    file: File,
}

// SAFETY: the mapping is shared memory with no thread affinity; all access is by raw moves.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `span` bytes (plus `guard` inaccessible bytes on both sides) and maps each of `parts`
    /// (offset in the span, bytes) to consecutive ranges of a new memfd.
    ///
    /// # Errors
    /// The host's error and the call that failed.
    pub fn new(span: u64, guard: u64, parts: &[(u64, u64)]) -> Result<Mapping, (&'static str, io::Error)> {
        let fail = |what| move || (what, io::Error::last_os_error());
        let total: u64 = parts.iter().map(|p| p.1).sum();
        // SAFETY: a constant C string and flags; the result is checked.
        let fd = unsafe {
            libc::memfd_create(c"ringer-guest-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(fail("memfd_create")());
        }
        // SAFETY: fd is a fresh descriptor that nobody else owns.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(total).map_err(|e| ("ftruncate", e))?;
        // Whoever is handed the file must not be able to take pages from under the mapping.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: a descriptor of our own and constant flags; the result is checked.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(fail("fcntl(F_ADD_SEALS)")());
        }
        let too_big = || ("mmap", io::Error::from_raw_os_error(libc::ENOMEM));
        let len = usize::try_from(span).map_err(|_| too_big())?;
        let guard = usize::try_from(guard).map_err(|_| too_big())?;
        let whole = len.checked_add(2 * guard).ok_or_else(too_big)?;
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
        // SAFETY: guard bytes into our own reservation.
        let base = unsafe { res.cast::<u8>().add(guard) };
        let mapping = Mapping { base, guard, len, file };
        let mut offset = 0;
        for &(at, size) in parts {
            assert!(at + size <= span, "part outside the span");
            // SAFETY: MAP_FIXED inside our own reservation, checked above.
            let p = unsafe {
                libc::mmap(
                    base.add(at as usize).cast(),
                    size as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    mapping.file.as_raw_fd(),
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

    /// The memfd behind the mapping.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the reservation made in `new`.
        unsafe {
            libc::munmap(self.base.sub(self.guard).cast(), self.len + 2 * self.guard);
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
