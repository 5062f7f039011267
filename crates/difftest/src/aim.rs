//! Aims memory operands: chooses an address of interest, and sets registers, displacement or vector indexes so that the
//! operand is there.

use crate::encode::Bytes;
use crate::layout::{CODE, CODE_LEN, DATA, PAGE};
use crate::record::Input;
use crate::rng::Rng;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// An address for an operand of `size` bytes; `None`: let registers be as they are.
pub fn target(r: &mut Rng, size: u64, which: usize) -> Option<u64> {
    let inside = |r: &mut Rng, pages: &[u64]| {
        let p = r.pick(pages);
        let room = PAGE.saturating_sub(size).max(1);
        let off = match r.below(4) {
            0 => r.below(room),
            1 => 0,
            _ => r.below(room) & !(size.next_power_of_two().max(1) - 1),
        };
        DATA + p * PAGE + off
    };
    let across = |r: &mut Rng, pages: &[u64]| {
        let back = if size > 1 { 1 + r.below(size - 1) } else { 1 };
        DATA + r.pick(pages) * PAGE - back
    };
    // What is accessed in several parts may find the first one mapped before the second one is not canonical.
    let edge = if size.is_power_of_two() { r.below(size + 2) } else { 0 };
    Some(match r.below(100) {
        0..60 => inside(r, &[1, 2, 6, 8, 9, 14]),
        60..68 => across(r, &[2, 9]),
        68..74 => inside(r, &[3, 11, 12]),
        74..76 => across(r, &[12]),
        76..80 => across(r, &[3]),
        80..85 => across(r, &[7, 10, 15, 4, 13]),
        85..88 => across(r, &[1, 6, 8, 11, 14]),
        88..91 => inside(r, &[0, 4, 5, 7, 10, 13, 15]),
        91 => CODE[which] + r.below(CODE_LEN),
        92 => (1 << 47) + r.below(1 << 20),
        93 => (1 << 47) - edge,
        94 => 0xffff_8000_0000_0000 - edge,
        95 => 0xffff_8000_0000_0000 + (r.bits() >> 18),
        96 => 0u64.wrapping_sub(edge),
        _ => return None,
    })
}

/// A place for a stack pointer: mostly where pushes and pops work.
pub fn stack(r: &mut Rng, which: usize) -> u64 {
    match r.below(20) {
        0 | 1 => target(r, 8, which).unwrap_or_else(|| r.bits()),
        2 => DATA + 9 * PAGE - r.below(32),
        3 => DATA + 8 * PAGE + r.below(64),
        4 => DATA + 10 * PAGE - r.below(64),
        _ => DATA + 8 * PAGE + 512 + r.below(2 * PAGE - 1024) / 8 * 8,
    }
}

/// Number of a general register.
#[must_use]
pub fn number(reg: Register) -> usize {
    reg.full_register().number() & 15
}

fn set(input: &mut Input, reg: Register, v: u64) {
    let n = number(reg);
    let old = input.gpr[n];
    input.gpr[n] = match reg.size() {
        2 => old & !0xffff | v & 0xffff,
        4 => old & !0xffff_ffff | v & 0xffff_ffff,
        _ => v,
    };
}

fn get(input: &Input, reg: Register) -> u64 {
    let v = input.gpr[number(reg)];
    match reg.size() {
        2 => v & 0xffff,
        4 => v & 0xffff_ffff,
        _ => v,
    }
}

/// Base of the memory operand's segment in 64-bit mode.
fn segment_base(insn: &Instruction, input: &Input) -> u64 {
    match insn.memory_segment() {
        Register::FS => input.fs_base,
        Register::GS => input.gs_base,
        _ => 0,
    }
}

/// Linear address of the memory operand in the state `input` (element `element` of a vector-indexed one).
#[must_use]
pub fn address(insn: &Instruction, input: &Input, element: usize) -> Option<u64> {
    let op = (0..insn.op_count()).find(|o| insn.op_kind(*o) == OpKind::Memory)?;
    insn.virtual_address(op, element, |reg, lane, size| {
        Some(if reg.is_segment_register() {
            segment_base(insn, input)
        } else if reg.is_vector_register() {
            lane_value(input, reg, lane, size)
        } else if reg == Register::AL {
            input.gpr[0] & 0xff
        } else {
            get(input, reg)
        })
    })
}

/// Bits of the memory operand's address, before a segment's base is added.
fn address_bits(insn: &Instruction) -> u32 {
    let by = [insn.memory_base(), insn.memory_index()].map(|r| match r {
        Register::RIP => 8,
        Register::EIP => 4,
        r if r.is_gpr() && r != Register::AL => r.size(),
        _ => 0,
    });
    match by.into_iter().max() {
        Some(0) | None => 8 * insn.memory_displ_size(),
        Some(bytes) => 8 * bytes as u32,
    }
}

/// `lin` as far as addresses of the memory operand go: offsets wrap at their size.
fn wrapped(insn: &Instruction, input: &Input, lin: u64) -> u64 {
    let (base, mask) = (segment_base(insn, input), u64::MAX >> (64 - address_bits(insn).clamp(16, 64)));
    (lin.wrapping_sub(base) & mask).wrapping_add(base)
}

