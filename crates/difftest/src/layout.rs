//! Where things stand in the address space that both sides see: chosen low, where nothing else of a position-independent
//! process is, and below 2 GiB, so that absolute addresses fit 32 bits.

/// Page size.
pub const PAGE: u64 = 4096;

/// The data window: [`DATA_PAGES`] pages with the rights of [`DATA_RIGHTS`].
pub const DATA: u64 = 0x1000_0000;
/// Pages of the data window.
pub const DATA_PAGES: u64 = 16;
/// Bytes of the data window.
pub const DATA_LEN: u64 = DATA_PAGES * PAGE;

/// What may be done with a page of the data window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Not mapped.
    None,
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// Rights of each page of the data window, such that every kind of neighbourhood occurs.
pub const DATA_RIGHTS: [Rights; DATA_PAGES as usize] = {
    use Rights::{None, Read, Write};
    [None, Write, Write, Read, None, None, Write, None, Write, Write, None, Read, Read, None, Write, None]
};

/// Code windows, one for each batch in flight.
pub const CODE: [u64; 2] = [0x1100_0000, 0x1140_0000];
/// Bytes from one instruction's place to the next.
pub const SLOT: u64 = 32;
/// Cases of one batch.
pub const BATCH: usize = 1024;
/// Bytes of one code window: the slots, then one page of INT3 for branches to land on.
pub const CODE_LEN: u64 = BATCH as u64 * SLOT + PAGE;
/// Offset of the landing page in a code window.
pub const LANDING: u64 = BATCH as u64 * SLOT;

/// Offset in a code window of the code that 32-bit cases leave through: at the end of the landing page.
pub const WAY_OUT: u64 = CODE_LEN - 16;
/// Offsets of the landing page that branches go to: below this.
pub const LANDINGS: u64 = PAGE - 96;

/// Selectors of user code and data under Linux.
pub const USER_CODE: u16 = 0x33;
/// 32-bit user code.
pub const USER_CODE32: u16 = 0x23;
/// User data.
pub const USER_DATA: u16 = 0x2b;

/// The child's control page.
pub const CTL: u64 = 0x2000_0000;
/// The child's view of the memory that it shares with the parent.
pub const SHARED: u64 = 0x2100_0000;
/// The child's signal stack.
pub const ALT_STACK: u64 = 0x2080_0000;
/// Bytes of it.
pub const ALT_STACK_LEN: u64 = 0x4_0000;

/// What generated instructions must keep away from: the child's own.
pub const RESERVED: std::ops::Range<u64> = 0x2000_0000..0x3000_0000;
/// Below this address the child has mapped nothing but the windows and what is in [`RESERVED`].
pub const FREE_BELOW: u64 = 0x4000_0000_0000;

/// Whether a fault at this address means the same on both sides: not an address where the child may have something mapped.
#[must_use]
pub fn comparable(lin: u64) -> bool {
    let user = lin < 1 << 47;
    if user {
        return lin < FREE_BELOW && !RESERVED.contains(&lin);
    }
    // The upper half is the host kernel's; its page of legacy system calls can be executed.
    !(0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000).contains(&lin)
}

/// Offset in the data window of an address inside it.
#[must_use]
pub fn data_offset(lin: u64) -> Option<u64> {
    let off = lin.wrapping_sub(DATA);
    (off < DATA_LEN).then_some(off)
}
