//! Makes stubs: code that loads the guest registers an instruction uses, runs the instruction itself with its memory
//! operand at a host address, and stores what it wrote.
//!
//! Registers in a stub: R11 context, RSI memory operand, RDX the XSAVE area and RCX the guest's general registers until
//! the instruction needs them. Explicit general-register operands are renamed to R8, R9, R10 and RDI, so that no
//! callee-saved register is ever touched; implicit ones (RAX, RCX, RDX) stay.

use super::code::ctx;
use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess,
    OpKind, Register,
};

/// Offset of XMM0 in the XSAVE area (Intel SDM vol. 1 §13.4.1).
const XMM: u32 = 160;
/// Offset of the upper half of YMM0.
const YMM_HI: u32 = 576;
/// Bits of iced's flag sets that stand for OF, SF, ZF, AF, CF, PF.
const ARITH: u32 = 0x3f;

/// A stub's code and what it does, for its caller.
pub struct Recipe {
    /// The code.
    pub code: Vec<u8>,
    /// It runs on the whole x87 state (x87, MMX).
    pub fx: bool,
    /// It uses [`super::code::StubCtx::fl`].
    pub flags: bool,
}

/// Scratch registers for explicit operands, by number.
const RENAMED: [u8; 4] = [8, 9, 10, 7];

/// A general register of the guest that a stub needs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Gpr {
    guest: u8,
    host: u8,
    /// Bits 15..8 wanted as the low byte.
    high: bool,
    written: bool,
}

/// The instruction with its memory operand made nondescript: equal for all that one stub serves.
#[must_use]
pub fn normalised(i: &Instruction) -> Instruction {
    let mut n = *i;
    n.set_segment_prefix(Register::None);
    for op in 0..n.op_count() {
        if n.op_kind(op) == OpKind::Memory {
            n.set_memory_base(Register::RSI);
            n.set_memory_index(Register::None);
            n.set_memory_index_scale(1);
            n.set_memory_displacement64(0);
            n.set_memory_displ_size(0);
        }
    }
    n
}

/// Whether the instruction depends on MXCSR or sets flags in it. Told by its name: floating-point arithmetic, compares
/// and conversions. (Saying yes too often costs time only.)
fn uses_mxcsr(i: &Instruction) -> bool {
    const FLOAT: [&str; 22] = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "hadd", "hsub", "cmp", "comis", "ucomis", "cvt",
        "round", "dpp", "fm", "fnm", "rcp", "rsqrt", "bcst", "reduce", "range",
    ];
    let name = format!("{:?}", i.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    FLOAT.iter().any(|f| name.starts_with(f))
}

/// Whether a register is of x87 or MMX.
fn is_x87(r: Register) -> bool {
    r.is_mm() || r.is_st()
}

