//! One case: an instruction and the state it starts from.

use crate::aim;
use crate::encode::{self, Bytes};
use crate::forms::Reach;
use crate::interp::{Path, decode_at};
use crate::layout::{CODE, DATA, DATA_LEN, SLOT, data_offset};
use crate::record::{Input, PATCH_LEN, Patch, Span, XSAVE_LEN};
use crate::rng::Rng;
use crate::undefined;
use crate::values;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpKind, Register};
use std::collections::BTreeMap;

/// What a batch is generated from.
pub struct Source<'a> {
    /// Forms to choose from.
    pub forms: &'a [Code],
    /// Forms that the model lacks, to choose from now and then.
    pub absent: &'a [Code],
    /// What is done with each form, by its number.
    pub reach: &'a [Reach],
    /// Decoder options.
    pub options: u32,
    /// Bits of the code: 64 or 32.
    pub bits: u32,
    /// Vector states to choose from.
    pub pool: &'a [[u8; XSAVE_LEN]],
    /// Percentage of cases made of random bytes.
    pub raw: u64,
}

/// An instruction under test.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its bytes.
    pub bytes: Bytes,
    /// Decoded.
    pub insn: Instruction,
    /// How the interpreter is to run it.
    pub path: Path,
    /// A conditional branch behind it, to the byte at the offset that it is given with: condition and offset.
    pub branch: Option<(u8, u8)>,
    /// Not in the model: only the interpreter runs it, and must raise #UD.
    pub absent: bool,
}

/// Makes a case at slot `index` of code window `which`, its state in `input`. Counts what it would not make in `avoided`, by reason.
pub fn case(
    r: &mut Rng,
    s: &Source,
    which: usize,
    index: usize,
    input: &mut Input,
    avoided: &mut BTreeMap<&'static str, u64>,
) -> Case {
    input.rip = CODE[which] + index as u64 * SLOT;
    input.run = 0;
    input.bits = s.bits;
    loop {
        let raw = r.chance(s.raw);
        let tail = r.pick(&[28u64, 29, 30, 31]);
        let lacking = !raw && !s.absent.is_empty() && r.chance(1);
        let list = if lacking { s.absent } else { s.forms };
        let mut bytes = if raw { random_bytes(r, s, tail) } else { encode::form(r, list, tail, s.bits) };
        while bytes.len < encode::MAX {
            bytes.push(r.bits() as u8);
        }
        let mut insn = decode_at(&bytes.b[..bytes.len], input.rip, s.options, s.bits);
        let reach = if insn.is_invalid() { Reach::Both } else { s.reach[insn.code() as usize] };
        if matches!(reach, Reach::No(_)) || insn.mnemonic() == M::Int && insn.immediate8() == 0x80 {
            continue;
        }
        if !insn.is_invalid() {
            bytes.len = insn.len();
        }
        state(r, s, which, input);
        aim_all(r, s, &mut bytes, &mut insn, which, input);
        if let Some(why) = undefined::avoid(&insn, &bytes, input) {
            *avoided.entry(why).or_default() += 1;
            continue;
        }
        let path = if r.chance(70) { Path::Block } else { Path::Generic };
        let branch = branch_behind(r, &insn, bytes.len);
        return Case { bytes, insn, path, branch, absent: reach == Reach::Absent };
    }
}

/// Sometimes a conditional branch follows: some pairs are executed as one. It leads to one of the last bytes of the slot.
fn branch_behind(r: &mut Rng, insn: &Instruction, len: usize) -> Option<(u8, u8)> {
    // Undefined flags decide nothing, and a trap flag that POPF sets would fire too early.
    let known = undefined::flags(insn) == 0 && !matches!(insn.mnemonic(), M::Popf | M::Popfd | M::Popfq);
    let simple = !insn.is_invalid() && insn.flow_control() == FlowControl::Next && len <= 13;
    (simple && known && r.chance(20)).then(|| (r.below(16) as u8, 28 + r.below(4) as u8))
}

