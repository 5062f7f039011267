//! [`Large`]: where large pages lie. What is cached of one is its pieces, all of which INVLPG must drop.

/// Words of a half of the bits: enough for the direct map of a few GiB not to fill them.
const WORDS: usize = 32;
/// log2 of the regions by which pages are noted.
const SMALL: u8 = 22;
const HUGE: u8 = 30;

/// Where large pages lie, by hash of the regions that hold them, with bits of its own for each half of the address space: what is not noted
/// has none.
#[derive(Clone, Copy, Debug)]
pub struct Large {
    /// Pages of up to 4 MiB, by their 4 MiB region.
    small: [u64; 2 * WORDS],
    /// Pages of 1 GiB.
    huge: [u64; 2 * WORDS],
    /// Something is noted in a half.
    any: [bool; 2],
}

impl Large {
    /// There are none.
    pub const NONE: Large = Large { small: [0; 2 * WORDS], huge: [0; 2 * WORDS], any: [false; 2] };

    fn bit(lin: u64, shift: u8) -> (usize, u64) {
        let h = ((lin >> shift).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize;
        ((lin >> 63) as usize * WORDS + h / 64 % WORDS, 1 << (h % 64))
    }

    /// Notes the page of `1 << shift` bytes at `lin`, if that is a large one.
    pub fn note(&mut self, lin: u64, shift: u8) {
        let (set, shift) = match shift {
            ..=12 => return,
            HUGE => (&mut self.huge, HUGE),
            _ => (&mut self.small, SMALL),
        };
        let (word, bit) = Large::bit(lin, shift);
        set[word] |= bit;
        self.any[(lin >> 63) as usize] = true;
    }

    /// Notes all that `other` has noted.
    pub fn add(&mut self, other: &Large) {
        for (a, b) in self.small.iter_mut().chain(&mut self.huge).zip(other.small.iter().chain(&other.huge)) {
            *a |= b;
        }
        self.any = [self.any[0] | other.any[0], self.any[1] | other.any[1]];
    }

    /// Forgets the lower half of the address space.
    pub fn clear_low(&mut self) {
        if std::mem::take(&mut self.any[0]) {
            self.small[..WORDS].fill(0);
            self.huge[..WORDS].fill(0);
        }
    }

    /// Whether nothing is noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any == [false; 2]
    }

    /// log2 of the size of the region around `lin` that may hold a large page, if there may be one.
    #[must_use]
    pub fn region(&self, lin: u64) -> Option<u8> {
        if !self.any[(lin >> 63) as usize] {
            return None;
        }
        let noted = |set: &[u64; 2 * WORDS], shift: u8| {
            let (word, bit) = Large::bit(lin, shift);
            set[word] & bit != 0
        };
        if noted(&self.huge, HUGE) { Some(HUGE) } else { noted(&self.small, SMALL).then_some(SMALL) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_is_found_from_all_its_pieces() {
        let mut l = Large::NONE;
        let (two, four, huge) = (0xffff_8880_0020_0000, 0xc0_0000, 0xffff_8880_4000_0000);
        l.note(0xffff_8880_1000_0000, 12);
        assert!(l.is_empty());
        l.note(two + 0x1000, 21);
        assert_eq!(l.region(two + 0x1f_f000), Some(SMALL));
        assert_eq!(l.region(four), None, "the other half");
        l.note(four, 22);
        l.note(huge, 30);
        assert_eq!(l.region(four + 0x3f_f000), Some(SMALL));
        assert_eq!(l.region(huge + 0x3fff_f000), Some(HUGE));
        let mut sum = Large::NONE;
        sum.add(&l);
        sum.clear_low();
        assert_eq!((sum.region(four), sum.region(huge)), (None, Some(HUGE)));
        assert!(!sum.is_empty());
    }

    #[test]
    fn a_direct_map_of_a_gibibyte_leaves_room() {
        let mut l = Large::NONE;
        for n in 0..512 {
            l.note(0xffff_8880_0000_0000 + (n << 21), 21);
        }
        let vmalloc = 0xffff_c900_0000_0000u64;
        let wrong = (0..1024).filter(|n| l.region(vmalloc + (n << 22)).is_some()).count();
        assert!(wrong < 256, "{wrong}");
    }
}
