//! What a program starts from, and how it ends.

use super::Gen;
use crate::layout::{self as l, selector};
use crate::machine::{self, GOOD_PAGES};
use crate::program::Ending;
use ringer_arch::cpu::Feature;
use ringer_arch::msr;
use ringer_arch::regs::{cr0, cr4, rflags};
use ringer_arch::seg::sreg;
use ringer_difftest::values;

/// Bits of addresses that point anywhere.
const POINTERS: [u8; 12] = [3, 5, 6, 7, 8, 9, 12, 13, 15, 0, 1, 2];

impl Gen<'_> {
    /// Mode, ring and the like.
    pub(super) fn choose(&mut self) {
        let r = &mut self.r;
        match r.below(100) {
            0..45 => {}
            45..78 => self.kernel = true,
            _ => self.bits = 32,
        }
        self.encoder = iced_x86::Encoder::new(self.bits);
        self.p.bits = self.bits;
        self.p.base = if self.kernel { l::KERNEL_CODE } else { l::CODE };
        self.ports = self.kernel || self.r.chance(50);
        self.wild = self.r.chance(70);
        self.mix = self.r.pick(&[
            [100, 0, 0, 0, 0, 0],
            [70, 20, 5, 5, 0, 0],
            [50, 15, 5, 10, 10, 10],
            [40, 5, 0, 30, 20, 5],
            [40, 5, 0, 5, 50, 0],
            [45, 5, 0, 10, 0, 40],
            [55, 15, 25, 5, 0, 0],
        ]);
        self.p.asynchronous = self.r.below(1000) < 6;
        if self.kernel && self.r.below(1000) < 4 {
            self.p.ending = Ending::Halt;
        }
        self.control();
        self.segments();
        self.registers();
    }

    fn control(&mut self) {
        let has = |f| self.pool.has(f);
        let s = &mut self.p.state;
        if self.r.chance(20) {
            s.cr0 |= cr0::AM;
        }
        if self.r.chance(12) {
            s.cr0 &= !cr0::WP;
        }
        if has(Feature::SMEP) && self.r.chance(50) {
            s.cr4 |= cr4::SMEP;
        }
        if has(Feature::SMAP) && (!self.kernel && self.r.chance(40) || self.kernel && self.r.chance(12)) {
            s.cr4 |= cr4::SMAP;
            self.smap = self.kernel;
        }
        if has(Feature::UMIP) && self.r.chance(50) {
            s.cr4 |= cr4::UMIP;
        }
        if has(Feature::PCID) && self.r.chance(15) {
            s.cr4 |= cr4::PCIDE;
            s.cr3 |= 1;
            self.pcid = true;
        }
        if self.r.below(100) < 2 {
            s.cr4 &= !cr4::FSGSBASE;
        }
        if self.r.below(100) < 1 {
            s.cr0 |= cr0::TS;
        }
    }

    fn segments(&mut self) {
        let s = &mut self.p.state;
        if !self.kernel {
            s.cpl = 3;
            let data = machine::segment(selector::USER_DATA, 0x00cf_f300_0000_ffff);
            s.seg = [data; 6];
            s.seg[sreg::CS] = if self.bits == 64 {
                machine::segment(selector::USER_CODE64, 0x00af_fb00_0000_ffff)
            } else {
                machine::segment(selector::USER_CODE32, 0x00cf_fb00_0000_ffff)
            };
        }
        for n in [sreg::FS, sreg::GS] {
            s.seg[n].base = match self.r.below(4) {
                0 => 0,
                1 => l::DATA + self.r.below(0x2000),
                2 => l::DATA - self.r.below(0x1000),
                _ => self.r.below(0x1000) * 8,
            };
        }
        s.msrs.insert(msr::KERNEL_GS_BASE, l::DATA + 0x100);
        s.rflags = rflags::FIXED | values::flags(&mut self.r) & (rflags::ARITH | rflags::DF | rflags::ID);
        if self.r.chance(85) {
            s.rflags |= rflags::IF;
        }
        if self.r.chance(6) {
            s.rflags |= rflags::AC;
        }
        if self.smap && self.r.chance(50) {
            s.rflags |= rflags::AC;
        }
        if self.ports && !self.kernel {
            s.rflags |= rflags::IOPL;
        }
        if self.r.chance(3) {
            s.rflags |= rflags::NT;
        }
    }

    fn registers(&mut self) {
        let regs = if self.bits == 64 { 16 } else { 8 };
        for n in 0..regs {
            let v = self.value();
            self.p.state.gpr[n] = v;
        }
        for g in &mut self.p.state.gpr[regs..] {
            *g = 0;
        }
        for _ in 0..self.r.below(4) + 1 {
            let n = self.r.pick(&POINTERS);
            if usize::from(n) >= regs {
                continue;
            }
            let page = self.r.pick(&GOOD_PAGES);
            let v = l::DATA + page * l::PAGE + self.r.pick(&[0, 0x100, 0x7f8, 0x800, 0xff0]);
            self.pointers |= 1 << n;
            self.recent[self.r.below(4) as usize] = v;
            self.p.state.gpr[usize::from(n)] = v;
            self.known[usize::from(n)] = Some(v);
        }
        for _ in 0..2 {
            let n = self.r.below(regs as u64) as usize;
            if n != 4 && self.pointers >> n & 1 == 0 {
                let v = self.r.below(64);
                self.p.state.gpr[n] = v;
                self.known[n] = Some(v);
            }
        }
        let mut loops = 0;
        for n in [3u8, 5, 6, 7, 13, 14, 15] {
            let usable = usize::from(n) < regs && self.pointers >> n & 1 == 0;
            if usable && loops < 3 && self.r.chance(60) {
                self.loops |= 1 << n;
                loops += 1;
            }
        }
        self.p.state.gpr[4] = l::STACK_TOP - self.r.pick(&[0, 0, 8, 4, 0x800]);
        let n = self.r.below(self.pool.vectors.len() as u64) as usize;
        self.p.state.xsave.copy_from_slice(&self.pool.vectors[n][..]);
    }

    /// Where the first instruction goes, and what memory holds.
    pub(super) fn place(&mut self) {
        self.cursor = match self.r.below(4) {
            0 => 0,
            1 => l::PAGE as usize - 1 - self.r.below(60) as usize,
            _ => self.r.below(0x600) as usize,
        };
        self.start = self.cursor;
        for _ in 0..3 {
            let page = self.r.pick(&[1u64, 2, 6, 8, 9, 13]);
            let from = self.r.below(self.pool.pages.len() as u64) as usize;
            self.patch(l::DATA_GPA + page * l::PAGE, self.pool.pages[from].clone());
        }
        let ist = self.r.below(2) as usize;
        if ist == 1 {
            self.patch(l::IDT, self.pool.idts[1][..0x200].to_vec());
            if self.r.chance(50) {
                self.patch(l::IDT + 0x200, self.pool.idts[1][0x200..0x700].to_vec());
            }
        }
    }

    /// The last instructions.
    pub(super) fn end(&mut self) {
        if self.p.ending == Ending::Halt {
            self.emit(&[0xfa]);
            self.emit(&[0xf4]);
        } else if self.kernel && self.r.below(1000) < 6 {
            // An IDT without gates: the next exception shuts the processor down.
            let at = self.bytes;
            self.bytes += 16;
            self.scratch(at, vec![0; 16]);
            self.ra(&[0x0f, 0x01], 3, at, false, &[]);
            self.emit(&[0x0f, 0x0b]);
        } else if self.ports && self.r.chance(60) {
            self.emit(&[0xe6, l::PORT_END]);
        }
        self.emit(&[0xcd, l::VECTOR_END]);
        self.emit(&[0xcd, l::VECTOR_END]);
    }

    /// The processor's state, to start at offset `entry`.
    pub(super) fn start_state(&mut self, entry: usize) {
        self.p.state.rip = self.lin(entry);
    }
}
