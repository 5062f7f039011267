//! Tiny guests that check a machine from inside: paging, segmentation, interrupts, exceptions, mode switches and more.
//!
//! Each is a multiboot 1 kernel, assembled from `asm/NAME.S`. It says what it does on COM1, and ends by writing to the
//! debug-exit port (0xF4): [`PASSED`] is the exit status of a guest that found nothing wrong; otherwise the value
//! written was the number of the check that failed (125 for all above), or 126 for an exception out of place.
#![forbid(unsafe_code)]

pub mod bench;
mod list;

pub use list::ALL;

/// Exit status of a guest that passed: the value 0, shifted left by one, plus one.
pub const PASSED: u8 = 1;

/// A guest.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its name, as of its source.
    pub name: &'static str,
    /// The multiboot image, a 32-bit ELF file.
    pub image: &'static [u8],
    /// Processors that it needs.
    pub vcpus: u32,
    /// The processor model on which it leaves no check out.
    pub cpu: &'static str,
    /// How it ends if all is well.
    pub end: End,
    /// What it checks.
    pub checks: &'static str,
}

/// How a guest ends if all is well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By the debug-exit port, with [`PASSED`].
    DebugExit,
    /// The same, after it reset the machine, by a triple fault too.
    DebugExitAfterResets,
    /// By powering the machine off.
    PowerOff,
}

/// The guest of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Guest> {
    ALL.iter().find(|g| g.name == name)
}
