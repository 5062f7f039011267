//! What leaves the straight and narrow: interrupts, faults, changes of mode, page tables.

use super::Gen;
use super::straight::Kind;
use crate::layout as l;
use crate::machine::pte::{A, D, NX, P, U, W};
use crate::program::Ending;
use ringer_arch::regs::{cr0, cr4};

impl Gen<'_> {
    /// An interrupt at this instruction, by software or from outside.
    pub(super) fn interrupt(&mut self) {
        if !self.ports || self.r.chance(25) {
            match self.r.below(5) {
                0 => self.emit(&[0xcc]),
                1 => {
                    self.set_unless_locked(0);
                    self.emit(&[0xcd, l::VECTOR_CALL]);
                }
                2 if self.bits == 32 => self.emit(&[0xce]),
                _ => {
                    let v = 0x30 + self.r.below(16) as u8;
                    self.emit(&[0xcd, v]);
                }
            }
            return;
        }
        match self.r.below(10) {
            0 => {
                self.emit(&[0xe6, l::PORT_NMI]);
            }
            1 | 2 => {
                // Held off by IF, then by STI's shadow.
                self.emit(&[0xfa]);
                self.emit(&[0xe6, l::PORT_RAISE]);
                self.straight();
                self.emit(&[0xfb]);
                self.any(Kind::Any);
            }
            3 if self.kernel && self.p.ending == Ending::Port => {
                self.emit(&[0xfa]);
                self.emit(&[0xe6, l::PORT_RAISE]);
                self.emit(&[0xfb]);
                self.emit(&[0xf4]);
            }
            4 => {
                // Two at once.
                self.emit(&[0xe6, l::PORT_RAISE]);
                self.emit(&[0xe6, l::PORT_RAISE]);
            }
            5 if self.kernel && self.locked & 1 == 0 => {
                // Held off by MOV SS.
                self.set(0, u64::from(l::selector::KERNEL_DATA));
                self.emit(&[0xfa]);
                self.emit(&[0xe6, l::PORT_RAISE]);
                self.emit(&[0xfb]);
                self.emit(&[0x8e, 0xd0]);
                self.any(Kind::Quiet);
            }
            6 => {
                // By POPF.
                self.emit(&[0xfa]);
                self.emit(&[0xe6, l::PORT_RAISE]);
                self.emit(&[0x9c]);
                // OR dword [rsp], 200h
                self.emit(&[0x81, 0x0c, 0x24, 0, 2, 0, 0]);
                self.emit(&[0x9d]);
            }
            _ => self.emit(&[0xe6, l::PORT_RAISE]),
        }
        if self.r.chance(20) {
            // And something read.
            let port = self.r.pick(&[0x60u8, 0x80, 0xf0]);
            if self.locked & 1 == 0 {
                let op = self.r.pick(&[0xe4, 0xe5]);
                self.emit(&[op, port]);
                self.known[0] = None;
            }
        }
    }

    fn set_unless_locked(&mut self, reg: u8) {
        if self.locked >> reg & 1 == 0 {
            let v = self.r.below(8);
            self.set(reg, v);
        }
    }

    /// Something that faults.
    pub(super) fn fault(&mut self) {
        if !self.wild {
            return self.straight();
        }
        match self.r.below(12) {
            0 => self.emit(&[0x0f, 0x0b]),
            1 => {
                if let Some(reg) = self.free_reg() {
                    self.set(reg, 0);
                    let (op, wide) = (self.r.pick(&[6, 7]), self.bits == 64 && self.r.chance(50));
                    self.rr(&[0xf7], op, reg, wide);
                }
            }
            2 => {
                // A load, a store and both, where nothing or not enough is mapped.
                let t = l::DATA + self.r.pick(&[0, 4, 10, 3, 5, 11, 12]) * l::PAGE + self.r.below(0xff0);
                let Some(reg) = self.free_reg() else { return };
                let op = self.r.pick(&[0x8b, 0x89, 0x01, 0x87]);
                let wide = self.bits == 64 && self.r.chance(50);
                self.ra(&[op], reg, t, wide, &[]);
                self.known[usize::from(reg)] = None;
            }
            3 => {
                // Misaligned.
                let t = l::DATA + l::PAGE + self.r.below(0x100) * 16 + 8;
                let op = self.r.pick(&[0x28u8, 0x29, 0x58]);
                self.ra(&[0x0f, op], self.r.clone().below(8) as u8, t, false, &[]);
            }
            4 if self.bits == 64 => {
                if let Some(reg) = self.free_reg() {
                    self.set(reg, 0x1234_5678_9abc_def0);
                    self.rr_memory(reg);
                }
            }
            5 => {
                // For the supervisor only, in ring 3.
                let b: &[u8] = self.r.pick(&[
                    &[0x0f, 0x22, 0xd8][..],
                    &[0x0f, 0x20, 0xd0],
                    &[0xf4],
                    &[0x0f, 0x30],
                    &[0x0f, 0x09],
                    &[0x0f, 0x06],
                    &[0x0f, 0x01, 0x38],
                ]);
                if !self.kernel {
                    self.emit(b);
                }
            }
            6 => self.emit(&[0xf0, 0x90]),
            7 => {
                self.emit(&[0xcd, 0x20]);
            }
            8 => self.alignment(),
            _ => self.wild_jump(),
        }
    }

    /// MOV reg, [reg].
    fn rr_memory(&mut self, reg: u8) {
        if reg & 7 == 4 || reg & 7 == 5 {
            return;
        }
        let rex = 0x48 | reg >> 3 << 2 | reg >> 3;
        self.emit(&[rex, 0x8b, (reg & 7) << 3 | reg & 7]);
        self.known[usize::from(reg)] = None;
    }

    /// Some code with alignment checks (if CR0.AM and the ring want them).
    fn alignment(&mut self) {
        self.toggle_flag(0x4_0000);
        self.straight();
        self.toggle_flag(0x4_0000);
    }

    /// PUSHF; XOR dword [rsp], bits; POPF.
    fn toggle_flag(&mut self, bits: u32) {
        self.emit(&[0x9c]);
        let b = bits.to_le_bytes();
        self.emit(&[0x81, 0x34, 0x24, b[0], b[1], b[2], b[3]]);
        self.emit(&[0x9d]);
    }

    /// A jump to where nothing can be executed; the handler goes on behind it.
    fn wild_jump(&mut self) {
        let Some(reg) = self.free_reg() else { return };
        self.ra(&[0xc7], 0, l::SCRATCH + l::SCRATCH_RESUME, false, &[0; 4]);
        let field = self.cursor - 4;
        let to = match self.r.below(6) {
            0 => l::DATA + l::PAGE + self.r.below(0x100),
            1 => l::DATA + self.r.below(0x100),
            2 => l::SYS + l::HANDLERS,
            3 if self.bits == 64 => 0x8000_0000_0000 + self.r.below(0x100),
            4 => l::MMIO_GPA,
            _ => l::CODE_ALIAS + self.r.below(0x100),
        };
        if self.kernel && to == l::SYS + l::HANDLERS {
            return;
        }
        self.set(reg, to & self.mask());
        let op = self.r.pick(&[2, 4]);
        self.rr(&[0xff], op, reg, false);
        let target = self.lin(self.cursor) as u32;
        self.p.code[field..field + 4].copy_from_slice(&target.to_le_bytes());
    }

    /// Changes of mode, ring, control registers; and questions about them.
    pub(super) fn mode(&mut self) {
        if self.kernel {
            return self.kernel_mode();
        }
        match self.r.below(10) {
            0 => self.cpuid(),
            1 if self.locked & 7 == 0 => {
                self.set(1, 0);
                self.emit(&[0x0f, 0x01, 0xd0]);
            }
            2 => self.single_step(),
            3 => self.load_segment(),
            4..7 if self.bits == 64
                && self.locked & 0b1000_0000_0011 & !(1 << 11) == 0
                && self.locked >> 11 & 1 == 0 =>
            {
                // SYSCALL: RCX and R11 are lost.
                let v = self.r.below(8);
                self.set(0, v);
                self.emit(&[0x0f, 0x05]);
                self.known[1] = None;
                self.known[11] = None;
            }
            _ => {
                self.set_unless_locked(0);
                self.emit(&[0xcd, l::VECTOR_CALL]);
            }
        }
    }

    fn cpuid(&mut self) {
        if self.locked & 0b1111 != 0 {
            return;
        }
        let leaf = self.r.pick(&[0u64, 1, 7, 0xd, 0x8000_0000, 0x8000_0001, 0x8000_0008]);
        self.set(0, leaf);
        self.set(1, 0);
        self.emit(&[0x0f, 0xa2]);
        for n in 0..4 {
            self.known[n] = None;
        }
    }

    /// A few single steps.
    fn single_step(&mut self) {
        self.toggle_flag(0x100);
        self.any(Kind::Any);
        if self.r.chance(50) {
            self.any(Kind::Any);
        }
        self.toggle_flag(0x100);
    }

    fn load_segment(&mut self) {
        if self.locked & 1 != 0 {
            return;
        }
        let data = if self.kernel { l::selector::KERNEL_DATA } else { l::selector::USER_DATA };
        let v = self.r.pick(&[data, data, 0, data | 3, 0x40]);
        self.set(0, v.into());
        // ES, DS, FS, GS; in 32-bit code FS and GS are given back their bases by nobody.
        let n = self.r.pick(&[0u8, 3]);
        self.emit(&[0x8e, 0xc0 | n << 3]);
        if v != data {
            self.set(0, data.into());
            self.emit(&[0x8e, 0xc0 | n << 3]);
        }
    }

    fn kernel_mode(&mut self) {
        if self.locked & 1 != 0 {
            return self.straight();
        }
        match self.r.below(12) {
            0 => self.cpuid(),
            1 => self.single_step(),
            2 => self.load_segment(),
            3 => self.toggle_cr(0, cr0::WP, cr0::AM | cr0::WP),
            4 => self.toggle_cr(0, cr0::TS, cr0::TS),
            5 if self.pool.has(ringer_arch::cpu::Feature::SMAP) => {
                self.toggle_cr(4, cr4::SMAP, cr4::SMAP);
            }
            6 if self.p.state.cr4 & cr4::SMAP != 0 => {
                let b = self.r.pick(&[0xca, 0xcb]);
                self.emit(&[0x0f, 0x01, b]);
                self.straight();
                self.emit(&[0x0f, 0x01, b ^ 1]);
            }
            7 => {
                // INVLPG, or INVPCID, of what may be in use.
                let t = self.target(1);
                if self.pool.has(ringer_arch::cpu::Feature::INVPCID) && self.r.chance(40) {
                    self.invpcid(t);
                } else if t < 1 << 31 {
                    self.ra(&[0x0f, 0x01], 7, t, false, &[]);
                }
            }
            8 => self.reload_root(),
            9 => {
                // SWAPGS and back.
                self.emit(&[0x0f, 0x01, 0xf8]);
                self.any(Kind::Any);
                self.emit(&[0x0f, 0x01, 0xf8]);
            }
            10 => {
                // IRETQ to the next instruction.
                self.iret_to_next();
            }
            _ => self.toggle_cr(4, cr4::OSFXSR, cr4::OSXSAVE),
        }
    }

    /// INVPCID EAX of any type, and now and then of none there is, for `lin` and an address space.
    fn invpcid(&mut self, lin: u64) {
        let at = self.bytes;
        self.bytes += 16;
        let pcid = self.r.pick(&[0u64, 1, 1, 2, 2, 3]);
        self.scratch(at, [pcid.to_le_bytes(), lin.to_le_bytes()].concat());
        let kind = self.r.pick(&[0u64, 0, 1, 1, 2, 3, 4]);
        self.set(0, kind);
        self.ra(&[0x66, 0x0f, 0x38, 0x82], 0, at, false, &[]);
    }

    /// MOV EAX, CRn; XOR EAX, bits; MOV CRn, RAX; code; and back.
    fn toggle_cr(&mut self, n: u8, one: u64, other: u64) {
        let bits = if self.r.chance(50) { one } else { other };
        let flip = |g: &mut Self| {
            g.emit(&[0x0f, 0x20, 0xc0 | n << 3]);
            let b = (bits as u32).to_le_bytes();
            g.emit(&[0x35, b[0], b[1], b[2], b[3]]);
            g.emit(&[0x0f, 0x22, 0xc0 | n << 3]);
            g.known[0] = None;
        };
        flip(self);
        let locked = self.locked;
        self.straight();
        self.locked = locked;
        flip(self);
    }

    fn reload_root(&mut self) {
        if self.pcid && self.r.chance(80) {
            // The other address space, then back; with and without a flush.
            for root in [l::OTHER_ROOT | 2, l::ROOT | 1] {
                let keep = u64::from(self.r.chance(60)) << 63;
                self.set(0, root | keep);
                self.emit(&[0x0f, 0x22, 0xd8]);
                if self.r.chance(80) {
                    self.straight();
                }
                if self.locked & 1 != 0 {
                    return;
                }
            }
            return;
        }
        self.emit(&[0x0f, 0x20, 0xd8]);
        self.emit(&[0x0f, 0x22, 0xd8]);
        self.known[0] = None;
    }

    fn iret_to_next(&mut self) {
        // PUSH SS; RSP as now; flags; CS; the next instruction.
        self.emit(&[0x6a, l::selector::KERNEL_DATA as u8]);
        self.emit(&[0x54]);
        self.emit(&[0x48, 0x83, 0x04, 0x24, 8]);
        self.emit(&[0x9c]);
        self.emit(&[0x81, 0x24, 0x24, 0xff, 0xbf, 0xff, 0xff]);
        self.emit(&[0x6a, l::selector::KERNEL_CODE as u8]);
        self.emit(&[0x68, 0, 0, 0, 0]);
        let field = self.cursor - 4;
        self.emit(&[0x48, 0xcf]);
        let target = self.lin(self.cursor) as u32;
        self.p.code[field..field + 4].copy_from_slice(&target.to_le_bytes());
    }

    /// Edits the page tables (ring 0), or reads and writes through aliases.
    pub(super) fn paging(&mut self) {
        if !self.kernel {
            return self.aliases();
        }
        if self.pcid || self.locked & 1 != 0 {
            return self.reload_root();
        }
        let entry = |table: u64, lin: u64| l::SYS + table + (lin >> 12 & 511) * 8;
        match self.r.below(6) {
            0..3 => {
                // A data page gets other rights or another frame.
                let n = self.r.pick(&[1u64, 2, 6, 7, 8, 9, 13]);
                let lin = l::DATA + n * l::PAGE;
                let frame = l::DATA_GPA + self.r.pick(&[n, n, 1, 2, 8]) * l::PAGE;
                let bits = self.r.pick(&[
                    P | W | NX,
                    P | NX,
                    P | W | U | NX,
                    P | W | U | NX | A,
                    0,
                    P | W | U | A | D,
                ]);
                self.set(0, frame | bits);
                self.ra(&[0x89], 0, entry(l::DATA_TABLE, lin), true, &[]);
                self.ra(&[0x0f, 0x01], 7, lin + self.r.clone().below(0x1000), false, &[]);
                self.recent[0] = lin + 0x100;
                self.straight();
                // Mostly back to what programs expect.
                if bits & W == 0 || self.r.chance(70) {
                    self.set_unless_locked(0);
                    self.set(0, frame | P | W | U | NX);
                    self.ra(&[0x89], 0, entry(l::DATA_TABLE, lin), true, &[]);
                    self.ra(&[0x0f, 0x01], 7, lin, false, &[]);
                }
            }
            3 => {
                // What was absent is mapped: no INVLPG needed.
                let n = self.r.pick(&[0u64, 4, 10]);
                let lin = l::DATA + n * l::PAGE;
                if self.r.chance(60) && self.locked & 4 == 0 {
                    self.ra(&[0x8a], 2, lin + 8, false, &[]);
                }
                // OR: in a loop it must not take accessed and dirty bits back.
                let bits = ((l::DATA_GPA + n * l::PAGE) | P | W | U) as u32;
                self.ra(&[0x81], 1, entry(l::DATA_TABLE, lin), true, &bits.to_le_bytes());
                self.recent[1] = lin + 0x200;
                self.straight();
            }
            4 => self.remap_code(),
            _ => self.reload_root(),
        }
    }

    /// Writes through one address, reads through the other.
    fn aliases(&mut self) {
        let off = self.r.below(0xff0);
        let (a, b) = (l::DATA + 2 * l::PAGE + off, l::DATA + 7 * l::PAGE + off);
        let keep = self.recent;
        for _ in 0..3 {
            self.recent = [a, b, a, b];
            self.any(Kind::Hot);
        }
        self.recent = keep;
    }
}
