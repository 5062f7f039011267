//! Bytes of an instruction form, with random operands and prefixes.

use crate::rng::Rng;
use iced_x86::{Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind as K, OpCodeTableKind};

/// The longest instruction, and one more.
pub const MAX: usize = 15;
const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

/// Up to [`MAX`] bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bytes {
    /// The bytes.
    pub b: [u8; MAX],
    /// How many.
    pub len: usize,
}

impl Bytes {
    /// Appends one byte; what does not fit is dropped.
    pub fn push(&mut self, v: u8) {
        if self.len < MAX {
            self.b[self.len] = v;
            self.len += 1;
        }
    }
    fn little(&mut self, v: u64, n: usize) {
        for b in &v.to_le_bytes()[..n] {
            self.push(*b);
        }
    }
}

#[derive(Default)]
struct Shape {
    modrm: bool,
    memory: Memory,
    vvvv: bool,
    opcode_reg: bool,
    vsib: bool,
    /// Immediate bytes, and their kind.
    imm: Vec<K>,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum Memory {
    #[default]
    No,
    May,
    Must,
}

fn shape(info: &OpCodeInfo) -> Shape {
    let mut s = Shape { modrm: info.group_index() >= 0 || info.rm_group_index() >= 0, ..Shape::default() };
    for k in info.op_kinds() {
        match k {
            K::mem | K::mem_mpx | K::mem_mib | K::sibmem => (s.modrm, s.memory) = (true, Memory::Must),
            K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z => {
                (s.modrm, s.memory, s.vsib) = (true, Memory::Must, true);
            }
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::r32_or_mem_mpx
            | K::r64_or_mem_mpx => (s.modrm, s.memory) = (true, Memory::May),
            K::r8_reg
            | K::r16_reg
            | K::r32_reg
            | K::r64_reg
            | K::r16_rm
            | K::r32_rm
            | K::r64_rm
            | K::r16_reg_mem
            | K::r32_reg_mem
            | K::r64_reg_mem
            | K::seg_reg
            | K::mm_reg
            | K::mm_rm
            | K::xmm_reg
            | K::xmm_rm
            | K::ymm_reg
            | K::ymm_rm
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg => s.modrm = true,
            K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode | K::sti_opcode => {
                s.opcode_reg = true
            }
            K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => s.vvvv = true,
            K::None
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::al
            | K::cl
            | K::ax
            | K::dx
            | K::eax
            | K::rax
            | K::st0
            | K::imm8_const_1
            | K::seg_rSI
            | K::es_rDI
            | K::seg_rDI
            | K::seg_rBX_al => {}
            _ => s.imm.push(*k),
        }
    }
    s
}

/// Encodes one of `forms` with random operands, mostly as it should be and sometimes with prefixes that it does not want.
/// `tail` is an offset from the instruction's first byte at which branches may land.
#[must_use]
pub fn form(r: &mut Rng, forms: &[Code], tail: u64, bits: u32) -> Bytes {
    let code = r.pick(forms);
    let info = code.op_code();
    let s = shape(info);
    let mut out = Bytes::default();
    noise(r, &mut out, bits);
    let memory = match s.memory {
        Memory::No => false,
        Memory::May => r.chance(55),
        Memory::Must => !r.chance(1),
    };
    if memory && r.chance(12) {
        let seg = if r.chance(60) { r.pick(&[0x64, 0x65]) } else { r.pick(&SEGMENTS) };
        out.push(seg);
    }
    let implicit = info
        .op_kinds()
        .iter()
        .any(|k| matches!(k, K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al | K::mem_offs));
    if info.address_size() != 0 && info.address_size() != bits
        || info.address_size() == 0 && (memory || implicit) && r.chance(10)
    {
        out.push(0x67);
    }
    match info.encoding() {
        EncodingKind::VEX => vex(r, info, &s, &mut out, bits),
        _ => legacy(r, info, &s, memory, &mut out, bits),
    }
    if s.modrm {
        modrm(r, info, memory, s.vsib, &mut out);
    }
    for k in &s.imm {
        immediate(r, *k, info, tail, &mut out, bits);
    }
    out
}

/// Prefixes that are ignored, or that are not allowed here.
fn noise(r: &mut Rng, out: &mut Bytes, bits: u32) {
    if !r.chance(5) {
        return;
    }
    for _ in 0..=r.below(2) {
        let p = match r.below(4) {
            0 => r.pick(&SEGMENTS),
            1 => r.pick(&[0x66, 0x67]),
            2 => r.pick(&[0xf2, 0xf3, 0xf0]),
            _ if bits == 64 => 0x40 | r.below(16) as u8,
            _ => 0x3e,
        };
        out.push(p);
    }
}

fn legacy(r: &mut Rng, info: &OpCodeInfo, s: &Shape, memory: bool, out: &mut Bytes, bits: u32) {
    if info.can_use_lock_prefix() && memory && r.chance(20) {
        out.push(0xf0);
    }
    if info.can_use_rep_prefix() && r.chance(50) {
        out.push(0xf3);
    } else if info.can_use_repne_prefix() && r.chance(60) {
        out.push(0xf2);
    }
    if info.operand_size() == 16 && info.mandatory_prefix() != MandatoryPrefix::P66 {
        out.push(0x66);
    }
    match info.mandatory_prefix() {
        MandatoryPrefix::P66 => out.push(0x66),
        MandatoryPrefix::PF3 => out.push(0xf3),
        MandatoryPrefix::PF2 => out.push(0xf2),
        _ => {}
    }
    let wide =
        info.operand_size() == 64 && !info.default_op_size64() && !info.force_op_size64() || info.w() == 1;
    let mut rex = if wide { 8 } else { 0 };
    if s.modrm || s.opcode_reg {
        rex |= (r.bits() & r.bits()) as u8 & 7;
    }
    if bits == 64 && (rex != 0 || r.chance(20)) {
        out.push(0x40 | rex);
    }
    match info.table() {
        OpCodeTableKind::T0F => out.push(0x0f),
        OpCodeTableKind::T0F38 => out.little(0x380f, 2),
        OpCodeTableKind::T0F3A => out.little(0x3a0f, 2),
        _ => {}
    }
    let op = info.op_code() | if s.opcode_reg { r.below(8) as u32 } else { 0 };
    if info.op_code_len() == 2 {
        out.push((op >> 8) as u8);
    }
    out.push(op as u8);
}

fn vex(r: &mut Rng, info: &OpCodeInfo, s: &Shape, out: &mut Bytes, bits: u32) {
    let map = match info.table() {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        _ => 3,
    };
    let pp = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let w = if info.is_wig() { r.below(2) as u8 } else { info.w() as u8 };
    let l = if info.is_lig() { r.below(2) as u8 } else { u8::from(info.l() == 256 || info.l() == 1) };
    let vvvv = if s.vvvv || r.chance(2) { r.below(16) as u8 } else { 15 };
    // In 32-bit code R and X must be set, or it is LES or LDS; so must the upper bit of vvvv in the short form.
    let rxb = if bits == 32 || r.chance(30) { 7 } else { r.below(8) as u8 };
    let vvvv = if bits == 32 { vvvv | 8 } else { vvvv };
    if rxb & 3 == 3 && w == 0 && map == 1 && r.chance(80) {
        out.push(0xc5);
        out.push((rxb & 4) << 5 | vvvv << 3 | l << 2 | pp);
    } else {
        out.push(0xc4);
        out.push(rxb << 5 | map);
        out.push(w << 7 | vvvv << 3 | l << 2 | pp);
    }
    out.push(info.op_code() as u8);
}

fn modrm(r: &mut Rng, info: &OpCodeInfo, memory: bool, vsib: bool, out: &mut Bytes) {
    let reg = if info.group_index() >= 0 { info.group_index() as u8 } else { r.below(8) as u8 };
    if !memory {
        let rm = if info.rm_group_index() >= 0 { info.rm_group_index() as u8 } else { r.below(8) as u8 };
        out.push(0xc0 | reg << 3 | rm);
        return;
    }
    let mode = r.pick(&[0u8, 0, 1, 1, 1, 2]);
    let rm = if vsib { 4 } else { r.below(8) as u8 };
    out.push(mode << 6 | reg << 3 | rm);
    let mut base = rm;
    if rm == 4 {
        let sib = r.bits() as u8;
        out.push(sib);
        base = sib & 7;
    }
    match (mode, base) {
        (0, 5) | (2, _) => {
            let any = r.bits() & 0xffff_ffff;
            out.little(r.pick(&[any, 0, 0x10, 0xffff_fff0]), 4);
        }
        (1, _) => out.push(r.bits() as u8),
        _ => {}
    }
}

fn immediate(r: &mut Rng, k: K, info: &OpCodeInfo, tail: u64, out: &mut Bytes, bits: u32) {
    // Offset of a branch target from behind the instruction, whose displacement is the last thing in it.
    let rel = |end: usize| tail.wrapping_sub(end as u64);
    match k {
        K::imm8
        | K::imm8sex16
        | K::imm8sex32
        | K::imm8sex64
        | K::xmm_is4
        | K::ymm_is4
        | K::xmm_is5
        | K::ymm_is5
        | K::imm4_m2z => {
            let v = if r.chance(60) { r.bits() } else { crate::values::int(r) };
            out.push(v as u8);
        }
        K::imm16 => {
            let v = crate::values::int(r);
            // ENTER and RET would leave the data window with large ones.
            let small = matches!(info.op_code(), 0xc8 | 0xc2 | 0xca) && r.chance(80);
            out.little(if small { v & 0x3f } else { v }, 2);
        }
        K::imm32 | K::imm32sex64 => out.little(crate::values::int(r), 4),
        K::imm64 => out.little(crate::values::int(r), 8),
        K::mem_offs => {
            let n = if out.b[..out.len].contains(&0x67) { bits / 16 } else { bits / 8 } as usize;
            out.little(crate::layout::DATA + r.below(crate::layout::DATA_LEN), n);
        }
        K::br16_1 | K::br32_1 | K::br64_1 => {
            let v = if r.chance(20) { 0 } else { rel(out.len + 1) };
            out.push(v as u8);
        }
        K::br16_2 | K::brdisp_2 | K::xbegin_2 => {
            let v = if r.chance(10) { 0 } else { rel(out.len + 2) };
            out.little(v, 2);
        }
        K::br32_4 | K::br64_4 | K::brdisp_4 | K::xbegin_4 => {
            let v = match r.below(10) {
                0 => 0,
                1 => r.bits() & 0x3fff_ffff | 0x2000_0000,
                _ => rel(out.len + 4),
            };
            out.little(v, 4);
        }
        K::farbr2_2 | K::farbr4_2 => {
            let target = crate::layout::CODE[r.below(2) as usize]
                + crate::layout::LANDING
                + r.below(crate::layout::LANDINGS);
            out.little(target, if k == K::farbr2_2 { 2 } else { 4 });
            out.little(r.pick(&[0x23, 0x23, 0x33, 0x2b, 0, 0x10]), 2);
        }
        _ => out.push(r.bits() as u8),
    }
}