/// Random bytes, more likely than by chance to be an instruction; or a form with something wrong in it.
fn random_bytes(r: &mut Rng, s: &Source, tail: u64) -> Bytes {
    if r.chance(50) {
        let mut b = encode::form(r, s.forms, tail, s.bits);
        let at = r.below(b.len.max(1) as u64) as usize;
        b.b[at] = if r.chance(50) { b.b[at] ^ 1 << r.below(8) } else { r.bits() as u8 };
        return b;
    }
    let mut b = Bytes::default();
    if r.chance(1) {
        // Too long.
        for _ in 0..encode::MAX {
            b.push(r.pick(&[0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x40, 0x48]));
        }
        return b;
    }
    while r.chance(35) {
        let p = r.pick(&[0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x3e, 0x64, 0x65, 0x26, 0x36]);
        b.push(p);
    }
    if s.bits == 64 && r.chance(40) {
        b.push(0x40 | r.below(16) as u8);
    }
    match r.below(10) {
        0..=2 => b.push(0x0f),
        3 => {
            b.push(0x0f);
            b.push(0x38);
        }
        4 => {
            b.push(0x0f);
            b.push(0x3a);
        }
        5 => b.push(0xc5),
        6 => {
            b.push(0xc4);
            b.push((r.bits() as u8 & 0xe0) | r.pick(&[1, 2, 3, 0, 4, 8]));
        }
        7 => b.push(r.pick(&[0x62, 0x8f, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf])),
        _ => {}
    }
    b
}

/// Registers and flags.
fn state(r: &mut Rng, s: &Source, which: usize, input: &mut Input) {
    for g in &mut input.gpr {
        *g = values::int(r);
    }
    input.gpr[4] = aim::stack(r, which);
    if s.bits == 32 {
        for (n, g) in input.gpr.iter_mut().enumerate() {
            *g &= if n < 8 { 0xffff_ffff } else { 0 };
        }
    }
    input.rflags = values::flags(r);
    let base = |r: &mut Rng| match r.below(4) {
        0 => 0,
        1 => r.bits() >> 20,
        _ => DATA - r.below(0x1000),
    };
    input.fs_base = base(r);
    input.gs_base = base(r);
    input.xsave.copy_from_slice(&r.pick_ref(s.pool)[..]);
    for p in &mut input.patch {
        p.len = 0;
    }
    input.log = [Span::default(); 3];
}

