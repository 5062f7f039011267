//! Kernel files: what they are, and what is in them.

mod bzimage;
mod elf;
mod foreign;
mod multiboot;
#[cfg(test)]
mod tests;
mod unpack;

pub use bzimage::{BzImage, Payload};
pub use elf::{ElfImage, LoadSegment};
pub use multiboot::Multiboot;
pub use unpack::Compression;

pub(crate) use bzimage::HEADER_START;

use crate::ImageError;
use crate::source::{Source, open, read_all};
use std::fs::File;
use std::path::Path;
use unpack::MAX_UNPACKED;

/// The most bytes that a kernel file may have.
const MAX_FILE: u64 = MAX_UNPACKED;
/// The longest raw boot image: all of it is loaded at 0x7c00, below the EBDA.
const MAX_BOOT_SECTOR: usize = 64 << 10;

/// A kernel file, read and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// The name to call it by: the path it was opened by.
    name: String,
    /// The file's bytes (unpacked, if the whole file was compressed).
    bytes: Vec<u8>,
    format: Format,
}

/// The formats.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Format {
    /// Linux boot protocol.
    BzImage(Box<BzImage>),
    /// ELF, 64- or 32-bit, with the multiboot header that it may also have.
    Elf(ElfImage, Option<Multiboot>),
    /// A multiboot kernel that is not ELF.
    Multiboot(Multiboot),
    /// Raw code for 0x7c00.
    BootSector,
}

/// A kernel's file that stays open, so that the kernel can be read again; unpacked, kernels are large. Of what can be read only once, a
/// pipe, the kernel is kept.
#[derive(Debug)]
pub struct KernelFile {
    name: String,
    file: File,
    description: String,
    /// What was read, until it is used.
    kernel: Option<Kernel>,
    /// The file can be read again.
    again: bool,
}

impl KernelFile {
    /// Opens, reads and checks a kernel file.
    ///
    /// # Errors
    /// As [`Kernel::parse`], and if it cannot be read.
    pub fn open(path: &Path) -> Result<KernelFile, ImageError> {
        let (name, file) = (path.display().to_string(), open("kernel", path)?);
        let again = file.metadata().is_ok_and(|m| m.is_file());
        let kernel = Kernel::parse(&name, read_all("kernel", &name, &file, MAX_FILE)?)?;
        Ok(KernelFile { name, file, description: kernel.describe(), kernel: Some(kernel), again })
    }

    /// [`Kernel::describe`].
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Gives `f` the kernel, as the file is now.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with<T>(&mut self, f: impl FnOnce(&Kernel) -> T) -> Result<T, ImageError> {
        let kernel = match self.kernel.take() {
            Some(k) => k,
            None => Kernel::parse(&self.name, read_all("kernel", &self.name, &self.file, MAX_FILE)?)?,
        };
        let out = f(&kernel);
        self.kernel = (!self.again).then_some(kernel);
        Ok(out)
    }
}

impl Kernel {
    /// Tells what `bytes` are, and checks them; `name` is for messages.
    ///
    /// # Errors
    /// Any [`ImageError`] about a file: it is no kernel, one for another machine, cut off or damaged.
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Kernel, ImageError> {
        let bytes = match Compression::detect(&bytes) {
            Some(c) => c.unpack(&bytes, 0, MAX_UNPACKED).map_err(|source| ImageError::Unpack {
                name: name.to_owned(),
                format: c.name(),
                source,
            })?,
            None => bytes,
        };
        // A packed file may hold nothing.
        if bytes.is_empty() {
            return Err(ImageError::Empty { role: "kernel", name: name.to_owned() });
        }
        let src = Source { name, bytes: &bytes };
        let format = parse_format(src)?;
        Ok(Kernel { name: name.to_owned(), bytes, format })
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    #[must_use]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The bytes of the file that segments and ranges refer to.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A few words for logs: "Linux bzImage (lz4) 6.1.0-56-cloud-amd64".
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.format {
            Format::BzImage(b) => {
                let packing = b.payload.as_ref().map_or("own decompressor", |p| {
                    p.compression.map_or("not compressed", Compression::name)
                });
                let version = b.version_string.as_deref().unwrap_or("of unknown version");
                format!("Linux bzImage ({packing}) {version}")
            }
            Format::Elf(e, _) if e.is_64 => "64-bit ELF kernel".to_owned(),
            Format::Elf(..) => "32-bit ELF kernel".to_owned(),
            Format::Multiboot(_) => "multiboot kernel".to_owned(),
            Format::BootSector => "boot sector".to_owned(),
        }
    }
}

fn parse_format(src: Source) -> Result<Format, ImageError> {
    if BzImage::detect(src.bytes) {
        return Ok(Format::BzImage(Box::new(BzImage::parse(src)?)));
    }
    let header = Multiboot::detect(src.bytes);
    if src.bytes.starts_with(::elf::abi::ELFMAGIC.as_slice()) {
        let elf = ElfImage::parse(src)?;
        let multiboot = header.map(|at| Multiboot::parse(src, at, Some(&elf))).transpose()?;
        if !elf.is_64 && multiboot.is_none() && elf.pvh_entry.is_none() {
            let what = "a 32-bit x86 ELF file without a multiboot header or a PVH entry";
            return Err(src.foreign(what, "for 32-bit Linux, give its bzImage (vmlinuz) instead"));
        }
        return Ok(Format::Elf(elf, multiboot));
    }
    // An EFI program may carry a multiboot header for its boot loader's use.
    if let Some(at) = header
        && !src.bytes.starts_with(b"MZ")
    {
        return Ok(Format::Multiboot(Multiboot::parse(src, at, None)?));
    }
    let len = src.bytes.len();
    let signed = src.bytes.get(510..512) == Some(&[0x55, 0xaa]);
    // The first sector of a Linux kernel has the signature too, and the MZ of an EFI program, which no boot sector has.
    if len.is_multiple_of(512) && len <= MAX_BOOT_SECTOR && signed && !src.bytes.starts_with(b"MZ") {
        return Ok(Format::BootSector);
    }
    Err(foreign::refuse(src))
}
