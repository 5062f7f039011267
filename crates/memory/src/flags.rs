//! The flag byte of a guest page.

/// Flags of one guest page. Bits combine with `|`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFlags(pub u8);

impl PageFlags {
    /// Written since the dirty log was last taken.
    pub const DIRTY: u8 = 1;
    /// Some engine holds decoded or translated code of this page: writes must go through the slow path.
    pub const CODE: u8 = 2;
    /// Not filled yet: its contents come from a snapshot or image on first touch.
    pub const LAZY: u8 = 4;
    /// Some processor's soft TLB may hold a fast write entry to this page.
    pub const WCACHED: u8 = 8;

    /// Whether all bits of `bits` are set.
    #[must_use]
    pub fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}