trait PickRef {
    fn pick_ref<'a, T>(&mut self, list: &'a [T]) -> &'a T;
}
impl PickRef for Rng {
    fn pick_ref<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

/// Puts `data` at linear address `lin` before the case, as far as that is in the data window.
fn patch(p: &mut Patch, lin: u64, data: &[u8]) {
    let Some(off) = data_offset(lin) else {
        p.len = 0;
        return;
    };
    let n = data.len().min(PATCH_LEN).min((DATA_LEN - off) as usize);
    p.data[..n].copy_from_slice(&data[..n]);
    (p.off, p.len) = (off as u32, n as u32);
}

fn span(lin: u64, before: u64, after: u64) -> Span {
    let off = lin.wrapping_sub(DATA) as i64;
    if !(-4096..DATA_LEN as i64 + 4096).contains(&off) {
        return Span::default();
    }
    Span::clamped(off - before as i64, off.saturating_add(after as i64), 1024)
}

fn aim_all(
    r: &mut Rng,
    s: &Source,
    bytes: &mut Bytes,
    insn: &mut Instruction,
    which: usize,
    input: &mut Input,
) {
    if insn.is_invalid() {
        return;
    }
    prepare_registers(r, insn, which, input);
    let memory = (0..insn.op_count()).any(|o| insn.op_kind(o) == OpKind::Memory);
    let size = operand_size(insn);
    if memory
        && insn.mnemonic() != M::Lea
        && let Some(lin) = operand_place(r, insn, size, which)
    {
        aim::at(r, insn, bytes, input, lin, s.options);
        *insn = decode_at(&bytes.b[..bytes.len], input.rip, s.options, s.bits);
    }
    let mut data = [0; PATCH_LEN];
    if let (true, Some(lin)) = (memory, aim::address(insn, input, 0)) {
        values::memory(r, &mut data);
        operand_data(r, insn, which, input, &mut data);
        patch(&mut input.patch[0], lin, &data);
        input.log[0] = span(lin, 32, size.max(32) + 32);
        if let Some(bit) = aim::bit_address(insn, input) {
            input.log[2] = span(bit, 8, 16);
        }
    }
    if insn.code().op_code().is_stack_instruction() || matches!(insn.flow_control(), FlowControl::Return) {
        values::memory(r, &mut data);
        stack_data(r, insn, which, &mut data);
        let rsp = if insn.mnemonic() == M::Leave { input.gpr[5] } else { input.gpr[4] };
        patch(&mut input.patch[1], rsp, &data);
        input.log[1] = span(rsp, if insn.mnemonic() == M::Enter { 256 } else { 72 }, 72);
    }
    implicit(r, insn, which, input);
    if s.bits == 32 {
        for g in &mut input.gpr {
            *g &= 0xffff_ffff;
        }
    }
}

/// Where to aim a memory operand. The save areas, whose size is the host's own, stay clear of the ends of mapped memory.
fn operand_place(r: &mut Rng, insn: &Instruction, size: u64, which: usize) -> Option<u64> {
    if undefined::elementwise(insn) {
        // Not across the canonical boundary.
        return aim::target(r, size | 1, which);
    }
    if !undefined::is_xsave(insn.mnemonic()) {
        return aim::target(r, size, which);
    }
    let start = DATA + r.pick(&[1, 8]) * crate::layout::PAGE + r.below(5000);
    match r.below(12) {
        0 => Some(DATA + 4 * crate::layout::PAGE + r.below(64) * 64),
        1 => Some(start),
        2 => Some((1 << 47) + r.below(4096)),
        _ => Some(start & !63),
    }
}

/// Bytes that the memory operand reaches over.
fn operand_size(insn: &Instruction) -> u64 {
    match insn.mnemonic() {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => 512,
        M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64
        | M::Xsaves
        | M::Xrstors => XSAVE_LEN as u64,
        _ => insn.memory_size().size().max(1) as u64,
    }
}

/// Registers that decide how far an instruction reaches.
fn prepare_registers(r: &mut Rng, insn: &Instruction, which: usize, input: &mut Input) {
    let gpr = &mut input.gpr;
    match insn.mnemonic() {
        M::Bt | M::Bts | M::Btr | M::Btc if insn.op1_kind() == OpKind::Register && r.chance(80) => {
            let n = aim::number(insn.op1_register());
            let v = r.below(1 << 11).wrapping_sub(1 << 10);
            gpr[n] =
                if insn.op1_register().size() == 8 { v } else { r.bits() & !0xffff_ffff | v & 0xffff_ffff };
        }
        M::Div | M::Idiv if r.chance(60) => {
            let keep = r.below(2);
            gpr[2] = match keep {
                0 => 0,
                _ => (gpr[0] as i64 >> 63) as u64,
            };
            if r.chance(50) {
                gpr[0] &= 0xff;
            }
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz if r.chance(60) => {
            gpr[1] = r.below(3) | r.below(2) << 32;
        }
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 => {
            // The host may have further components in XCR0 than the model.
            gpr[0] = r.below(8);
            gpr[2] = 0;
        }
        M::Enter | M::Leave => gpr[5] = aim::stack(r, which),
        M::Wrfsbase | M::Wrgsbase if r.chance(70) => {
            gpr[aim::number(insn.op0_register())] = (r.bits() as i64 >> r.pick(&[16, 17, 18, 30])) as u64;
        }
        M::Mov
            if insn.op0_kind() == OpKind::Register
                && insn.op0_register().is_segment_register()
                && insn.op1_kind() == OpKind::Register =>
        {
            gpr[aim::number(insn.op1_register())] = selector(r);
        }
        M::Lar | M::Lsl | M::Verr | M::Verw => {
            let n = insn.op_count() - 1;
            if insn.op_kind(n) == OpKind::Register {
                gpr[aim::number(insn.op_register(n))] = selector(r) | r.bits() & !0xffff;
            }
        }
        _ => {}
    }
}

fn selector(r: &mut Rng) -> u64 {
    // The user's code and data, null, the kernel's; no others, for those are the host's own business.
    r.pick(&[
        0u64, 1, 2, 3, 0x2b, 0x2b, 0x2b, 0x23, 0x33, 0x10, 0x18, 0x13, 0x1b, 0x2a, 0x28, 0xfff0, 0x4004, 0xff,
    ])
}

fn put(data: &mut [u8; PATCH_LEN], at: usize, v: u64, n: usize) {
    data[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
}

/// What some instructions want to find in memory.
fn operand_data(r: &mut Rng, insn: &Instruction, which: usize, input: &Input, data: &mut [u8; PATCH_LEN]) {
    let landing = values::landing(r, which);
    let mxcsr = 0x1f80 | r.bits() & 0x6000;
    match insn.mnemonic() {
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if r.chance(50) => {
            let half = if insn.mnemonic() == M::Cmpxchg8b { 4 } else { 8 };
            put(data, 0, input.gpr[0], half);
            if insn.mnemonic() != M::Cmpxchg {
                put(data, half, input.gpr[2], half);
            }
        }
        M::Jmp | M::Call if insn.op0_kind() == OpKind::Memory && r.chance(80) => {
            let n = insn.memory_size().size().min(10);
            put(data, 0, landing, 8);
            if matches!(insn.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
                && n != 8
                && n != 2
            {
                // A far pointer: offset, then selector.
                put(data, n - 2, r.pick(&[0x33, 0x33, 0x23, 0x2b, 0]), 2);
            }
        }
        M::Ldmxcsr | M::Vldmxcsr if r.chance(70) => put(data, 0, mxcsr, 4),
        M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64 => {
            // Processors with 57-bit addresses drop other bits of these pointers than those with 48.
            put(data, 8, (r.bits() as i64 >> 17) as u64, 8);
            put(data, 16, (r.bits() as i64 >> 17) as u64, 8);
            if r.chance(80) {
                put(data, 24, mxcsr, 4);
            }
        }
        M::Mov if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() => {
            put(data, 0, selector(r), 2);
        }
        M::Lar | M::Lsl | M::Verr | M::Verw => put(data, 0, selector(r), 2),
        M::Lss | M::Lfs | M::Lgs | M::Les | M::Lds => {
            let n = insn.memory_size().size().clamp(4, 10);
            put(data, n - 2, selector(r), 2);
        }
        _ => {}
    }
}

/// What is on the stack for the instructions that take it for addresses or flags.
fn stack_data(r: &mut Rng, insn: &Instruction, which: usize, data: &mut [u8; PATCH_LEN]) {
    let landing = values::landing(r, which);
    match insn.mnemonic() {
        M::Ret if r.chance(85) => put(data, 0, landing, 8),
        M::Retf => {
            let n = far_size(insn);
            put(data, 0, landing, n);
            put(data, n, r.pick(&[0x33, 0x33, 0x33, 0x23, 0x2b, 0, 0x10]), n);
            put(data, 2 * n, DATA + 0x8400 + r.below(64), n);
            put(data, 3 * n, selector(r), n);
        }
        M::Iret | M::Iretd | M::Iretq => {
            let n = far_size(insn);
            put(data, 0, landing, n);
            put(data, n, r.pick(&[0x33, 0x33, 0x33, 0x23, 0x2b, 0, 0x10]), n);
            put(data, 2 * n, values::flags(r) | (r.bits() & (0x24_7000 * r.below(2))), n);
            put(data, 3 * n, DATA + 0x8400 + r.below(64), n);
            put(data, 4 * n, r.pick(&[0x2b, 0x2b, 0x2b, 0, 0x33, 0x10]), n);
        }
        M::Pop if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() => {
            put(data, 0, selector(r), 2);
        }
        _ => {}
    }
}

fn far_size(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
        _ => 8,
    }
}

/// Operands that no ModRM names: strings, MASKMOV, indirect branches by register, the rest of XRSTOR's area.
fn implicit(r: &mut Rng, insn: &Instruction, which: usize, input: &mut Input) {
    let kinds = [insn.op0_kind(), insn.op1_kind(), insn.op2_kind()];
    let has = |k: &[OpKind]| kinds.iter().any(|x| k.contains(x));
    let mut data = [0; PATCH_LEN];
    let short = has(&[OpKind::MemorySegESI, OpKind::MemoryESEDI, OpKind::MemorySegEDI]);
    let mut place = |r: &mut Rng, input: &mut Input, n: usize, seg: u64| {
        let size = insn.memory_size().size().max(1) as u64;
        let elements = r.pick(&[1, 1, 4]);
        if let Some(lin) = aim::target(r, size * elements, which) {
            let v = lin.wrapping_sub(seg);
            input.gpr[n] = if short { input.gpr[n] & !0xffff_ffff | v & 0xffff_ffff } else { v };
        }
        let lin = if short { input.gpr[n] & 0xffff_ffff } else { input.gpr[n] }.wrapping_add(seg);
        values::memory(r, &mut data);
        patch(&mut input.patch[n - 6], lin, &data);
        input.log[n - 6] = span(lin, 328, 328);
    };
    let seg = match insn.memory_segment() {
        Register::FS => input.fs_base,
        Register::GS => input.gs_base,
        _ => 0,
    };
    let source = has(&[OpKind::MemorySegRSI, OpKind::MemorySegESI]);
    let dest = has(&[OpKind::MemoryESRDI, OpKind::MemoryESEDI]);
    if source {
        place(r, input, 6, seg);
    }
    if dest {
        place(r, input, 7, 0);
    }
    if has(&[OpKind::MemorySegRDI, OpKind::MemorySegEDI]) {
        place(r, input, 7, seg);
    }
    if source || dest {
        let count = if r.chance(60) { r.below(6) } else { r.below(40) };
        input.gpr[1] = if short { r.bits() & !0xffff_ffff | count } else { count };
        // Comparisons that go on for a while.
        if r.chance(40) && input.patch[1].len == PATCH_LEN as u32 {
            let first = input.patch[1].data[..8].to_owned();
            for c in input.patch[1].data.chunks_exact_mut(8) {
                c.copy_from_slice(&first);
            }
            input.patch[0].data = input.patch[1].data;
            input.gpr[0] = u64::from_le_bytes(first.try_into().unwrap_or_default());
        }
    }
    match insn.mnemonic() {
        M::Jmp | M::Call if insn.op0_kind() == OpKind::Register && r.chance(80) => {
            input.gpr[aim::number(insn.op0_register())] = values::landing(r, which);
        }
        M::Xrstor | M::Xrstor64 => {
            if let Some(lin) = aim::address(insn, input, 0) {
                let mut header = [0; PATCH_LEN];
                // Of the components that the model lacks, those of MPX, which no host has that has what this test needs.
                header[0] = r.below(8) as u8 | if r.chance(5) { 8 } else { 0 };
                if r.chance(10) {
                    header[7 + 8 * r.below(4) as usize] = 0x80;
                }
                patch(&mut input.patch[2], lin.wrapping_add(512), &header);
            }
        }
        _ => {}
    }
}