/// Makes the stub of an instruction. `None` if it has a form that no stub can serve.
#[must_use]
pub fn make(i: &Instruction) -> Option<Recipe> {
    let mut n = normalised(i);
    let fx = uses_x87(i);
    let vex = i.encoding() == EncodingKind::VEX;
    let gprs = rename(&mut n)?;
    let vectors = if fx { Vec::new() } else { vectors(i) };
    let flags = (i.rflags_read() | i.rflags_modified()) & ARITH != 0;
    let mxcsr = !fx && uses_mxcsr(i);

    let mut a = Asm(Vec::with_capacity(96));
    a.raw(&[0x49, 0x89, 0xfb]); // mov r11, rdi
    if fx {
        a.raw(&[0x48, 0x0f, 0xae, 0x0a]); // fxrstor64 [rdx]
    }
    let wide = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Register && i.op_register(o).is_ymm());
    for v in vectors.iter().filter(|v| v.loaded || !vex) {
        a.load_vector(v.number, vex, wide);
    }
    if mxcsr {
        a.raw(&[0x0f, 0xae, 0x52, 24]); // ldmxcsr [rdx+24]
    }
    if flags {
        a.raw(&[0x41, 0x8b, 0x43, ctx::FL]); // mov eax, [r11+fl]
        a.raw(&[0x04, 0x7f, 0x9e]); // add al, 127; sahf
    }
    a.load_gprs(&gprs);

    let mut e = Encoder::try_new(64).ok()?;
    e.encode(&n, 0).ok()?;
    a.raw(&e.take_buffer());

    if gprs.iter().any(|g| g.written) {
        a.raw(&[0x49, 0x8b, 0x73, ctx::REGS]); // mov rsi, [r11+regs]
        for g in gprs.iter().filter(|g| g.written) {
            a.store_gpr(*g);
        }
    }
    if flags {
        a.raw(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
        a.raw(&[0x41, 0x89, 0x43, ctx::FL]); // mov [r11+fl], eax
    }
    a.raw(&[0x49, 0x8b, 0x53, ctx::XSAVE]); // mov rdx, [r11+xsave]
    for v in vectors.iter().filter(|v| v.written) {
        a.store_vector(v.number, vex);
    }
    if fx {
        a.raw(&[0x48, 0x0f, 0xae, 0x02]); // fxsave64 [rdx]
        a.raw(&[0xdb, 0xe3]); // fninit
    }
    if mxcsr {
        a.raw(&[0x0f, 0xae, 0x5a, 24]); // stmxcsr [rdx+24]
    }
    if mxcsr || fx {
        a.raw(&[0x41, 0x0f, 0xae, 0x53, ctx::MXCSR]); // ldmxcsr [r11+mxcsr]
    }
    if vex && !vectors.is_empty() {
        a.raw(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    a.raw(&[0xc3]);
    Some(Recipe { code: a.0, fx, flags })
}

/// Whether it touches the x87 stack or MMX registers.
#[must_use]
pub fn uses_x87(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    let x87 = |f: &F| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::FPU287XL_ONLY | F::FPU387SL_ONLY);
    i.cpuid_features().iter().any(x87)
        || (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Register && is_x87(i.op_register(o)))
        || matches!(i.code(), Code::Emms)
}

/// A vector register that a stub loads.
struct Vector {
    number: u8,
    written: bool,
    /// Read, or perhaps not written.
    loaded: bool,
}

/// The vector registers that it touches. Without VEX those that it only writes are loaded too: some writes are partial.
fn vectors(i: &Instruction) -> Vec<Vector> {
    let mut list: Vec<Vector> = Vec::new();
    let mut f = InstructionInfoFactory::new();
    for u in f.info_options(i, InstructionInfoOptions::NO_MEMORY_USAGE).used_registers() {
        if !u.register().is_vector_register() {
            continue;
        }
        let number = u.register().number() as u8;
        let written = is_write(u.access());
        let loaded = u.access() != OpAccess::Write;
        match list.iter_mut().find(|v| v.number == number) {
            Some(v) => {
                v.written |= written;
                v.loaded |= loaded;
            }
            None => list.push(Vector { number, written, loaded }),
        }
    }
    list
}

/// Whether an access may write.
#[must_use]
pub fn is_write(a: OpAccess) -> bool {
    matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Renames the explicit general-register operands and lists all general registers that the instruction uses but for those of
/// its address.
fn rename(n: &mut Instruction) -> Option<Vec<Gpr>> {
    // The operand is AX by definition.
    let fixed = n.code() == Code::Fnstsw_AX;
    let mut list: Vec<Gpr> = Vec::new();
    let mut f = InstructionInfoFactory::new();
    let info = f.info_options(n, InstructionInfoOptions::NO_MEMORY_USAGE);
    let access: Vec<bool> = (0..n.op_count()).map(|o| is_write(info.op_access(o))).collect();
    for o in 0..n.op_count() {
        if fixed || n.op_kind(o) != OpKind::Register || !n.op_register(o).is_gpr() {
            continue;
        }
        let r = n.op_register(o);
        let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
        let written = access.get(o as usize).copied().unwrap_or(true);
        if high && written {
            return None;
        }
        let guest = r.full_register().number() as u8;
        let host = match list.iter().find(|g| g.guest == guest && g.high == high) {
            Some(g) => g.host,
            None => *RENAMED.iter().find(|h| !list.iter().any(|g| g.host == **h))?,
        };
        push(&mut list, Gpr { guest, host, high, written });
        n.set_op_register(o, sized(host, r.size() as u32));
    }
    // What the renamed instruction uses beside its operands, it uses by definition.
    let memory = (0..n.op_count()).any(|o| n.op_kind(o) == OpKind::Memory);
    for u in f.info_options(n, InstructionInfoOptions::NO_MEMORY_USAGE).used_registers() {
        let r = u.register();
        let guest = r.full_register().number() as u8;
        if !r.is_gpr() || list.iter().any(|g| g.host == guest) || memory && guest == 6 {
            continue;
        }
        // Others than RAX, RCX and RDX are never implicit in what stubs serve.
        if guest > 2 {
            return None;
        }
        push(&mut list, Gpr { guest, host: guest, high: false, written: is_write(u.access()) });
    }
    Some(list)
}

fn push(list: &mut Vec<Gpr>, new: Gpr) {
    match list.iter_mut().find(|g| g.guest == new.guest && g.host == new.host) {
        Some(g) => g.written |= new.written,
        None => list.push(new),
    }
}

/// General register `number` of `size` bytes.
fn sized(number: u8, size: u32) -> Register {
    let first = match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    // AL..BL, AH..BH, SPL.. : byte registers from SPL on stand four further.
    let skip = if size == 1 && number >= 4 { 4 } else { 0 };
    first + u32::from(number) + skip
}

/// The few instructions that stubs are made of.
struct Asm(Vec<u8>);

impl Asm {
    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn disp32(&mut self, d: u32) {
        self.0.extend_from_slice(&d.to_le_bytes());
    }

    /// Guest registers at [rcx] to their host registers (AH to BH: from their byte), RCX itself last; flags stay.
    fn load_gprs(&mut self, gprs: &[Gpr]) {
        let last = |g: &&Gpr| g.host == 1;
        for g in gprs.iter().filter(|g| !last(g)).chain(gprs.iter().filter(last)) {
            let modrm = 0x81 | (g.host & 7) << 3;
            if g.high {
                self.raw(&[0x40 | (g.host >> 3) << 2, 0x0f, 0xb6, modrm]);
                self.disp32(u32::from(g.guest) * 8 + 1);
            } else {
                self.raw(&[0x48 | (g.host >> 3) << 2, 0x8b, modrm]);
                self.disp32(u32::from(g.guest) * 8);
            }
        }
    }

    /// mov [rsi+8*guest], host
    fn store_gpr(&mut self, g: Gpr) {
        self.raw(&[0x48 | (g.host >> 3) << 2, 0x89, 0x86 | (g.host & 7) << 3]);
        self.disp32(u32::from(g.guest) * 8);
    }

    /// The low half, and of 256-bit instructions the upper one.
    fn load_vector(&mut self, n: u8, vex: bool, wide: bool) {
        if vex {
            self.vmovaps(0x28, n);
        } else {
            self.movaps(0x28, n);
        }
        if wide {
            self.vex128(0x18, n);
        }
    }

    /// The low half, and of VEX instructions the upper one, which they write too.
    fn store_vector(&mut self, n: u8, vex: bool) {
        if vex {
            self.vmovaps(0x29, n);
            self.vex128(0x19, n);
        } else {
            self.movaps(0x29, n);
        }
    }

    /// movaps with [rdx+XMM+16n]
    fn movaps(&mut self, op: u8, n: u8) {
        if n >= 8 {
            self.raw(&[0x44]);
        }
        self.raw(&[0x0f, op, 0x82 | (n & 7) << 3]);
        self.disp32(XMM + 16 * u32::from(n));
    }

    /// vmovaps xmm with [rdx+XMM+16n]
    fn vmovaps(&mut self, op: u8, n: u8) {
        let r = if n >= 8 { 0x78 } else { 0xf8 };
        self.raw(&[0xc5, r, op, 0x82 | (n & 7) << 3]);
        self.disp32(XMM + 16 * u32::from(n));
    }

    /// vinsertf128 ymm, ymm, [rdx+YMM_HI+16n], 1 (op 18), vextractf128 the other way (op 19)
    fn vex128(&mut self, op: u8, n: u8) {
        let r = if n >= 8 { 0x63 } else { 0xe3 };
        // VEX.vvvv (inverted) names the first source of vinsertf128; vextractf128 has none.
        let vvvv = if op == 0x18 { (!n & 15) << 3 } else { 0x78 };
        self.raw(&[0xc4, r, 0x05 | vvvv, op, 0x82 | (n & 7) << 3]);
        self.disp32(YMM_HI + 16 * u32::from(n));
        self.raw(&[1]);
    }
}
