//! [`Initrd`]: the initial RAM disk, passed to the kernel byte for byte.

use crate::ImageError;
use crate::source::open;
use ringer_memory::GuestMemory;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Parts start at a multiple of this, as Linux wants of concatenated archives (initramfs buffer format).
const PART_ALIGN: u64 = 4;
/// Bytes read from a file at a time.
const CHUNK: usize = 1 << 20;

#[derive(Debug)]
enum Part {
    File { file: File, len: u64 },
    Bytes(Vec<u8>),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Part::File { len, .. } => *len,
            Part::Bytes(b) => b.len() as u64,
        }
    }
}

/// An initial RAM disk: a file, bytes, or several of them after one another. Each part is passed unchanged;
/// Linux unpacks them in order, so a later archive adds to and replaces files of an earlier one.
#[derive(Debug)]
pub struct Initrd {
    name: String,
    parts: Vec<Part>,
}

impl Initrd {
    /// Opens a file; its bytes are read when a machine is loaded.
    ///
    /// # Errors
    /// [`ImageError`]: the file cannot be opened, is a directory, not a regular file, or empty.
    pub fn open(path: &Path) -> Result<Initrd, ImageError> {
        let file = open("initrd", path)?;
        let name = path.display().to_string();
        let meta = file.metadata().map_err(|source| ImageError::Open {
            role: "initrd",
            path: path.to_owned(),
            source,
        })?;
        if !meta.is_file() {
            let (what, way_out) = ("no regular file".to_owned(), "copy it to a file first");
            return Err(ImageError::Foreign { name, what, way_out });
        }
        if meta.len() == 0 {
            return Err(ImageError::Empty { role: "initrd", name });
        }
        Ok(Initrd { name, parts: vec![Part::File { file, len: meta.len() }] })
    }

    /// An initrd of bytes; `name` is for messages.
    #[must_use]
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Initrd {
        Initrd { name: name.to_owned(), parts: vec![Part::Bytes(bytes)] }
    }

    /// Adds an archive after the others.
    #[must_use]
    pub fn with(mut self, bytes: Vec<u8>) -> Initrd {
        self.parts.push(Part::Bytes(bytes));
        self
    }

    /// The name for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes in all, with the zeroes between parts.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.parts.iter().fold(0, |at: u64, p| at.next_multiple_of(PART_ALIGN).saturating_add(p.len()))
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies all of it to guest RAM at `gpa`.
    pub(crate) fn copy_to(&self, memory: &GuestMemory, gpa: u64) -> Result<(), ImageError> {
        let mut at = gpa;
        for part in &self.parts {
            let aligned = at.next_multiple_of(PART_ALIGN);
            memory.write(at, &[0; PART_ALIGN as usize][..(aligned - at) as usize])?;
            at = aligned;
            match part {
                Part::Bytes(bytes) => memory.write(at, bytes)?,
                Part::File { file, len } => self.copy_file(file, *len, memory, at)?,
            }
            at += part.len();
        }
        Ok(())
    }

    fn copy_file(&self, file: &File, len: u64, memory: &GuestMemory, gpa: u64) -> Result<(), ImageError> {
        let mut buf = vec![0; CHUNK.min(len as usize)];
        let mut done = 0;
        while done < len {
            let n = buf.len().min((len - done) as usize);
            file.read_exact_at(&mut buf[..n], done).map_err(|source| ImageError::Read {
                role: "initrd",
                name: self.name.clone(),
                source,
            })?;
            memory.write(gpa + done, &buf[..n])?;
            done += n as u64;
        }
        Ok(())
    }
}
