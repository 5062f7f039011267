//! Kernel code that user programs call: it edits page tables, writes code, switches address spaces.

use super::Gen;
use crate::layout as l;
use crate::machine::GOOD_PAGES;
use crate::machine::pte::{U, W};

/// Bytes of each fragment's place.
const PLACE: u64 = 64;

struct Code(Vec<u8>);

impl Code {
    fn absolute(&mut self, op: &[u8], reg: u8, lin: u64) -> &mut Code {
        self.0.extend(op);
        self.0.extend([4 | reg << 3, 0x25]);
        self.0.extend((lin as u32).to_le_bytes());
        self
    }
    fn imm32(&mut self, v: u64) -> &mut Code {
        self.0.extend((v as u32).to_le_bytes());
        self
    }
    fn invlpg(&mut self, lin: u64) -> &mut Code {
        self.absolute(&[0x0f, 0x01], 7, lin)
    }
}

fn entry(table: u64, lin: u64) -> u64 {
    l::SYS + table + (lin >> 12 & 511) * 8
}

impl Gen<'_> {
    /// Makes the fragments, once the program's code is there.
    pub(super) fn fragments(&mut self) {
        let mut addresses = Vec::new();
        for n in 0..8u64 {
            let at = PLACE * (n + 1);
            let mut c = self.fragment();
            c.0.push(0xc3);
            self.patch(l::FRAGMENTS_GPA + at, c.0);
            addresses.extend((l::FRAGMENTS + at).to_le_bytes());
        }
        self.scratch(l::SCRATCH + l::SCRATCH_FRAGMENTS, addresses);
    }

    fn fragment(&mut self) -> Code {
        let mut c = Code(Vec::new());
        let page = |g: &mut Self| l::DATA + g.r.pick(&GOOD_PAGES) * l::PAGE;
        match self.r.below(9) {
            0 => {}
            1 => {
                // Other rights: XOR qword [entry], bits.
                let lin = page(self);
                let bits = self.r.pick(&[W, W, U, W | U]);
                c.absolute(&[0x48, 0x81], 6, entry(l::DATA_TABLE, lin)).imm32(bits).invlpg(lin);
            }
            2 => {
                // MOV RCX, CR3; MOV CR3, RCX
                c.0.extend([0x0f, 0x20, 0xd9, 0x0f, 0x22, 0xd9]);
            }
            3 => {
                // Two pages change places.
                let (a, b) = (page(self), page(self));
                c.absolute(&[0x48, 0x8b], 1, entry(l::DATA_TABLE, a));
                c.absolute(&[0x48, 0x87], 1, entry(l::DATA_TABLE, b));
                c.absolute(&[0x48, 0x89], 1, entry(l::DATA_TABLE, a)).invlpg(a).invlpg(b);
            }
            4 | 5 => {
                // INC dword of an immediate in the program, through the supervisor's alias.
                let movs: Vec<u16> = self
                    .p
                    .insns
                    .iter()
                    .filter(|i| i.len == 5 && self.p.code[usize::from(i.off)] & 0xf8 == 0xb8)
                    .map(|i| i.off)
                    .collect();
                if !movs.is_empty() {
                    let off = self.r.pick(&movs);
                    c.absolute(&[0xff], 0, l::SYS + l::CODE_GPA + u64::from(off) + 1);
                }
            }
            6 => {
                // A code page goes to the other frame, or back.
                let page = self.r.below(4);
                let lin = self.p.base + page * l::PAGE;
                c.absolute(&[0x48, 0x81], 6, entry(l::CODE_TABLE, lin))
                    .imm32(l::CODE_GPA ^ l::CODE2_GPA)
                    .invlpg(lin);
                self.remaps.push((page as usize, (0, Vec::new())));
            }
            7 => {
                // Accessed and dirty bits go.
                let lin = page(self);
                c.absolute(&[0x48, 0x83], 4, entry(l::DATA_TABLE, lin)).0.push(0x9f);
                c.invlpg(lin);
            }
            _ => {
                // What was absent appears: bits of an entry that had none.
                let n = self.r.pick(&[4u64, 10]);
                let at = entry(l::DATA_TABLE, l::DATA + n * l::PAGE);
                c.absolute(&[0x48, 0x81], 1, at).imm32((l::DATA_GPA + n * l::PAGE) | 7);
            }
        }
        c
    }
}
