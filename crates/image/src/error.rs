//! What can be wrong with a kernel, an initrd or a command line.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// A file that cannot be booted, or that the machine has no room for. Each text is one sentence that names the
/// file and what to do.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("the {role} {} cannot be opened: check its name and that you may read it", path.display())]
    Open {
        /// What the file was to be: "kernel" or "initrd".
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading failed half way.
    #[error("reading the {role} {name} failed")]
    Read {
        /// What the file was to be.
        role: &'static str,
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder was given.
    #[error("{} is a directory: name the {role} file in it", path.display())]
    Directory {
        /// What the file was to be.
        role: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("the {role} {name} is empty: fetch or build it again")]
    Empty {
        /// What the file was to be.
        role: &'static str,
        /// The file.
        name: String,
    },
    /// The file, or what it unpacks to, is larger than any kernel.
    #[error("{name} holds more than {limit} bytes, too much for a kernel: give a kernel file")]
    TooLarge {
        /// The file.
        name: String,
        /// The most bytes accepted.
        limit: u64,
    },
    /// The file ends before something that its headers promise.
    #[error("{name} is cut off: {what} ends at byte {end} but the file has {len}; fetch or build it again")]
    Truncated {
        /// The file.
        name: String,
        /// The part that is missing.
        what: &'static str,
        /// Where that part would end.
        end: u64,
        /// Bytes that are there.
        len: u64,
    },
    /// The file is something else, or for another machine.
    #[error("{name} is {what}, which Ringer does not boot: {way_out}")]
    Foreign {
        /// The file.
        name: String,
        /// What it is.
        what: String,
        /// What to do.
        way_out: &'static str,
    },
    /// A header contradicts itself.
    #[error("{name} is damaged: {what}; fetch or build it again")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The compressed payload does not unpack.
    #[error("the {format} payload of {name} does not unpack; fetch or build it again")]
    Unpack {
        /// The file.
        name: String,
        /// The compression.
        format: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot be entered in the way asked for.
    #[error("{name} cannot be started by the {protocol} boot protocol: {why}")]
    Protocol {
        /// The file.
        name: String,
        /// The protocol.
        protocol: &'static str,
        /// What is missing.
        why: String,
    },
    /// Something does not fit in guest RAM where it must go.
    #[error(
        "{what} needs guest memory {start:#x}..{end:#x}, but the guest has RAM up to {ram_end:#x}: give it more memory"
    )]
    NoRam {
        /// What was to be placed.
        what: String,
        /// First guest-physical address.
        start: u64,
        /// End.
        end: u64,
        /// End of the RAM below 4 GiB.
        ram_end: u64,
    },
    /// Two things want the same guest RAM.
    #[error(
        "{what} wants guest memory {start:#x}..{end:#x}, where {other} already is: link it elsewhere, at 1 MiB or above"
    )]
    Overlap {
        /// What was to be placed.
        what: String,
        /// First guest-physical address.
        start: u64,
        /// End.
        end: u64,
        /// What is there.
        other: String,
    },
    /// The initrd finds no free run of guest RAM.
    #[error(
        "the initrd {name} has {size} bytes, but at most {room} are free beside the kernel in guest memory: give the guest more memory"
    )]
    InitrdTooLarge {
        /// The file.
        name: String,
        /// Bytes of the initrd.
        size: u64,
        /// The longest free run.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes, but {name} takes at most {limit}: shorten it")]
    CommandLineTooLong {
        /// The kernel.
        name: String,
        /// Bytes given.
        len: usize,
        /// Bytes taken.
        limit: usize,
    },
    /// The command line holds a NUL, which would end it early.
    #[error("the kernel command line holds a NUL byte at {at}: remove it")]
    CommandLineNul {
        /// Offset of the byte.
        at: usize,
    },
    /// Guest RAM refused an access that was checked before.
    #[error("guest memory could not be written")]
    Memory(#[from] ringer_memory::MemoryError),
}
