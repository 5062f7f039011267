//! Linux bzImages (Linux kernel: Documentation/arch/x86/boot.rst, "The Linux/x86 Boot Protocol").

use super::elf::ElfImage;
use super::unpack::{Compression, MAX_UNPACKED};
use crate::ImageError;
use crate::source::{Source, u16_at, u32_at, u64_at};
use std::ops::Range;

/// Where the setup header starts, in the file and in boot_params.
pub(crate) const HEADER_START: usize = 0x1f1;
/// The last byte that the setup header may reach in boot_params, exclusive: the EDD data start there.
const HEADER_END_MAX: usize = 0x290;
/// The oldest boot protocol understood: the first that says how long a command line may be.
const MIN_VERSION: u16 = 0x206;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;

/// A vmlinux unpacked from a bzImage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// How it was packed; `None` if it was not.
    pub compression: Option<Compression>,
    /// The ELF file.
    pub bytes: Vec<u8>,
    /// Its headers.
    pub elf: ElfImage,
}

/// A Linux bzImage, or an image that follows its boot protocol, as memtest86+ does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BzImage {
    /// The setup header from 0x1f1 on, to be copied into boot_params.
    pub header: Vec<u8>,
    /// Boot protocol version, major in the high byte.
    pub version: u16,
    /// The protected-mode code in the file.
    pub code: Range<usize>,
    /// Where the protected-mode code asks to be loaded and entered (32-bit entry).
    pub load_address: u64,
    /// Bytes from the load address that the kernel needs before it has read the memory map.
    pub init_size: u64,
    /// It has a 64-bit entry point, 0x200 after the 32-bit one.
    pub entry_64: bool,
    /// The initrd may be above 4 GiB.
    pub above_4g: bool,
    /// Highest address that the initrd's last byte may have.
    pub initrd_max: u64,
    /// Most bytes of a command line, without the NUL.
    pub cmdline_limit: usize,
    /// The kernel's version string.
    pub version_string: Option<String>,
    /// The kernel proper, if it is 64-bit and packed in a way known here.
    pub payload: Option<Payload>,
}

impl BzImage {
    /// Whether `bytes` carry the boot protocol's magic.
    pub(crate) fn detect(bytes: &[u8]) -> bool {
        bytes.get(0x202..0x206) == Some(b"HdrS") && u16_at(bytes, 0x1fe) == Some(0xaa55)
    }

    /// Reads the setup header and unpacks the payload.
    pub(crate) fn parse(src: Source) -> Result<BzImage, ImageError> {
        let head = src.slice(0, 0x290, "its setup header")?;
        let u16 = |o| u16_at(head, o).unwrap_or(0);
        let u32 = |o| u32_at(head, o).unwrap_or(0);
        let version = u16(0x206);
        if version < MIN_VERSION {
            let what = format!("a Linux kernel of boot protocol {}.{:02}", version >> 8, version & 0xff);
            return Err(src.foreign(what, "give a kernel of Linux 2.6.22 or later"));
        }
        if head[0x211] & LOADED_HIGH == 0 {
            return Err(src.foreign("a zImage, loaded below 1 MiB", "build a bzImage"));
        }
        let sectors = if head[HEADER_START] == 0 { 4 } else { head[HEADER_START] };
        let code_start = (u64::from(sectors) + 1) * 512;
        // In 16-byte units; rounded up by the kernel's build, so the last unit need not be whole.
        let code_len = u64::from(u32(0x1f4)) * 16;
        src.slice(code_start, code_len.saturating_sub(15), "its protected-mode code")?;
        let header_end = (0x202 + usize::from(head[0x201])).clamp(0x230, HEADER_END_MAX);
        let xloadflags = if version >= 0x20c { u16(0x236) } else { 0 };
        let pref_address = u64_at(head, 0x258).filter(|&a| version >= 0x20a && a != 0);
        let init_size = if version >= 0x20a { u64::from(u32(0x260)) } else { 0 };
        // A kernel that cannot be moved is linked for its code32_start.
        let code32_start = u64::from(u32(0x214));
        let relocatable = head[0x234] != 0;
        let mut image = BzImage {
            header: head[HEADER_START..header_end].to_vec(),
            version,
            code: code_start as usize..src.bytes.len(),
            load_address: pref_address.filter(|_| relocatable).unwrap_or(code32_start),
            init_size: init_size.max(src.len().saturating_sub(code_start)),
            entry_64: xloadflags & XLF_KERNEL_64 != 0,
            above_4g: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            initrd_max: u64::from(u32(0x22c)),
            cmdline_limit: u32(0x238) as usize,
            version_string: version_string(src.bytes, u16(0x20e)),
            payload: None,
        };
        if image.entry_64 && version >= 0x208 {
            image.payload = unpack_payload(src, code_start, u64::from(u32(0x248)), u64::from(u32(0x24c)))?;
        }
        Ok(image)
    }
}

/// The kernel's version, a NUL-terminated string 0x200 after `offset` (boot protocol field kernel_version).
fn version_string(bytes: &[u8], offset: u16) -> Option<String> {
    let at = usize::from(offset).checked_add(0x200).filter(|_| offset != 0)?;
    let text = bytes.get(at..)?.split(|&b| b == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    let ok = !text.is_empty() && text.len() < 256 && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    ok.then(|| text.to_owned())
}

/// The vmlinux in the payload; `None` if there is no payload, or one in an unknown packing, which only the
/// kernel's own decompressor can open, or one that is not a 64-bit ELF file.
fn unpack_payload(
    src: Source,
    code_start: u64,
    offset: u64,
    len: u64,
) -> Result<Option<Payload>, ImageError> {
    if len == 0 {
        return Ok(None);
    }
    let packed = src.slice(code_start + offset, len, "its compressed kernel")?;
    let Some(compression) = Compression::detect(packed) else {
        if !packed.starts_with(elf::abi::ELFMAGIC.as_slice()) {
            return Ok(None);
        }
        let elf = ElfImage::parse(Source { name: src.name, bytes: packed })?;
        return Ok(elf.is_64.then(|| Payload { compression: None, bytes: packed.to_vec(), elf }));
    };
    // The kernel's build ends the payload with the unpacked size; gzip's own trailer already has it.
    let Some((stream, declared)) = packed.split_last_chunk::<4>() else {
        return Err(src.damaged("its payload is shorter than its size field"));
    };
    let stream = if compression == Compression::Gzip { packed } else { stream };
    let declared = u64::from(u32::from_le_bytes(*declared));
    if declared > MAX_UNPACKED {
        let text = format!("its payload claims to unpack to {declared} bytes, over {MAX_UNPACKED}");
        return Err(src.damaged(text));
    }
    let unpack_error =
        |source| ImageError::Unpack { name: src.name.to_owned(), format: compression.name(), source };
    let bytes = compression.unpack(stream, declared, declared).map_err(unpack_error)?;
    if bytes.len() as u64 != declared {
        let text = format!("its payload unpacks to {} bytes instead of {declared}", bytes.len());
        return Err(src.damaged(text));
    }
    let elf = ElfImage::parse(Source { name: src.name, bytes: &bytes })?;
    Ok(elf.is_64.then_some(Payload { compression: Some(compression), bytes, elf }))
}
