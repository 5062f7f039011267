//! Guest RAM: one memfd or private memory, mapped once, with a flag byte, a code bitmap and a code version for each 4 KiB page.
//!
//! Every writer to guest RAM that is not a processor's own fast path goes through [`GuestMemory`], which marks
//! pages dirty and drops decoded or translated code. A processor's fast path (a soft-TLB entry) may write
//! without telling as long as the page is [`PageFlags::DIRTY`] and not [`PageFlags::CODE`].

mod error;
mod flags;
mod guest;
mod large;
pub mod raw;

pub use error::MemoryError;
pub use flags::PageFlags;
pub use guest::{CodeWatch, GuestMemory, HIGH_START, LOW_LIMIT, MAX_RAM, Region};

/// Bytes in a guest page, the unit of flags and versions.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes covered by one bit of a page's code bitmap.
pub const GRANULE: u64 = 64;
