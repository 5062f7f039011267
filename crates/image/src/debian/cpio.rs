//! A writer of initramfs archives: the "newc" cpio form (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes entries to `out`. All belong to root and bear no time, so that equal contents give equal bytes.
/// Parents must come before what stands in them.
#[derive(Debug)]
pub struct CpioWriter<W: Write> {
    out: W,
    inode: u32,
    written: u64,
}

impl<W: Write> CpioWriter<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        CpioWriter { out, inode: 0, written: 0 }
    }

    /// A folder with these permission bits.
    ///
    /// # Errors
    /// Those of the writer, as for all methods; a name or file over 4 GiB is `InvalidInput`.
    pub fn dir(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, S_IFDIR | mode, (0, 0), &[])
    }

    /// A regular file.
    ///
    /// # Errors
    /// See [`dir`](Self::dir).
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(name, S_IFREG | mode, (0, 0), data)
    }

    /// A symbolic link to `target`.
    ///
    /// # Errors
    /// See [`dir`](Self::dir).
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    ///
    /// # Errors
    /// See [`dir`](Self::dir).
    pub fn char_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, S_IFCHR | mode, (major, minor), &[])
    }

    fn entry(&mut self, name: &str, mode: u32, rdev: (u32, u32), data: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let inode = self.inode;
        self.raw(name, inode, mode, rdev, data)
    }

    fn raw(&mut self, name: &str, inode: u32, mode: u32, rdev: (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_big = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let size = u32::try_from(data.len()).map_err(too_big)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_big)?;
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, rdev.0, rdev.1, name_size, 0];
        let mut head = String::with_capacity(110);
        head.push_str("070701");
        for f in fields {
            head.push_str(&format!("{f:08x}"));
        }
        self.put(head.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(data)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let n = self.written.next_multiple_of(to) - self.written;
        self.put(&[0; 512][..n as usize])
    }

    /// Ends the archive, padded to 512 bytes, and returns the writer. Another archive may follow.
    ///
    /// # Errors
    /// See [`dir`](Self::dir).
    pub fn finish(mut self) -> io::Result<W> {
        self.raw("TRAILER!!!", 0, 0, (0, 0), &[])?;
        self.pad(512)?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_aligned_newc_entries() {
        let mut w = CpioWriter::new(Vec::new());
        w.dir("etc", 0o755).unwrap();
        w.file("etc/a", 0o644, b"hello").unwrap();
        w.symlink("b", "etc/a").unwrap();
        w.char_device("console", 0o600, 5, 1).unwrap();
        let out = w.finish().unwrap();
        assert_eq!(out.len() % 512, 0);
        let mut at = 0;
        let mut seen = Vec::new();
        loop {
            let field = |i: usize| {
                let s = std::str::from_utf8(&out[at + 6 + 8 * i..at + 14 + 8 * i]).unwrap();
                u32::from_str_radix(s, 16).unwrap() as usize
            };
            assert_eq!(&out[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = &out[at + 110..at + 110 + name_size - 1];
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == b"TRAILER!!!" {
                break;
            }
            seen.push((String::from_utf8(name.to_vec()).unwrap(), mode, out[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(
            seen,
            [
                ("etc".to_owned(), 0o040_755, vec![]),
                ("etc/a".to_owned(), 0o100_644, b"hello".to_vec()),
                ("b".to_owned(), 0o120_777, b"etc/a".to_vec()),
                ("console".to_owned(), 0o020_600, vec![]),
            ]
        );
    }
}
