//! Guests made of Debian packages: fetched by apt, checked, unpacked, and packed with an initramfs of ours.

mod apt;
mod cache;
pub mod cpio;
pub mod deb;
mod error;
mod guest;
mod initramfs;
pub mod modules;
mod progress;
mod session;
mod sources;

pub use cache::{Cache, CacheLock};
pub use error::DebianError;
pub use guest::{Guest, GuestKind, guest, packages};
pub use progress::Progress;
pub use session::{Session, TerminalInfo, session_initramfs};
