//! [`Mapping`]: zeroed memory of our own on the boundary of a large page. An unsafe room.
//!
//! What each guest access or jump looks into lies there. A program that is all over its memory is all over these tables too, and
//! the host's own TLB should have better to do than to hold their pages.

use std::{io, ptr};

/// Bytes of the host's large pages.
pub const LARGE: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to this value alone and has no thread affinity.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `len` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// The host's, when it gives no memory.
    pub fn new(len: usize) -> io::Result<Mapping> {
        let len = len.next_multiple_of(4096);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let all = unsafe { libc::mmap(ptr::null_mut(), len + LARGE, rw, flags, -1, 0) };
        if all == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let all = all.cast::<u8>();
        let before = all.align_offset(LARGE);
        // SAFETY: parts of the mapping just made, on page boundaries; the one in the middle stays.
        let start = unsafe {
            if before > 0 {
                libc::munmap(all.cast(), before);
            }
            if before < LARGE {
                libc::munmap(all.add(before + len).cast(), LARGE - before);
            }
            libc::madvise(all.add(before).cast(), len, libc::MADV_DONTDUMP);
            all.add(before)
        };
        Ok(Mapping { start, len })
    }

    /// Its first byte.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Asks for large pages for the bytes `from..to`, of which a refusal only costs speed.
    pub fn enlarge(&self, from: usize, to: usize) {
        let to = to.min(self.len);
        if from < to {
            // SAFETY: advice about our own memory.
            unsafe { libc::madvise(self.start.add(from).cast(), to - from, libc::MADV_HUGEPAGE) };
        }
    }

    /// Makes the page at byte `at` one that faults.
    ///
    /// # Errors
    /// The host's.
    pub fn guard(&self, at: usize) -> io::Result<()> {
        if at >= self.len {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: a page of our own that nothing refers to, as the caller says by this.
        let done = unsafe { libc::mprotect(self.start.add(at).cast(), 4096, libc::PROT_NONE) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what is left of the mapping made in `new`, and all that was mapped over it.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_on_the_boundary_of_a_large_page() {
        for len in [1, LARGE, LARGE + 1, 5 * LARGE] {
            let m = Mapping::new(len).unwrap();
            m.enlarge(0, len);
            m.enlarge(len, 8 * LARGE);
            assert_eq!(m.start() as usize % LARGE, 0);
            // SAFETY: its last byte.
            unsafe {
                let last = m.start().add(len - 1);
                assert_eq!(last.read(), 0);
                last.write(1);
            }
            assert!(m.guard(m.len).is_err());
        }
    }
}