/// Bytes from `lin`, in the memory operand, on to where its offsets wrap; `None`: they are as wide as addresses.
#[must_use]
pub fn before_wrap(insn: &Instruction, input: &Input, lin: u64) -> Option<u64> {
    let end = 1u64.checked_shl(address_bits(insn))?;
    Some(end.wrapping_sub(lin.wrapping_sub(segment_base(insn, input))))
}

/// Address of the byte with the bit that a bit-string instruction (BT and its kin with a register for the bit's number) accesses.
#[must_use]
pub fn bit_address(insn: &Instruction, input: &Input) -> Option<u64> {
    use Mnemonic as M;
    if !matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) || insn.op1_kind() != OpKind::Register {
        return None;
    }
    let lin = address(insn, input, 0)?;
    let unused = 64 - 8 * insn.op1_register().size();
    let number = (get(input, insn.op1_register()) << unused) as i64 >> unused;
    Some(wrapped(insn, input, lin.wrapping_add((number >> 3) as u64)))
}

fn lane_at(reg: Register, lane: usize, size: usize) -> usize {
    let byte = lane * size;
    let n = reg.number() & 15;
    if byte < 16 { 160 + 16 * n + byte } else { 576 + 16 * n + byte - 16 }
}

fn lane_value(input: &Input, reg: Register, lane: usize, size: usize) -> u64 {
    if lane * size >= 32 {
        return 0;
    }
    let at = lane_at(reg, lane, size);
    let mut b = [0; 8];
    b[..size].copy_from_slice(&input.xsave[at..at + size]);
    let v = u64::from_le_bytes(b);
    if size == 4 { i64::from(v as i32) as u64 } else { v }
}

/// Sets the state, or the displacement in `bytes`, so that the memory operand is at `lin`, as nearly as the form permits.
pub fn at(r: &mut Rng, insn: &Instruction, bytes: &mut Bytes, input: &mut Input, lin: u64, options: u32) {
    let want = lin.wrapping_sub(segment_base(insn, input));
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let scale = u64::from(insn.memory_index_scale());
    let disp = insn.memory_displacement64();
    let relative = base == Register::RIP || base == Register::EIP;
    if relative || base == Register::None && index == Register::None {
        let mut d = iced_x86::Decoder::with_ip(input.bits, &bytes.b[..bytes.len], input.rip, options);
        let i = d.decode();
        let c = d.get_constant_offsets(&i);
        let v = if relative { want.wrapping_sub(i.next_ip()) } else { want };
        let (off, n) = (c.displacement_offset(), c.displacement_size());
        if n > 0 && off + n <= bytes.len {
            bytes.b[off..off + n].copy_from_slice(&v.to_le_bytes()[..n]);
        }
        return;
    }
    if index.is_vector_register() {
        vector_index(r, insn, input, want);
    } else if base == Register::None {
        set(input, index, want.wrapping_sub(disp) / scale.max(1));
    } else if index == Register::None {
        set(input, base, want.wrapping_sub(disp));
    } else if index == base {
        set(input, base, want.wrapping_sub(disp) / (scale + 1));
    } else {
        if r.chance(70) {
            set(input, index, crate::values::int(r));
        }
        let x = if index == Register::AL { input.gpr[0] & 0xff } else { get(input, index) };
        set(input, base, want.wrapping_sub(disp).wrapping_sub(x.wrapping_mul(scale)));
    }
}

/// Whether the memory operand's offset is not canonical while its linear address, with the base of FS or GS added, is.
#[must_use]
pub fn offset_quirk(insn: &Instruction, input: &Input) -> bool {
    if input.bits != 64 || !matches!(insn.memory_segment(), Register::FS | Register::GS) {
        return false;
    }
    let base = segment_base(insn, input);
    let canonical = |a: u64| ((a << 16) as i64 >> 16) as u64 == a;
    if matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc) {
        // The bit offset comes on top.
        return address(insn, input, 0).is_some_and(|a| {
            !canonical(a.wrapping_add(1 << 40))
                || !canonical(a.wrapping_sub(1 << 40))
                || !canonical(a.wrapping_sub(base))
        });
    }
    let lanes = if insn.is_vsib() { 8 } else { 1 };
    let memory = (0..lanes).filter_map(|n| address(insn, input, n)).collect::<Vec<_>>();
    let implicit = [6, 7].map(|n| input.gpr[n].wrapping_add(base));
    memory.iter().chain(&implicit).any(|a| canonical(*a) && !canonical(a.wrapping_sub(base)))
}

/// Gathers: small indexes around a base in the window, now and then a wild one.
fn vector_index(r: &mut Rng, insn: &Instruction, input: &mut Input, want: u64) {
    let index = insn.memory_index();
    let dwords = matches!(
        insn.code().op_code().op_kinds().iter().find(|k| format!("{k:?}").contains("vsib")),
        Some(k) if format!("{k:?}").contains("vsib32")
    );
    let (size, lanes) = if dwords { (4, 8) } else { (8, 4) };
    let spread = r.pick(&[16u64, 64, 512]);
    for lane in 0..lanes {
        let mut v = r.below(spread);
        if r.chance(30) {
            v = 0u64.wrapping_sub(v);
        }
        if r.chance(3) {
            v = r.bits();
        }
        let at = lane_at(index, lane, size);
        input.xsave[at..at + size].copy_from_slice(&v.to_le_bytes()[..size]);
    }
    if insn.memory_base() != Register::None {
        set(input, insn.memory_base(), want.wrapping_sub(insn.memory_displacement64()));
    }
}
