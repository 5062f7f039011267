//! Whole virtual machines with real kernels, by the command as users run it.
//!
//! The guests are Debian's, fetched by apt once into the user's cache folder. Where that cannot be, these tests say so
//! and pass; with `RINGER_REQUIRE_GUESTS=1` they fail. No test has a limit that a loaded host could reach.

mod bad_files;
mod command;
mod console;
mod disk;
mod first_use;
mod gdb;
mod handover;
mod kernels;
mod log;
mod machine;
mod pty;
mod support;
