//! Segment registers with their hidden parts, and descriptors (Intel SDM vol. 3A ch. 3 and 5).

use serde::{Deserialize, Serialize};

/// Numbers of the segment registers in [`VcpuState::seg`](crate::VcpuState), as the ISA encodes them.
#[allow(missing_docs)]
pub mod sreg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Access rights of a descriptor: bits 40..=55 of the descriptor shifted down by 40 (the layout of VMX access
/// rights and of the second dword `>> 8`): type 0-3, S 4, DPL 5-6, P 7, (limit 8-11, zero here), AVL 12, L 13,
/// D/B 14, G 15. A null (unusable) segment register has [`Attr::UNUSABLE`] (bit 16) set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Attr(pub u32);

impl Attr {
    /// The segment register holds a null selector.
    pub const UNUSABLE: u32 = 1 << 16;
    /// Type, 0 to 15.
    #[must_use]
    pub fn typ(self) -> u8 {
        (self.0 & 15) as u8
    }
    /// Code or data (S bit), as opposed to system.
    #[must_use]
    pub fn is_code_or_data(self) -> bool {
        self.0 & 0x10 != 0
    }
    /// A code segment.
    #[must_use]
    pub fn is_code(self) -> bool {
        self.0 & 0x18 == 0x18
    }
    /// A data segment.
    #[must_use]
    pub fn is_data(self) -> bool {
        self.0 & 0x18 == 0x10
    }
    /// Conforming code.
    #[must_use]
    pub fn is_conforming(self) -> bool {
        self.0 & 0x1c == 0x1c
    }
    /// Readable: all data, and code with the R bit.
    #[must_use]
    pub fn is_readable(self) -> bool {
        self.is_data() || self.0 & 0x1a == 0x1a
    }
    /// Writable data.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.0 & 0x1a == 0x12
    }
    /// Expand-down data.
    #[must_use]
    pub fn is_expand_down(self) -> bool {
        self.0 & 0x1c == 0x14
    }
    /// Descriptor privilege level.
    #[must_use]
    pub fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// Present.
    #[must_use]
    pub fn present(self) -> bool {
        self.0 & 0x80 != 0
    }
    /// 64-bit code (L).
    #[must_use]
    pub fn long(self) -> bool {
        self.0 & 0x2000 != 0
    }
    /// Default operand size 32, big stack (D/B).
    #[must_use]
    pub fn big(self) -> bool {
        self.0 & 0x4000 != 0
    }
    /// Page granularity (G).
    #[must_use]
    pub fn granular(self) -> bool {
        self.0 & 0x8000 != 0
    }
    /// A null selector was loaded.
    #[must_use]
    pub fn unusable(self) -> bool {
        self.0 & Attr::UNUSABLE != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, the last valid offset (granularity already applied).
    pub limit: u32,
    /// Access rights.
    pub attr: Attr,
}

impl Segment {
    /// The segment that real mode makes of a selector.
    #[must_use]
    pub fn real(selector: u16) -> Segment {
        Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attr: Attr(0x93) }
    }
    /// What a legacy 8-byte descriptor says (base, limit, rights).
    #[must_use]
    pub fn from_descriptor(selector: u16, d: u64) -> Segment {
        let base = (d >> 16 & 0xff_ffff) | (d >> 32 & 0xff00_0000);
        let raw = ((d & 0xffff) | (d >> 32 & 0xf_0000)) as u32;
        let attr = Attr((d >> 40) as u32 & 0xf0ff);
        let limit = if attr.granular() { raw << 12 | 0xfff } else { raw };
        Segment { selector, base, limit, attr }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableReg {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, the last valid offset.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_code_descriptor() {
        let s = Segment::from_descriptor(8, 0x00cf_9b00_0000_ffff);
        assert_eq!((s.base, s.limit), (0, 0xffff_ffff));
        assert!(s.attr.is_code() && s.attr.big() && s.attr.present() && s.attr.is_readable());
        let d = Segment::from_descriptor(8, 0x1240_9756_789a_bcde);
        assert_eq!((d.base, d.limit), (0x1256_789a, 0xbcde));
        assert!(d.attr.is_expand_down() && d.attr.is_writable());
    }
}
