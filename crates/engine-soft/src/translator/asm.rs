//! The few host instructions that translated code is held together by. Everything else is the guest's own, re-encoded by iced.

/// Host registers by number.
#[allow(missing_docs)]
pub mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R8: u8 = 8;
    pub const R9: u8 = 9;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R12: u8 = 12;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
    pub const R15: u8 = 15;
}
use reg::{RAX, RSP};

/// Condition codes, as Jcc has them.
#[allow(missing_docs)]
pub mod cc {
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub struct M {
    base: Base,
    /// Register and log2 of its factor.
    index: Option<(u8, u8)>,
    disp: i32,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    Reg(u8),
    /// An absolute host address, reached relative to RIP.
    Rip(u64),
    None,
}

/// `[base + disp]`
#[must_use]
pub fn at(base: u8, disp: i32) -> M {
    M { base: Base::Reg(base), index: None, disp }
}

/// A field of the context.
#[must_use]
pub fn ctx(disp: i32) -> M {
    at(RSP, disp)
}

/// What lies at host address `p`, within 2 GiB of the code.
#[must_use]
pub fn rip(p: u64) -> M {
    M { base: Base::Rip(p), index: None, disp: 0 }
}

/// `[disp]`, sign-extended.
#[must_use]
pub fn abs(disp: i32) -> M {
    M { base: Base::None, index: None, disp }
}

impl M {
    /// Adds `index << log2`.
    #[must_use]
    pub fn index(self, r: u8, log2: u8) -> M {
        M { index: Some((r, log2)), ..self }
    }
}

/// A place that a jump's distance is to be put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch(pub usize);

/// Code being made for known addresses: one for what comes first, and one for what is to stand apart from it.
#[derive(Debug, Default)]
pub struct Asm {
    /// The bytes so far.
    pub code: Vec<u8>,
    /// Host address of the first.
    pub base: u64,
    /// Offset of the first that stands apart, and its host address.
    apart: Option<(usize, u64)>,
}

impl Asm {
    /// Empties it, for code that is going to stand at `base`.
    pub fn start(&mut self, base: u64) {
        self.code.clear();
        self.base = base;
        self.apart = None;
    }

    /// What comes from here on is going to stand at `base`.
    pub fn apart(&mut self, base: u64) {
        self.apart = Some((self.pos(), base));
    }

    /// The bytes that come first, and those that stand apart.
    #[must_use]
    pub fn parts(&self) -> (&[u8], &[u8]) {
        self.code.split_at(self.apart.map_or(self.pos(), |(from, _)| from))
    }

    /// Host address of what is at offset `pos`.
    #[must_use]
    pub fn address(&self, pos: usize) -> u64 {
        match self.apart {
            Some((from, base)) if pos >= from => base + (pos - from) as u64,
            _ => self.base + pos as u64,
        }
    }

    /// Host address of what comes next.
    #[must_use]
    pub fn here(&self) -> u64 {
        self.address(self.pos())
    }

