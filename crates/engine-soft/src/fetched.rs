//! [`Fetched`]: which pages code may have been fetched from. What is kept by the linear address of code need not be dropped when another page
//! is told to be mapped anew, which is what programs make their kernels do all the time.

use crate::large::Large;

/// Words for the user code of one address space: for the thousands of pages of a large program.
const USER: usize = 512;
/// Words for supervisor code, half of them for each half of the address space.
const SUPERVISOR: usize = 1024;

/// Pages by hash: one that is not noted was not fetched from.
#[derive(Debug)]
pub struct Fetched {
    /// By user code, for each address space that keeps its generation.
    user: Vec<Pages>,
    /// By supervisor code.
    supervisor: Box<[u64; SUPERVISOR]>,
    /// Large pages, by either.
    large: Large,
}

#[derive(Clone, Debug)]
struct Pages {
    bits: Box<[u64; USER]>,
    any: bool,
}

fn hash(lin: u64) -> u64 {
    (lin >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn of_user(lin: u64) -> (usize, u64) {
    let h = (hash(lin) >> 40) as usize;
    (h / 64 % USER, 1 << (h % 64))
}

fn of_supervisor(lin: u64) -> (usize, u64) {
    let (h, half) = ((hash(lin) >> 40) as usize, (lin >> 63) as usize);
    (half * (SUPERVISOR / 2) + h / 64 % (SUPERVISOR / 2), 1 << (h % 64))
}

impl Fetched {
    /// Of `slots` address spaces.
    #[must_use]
    pub fn new(slots: usize) -> Fetched {
        Fetched {
            user: vec![Pages { bits: Box::new([0; USER]), any: false }; slots],
            supervisor: Box::new([0; SUPERVISOR]),
            large: Large::NONE,
        }
    }

    /// Code is about to be fetched from the page of `lin`: user code in an address space, or supervisor code.
    #[inline]
    pub fn note(&mut self, user: Option<usize>, lin: u64) {
        match user {
            Some(slot) => {
                let (word, bit) = of_user(lin);
                self.user[slot].bits[word] |= bit;
                self.user[slot].any = true;
            }
            None => {
                let (word, bit) = of_supervisor(lin);
                self.supervisor[word] |= bit;
            }
        }
    }

    /// The page that it was fetched from has `1 << shift` bytes.
    #[inline]
    pub fn note_size(&mut self, lin: u64, shift: u8) {
        self.large.note(lin, shift);
    }

    /// Whether supervisor code may have been fetched from the page of `lin`, or any code from a large page around it.
    #[must_use]
    pub fn by_supervisor(&self, lin: u64) -> bool {
        let (word, bit) = of_supervisor(lin);
        self.supervisor[word] & bit != 0 || self.large.region(lin).is_some()
    }

    /// Whether user code of an address space may have been fetched from the page of `lin`.
    #[must_use]
    pub fn by_user(&self, slot: usize, lin: u64) -> bool {
        let (word, bit) = of_user(lin);
        self.user[slot].bits[word] & bit != 0
    }

    /// Nothing is kept any more of the user code of an address space.
    pub fn forget_user(&mut self, slot: usize) {
        let p = &mut self.user[slot];
        if std::mem::take(&mut p.any) {
            p.bits.fill(0);
        }
    }

    /// Nothing is kept any more of any code.
    pub fn forget(&mut self) {
        self.supervisor.fill(0);
        self.large = Large::NONE;
        for slot in 0..self.user.len() {
            self.forget_user(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_is_known_until_it_is_forgotten() {
        let mut f = Fetched::new(2);
        let (program, kernel) = (0x40_1000, 0xffff_ffff_8100_1000);
        f.note(Some(1), program);
        f.note(None, kernel);
        assert!(f.by_user(1, program + 0xfff) && !f.by_user(0, program) && !f.by_user(1, program + 0x1000));
        assert!(f.by_supervisor(kernel) && !f.by_supervisor(program) && !f.by_supervisor(kernel + 0x1000));
        f.note_size(kernel, 21);
        assert!(f.by_supervisor(kernel + 0x1000));
        f.forget_user(1);
        assert!(!f.by_user(1, program) && f.by_supervisor(kernel));
        f.note(Some(0), program);
        f.forget();
        assert!(!f.by_user(0, program) && !f.by_supervisor(kernel));
    }

    #[test]
    fn a_programs_pages_and_a_kernels_are_told_apart() {
        let mut f = Fetched::new(1);
        for n in 0..4096u64 {
            f.note(None, 0xffff_ffff_8100_0000 + (n << 12));
        }
        let data = (0..4096u64).filter(|n| f.by_supervisor(0x7f12_3456_7000 + (n << 12))).count();
        assert_eq!(data, 0);
    }
}
