//! Multiboot 1 kernels (Multiboot Specification 0.6.96, §3.1).

use super::elf::{ElfImage, LoadSegment};
use crate::ImageError;
use crate::source::{Source, u32_at};

const MAGIC: u32 = 0x1bad_b002;
/// The header lies within this many bytes of the file's start, on a multiple of 4.
const SEARCH: usize = 8192;
const FLAG_PAGE_ALIGN: u32 = 1;
const FLAG_MEMORY_INFO: u32 = 2;
const FLAG_VIDEO: u32 = 4;
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Flags 0 to 15 are requirements that a loader must meet or refuse.
const REQUIREMENTS: u32 = 0xffff;

/// A multiboot kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Multiboot {
    /// What to load where.
    pub segments: Vec<LoadSegment>,
    /// The 32-bit entry point.
    pub entry: u32,
    /// It asks for a video mode; there is no video adapter to set one on.
    pub wants_video: bool,
}

impl Multiboot {
    /// The offset of the header, if there is one with a good checksum.
    pub(crate) fn detect(bytes: &[u8]) -> Option<usize> {
        let end = bytes.len().min(SEARCH).checked_sub(12)?;
        (0..=end).step_by(4).find(|&at| {
            let word = |i: usize| u32_at(bytes, at + i).unwrap_or(0);
            word(0) == MAGIC && word(0).wrapping_add(word(4)).wrapping_add(word(8)) == 0
        })
    }

    /// Reads the header at `at`; `elf` tells the segments if the header has no addresses of its own.
    pub(crate) fn parse(src: Source, at: usize, elf: Option<&ElfImage>) -> Result<Multiboot, ImageError> {
        let flags = u32_at(src.bytes, at + 4).unwrap_or(0);
        let unknown = flags & REQUIREMENTS & !(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO);
        if unknown != 0 {
            let what = format!("a multiboot kernel with unknown requirements (flags {unknown:#x})");
            return Err(src.foreign(what, "build it for multiboot 0.6.96"));
        }
        let wants_video = flags & FLAG_VIDEO != 0;
        if flags & FLAG_ADDRESSES != 0 {
            let (segment, entry) = addresses(src, at)?;
            return Ok(Multiboot { segments: vec![segment], entry, wants_video });
        }
        let Some(elf) = elf else {
            let text = "its multiboot header gives no load addresses, and it is not an ELF file";
            return Err(src.damaged(text));
        };
        let entry = u32::try_from(elf.entry)
            .map_err(|_| src.damaged(format!("its entry point {:#x} is above 4 GiB", elf.entry)))?;
        Ok(Multiboot { segments: elf.segments.clone(), entry, wants_video })
    }
}

/// The address fields ("a.out kludge"): header, load start, load end, bss end, entry.
fn addresses(src: Source, at: usize) -> Result<(LoadSegment, u32), ImageError> {
    let fields = src.slice(at as u64 + 12, 20, "its multiboot header")?;
    let word = |i: usize| u32_at(fields, i * 4).unwrap_or(0);
    let (header, load, load_end, bss_end, entry) = (word(0), word(1), word(2), word(3), word(4));
    let bad = || {
        src.damaged(format!(
            "its multiboot addresses contradict each other (header {header:#x}, load {load:#x}..{load_end:#x}, bss to {bss_end:#x})"
        ))
    };
    let start = header.checked_sub(load).and_then(|d| at.checked_sub(d as usize)).ok_or_else(bad)?;
    let file_size = if load_end == 0 {
        src.len() - start as u64
    } else {
        u64::from(load_end.checked_sub(load).ok_or_else(bad)?)
    };
    src.slice(start as u64, file_size, "its multiboot load range")?;
    let size = if bss_end == 0 { file_size } else { u64::from(bss_end.checked_sub(load).ok_or_else(bad)?) };
    if size < file_size || size == 0 {
        return Err(bad());
    }
    // Checked by slice() above.
    let file = start..start + file_size as usize;
    Ok((LoadSegment { gpa: u64::from(load), file, size }, entry))
}
