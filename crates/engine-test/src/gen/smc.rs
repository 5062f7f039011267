//! Writes into code.

use super::Gen;
use super::straight::Kind;
use crate::layout as l;
use crate::machine::pte::{A, D, P, W};

impl Gen<'_> {
    /// A slot: instructions with immediates, of `len` bytes or a little more; the bytes that may replace them.
    fn slot(&mut self, len: usize) -> (usize, Vec<u8>) {
        let at = self.cursor;
        let mut other = Vec::new();
        while self.cursor - at < len {
            let reg = self.slot_register();
            let v = self.value() as u32;
            let op = self.r.pick(&[0xb8u8, 0xb8, 0x05, 0x35, 0x81, 0x90]);
            // The forms of EAX would clobber it.
            let op = if self.locked & 1 != 0 && matches!(op, 0x05 | 0x35) { 0x81 } else { op };
            let bytes = |imm: u32, alt: bool| -> Vec<u8> {
                let i = imm.to_le_bytes();
                match op {
                    0x90 if alt => vec![0xf8],
                    0x90 => vec![0x90],
                    0xb8 => [&[0xb8 | reg][..], &i].concat(),
                    0x81 => [&[0x81, if alt { 0xe8 } else { 0xc0 } | reg][..], &i].concat(),
                    _ => [&[if alt { 0x0d } else { op }][..], &i].concat(),
                }
            };
            let alt = self.r.chance(50);
            let w = self.value() as u32;
            other.extend(bytes(w, alt));
            self.emit(&bytes(v, false));
            self.known[0] = None;
            self.known[usize::from(reg)] = None;
        }
        other.truncate(self.cursor - at);
        (at, other)
    }

    /// One of the low registers that is not locked.
    fn slot_register(&mut self) -> u8 {
        let start = self.r.below(8) as u8;
        (0..8).map(|n| (n + start) & 7).find(|n| self.locked >> n & 1 == 0).unwrap_or(0)
    }

    /// The address at which the bytes at offset `off` of the code window are written.
    fn through(&mut self, off: usize) -> u64 {
        let base = if self.r.chance(50) { self.p.base } else { l::CODE_ALIAS };
        base + off as u64
    }

    /// A store of `width` bytes whose address is filled in later: where its displacement is, and where its bytes come from
    /// (0: from the immediate before which the displacement stands).
    fn store(&mut self, width: usize) -> (usize, u64) {
        let from = self.bytes;
        let area = l::SCRATCH + l::SCRATCH_BYTES;
        if width > 4 {
            self.bytes = area + (from + 32 - area) % 0x300;
        }
        match width {
            1 => self.ra(&[0xc6], 0, 0, false, &[0]),
            2 => {
                if self.bits == 64 {
                    self.emit(&[0x66, 0xc7, 0x04, 0x25, 0, 0, 0, 0, 0, 0]);
                } else {
                    self.emit(&[0x66, 0xc7, 0x05, 0, 0, 0, 0, 0, 0]);
                }
            }
            4 => self.ra(&[0xc7], 0, 0, false, &[0; 4]),
            8 => {
                // MOVQ through MM or XMM registers would do, too; MOVSD is in every model.
                self.ra(&[0x0f, 0x12], 3, from, false, &[]);
                self.ra(&[0x0f, 0x13], 3, 0, false, &[]);
            }
            _ => {
                self.ra(&[0x0f, 0x10], 3, from, false, &[]);
                self.ra(&[0x0f, 0x11], 3, 0, false, &[]);
            }
        }
        let tail = if width <= 4 { width } else { 0 };
        (self.cursor - tail - 4, if width > 4 { from } else { 0 })
    }

    /// Fills in a store made by [`store`](Self::store).
    fn aim_store(&mut self, (field, from): (usize, u64), lin: u64, bytes: &[u8]) {
        self.p.code[field..field + 4].copy_from_slice(&(lin as u32).to_le_bytes());
        if from == 0 {
            self.p.code[field + 4..field + 4 + bytes.len()].copy_from_slice(bytes);
        } else {
            self.scratch(from, bytes.to_vec());
        }
    }

    /// A write into code that runs soon after, or has run before and does again.
    pub(super) fn write_code(&mut self, depth: u32) {
        if self.smap {
            return self.straight();
        }
        let width = self.r.pick(&[1usize, 1, 2, 4, 4, 8, 16]);
        match self.r.below(4) {
            0 if depth < 3 => self.toggled_loop(),
            1 => self.write_behind(width, depth),
            _ => {
                let store = self.store(width);
                for _ in 0..self.r.below(4) {
                    self.any(Kind::Hot);
                }
                match self.r.below(4) {
                    // In the next block.
                    0 => {
                        let h = self.branch(&[0xeb], 1);
                        self.fill(h, self.cursor);
                    }
                    // In another page, perhaps; or across two.
                    1 => self.hop(),
                    _ => {}
                }
                let (at, other) = self.slot(width + self.r.clone().below(4) as usize);
                let off = self.r.below((other.len() - width + 1) as u64) as usize;
                let lin = self.through(at + off);
                // Whole instructions are replaced, so that what runs is what was meant.
                self.aim_store(store, lin, &other[off..off + width]);
            }
        }
    }

    /// In a loop: the slot runs, then is written, then runs again.
    fn write_behind(&mut self, width: usize, depth: u32) {
        if depth >= 3 {
            return self.straight();
        }
        let at = self.counter();
        self.ra(&[0xc7], 0, at, false, &[3, 0, 0, 0]);
        let top = self.cursor;
        let (slot, other) = self.slot(width);
        self.any(Kind::Hot);
        let store = self.store(width);
        let lin = self.through(slot);
        self.aim_store(store, lin, &other[..width]);
        if self.r.chance(50) {
            self.any(Kind::Quiet);
        }
        self.ra(&[0xff], 1, at, false, &[]);
        self.back(&[0x75], &[0x0f, 0x85], top);
    }

    /// A loop that changes an immediate of its own every time.
    fn toggled_loop(&mut self) {
        let at = self.counter();
        let n = 2 + self.r.below(6) as u8;
        self.ra(&[0xc7], 0, at, false, &[n, 0, 0, 0]);
        let top = self.cursor;
        // XOR dword [slot + 1], v; or ADD, or INC of a byte, with and without LOCK.
        let op = self.r.below(4);
        let before = self.r.chance(50);
        if !before {
            self.emit_slot_mov();
        }
        let v = (self.value() as u32).to_le_bytes();
        match op {
            0 => self.ra(&[0x81], 6, 0, false, &v),
            1 => self.ra(&[0x81], 0, 0, false, &v),
            2 => self.ra(&[0xf0, 0x81], 6, 0, false, &v),
            _ => self.ra(&[0x80], 6, 0, false, &v[..1]),
        }
        let tail = if op == 3 { 1 } else { 4 };
        let field = self.cursor - tail - 4;
        let slot = if before {
            self.any(Kind::Quiet);
            self.emit_slot_mov()
        } else {
            top
        };
        let lin = self.through(slot + 1);
        self.p.code[field..field + 4].copy_from_slice(&(lin as u32).to_le_bytes());
        self.ra(&[0xff], 1, at, false, &[]);
        self.back(&[0x75], &[0x0f, 0x85], top);
    }

    fn emit_slot_mov(&mut self) -> usize {
        let slot = self.cursor;
        let reg = self.slot_register();
        let v = self.value() as u32;
        let i = v.to_le_bytes();
        self.emit(&[0xb8 | reg, i[0], i[1], i[2], i[3]]);
        self.known[usize::from(reg)] = None;
        slot
    }

    /// The page that the next instructions are in gets another frame, with the same code but for a slot.
    pub(super) fn remap_code(&mut self) {
        if self.locked & 1 != 0 || self.smap {
            return self.straight();
        }
        let page = self.cursor / l::PAGE as usize;
        let lin = self.p.base + page as u64 * l::PAGE;
        let entry = l::SYS + l::KERNEL_CODE_TABLE + (lin >> 12 & 511) * 8;
        let frame = l::CODE2_GPA + page as u64 * l::PAGE;
        self.set(0, frame | P | W | A | D);
        self.ra(&[0x89], 0, entry, true, &[]);
        self.ra(&[0x0f, 0x01], 7, lin, false, &[]);
        let (at, other) = self.slot(5);
        self.set_unless_page_changed(page, at, &other);
        let old = l::CODE_GPA + page as u64 * l::PAGE;
        if self.locked & 1 == 0 {
            self.set(0, old | P | W | A | D);
            self.ra(&[0x89], 0, entry, true, &[]);
            self.ra(&[0x0f, 0x01], 7, lin, false, &[]);
        }
    }

    /// Notes that the other frame of `page` is the same code with `other` at offset `at`.
    fn set_unless_page_changed(&mut self, page: usize, at: usize, other: &[u8]) {
        let first = page * l::PAGE as usize;
        let in_page = at >= first && at + other.len() <= first + l::PAGE as usize;
        self.remaps.push((page, if in_page { (at, other.to_vec()) } else { (at, Vec::new()) }));
    }

    /// Writes the other frames, now that the code is complete.
    pub(super) fn finish_remaps(&mut self) {
        let mut done = Vec::new();
        for (page, _) in self.remaps.clone() {
            if done.contains(&page) {
                continue;
            }
            done.push(page);
            let first = page * l::PAGE as usize;
            let mut bytes = self.p.code[first..first + l::PAGE as usize].to_vec();
            for (_, (at, other)) in self.remaps.iter().filter(|(p, _)| *p == page) {
                if !other.is_empty() {
                    bytes[at - first..at - first + other.len()].copy_from_slice(other);
                }
            }
            self.patch(l::CODE2_GPA + first as u64, bytes);
        }
    }
}
