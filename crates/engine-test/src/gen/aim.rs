//! Where memory operands go, and by which form of address.

use super::Gen;
use crate::layout as l;
use crate::machine::GOOD_PAGES;
use iced_x86::{Instruction, Register};

/// Displacements as far as this from a pointer are formed off it.
const NEAR: i64 = 1 << 30;

impl Gen<'_> {
    /// An address for an operand of `size` bytes.
    pub(super) fn target(&mut self, size: u64) -> u64 {
        let t = self.any_target(size);
        // Later operands come back to the neighbourhood.
        if self.r.chance(30) {
            let n = self.r.below(4) as usize;
            self.recent[n] = t;
        }
        t
    }

    fn any_target(&mut self, size: u64) -> u64 {
        let r = &mut self.r;
        let data = |n: u64| l::DATA + n * l::PAGE;
        let room = l::PAGE.saturating_sub(size).max(1);
        let align = size.next_power_of_two().clamp(1, 64);
        let back = if size > 1 { 1 + r.below(size - 1) } else { 1 };
        let wild = if self.wild { 0 } else { 8 };
        match r.below(100 - wild) {
            0..40 => {
                let near = self.recent[r.below(4) as usize].wrapping_add(r.below(128)).wrapping_sub(64);
                if r.chance(70) { near & !(align - 1) } else { near }
            }
            40..62 => data(r.pick(&GOOD_PAGES)) + (r.below(room) & !(align - 1)),
            62..68 => data(r.pick(&GOOD_PAGES)) + r.below(room),
            // Across two pages that can be written.
            68..73 => data(r.pick(&[2, 7, 8, 9])) - back,
            73..76 => l::STACK_TOP - 256 + r.below(300),
            76..79 => l::LARGE + r.below(0x1f_0000),
            79..81 => l::LARGE + r.below(500) * l::PAGE - back,
            81..84 => data(r.pick(&[3, 11])) + r.below(room),
            84..85 => data(15) + (r.below(room) & !7),
            85..87 if self.bits == 64 && self.kernel => l::HIGH + r.below(7 * l::PAGE),
            85..88 => data(14) + r.below(room),
            88..90 => l::SCRATCH + 0xe00 + r.below(0x100),
            90..92 => l::CODE_ALIAS + r.below(l::CODE_LEN),
            // From here on mostly faults.
            92..94 => data(r.pick(&[3, 4, 10, 12])) - back,
            94..96 => data(r.pick(&[0, 4, 5, 10, 12])) + r.below(room),
            96 => data(r.pick(&[15, 5, 14])) + r.below(room),
            // Not across the edge: which part is looked at first is open.
            97 if self.bits == 64 => (1 << 47) - if r.chance(50) { 0 } else { size + r.below(2) },
            98 if self.bits == 64 => 0xffff_8000_0000_0000 - if r.chance(50) { 0 } else { size + r.below(2) },
            _ => l::STACK + 3 * l::PAGE - back,
        }
    }

    /// A register that holds a value near `t`, with the value.
    fn near(&mut self, t: u64) -> Option<(u8, u64)> {
        let start = self.r.below(16) as u8;
        (0..16).map(|n| (n + start) & 15).find_map(|n| {
            let v = self.known[usize::from(n)]?;
            ((t.wrapping_sub(v) as i64).abs() < NEAR && (v > 0x1_0000)).then_some((n, v))
        })
    }

    /// Sets a register to near `t`.
    fn fresh(&mut self, t: u64) -> Option<(u8, u64)> {
        let wanted = self.pointers & !self.locked;
        let reg = if wanted != 0 && self.r.chance(80) {
            let start = self.r.below(16) as u8;
            (0..16).map(|n| (n + start) & 15).find(|n| wanted >> n & 1 != 0)
        } else {
            self.free_reg()
        }?;
        let v = match self.r.below(3) {
            0 => t,
            1 => t.wrapping_sub(self.r.below(128)),
            _ => t & !0xfff,
        };
        let v = if self.bits == 32 { v & 0xffff_ffff } else { v };
        self.set(reg, v);
        Some((reg, v))
    }

    pub(super) fn gpr(&self, n: u8) -> Register {
        let first = if self.bits == 64 { Register::RAX } else { Register::EAX };
        first + u32::from(n)
    }

    /// Lets the memory operand of `i` be at `t`, with the instructions that takes before it. False: cannot be done.
    pub(super) fn place_operand(&mut self, i: &mut Instruction, t: u64) -> bool {
        let low = t < 1 << 31;
        let offsets_only = i.op_code().op_kinds().contains(&iced_x86::OpCodeOperandKind::mem_offs);
        let vsib = i.is_vsib();
        let absolute = low && !vsib && (offsets_only || self.r.chance(8));
        let seg = self.segment(i, t, absolute);
        let want = t.wrapping_sub(seg);
        if absolute || offsets_only {
            i.set_memory_base(Register::None);
            i.set_memory_index(Register::None);
            i.set_memory_index_scale(1);
            i.set_memory_displacement64(if self.bits == 32 { want & 0xffff_ffff } else { want });
            i.set_memory_displ_size(if offsets_only { self.bits / 8 } else { 4 });
            return seg == 0 || offsets_only || (want as i64).abs() < 1 << 31;
        }
        if low && self.bits == 64 && !vsib && seg == 0 && self.r.chance(10) {
            i.set_memory_base(Register::RIP);
            i.set_memory_index(Register::None);
            i.set_memory_index_scale(1);
            i.set_memory_displacement64(t);
            i.set_memory_displ_size(8);
            return true;
        }
        let near = if self.r.chance(85) { self.near(want) } else { None };
        let Some((base, v)) = near.or_else(|| self.fresh(want)) else { return false };
        let mut disp = want.wrapping_sub(v);
        let narrow = self.bits == 64 && want < 1 << 32 && v < 1 << 32 && !vsib && self.r.chance(3);
        let name = |n: u8| if narrow { Register::EAX + u32::from(n) } else { self.gpr(n) };
        let (base_reg, mut index) = (name(base), Register::None);
        if vsib {
            index = i.memory_index();
        } else {
            let with = self.r.below(16) as u8;
            let scale = self.r.pick(&[1u32, 2, 4, 8]);
            let x = self.known[usize::from(with)].unwrap_or(u64::MAX);
            let off = x.wrapping_mul(u64::from(scale));
            if with != 4 && off < 1 << 29 && self.r.chance(60) && (self.bits == 64 || with < 8) {
                index = if narrow { Register::EAX + u32::from(with) } else { self.gpr(with) };
                i.set_memory_index_scale(scale);
                disp = disp.wrapping_sub(off);
            } else {
                i.set_memory_index_scale(1);
            }
        }
        let displacement = if self.bits == 32 { disp & 0xffff_ffff } else { disp };
        i.set_memory_base(base_reg);
        i.set_memory_index(index);
        i.set_memory_displacement64(displacement);
        let signed = if self.bits == 32 { i64::from(disp as i32) } else { disp as i64 };
        i.set_memory_displ_size(if signed == 0 && base & 7 != 5 { 0 } else { self.displ_size(signed) });
        (signed).abs() < 1 << 31
    }

    fn displ_size(&mut self, disp: i64) -> u32 {
        // Long forms of short displacements occur, too.
        let short = i8::try_from(disp).is_ok() && !self.r.chance(5);
        match (short, self.bits) {
            (true, _) => 1,
            (_, 64) => 8,
            _ => 4,
        }
    }

    /// Chooses a segment prefix; the base it adds.
    fn segment(&mut self, i: &mut Instruction, t: u64, absolute: bool) -> u64 {
        i.set_segment_prefix(Register::None);
        if !self.r.chance(8) || t >> 47 != 0 {
            return 0;
        }
        let prefix = if self.bits == 64 {
            self.r.pick(&[Register::FS, Register::GS, Register::FS, Register::DS])
        } else {
            self.r.pick(&[Register::ES, Register::SS, Register::DS, Register::FS])
        };
        let base = match prefix {
            Register::FS => self.p.state.seg[4].base,
            Register::GS => self.p.state.seg[5].base,
            _ => 0,
        };
        if base > t || absolute && t - base >= 1 << 31 {
            return 0;
        }
        i.set_segment_prefix(prefix);
        base
    }
}
