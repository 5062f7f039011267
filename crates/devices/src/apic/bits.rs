//! [`Vectors`]: a set of interrupt vectors, as IRR, ISR and TMR are.

use serde::{Deserialize, Serialize};

/// A set of the 256 interrupt vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    pub(super) fn set(&mut self, v: u8, on: bool) {
        let bit = 1 << (v & 63);
        let word = &mut self.0[usize::from(v >> 6)];
        if on { *word |= bit } else { *word &= !bit }
    }

    pub(super) fn has(&self, v: u8) -> bool {
        self.0[usize::from(v >> 6)] >> (v & 63) & 1 != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// How many vectors are in it.
    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// The highest vector, which has the highest priority.
    #[inline]
    pub(super) fn highest(&self) -> Option<u8> {
        for (i, w) in (0..4).zip(self.0).rev() {
            if w != 0 {
                return Some(((i * 64 + 63 - w.leading_zeros()) & 0xff) as u8);
            }
        }
        None
    }

    /// 32-bit register `i` (0 to 7) of the eight that the set is read through.
    pub(super) fn word(&self, i: usize) -> u32 {
        (self.0[(i / 2) & 3] >> (32 * (i % 2)) & 0xffff_ffff) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_vectors() {
        let mut s = Vectors::default();
        assert_eq!(s.highest(), None);
        for v in [0, 63, 64, 200, 255] {
            s.set(v, true);
            assert_eq!(s.highest(), Some(v));
            assert!(s.has(v) && !s.has(v ^ 2));
        }
        assert_eq!((s.count(), s.word(0), s.word(1), s.word(7)), (5, 1, 1 << 31, 1 << 31));
        s.set(255, false);
        assert_eq!(s.highest(), Some(200));
        assert!(!s.is_empty());
    }
}
