//! [`Placement`]: what is where in guest RAM; nothing is written outside RAM or over something else.

use super::{CMDLINE, CMDLINE_ROOM, EBDA, EBDA_SIZE, FIRMWARE, Initrd, PAGE_TABLES};
use crate::ImageError;
use crate::kernel::LoadSegment;
use ringer_memory::{GuestMemory, HIGH_START, PAGE_SIZE};
use std::ops::Range;

/// Segment of the EBDA, in the BIOS data area.
const BDA_EBDA_SEGMENT: u64 = 0x40e;
/// KiB of memory below the EBDA, in the BIOS data area.
const BDA_BASE_MEMORY_KIB: u64 = 0x413;

#[derive(Clone, Debug)]
struct Taken {
    range: Range<u64>,
    what: String,
}

/// The guest RAM of one boot, and what has been placed in it.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    name: &'a str,
    memory: &'a GuestMemory,
    taken: Vec<Taken>,
}

impl<'a> Placement<'a> {
    /// Nothing placed yet; `name` is the kernel's.
    pub fn new(name: &'a str, memory: &'a GuestMemory) -> Placement<'a> {
        Placement { name, memory, taken: Vec::new() }
    }

    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// Keeps the BIOS data area, the EBDA, video memory and firmware tables, and fills in the two words of the
    /// BIOS data area that tell where the EBDA is: operating systems search it for the MP table.
    pub fn firmware_areas(&mut self) -> Result<(), ImageError> {
        self.claim(0, 0x500, "the interrupt table and BIOS data area")?;
        self.claim(EBDA, EBDA_SIZE, "the EBDA")?;
        self.claim(EBDA + EBDA_SIZE, FIRMWARE - EBDA - EBDA_SIZE, "the video and option ROM area")?;
        self.claim(FIRMWARE, (1 << 20) - FIRMWARE, "the firmware tables")?;
        self.memory.store(BDA_EBDA_SEGMENT, (EBDA >> 4) as u16)?;
        self.memory.store(BDA_BASE_MEMORY_KIB, (EBDA >> 10) as u16)?;
        Ok(())
    }

    /// End of the RAM below the 32-bit hole.
    pub fn low_end(&self) -> u64 {
        self.memory.regions().first().map_or(0, |r| r.gpa + r.size)
    }

    /// Takes `size` bytes at `gpa` for `what`.
    pub fn claim(&mut self, gpa: u64, size: u64, what: &str) -> Result<(), ImageError> {
        let end = gpa.saturating_add(size);
        if !self.memory.contains(gpa, size) {
            let (start, ram_end) = (gpa, self.low_end());
            return Err(ImageError::NoRam { what: self.subject(what), start, end, ram_end });
        }
        if let Some(t) = self.taken.iter().find(|t| gpa < t.range.end && t.range.start < end) {
            let (what, other) = (self.subject(what), t.what.clone());
            return Err(ImageError::Overlap { what, start: gpa, end, other });
        }
        self.taken.push(Taken { range: gpa..end, what: what.to_owned() });
        Ok(())
    }

    fn subject(&self, what: &str) -> String {
        format!("{} ({what})", self.name)
    }

    /// Takes the place of `bytes` and writes them.
    pub fn put(&mut self, gpa: u64, bytes: &[u8], what: &str) -> Result<(), ImageError> {
        self.claim(gpa, bytes.len() as u64, what)?;
        Ok(self.memory.write(gpa, bytes)?)
    }

    /// Places a segment: its bytes from `file`, then zeroes.
    pub fn segment(&mut self, file: &[u8], s: &LoadSegment) -> Result<(), ImageError> {
        self.claim(s.gpa, s.size, "a kernel segment")?;
        // The range was checked when the headers were parsed.
        let bytes = &file[s.file.clone()];
        self.memory.write(s.gpa, bytes)?;
        self.zero(s.gpa + bytes.len() as u64, s.size - bytes.len() as u64)
    }

    /// Zeroes RAM that has been claimed. Pages that are zero already stay untouched, so that memory the host has
    /// not had to provide yet stays so.
    pub fn zero(&self, gpa: u64, size: u64) -> Result<(), ImageError> {
        const ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        let mut buf = [0; PAGE_SIZE as usize];
        let (mut at, end) = (gpa, gpa + size);
        while at < end {
            let n = (PAGE_SIZE - at % PAGE_SIZE).min(end - at) as usize;
            self.memory.read(at, &mut buf[..n])?;
            if buf[..n] != ZEROES[..n] {
                self.memory.write(at, &ZEROES[..n])?;
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Writes the command line and its NUL at [`CMDLINE`]; `prefix` goes before it.
    pub fn cmdline(&mut self, prefix: &str, cmdline: &str, limit: usize) -> Result<(), ImageError> {
        let text = [prefix.as_bytes(), cmdline.as_bytes(), &[0]].concat();
        let limit = limit.min(CMDLINE_ROOM as usize - 1);
        if text.len() - 1 > limit {
            let (name, len) = (self.name.to_owned(), text.len() - 1);
            return Err(ImageError::CommandLineTooLong { name, len, limit });
        }
        self.put(CMDLINE, &text, "the command line")
    }

    /// Places the initrd in the highest free run of pages below `max` (exclusive), or above 4 GiB if `high` and
    /// it finds no room below; returns its address.
    pub fn initrd(&mut self, initrd: &Initrd, max: u64, high: bool) -> Result<u64, ImageError> {
        let low_end = self.low_end();
        let high_end = self.memory.regions().last().map_or(0, |r| r.gpa + r.size);
        let spans = [
            (true, 1 << 20..low_end.min(max)),
            (high, 1 << 20..low_end),
            (high && high_end > HIGH_START, HIGH_START..high_end),
        ];
        let size = initrd.len();
        let mut room = 0;
        for (_, span) in spans.into_iter().filter(|(usable, _)| *usable) {
            let (gpa, longest) = self.highest_free(span, size);
            room = room.max(longest);
            if let Some(gpa) = gpa {
                self.claim(gpa, size, "the initrd")?;
                initrd.copy_to(self.memory, gpa)?;
                return Ok(gpa);
            }
        }
        Err(ImageError::InitrdTooLarge { name: initrd.name().to_owned(), size, room })
    }

    /// The highest page-aligned address in `span` where `size` bytes are free, and the longest free run seen.
    fn highest_free(&self, span: Range<u64>, size: u64) -> (Option<u64>, u64) {
        let mut taken: Vec<_> = self.taken.iter().map(|t| t.range.clone()).collect();
        taken.sort_by_key(|r| std::cmp::Reverse(r.end));
        taken.push(0..span.start);
        let (mut end, mut longest) = (span.end, 0);
        for t in taken {
            let start = t.end.max(span.start).next_multiple_of(PAGE_SIZE);
            let room = end.saturating_sub(start);
            longest = longest.max(room);
            if room >= size {
                return (Some((end - size) / PAGE_SIZE * PAGE_SIZE), longest);
            }
            end = end.min(t.start);
        }
        (None, longest)
    }

    /// Builds page tables at [`PAGE_TABLES`] that map the low 4 GiB to themselves by 2 MiB pages (Intel SDM
    /// vol. 3A §4.5); returns CR3.
    pub fn identity_map(&mut self) -> Result<u64, ImageError> {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        const GIB: u64 = 4;
        let mut tables = vec![0u64; 512 * (2 + GIB as usize)];
        let pdpt = PAGE_TABLES + PAGE_SIZE;
        tables[0] = pdpt | PRESENT_WRITABLE;
        for i in 0..GIB {
            tables[512 + i as usize] = (pdpt + PAGE_SIZE * (1 + i)) | PRESENT_WRITABLE;
        }
        for (i, entry) in tables[1024..].iter_mut().enumerate() {
            *entry = (i as u64) << 21 | PRESENT_WRITABLE | LARGE;
        }
        let bytes: Vec<u8> = tables.iter().flat_map(|e| e.to_le_bytes()).collect();
        self.put(PAGE_TABLES, &bytes, "the boot page tables")?;
        Ok(PAGE_TABLES)
    }
}
