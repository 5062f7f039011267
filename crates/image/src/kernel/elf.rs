//! ELF kernels: the segments to load, the entry point and the PVH entry (System V ABI ch. 4 and 5).

use super::foreign::NEED_KERNEL;
use crate::ImageError;
use crate::source::{Source, u16_at, u32_at, u64_at};
use elf::abi;
use elf::endian::AnyEndian;
use elf::file::Class;
use elf::{ElfBytes, ParseError};
use std::ops::Range;

/// `XEN_ELFNOTE_PHYS32_ENTRY`, name "Xen": the 32-bit physical entry point of the PVH protocol
/// (Xen public header elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;
/// The most program headers accepted; kernels have about five.
const MAX_HEADERS: usize = 512;

/// A run of bytes to be placed at a physical address, and the zeroes after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadSegment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Where the bytes are in the file.
    pub file: Range<usize>,
    /// Bytes in memory, at least as many as in the file; `gpa + size` does not overflow.
    pub size: u64,
}

/// What the headers of an x86 ELF file say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ElfImage {
    /// 64-bit, as opposed to i386.
    pub is_64: bool,
    /// Entry point as the header has it: physical for Linux, since it links its startup code so.
    pub entry: u64,
    /// PT_LOAD segments, sorted by address, none overlapping.
    pub segments: Vec<LoadSegment>,
    /// Entry point of the PVH protocol.
    pub pvh_entry: Option<u32>,
    /// It has one of Linux's own notes.
    pub is_linux: bool,
}

impl ElfImage {
    /// First address and end of all segments.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |s| s.gpa);
        start..self.segments.iter().map(|s| s.gpa + s.size).max().unwrap_or(0)
    }

    /// The entry point as a physical address: that of the header, or, if it is a virtual address, where the
    /// segment that holds it is loaded.
    #[must_use]
    pub fn physical_entry(&self) -> Option<u64> {
        self.segments.iter().any(|s| (s.gpa..s.gpa + s.size).contains(&self.entry)).then_some(self.entry)
    }

    /// Reads and checks the headers.
    pub(crate) fn parse(src: Source) -> Result<ElfImage, ImageError> {
        let is_64 = check_target(src)?;
        let parse_error = |e: ParseError| match e {
            ParseError::SliceReadError((_, end)) => ImageError::Truncated {
                name: src.name.to_owned(),
                what: "a part named by its ELF header",
                end: end as u64,
                len: src.len(),
            },
            other => src.damaged(format!("its ELF headers make no sense ({other})")),
        };
        let file = ElfBytes::<AnyEndian>::minimal_parse(src.bytes).map_err(parse_error)?;
        debug_assert_eq!(file.ehdr.class == Class::ELF64, is_64);
        let mut image = ElfImage {
            is_64,
            entry: file.ehdr.e_entry,
            segments: Vec::new(),
            pvh_entry: None,
            is_linux: false,
        };
        let count = file.segments().map_or(0, |s| s.len());
        if count > MAX_HEADERS {
            return Err(src.damaged(format!("it has {count} program headers, more than {MAX_HEADERS}")));
        }
        for ph in file.segments().into_iter().flatten() {
            match ph.p_type {
                abi::PT_LOAD if ph.p_memsz > 0 => {
                    image.segments.push(load_segment(src, &ph)?);
                }
                abi::PT_INTERP => {
                    return Err(src.foreign("a program for Linux, not a kernel", NEED_KERNEL));
                }
                abi::PT_NOTE => {
                    // A note that does not parse ends the notes; it is no reason to refuse the kernel.
                    for note in file.segment_data_as_notes(&ph).into_iter().flatten() {
                        let elf::note::Note::Unknown(note) = note else { continue };
                        image.take_note(&note);
                    }
                }
                _ => {}
            }
        }
        if image.segments.is_empty() {
            return Err(src.damaged("its ELF headers name nothing to load"));
        }
        image.segments.sort_by_key(|s| s.gpa);
        if let Some(w) = image.segments.windows(2).find(|w| w[0].gpa + w[0].size > w[1].gpa) {
            let text = format!("its segments at {:#x} and {:#x} overlap", w[0].gpa, w[1].gpa);
            return Err(src.damaged(text));
        }
        Ok(image)
    }

    fn take_note(&mut self, note: &elf::note::NoteAny) {
        let name = note.name.strip_suffix(&[0]).unwrap_or(note.name);
        if name == b"Xen" && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY {
            let entry = u64_at(note.desc, 0).or_else(|| u32_at(note.desc, 0).map(u64::from));
            self.pvh_entry = entry.and_then(|e| u32::try_from(e).ok());
        }
        self.is_linux |= name == b"Linux";
    }
}

fn load_segment(src: Source, ph: &elf::segment::ProgramHeader) -> Result<LoadSegment, ImageError> {
    src.slice(ph.p_offset, ph.p_filesz, "a segment")?;
    if ph.p_filesz > ph.p_memsz || ph.p_paddr.checked_add(ph.p_memsz).is_none() {
        let text = format!(
            "its segment at {:#x} has {:#x} bytes in the file and {:#x} in memory",
            ph.p_paddr, ph.p_filesz, ph.p_memsz
        );
        return Err(src.damaged(text));
    }
    // Both fit: slice() found the bytes.
    let file = ph.p_offset as usize..(ph.p_offset + ph.p_filesz) as usize;
    Ok(LoadSegment { gpa: ph.p_paddr, file, size: ph.p_memsz })
}

/// Refuses what is not an x86 executable; tells whether it is 64-bit.
fn check_target(src: Source) -> Result<bool, ImageError> {
    let head = src.slice(0, 0x34, "its ELF header")?;
    let (class, data) = (head[4], head[5]);
    let raw = u16_at(head, 18).unwrap_or(0);
    let machine = if data == 2 { raw.swap_bytes() } else { raw };
    let is_64 = class == 2;
    if !matches!((data, machine, class), (1, abi::EM_X86_64, 2) | (1, abi::EM_386, 1)) {
        let what = format!("an ELF file for {}", machine_name(machine, class));
        return Err(src.foreign(what, "give a kernel built for x86-64"));
    }
    let raw_type = u16_at(head, 16).unwrap_or(0);
    if raw_type == abi::ET_REL || raw_type == abi::ET_CORE {
        let what = if raw_type == abi::ET_REL { "an unlinked ELF object" } else { "a core dump" };
        return Err(src.foreign(what, "give the linked kernel (vmlinux or bzImage)"));
    }
    Ok(is_64)
}

fn machine_name(machine: u16, class: u8) -> String {
    let name = match machine {
        abi::EM_AARCH64 => "64-bit ARM",
        abi::EM_ARM => "32-bit ARM",
        abi::EM_RISCV if class == 1 => "32-bit RISC-V",
        abi::EM_RISCV => "RISC-V",
        abi::EM_MIPS => "MIPS",
        abi::EM_PPC => "PowerPC",
        abi::EM_PPC64 => "64-bit PowerPC",
        abi::EM_S390 => "IBM Z",
        abi::EM_SPARC | abi::EM_SPARCV9 => "SPARC",
        abi::EM_IA_64 => "Itanium",
        abi::EM_LOONGARCH => "LoongArch",
        abi::EM_68K => "Motorola 68000",
        abi::EM_ALPHA => "Alpha",
        abi::EM_PARISC => "PA-RISC",
        abi::EM_SH => "SuperH",
        abi::EM_X86_64 => "x86-64 in its 32-bit (x32) form",
        abi::EM_386 => "i386 with a 64-bit header",
        other => return format!("machine number {other}"),
    };
    name.to_owned()
}