    /// Offset of what comes next.
    #[must_use]
    pub fn pos(&self) -> usize {
        self.code.len()
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// A 32-bit value.
    pub fn imm32(&mut self, v: i32) {
        self.raw(&v.to_le_bytes());
    }

    /// Prefixes, opcode and operands of an instruction with a memory operand, of which `tail` bytes of immediate follow.
    fn mem(&mut self, prefix: &[u8], wide: bool, opcode: &[u8], r: u8, m: M, tail: i32) {
        self.raw(prefix);
        let (b, x) = match (m.base, m.index) {
            (Base::Reg(b), i) => (b, i.map_or(0, |i| i.0)),
            (_, i) => (0, i.map_or(0, |i| i.0)),
        };
        let rex = 0x40 | u8::from(wide) << 3 | (r >> 3) << 2 | (x >> 3) << 1 | b >> 3;
        if rex != 0x40 {
            self.raw(&[rex]);
        }
        self.raw(opcode);
        let reg = (r & 7) << 3;
        match m.base {
            Base::Rip(p) => {
                self.raw(&[0x05 | reg]);
                let end = self.here() as i64 + 4 + i64::from(tail);
                self.imm32((p as i64).wrapping_sub(end) as i32);
            }
            Base::None => {
                let sib = m.index.map_or(0x25, |(x, s)| s << 6 | (x & 7) << 3 | 5);
                self.raw(&[0x04 | reg, sib]);
                self.imm32(m.disp);
            }
            Base::Reg(b) => {
                let small = i8::try_from(m.disp).ok();
                let md = match small {
                    Some(0) if b & 7 != 5 => 0,
                    Some(_) => 0x40,
                    None => 0x80,
                };
                if b & 7 == 4 || m.index.is_some() {
                    let (x, s) = m.index.unwrap_or((4, 0));
                    self.raw(&[md | reg | 4, s << 6 | (x & 7) << 3 | b & 7]);
                } else {
                    self.raw(&[md | reg | b & 7]);
                }
                match (md, small) {
                    (0x40, Some(d)) => self.raw(&[d as u8]),
                    (0x80, _) => self.imm32(m.disp),
                    _ => {}
                }
            }
        }
    }

    fn regs(&mut self, wide: bool, opcode: &[u8], r: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (r >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.raw(&[rex]);
        }
        self.raw(opcode);
        self.raw(&[0xc0 | (r & 7) << 3 | rm & 7]);
    }

    /// `mov r, [m]`, 64 bits.
    pub fn load(&mut self, r: u8, m: M) {
        self.mem(&[], true, &[0x8b], r, m, 0);
    }
    /// `mov r32, [m]`.
    pub fn load32(&mut self, r: u8, m: M) {
        self.mem(&[], false, &[0x8b], r, m, 0);
    }
    /// `mov [m], r`, 64 bits.
    pub fn store(&mut self, m: M, r: u8) {
        self.mem(&[], true, &[0x89], r, m, 0);
    }
    /// `mov [m], r32`.
    pub fn store32(&mut self, m: M, r: u8) {
        self.mem(&[], false, &[0x89], r, m, 0);
    }
    /// `mov dword [m], v`.
    pub fn store_imm32(&mut self, m: M, v: i32) {
        self.mem(&[], false, &[0xc7], 0, m, 4);
        self.imm32(v);
    }
    /// `mov byte [m], v`.
    pub fn store_imm8(&mut self, m: M, v: u8) {
        self.mem(&[], false, &[0xc6], 0, m, 1);
        self.raw(&[v]);
    }
    /// `mov qword [m], v`, sign-extended.
    pub fn store_imm64(&mut self, m: M, v: i32) {
        self.mem(&[], true, &[0xc7], 0, m, 4);
        self.imm32(v);
    }
    /// `lea r, [m]`.
    pub fn lea(&mut self, r: u8, m: M) {
        self.mem(&[], true, &[0x8d], r, m, 0);
    }
    /// `lea r32, [m]`.
    pub fn lea32(&mut self, r: u8, m: M) {
        self.mem(&[], false, &[0x8d], r, m, 0);
    }
    /// `add r, [m]`.
    pub fn add(&mut self, r: u8, m: M) {
        self.mem(&[], true, &[0x03], r, m, 0);
    }
    /// `sub r, [m]`.
    pub fn sub(&mut self, r: u8, m: M) {
        self.mem(&[], true, &[0x2b], r, m, 0);
    }
    /// `cmp r, [m]`.
    pub fn cmp(&mut self, r: u8, m: M) {
        self.mem(&[], true, &[0x3b], r, m, 0);
    }
    /// `cmp r32, [m]`.
    pub fn cmp32(&mut self, r: u8, m: M) {
        self.mem(&[], false, &[0x3b], r, m, 0);
    }
    /// `add [m], v`, on 64 or 32 bits.
    pub fn add_mem_imm(&mut self, m: M, v: i32, wide: bool) {
        self.mem(&[], wide, &[0x81], 0, m, 4);
        self.imm32(v);
    }
    /// `cmp dword [m], v`.
    pub fn cmp_mem_imm8(&mut self, m: M, v: i8) {
        self.mem(&[], false, &[0x83], 7, m, 1);
        self.raw(&[v as u8]);
    }
    /// `test byte [m], v`.
    pub fn test_byte(&mut self, m: M, v: u8) {
        self.mem(&[], false, &[0xf6], 0, m, 1);
        self.raw(&[v]);
    }
    /// `movzx r32, word [m]`
    pub fn load16(&mut self, r: u8, m: M) {
        self.mem(&[], false, &[0x0f, 0xb7], r, m, 0);
    }
    /// `mov [m], r8`, of an extended register.
    pub fn store8(&mut self, m: M, r: u8) {
        debug_assert!(r >= 8);
        self.mem(&[], false, &[0x88], r, m, 0);
    }
    /// `rorx r32, q32, n`, for an extended `r` and another `q`: leaves the flags; needs BMI2.
    pub fn rorx32(&mut self, r: u8, q: u8, n: u8) {
        debug_assert!(r >= 8 && q < 8);
        self.raw(&[0xc4, 0x63, 0x7b, 0xf0, 0xc0 | (r & 7) << 3 | q, n]);
    }
    /// `inc dword [m]`.
    pub fn inc32(&mut self, m: M) {
        self.mem(&[], false, &[0xff], 0, m, 0);
    }
    /// `bt dword [m], bit`.
    pub fn bt_mem(&mut self, m: M, bit: u8) {
        self.mem(&[], false, &[0x0f, 0xba], 4, m, 1);
        self.raw(&[bit]);
    }
    /// `jmp [m]`.
    pub fn jmp_mem(&mut self, m: M) {
        self.mem(&[], false, &[0xff], 4, m, 0);
    }
    /// `or byte [m], v`.
    pub fn or_byte(&mut self, m: M, v: u8) {
        self.mem(&[], false, &[0x80], 1, m, 1);
        self.raw(&[v]);
    }
    /// `test dword [m], v`.
    pub fn test_mem(&mut self, m: M, v: u32) {
        self.mem(&[], false, &[0xf7], 0, m, 4);
        self.imm32(v as i32);
    }
    /// `or dword [m], v`.
    pub fn or_mem(&mut self, m: M, v: u32) {
        self.mem(&[], false, &[0x81], 1, m, 4);
        self.imm32(v as i32);
    }
    /// `and dword [m], v`.
    pub fn and_mem(&mut self, m: M, v: u32) {
        self.mem(&[], false, &[0x81], 4, m, 4);
        self.imm32(v as i32);
    }
    /// `movzx r32, byte [m]`.
    pub fn load8(&mut self, r: u8, m: M) {
        self.mem(&[], false, &[0x0f, 0xb6], r, m, 0);
    }
    /// `or r, q`.
    pub fn or_reg(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x0b], r, q);
    }
    /// `or r, v`, sign-extended.
    pub fn or_imm(&mut self, r: u8, v: i32) {
        self.group(true, 0x81, 1, r);
        self.imm32(v);
    }
    /// `jmp r`.
    pub fn jmp_reg(&mut self, r: u8) {
        self.group(false, 0xff, 4, r);
    }
    /// `dec byte [m]`.
    pub fn dec8(&mut self, m: M) {
        self.mem(&[], false, &[0xfe], 1, m, 0);
    }
    /// `ldmxcsr [m]`.
    pub fn ldmxcsr(&mut self, m: M) {
        self.mem(&[], false, &[0x0f, 0xae], 2, m, 0);
    }
    /// `stmxcsr [m]`.
    pub fn stmxcsr(&mut self, m: M) {
        self.mem(&[], false, &[0x0f, 0xae], 3, m, 0);
    }
    /// `movaps xmm, [m]`, or the other way.
    pub fn movaps(&mut self, x: u8, m: M, store: bool) {
        self.mem(&[], false, &[0x0f, 0x28 | u8::from(store)], x, m, 0);
    }
    /// `mov r, q`, 64 bits.
    pub fn mov(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x8b], r, q);
    }
    /// `mov r32, q32`.
    pub fn mov32(&mut self, r: u8, q: u8) {
        self.regs(false, &[0x8b], r, q);
    }
    /// `add r, q`.
    pub fn add_reg(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x03], r, q);
    }
    /// `sub r, q`.
    pub fn sub_reg(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x2b], r, q);
    }
    /// `xor r, q`.
    pub fn xor_reg(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x33], r, q);
    }
    /// `test r, q`.
    pub fn test_reg(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x85], r, q);
    }
    /// `mov r32, v`.
    pub fn mov_imm32(&mut self, r: u8, v: u32) {
        if r >= 8 {
            self.raw(&[0x41]);
        }
        self.raw(&[0xb8 | r & 7]);
        self.imm32(v as i32);
    }
    /// `mov r, v` in the shortest form.
    pub fn mov_imm(&mut self, r: u8, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            self.mov_imm32(r, v);
        } else if let Ok(s) = i32::try_from(v as i64) {
            self.raw(&[0x48 | r >> 3, 0xc7, 0xc0 | r & 7]);
            self.imm32(s);
        } else {
            self.raw(&[0x48 | r >> 3, 0xb8 | r & 7]);
            self.raw(&v.to_le_bytes());
        }
    }
    fn group(&mut self, wide: bool, op: u8, n: u8, r: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | r >> 3;
        if rex != 0x40 {
            self.raw(&[rex]);
        }
        self.raw(&[op, 0xc0 | n << 3 | r & 7]);
    }
    /// `cmp r, v`.
    pub fn cmp_imm(&mut self, r: u8, v: i32) {
        self.group(true, 0x81, 7, r);
        self.imm32(v);
    }
    /// `cmp r32, v`.
    pub fn cmp_imm32(&mut self, r: u8, v: i32) {
        self.group(false, 0x81, 7, r);
        self.imm32(v);
    }
    /// `and r32, v`.
    pub fn and_imm32(&mut self, r: u8, v: i32) {
        self.group(false, 0x81, 4, r);
        self.imm32(v);
    }
    /// `and r, v`, sign-extended.
    pub fn and_imm(&mut self, r: u8, v: i32) {
        self.group(true, 0x81, 4, r);
        self.imm32(v);
    }
    /// `shr r, n`.
    pub fn shr(&mut self, r: u8, n: u8) {
        self.group(true, 0xc1, 5, r);
        self.raw(&[n]);
    }
    /// `sar r, n`.
    pub fn sar(&mut self, r: u8, n: u8) {
        self.group(true, 0xc1, 7, r);
        self.raw(&[n]);
    }
    /// `shl r, n`.
    pub fn shl(&mut self, r: u8, n: u8) {
        self.group(true, 0xc1, 4, r);
        self.raw(&[n]);
    }
    /// `movsxd r, q`.
    pub fn movsxd(&mut self, r: u8, q: u8) {
        self.regs(true, &[0x63], r, q);
    }
    /// `and r32, m`.
    pub fn and32(&mut self, r: u8, m: M) {
        self.mem(&[], false, &[0x23], r, m, 0);
    }
    /// `imul r, q, v`.
    pub fn imul_imm(&mut self, r: u8, q: u8, v: i32) {
        self.regs(true, &[0x69], r, q);
        self.imm32(v);
    }
    /// `test r8, v`, for a register whose low byte needs a REX prefix.
    pub fn test_low_byte(&mut self, r: u8, v: u8) {
        self.raw(&[0x40 | r >> 3, 0xf6, 0xc0 | r & 7, v]);
    }
    /// The arithmetic flags to AX, in [`crate::hostops`]' form.
    pub fn flags_to_ax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }
    /// The arithmetic flags from AX, which is lost.
    pub fn flags_from_ax(&mut self) {
        self.raw(&[0x04, 0x7f, 0x9e]);
    }
    /// `push r`.
    pub fn push(&mut self, r: u8) {
        if r >= 8 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x50 | r & 7]);
    }
    /// `pop r`.
    pub fn pop(&mut self, r: u8) {
        if r >= 8 {
            self.raw(&[0x41]);
        }
        self.raw(&[0x58 | r & 7]);
    }
    /// `ret`.
    pub fn ret(&mut self) {
        self.raw(&[0xc3]);
    }

    /// `jcc` to somewhere yet unknown.
    pub fn jcc(&mut self, cc: u8) -> Patch {
        self.raw(&[0x0f, 0x80 | cc]);
        self.hole()
    }
    /// `jmp` to somewhere yet unknown.
    pub fn jmp(&mut self) -> Patch {
        self.raw(&[0xe9]);
        self.hole()
    }
    fn hole(&mut self) -> Patch {
        let p = Patch(self.pos());
        self.imm32(0);
        p
    }
    /// `jmp` to host address `to`.
    pub fn jmp_to(&mut self, to: u64) {
        self.raw(&[0xe9]);
        let d = (to as i64).wrapping_sub(self.here() as i64 + 4);
        self.imm32(d as i32);
    }
    /// `call` of host address `to`.
    pub fn call(&mut self, to: u64) {
        self.raw(&[0xe8]);
        let d = (to as i64).wrapping_sub(self.here() as i64 + 4);
        self.imm32(d as i32);
    }
    /// Lets the jump at `p` lead to offset `to`.
    pub fn bind_to(&mut self, p: Patch, to: usize) {
        let d = self.address(to).wrapping_sub(self.address(p.0) + 4);
        self.code[p.0..p.0 + 4].copy_from_slice(&(d as i32).to_le_bytes());
    }
    /// Lets the jump at `p` lead here.
    pub fn bind(&mut self, p: Patch) {
        let to = self.pos();
        self.bind_to(p, to);
    }
    /// The guest's flags to the context field `m`; `scratch` is lost.
    pub fn save_flags(&mut self, m: M, scratch: u8) {
        self.mov(scratch, RAX);
        self.flags_to_ax();
        self.store32(m, RAX);
        self.mov(RAX, scratch);
    }
    /// The guest's flags from the context field `m`; `scratch` is lost.
    pub fn restore_flags(&mut self, m: M, scratch: u8) {
        self.mov(scratch, RAX);
        self.load32(RAX, m);
        self.flags_from_ax();
        self.mov(RAX, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::reg::*;
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FastFormatter};

    fn text(f: impl FnOnce(&mut Asm)) -> String {
        let mut a = Asm::default();
        a.start(0x1_0000);
        f(&mut a);
        let mut d = Decoder::with_ip(64, &a.code, a.base, DecoderOptions::NONE);
        let mut out = String::new();
        let mut fmt = FastFormatter::new();
        for i in &mut d {
            fmt.format(&i, &mut out);
            out.push(';');
        }
        out
    }

    #[test]
    fn operands_come_out_as_said() {
        let t = text(|a| {
            a.load(R10, ctx(8));
            a.store(ctx(0x1000), R11);
            a.sub(R10, rip(0x2_0000));
            a.cmp(R11, ctx(0x1000).index(R10, 0));
            a.lea(R10, at(R9, -8));
            a.lea(R10, at(R13, 0));
            a.lea(R10, at(RBP, 0).index(R12, 3));
            a.lea32(R10, abs(16).index(RCX, 2));
            a.cmp_mem_imm8(rip(0x1_0000), 1);
            a.jmp_mem(ctx(0x1018).index(R10, 0));
        });
        let want = "mov r10,[rsp+8h];mov [rsp+1000h],r11;sub r10,[20000h];cmp r11,[rsp+r10+1000h];\
                    lea r10,[r9-8h];lea r10,[r13];lea r10,[rbp+r12*8];lea r10d,[rcx*4+10h];cmp dword ptr [10000h],1h;\
                    jmp qword ptr [rsp+r10+1018h];";
        assert_eq!(t, want);
    }

    #[test]
    fn constants_and_jumps() {
        let t = text(|a| {
            a.mov_imm(R11, 7);
            a.mov_imm(R11, u64::MAX);
            a.mov_imm(R10, 0x1234_5678_9abc);
            a.cmp_imm(R10, 4088);
            let p = a.jcc(cc::A);
            a.and_imm32(R11, 0x1ffe0);
            a.bind(p);
            a.shr(R11, 7);
            a.jmp_to(0x1_0000);
        });
        let want = "mov r11d,7h;mov r11,0FFFFFFFFFFFFFFFFh;mov r10,123456789ABCh;cmp r10,0FF8h;ja 1002Bh;\
                    and r11d,1FFE0h;shr r11,7h;jmp 10000h;";
        assert_eq!(t, want);
    }
}
