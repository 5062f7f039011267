//! Exceptions and their classes (Intel SDM vol. 3A ch. 6).

/// Vectors of the architectural exceptions.
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// Bits of a page fault's error code (Intel SDM vol. 3A §4.7).
#[allow(missing_docs)]
pub mod pf {
    pub const P: u32 = 1;
    pub const W: u32 = 2;
    pub const U: u32 = 4;
    pub const RSVD: u32 = 8;
    pub const I: u32 = 16;
}

/// An exception about to be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// The error code that is pushed, for the vectors that have one.
    pub code: Option<u32>,
}

impl Exception {
    /// An exception without an error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Exception {
        Exception { vector, code: None }
    }
    /// An exception with an error code.
    #[must_use]
    pub const fn coded(vector: u8, code: u32) -> Exception {
        Exception { vector, code: Some(code) }
    }
    /// #UD.
    pub const UD: Exception = Exception::plain(vector::UD);
    /// #NM.
    pub const NM: Exception = Exception::plain(vector::NM);
    /// #DE.
    pub const DE: Exception = Exception::plain(vector::DE);
    /// #GP(0).
    pub const GP0: Exception = Exception::coded(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Exception = Exception::coded(vector::SS, 0);

    /// Whether it counts as contributory for double faults (Intel SDM vol. 3A table 6-4).
    #[must_use]
    pub fn is_contributory(self) -> bool {
        matches!(self.vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
    }
}
