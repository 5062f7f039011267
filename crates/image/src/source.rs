//! A file's bytes with its name: bounds-checked reads that turn into sentences.

use crate::ImageError;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

/// Bytes of a file and the name to call it by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
}

impl<'a> Source<'a> {
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// `len` bytes at `offset`; `what` names them if they are not there.
    pub fn slice(&self, offset: u64, len: u64, what: &'static str) -> Result<&'a [u8], ImageError> {
        let end = offset.saturating_add(len);
        let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        range.and_then(|(a, b)| self.bytes.get(a..b)).ok_or_else(|| ImageError::Truncated {
            name: self.name.to_owned(),
            what,
            end,
            len: self.len(),
        })
    }

    pub fn damaged(&self, what: impl Into<String>) -> ImageError {
        ImageError::Damaged { name: self.name.to_owned(), what: what.into() }
    }

    pub fn foreign(&self, what: impl Into<String>, way_out: &'static str) -> ImageError {
        ImageError::Foreign { name: self.name.to_owned(), what: what.into(), way_out }
    }
}

/// A little-endian integer at `offset`, if it is there.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// A little-endian integer at `offset`, if it is there.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// A little-endian integer at `offset`, if it is there.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Opens a file that is to be a `role`; a directory is refused here, as reading it would only say EISDIR.
pub(crate) fn open(role: &'static str, path: &Path) -> Result<File, ImageError> {
    let error = |source| ImageError::Open { role, path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    if file.metadata().map_err(error)?.is_dir() {
        return Err(ImageError::Directory { role, path: path.to_owned() });
    }
    Ok(file)
}

/// All bytes of a file from its start, at most `limit`.
pub(crate) fn read_all(
    role: &'static str,
    name: &str,
    file: &File,
    limit: u64,
) -> Result<Vec<u8>, ImageError> {
    let name = || name.to_owned();
    let (mut file, mut bytes) = (file, Vec::new());
    // Pipes have no start to go back to.
    let _is_pipe = file.rewind();
    match file.take(limit + 1).read_to_end(&mut bytes) {
        Ok(n) if n as u64 > limit => Err(ImageError::TooLarge { name: name(), limit }),
        Ok(_) => Ok(bytes),
        Err(source) => Err(ImageError::Read { role, name: name(), source }),
    }
}
