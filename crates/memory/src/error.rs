//! What can go wrong with guest RAM.

use thiserror::Error;

/// An access or an allocation that guest RAM cannot serve.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The bytes asked for are not all guest RAM.
    #[error("guest-physical {gpa:#x}..+{len:#x} is not guest RAM")]
    OutOfRange {
        /// First address asked for.
        gpa: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The size is not a whole number of pages, or out of range.
    #[error("guest RAM of {0:#x} bytes is not possible: choose a multiple of 4096 from 1 MiB to 1 TiB")]
    BadSize(u64),
    /// The host refused the memory.
    #[error("the host refused {size:#x} bytes of guest RAM ({what})")]
    Host {
        /// Bytes asked for.
        size: u64,
        /// The call that failed.
        what: &'static str,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
}
