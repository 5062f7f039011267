//! Control flow: branches, loops, calls, jump tables, stacks.

use super::Gen;
use super::straight::Kind;
use crate::layout as l;

/// Loops and branches within one another.
const DEEPEST: u32 = 3;

impl Gen<'_> {
    /// Items until the program is long enough.
    pub(super) fn body(&mut self, depth: u32) {
        while self.left > 0 && self.room() {
            self.item(depth);
        }
    }

    /// A few items, whose instructions count.
    fn some(&mut self, depth: u32) {
        for _ in 0..=self.r.below(2) {
            if self.room() {
                self.item(depth);
            }
        }
    }

    fn item(&mut self, depth: u32) {
        let deep = depth >= DEEPEST;
        match self.r.below(100) {
            0..34 => self.straight(),
            34..44 if !deep => self.repeat(depth),
            44..52 if !deep => self.condition(depth),
            34..55 => self.far_consumer(),
            55..58 => self.chain(),
            58..64 => self.call(),
            64..67 => self.jump_table(),
            67..69 => self.jump_by_register(),
            69..75 => self.pushes(),
            75..77 => self.hop(),
            77..80 => self.neighbours(),
            80..84 => self.interrupt(),
            84..88 => self.fault(),
            88..93 => self.write_code(depth),
            93..96 => self.mode(),
            _ => self.paging(),
        }
    }

    /// A counter for a loop: in a register, which is locked then, or in memory.
    fn repeat(&mut self, depth: u32) {
        let most = [40, 8, 4][depth.min(2) as usize];
        let most = if self.p.asynchronous && depth == 0 { 400 } else { most };
        let n = 2 + self.r.below(most);
        let memory = self.r.chance(25);
        let reg = (0..16u8).find(|n| (self.loops & !self.locked) >> n & 1 != 0);
        let (Some(c), false) = (reg, memory) else { return self.repeat_by_memory(n, depth) };
        self.set(c, n);
        self.known[usize::from(c)] = None;
        self.locked |= 1 << c;
        if self.r.chance(10) {
            // Loops often start in a page of their own, or straddle one.
            self.hop();
        }
        let top = self.cursor;
        self.some(depth + 1);
        let walking = self.walk();
        let wide = self.bits == 64 && self.r.chance(50);
        match self.r.below(6) {
            0 if c == 1 && i8::try_from(top as i64 - self.cursor as i64 - 2).is_ok() => {
                self.back(&[0xe2], &[0x0f, 0x85], top);
            }
            0 | 1 => {
                self.rr(&[0xff], 1, c, wide);
                self.back(&[0x75], &[0x0f, 0x85], top);
            }
            2 => {
                self.rr_imm8(5, c, 1, wide);
                self.back(&[0x77], &[0x0f, 0x87], top);
            }
            3 => {
                self.rr_imm8(0, c, 0xff, wide);
                self.any(Kind::Quiet);
                self.back(&[0x75], &[0x0f, 0x85], top);
            }
            4 => {
                self.rr(&[0xff], 1, c, wide);
                let out = self.jcc(4, true);
                self.any(Kind::Hot);
                self.back(&[0xeb], &[0xe9], top);
                self.fill(out, self.cursor);
            }
            _ => {
                self.rr_imm8(5, c, 1, wide);
                self.rr(&[0x85], c, c, wide);
                self.back(&[0x7f], &[0x0f, 0x8f], top);
            }
        }
        self.locked &= !(1 << c);
        if let Some(p) = walking {
            self.known[p] = None;
        }
    }

    /// Moves a pointer on, as loops over arrays do.
    fn walk(&mut self) -> Option<usize> {
        let p = (0..16u8).find(|n| (self.pointers & !self.locked) >> n & 1 != 0)?;
        if !self.r.chance(35) {
            return None;
        }
        let by = self.r.pick(&[1u8, 4, 8, 16, 32, 64, 0xf8, 127]);
        self.rr_imm8(0, p, by, self.bits == 64);
        Some(usize::from(p))
    }

    fn rr_imm8(&mut self, op: u8, reg: u8, v: u8, wide: bool) {
        let mut b = Vec::with_capacity(5);
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3;
        if self.bits == 64 && rex != 0x40 {
            b.push(rex);
        }
        b.extend([0x83, 0xc0 | op << 3 | reg & 7, v]);
        self.emit(&b);
    }

    /// A place for a counter in memory.
    pub(super) fn counter(&mut self) -> u64 {
        let at = self.counters;
        self.counters =
            l::SCRATCH + l::SCRATCH_COUNTERS + (at + 8 - l::SCRATCH - l::SCRATCH_COUNTERS) % 0x180;
        at
    }

    fn repeat_by_memory(&mut self, n: u64, depth: u32) {
        let at = self.counter();
        self.ra(&[0xc7], 0, at, false, &(n as u32).to_le_bytes());
        let top = self.cursor;
        self.some(depth + 1);
        self.ra(&[0xff], 1, at, false, &[]);
        self.back(&[0x75], &[0x0f, 0x85], top);
    }

    fn condition(&mut self, depth: u32) {
        self.any(Kind::Hot);
        let cc = self.r.below(16) as u8;
        let short = self.r.chance(30);
        let other = self.jcc(cc, short);
        if short {
            self.any(Kind::Hot)
        } else {
            self.some(depth + 1)
        }
        if self.r.chance(40) {
            let out = self.branch(&[0xe9], 4);
            self.fill(other, self.cursor);
            self.some(depth + 1);
            self.fill(out, self.cursor);
        } else {
            self.fill(other, self.cursor);
        }
    }

    /// Flags made here are used only some instructions later, with memory accesses between.
    fn far_consumer(&mut self) {
        self.any(Kind::Hot);
        for _ in 0..self.r.below(6) {
            self.any(Kind::Quiet);
        }
        match self.r.below(4) {
            0 => {
                let (cc, short) = (self.r.below(16) as u8, true);
                let h = self.jcc(cc, short);
                self.any(Kind::Any);
                self.fill(h, self.cursor);
            }
            1 => {
                self.push_flags();
            }
            _ => {
                for _ in 0..=self.r.below(3) {
                    self.any(Kind::Consumer);
                }
            }
        }
    }

    /// PUSHF, and the flags into a register.
    fn push_flags(&mut self) {
        self.emit(&[0x9c]);
        match self.free_reg() {
            Some(reg) => self.pop(reg),
            None => self.rr_imm8(0, 4, (self.bits / 8) as u8, self.bits == 64),
        }
    }

    fn chain(&mut self) {
        self.any(Kind::Hot);
        let n = 2 + self.r.below(4);
        let mut holes = Vec::new();
        for _ in 0..n {
            let cc = self.r.below(16) as u8;
            holes.push(self.jcc(cc, false));
            if self.r.chance(50) {
                self.any(Kind::Quiet);
            }
        }
        let mut at = Vec::new();
        for _ in 0..n {
            at.push(self.cursor);
            self.any(Kind::Any);
        }
        for (n, h) in holes.into_iter().enumerate() {
            self.fill(h, at[n]);
        }
    }

    pub(super) fn push(&mut self, reg: u8) {
        if reg >= 8 { self.emit(&[0x41, 0x50 | reg & 7]) } else { self.emit(&[0x50 | reg]) }
    }

    pub(super) fn pop(&mut self, reg: u8) {
        if reg >= 8 {
            self.emit(&[0x41, 0x58 | reg & 7])
        } else {
            self.emit(&[0x58 | reg])
        }
        self.known[usize::from(reg)] = None;
    }

    fn pushes(&mut self) {
        let n = 1 + self.r.below(5);
        let mut depth = 0;
        for _ in 0..n {
            match self.r.below(8) {
                0 => {
                    let v = self.r.bits() as u8;
                    self.emit(&[0x6a, v]);
                }
                1 => {
                    let v = (self.value() as u32).to_le_bytes();
                    self.emit(&[0x68, v[0], v[1], v[2], v[3]]);
                }
                2 => {
                    let t = self.target(8);
                    if t < 1 << 31 {
                        self.ra(&[0xff], 6, t, false, &[]);
                    } else {
                        self.emit(&[0x6a, 1]);
                    }
                }
                _ => {
                    let reg = self.r.below(if self.bits == 64 { 16 } else { 8 }) as u8;
                    self.push(reg);
                }
            }
            depth += 1;
        }
        if self.r.chance(60) {
            self.any(Kind::Any);
        }
        if self.r.chance(20) {
            // Drops them without reading.
            self.rr_imm8(0, 4, (depth * self.bits / 8) as u8, self.bits == 64);
            return;
        }
        for _ in 0..depth {
            match (self.free_reg(), self.r.below(6)) {
                (_, 0) | (None, _) => {
                    let t = l::DATA + l::PAGE + self.r.below(0xff0);
                    self.ra(&[0x8f], 0, t, false, &[]);
                }
                (Some(reg), _) => self.pop(reg),
            }
        }
    }

    /// Function: pushes, code, pops, and one of several ways back.
    pub(super) fn function_body(&mut self) {
        let saved: Vec<u8> = (0..self.r.below(3)).filter_map(|_| self.free_reg()).collect();
        for reg in &saved {
            self.push(*reg);
        }
        if self.r.chance(15) {
            return self.recursion(&saved);
        }
        while self.left > 0 && self.room() {
            self.item(1);
        }
        for reg in saved.iter().rev() {
            self.pop(*reg);
        }
        self.ret();
    }

    fn recursion(&mut self, saved: &[u8]) {
        let at = self.counter();
        // The counter wraps before the stack does: five levels.
        self.ra(&[0x83], 0, at, false, &[1]);
        self.ra(&[0xf6], 0, at, false, &[3]);
        let out = self.jcc(4, false);
        let entry = self.cursor;
        let me = self.functions.last().copied();
        self.any(Kind::Any);
        if let Some(f) = me {
            self.call_direct(f);
        }
        let _ = entry;
        self.any(Kind::Any);
        self.fill(out, self.cursor);
        for reg in saved.iter().rev() {
            self.pop(*reg);
        }
        self.ret();
    }

    fn ret(&mut self) {
        match self.r.below(10) {
            0 => {
                // A return that no call predicts.
                if let Some(reg) = self.free_reg() {
                    self.pop(reg);
                    self.rr(&[0xff], 4, reg, false);
                }
                self.emit(&[0xc3]);
            }
            1 => {
                // REP RET, as compilers once made it.
                self.emit(&[0xf3, 0xc3]);
            }
            _ => self.emit(&[0xc3]),
        }
    }

    fn call_direct(&mut self, to: u64) {
        let h = self.branch(&[0xe8], 4);
        self.fill(h, (to - self.p.base) as usize);
    }

    fn call(&mut self) {
        if self.functions.is_empty() {
            return self.straight();
        }
        let f = self.functions[self.r.below(self.functions.len() as u64) as usize];
        match self.r.below(5) {
            0 => {
                if let Some(reg) = self.free_reg() {
                    self.set(reg, f);
                    self.rr(&[0xff], 2, reg, false);
                }
            }
            1 => {
                let at = self.table(&[f]);
                self.ra(&[0xff], 2, at, false, &[]);
            }
            _ => self.call_direct(f),
        }
        self.forget();
    }

    /// After a call, registers hold anything.
    fn forget(&mut self) {
        for n in 0..16 {
            if self.pointers >> n & 1 == 0 {
                self.known[n] = None;
            }
        }
    }

    /// Puts addresses into a table in memory.
    fn table(&mut self, entries: &[u64]) -> u64 {
        let size = u64::from(self.bits / 8);
        let at = self.tables;
        let area = l::SCRATCH + l::SCRATCH_TABLES;
        self.tables = area + (at - area + 64) % 0x500;
        let bytes = entries.iter().flat_map(|e| e.to_le_bytes()[..size as usize].to_vec()).collect();
        self.scratch(at, bytes);
        at
    }

    /// A jump through a table, by what a counter or a register says.
    fn jump_table(&mut self) {
        let Some(reg) = self.free_reg() else { return };
        let n = self.r.pick(&[2u64, 4]);
        if self.r.chance(60) {
            let at = self.counter();
            self.ra(&[0xff], 0, at, false, &[]);
            self.ra(&[0x8b], reg, at, false, &[]);
        }
        self.rr_imm8(4, reg, n as u8 - 1, false);
        self.known[usize::from(reg)] = None;
        let at = self.table(&vec![0; n as usize]);
        // JMP [table + reg * size]
        let mut b = Vec::new();
        if reg >= 8 {
            b.push(0x42);
        }
        let scale = if self.bits == 64 { 3 } else { 2 };
        b.extend([0xff, 0x24, scale << 6 | (reg & 7) << 3 | 5]);
        b.extend((at as u32).to_le_bytes());
        self.emit(&b);
        let (mut targets, mut outs) = (Vec::new(), Vec::new());
        for _ in 0..n {
            targets.push(self.lin(self.cursor));
            self.any(Kind::Any);
            outs.push(self.branch(&[0xe9], 4));
        }
        for h in outs {
            self.fill(h, self.cursor);
        }
        let size = self.bits as usize / 8;
        if let Some((_, bytes)) =
            self.p.patches.iter_mut().rev().find(|(gpa, _)| *gpa == at - l::SCRATCH + l::SCRATCH_GPA)
        {
            *bytes = targets.iter().flat_map(|t| t.to_le_bytes()[..size].to_vec()).collect();
        }
    }

    fn jump_by_register(&mut self) {
        let Some(reg) = self.free_reg() else { return };
        self.set(reg, 0x1234);
        self.known[usize::from(reg)] = None;
        let field = self.cursor - 4;
        if self.r.chance(40) {
            self.push(reg);
            self.any(Kind::Quiet);
            self.emit(&[0xc3]);
        } else {
            self.rr(&[0xff], 4, reg, false);
        }
        if self.r.chance(30) {
            self.hop_silently();
        }
        let target = self.lin(self.cursor) as u32;
        self.p.code[field..field + 4].copy_from_slice(&target.to_le_bytes());
    }

    /// Several accesses off one pointer.
    fn neighbours(&mut self) {
        let t = self.target(64);
        if t >> 31 != 0 {
            return self.straight();
        }
        let keep = self.recent;
        self.recent = [t; 4];
        for _ in 0..3 + self.r.below(5) {
            self.any(Kind::Quiet);
            self.recent = [t; 4];
        }
        self.recent = keep;
    }
}
