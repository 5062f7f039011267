//! Single instructions with their state before and after, in text files.
//!
//! A file has cases of this form, one item a line:
//!
//! ```text
//! == add r32, m32
//! code 64 034310
//! in rbx=601040 rax=5 rflags=206
//! mem 601050=07000000
//! out rax=c rflags=206
//! ```
//!
//! What is not said of the state before is as [`start`] has it; `out` and `now` say all that has changed, and `event` what was raised:
//! vector, error code, and CR2 where it means something. They are made from the interpreter, which is held to real processors by
//! `ringer-difftest`, by [`write`].

use crate::r#gen::Pool;
use crate::helper::Helper;
use crate::layout as l;
use crate::program::{Insn, Program};
use crate::side::Side;
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register,
    RflagsBits,
};
use ringer_arch::VcpuState;
use ringer_arch::regs::rflags;
use ringer_difftest::forms::{self, Reach};
use ringer_difftest::interp::decode_at;
use ringer_difftest::rng::{Rng, mix};
use ringer_difftest::{encode, undefined, values};
use ringer_lockstep::states::{NAMES, hex};
use std::fmt::Write as _;

/// Offset in the code window of the instruction.
const AT: u64 = 0x100;
/// Offset that direct branches lead to, from the instruction's start.
const TAIL: u64 = 0x40;
/// Where memory operands are.
const OPERAND: u64 = l::DATA + l::PAGE + 0x40;
/// Bytes of memory around the operand that are watched.
const WATCHED: u64 = 96;
/// Most attempts to find the form wanted.
const ATTEMPTS: usize = 400;

/// One case.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Case {
    /// What it is.
    pub name: String,
    /// Bits of the code.
    pub bits: u32,
    /// The instruction.
    pub bytes: Vec<u8>,
    /// State before, and after: names and values.
    pub input: Vec<(String, u128)>,
    /// Memory before: address and bytes.
    pub memory: Vec<(u64, Vec<u8>)>,
    /// What has changed.
    pub output: Vec<String>,
}

/// The processor before a case.
#[must_use]
pub fn start(pool: &Pool, bits: u32) -> VcpuState {
    let mut s = pool.base.clone();
    let regs = if bits == 64 { 16 } else { 8 };
    for n in 0..regs {
        s.gpr[n] = 0x0101_0101_0101_0101u64.wrapping_mul(n as u64 + 1)
            & if bits == 64 { u64::MAX } else { 0xffff_ffff };
    }
    s.gpr[4] = l::STACK_TOP;
    if bits == 32 {
        s.seg[1] = crate::machine::segment(l::selector::KERNEL_CODE32, 0x00cf_9b00_0000_ffff);
    }
    s.rip = l::KERNEL_CODE + AT;
    s.rflags = 2;
    for n in 0..16 {
        for (i, b) in s.xsave[160 + 16 * n..][..16].iter_mut().enumerate() {
            *b = (n * 16 + i) as u8;
        }
        for (i, b) in s.xsave[576 + 16 * n..][..16].iter_mut().enumerate() {
            *b = (n * 16 + i) as u8 ^ 0x55;
        }
    }
    // Two numbers on the x87 stack.
    s.xsave[2..4].copy_from_slice(&(6u16 << 11).to_le_bytes());
    s.xsave[4] = 0xc0;
    for (n, v) in [(0, 0x3fff_c000_0000_0000_0000u128), (1, 0x4000_a000_0000_0000_0000)] {
        s.xsave[32 + 16 * n..][..10].copy_from_slice(&v.to_le_bytes()[..10]);
    }
    s
}

fn number(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.parse().ok().filter(|n| *n < 16)
}

/// Sets one item of the state.
fn set(s: &mut VcpuState, name: &str, v: u128) {
    if let Some(n) = NAMES.iter().position(|x| *x == name) {
        s.gpr[n] = v as u64;
    } else if name == "rflags" {
        s.rflags = v as u64;
    } else if let Some(n) = number(name, "xmm") {
        s.xsave[160 + 16 * n..][..16].copy_from_slice(&v.to_le_bytes());
    } else if let Some(n) = number(name, "ymmh") {
        s.xsave[576 + 16 * n..][..16].copy_from_slice(&v.to_le_bytes());
    }
}

/// All items of a state that cases speak of.
fn items(s: &VcpuState) -> Vec<(String, u128)> {
    let at = |from: usize, n: usize| {
        let mut b = [0; 16];
        b[..n].copy_from_slice(&s.xsave[from..from + n]);
        u128::from_le_bytes(b)
    };
    let mut all: Vec<_> =
        NAMES.iter().enumerate().map(|(n, x)| ((*x).to_owned(), u128::from(s.gpr[n]))).collect();
    all.push(("rip".into(), u128::from(s.rip)));
    all.push(("rflags".into(), u128::from(s.rflags)));
    for (n, x) in [(4, "fs"), (5, "gs")] {
        all.push((format!("{x}base"), u128::from(s.seg[n].base)));
    }
    for (x, from, n) in [("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("mxcsr", 24, 4)] {
        all.push((x.into(), at(from, n)));
    }
    all.extend((0..8).map(|n| (format!("st{n}"), at(32 + 16 * n, 10))));
    all.extend((0..16).map(|n| (format!("xmm{n}"), at(160 + 16 * n, 16))));
    all.extend((0..16).map(|n| (format!("ymmh{n}"), at(576 + 16 * n, 16))));
    all
}

/// Every form that is tried, by mnemonic: in 64-bit code, or in 32-bit code if it is only there.
#[must_use]
pub fn forms_of(pool: &Pool) -> Vec<(M, u32, Vec<Code>)> {
    let mut out: Vec<(M, u32, Vec<Code>)> = Vec::new();
    for bits in [64, 32] {
        for (code, reach) in forms::all(&pool.model, bits) {
            let m = code.mnemonic();
            if reach != Reach::Both || crate::r#gen::ends_or_leaves(m) {
                continue;
            }
            match out.iter_mut().find(|(x, ..)| *x == m) {
                Some((_, b, list)) if *b == bits => list.push(code),
                Some(_) => {}
                None => out.push((m, bits, vec![code])),
            }
        }
    }
    out.sort_by_key(|(m, ..)| format!("{m:?}"));
    out
}

/// Makes the cases of one mnemonic: without and with a memory operand, where there are such forms. Outputs are empty yet.
#[must_use]
pub fn cases(pool: &Pool, m: M, bits: u32, codes: &[Code]) -> Vec<Case> {
    let mut out = Vec::new();
    for memory in [false, true] {
        let mut r =
            Rng::new(mix(format!("{m:?}").bytes().fold(0, |a, b| mix(a ^ u64::from(b)))), u64::from(memory));
        for _ in 0..ATTEMPTS {
            let b = encode::form(&mut r, codes, TAIL, bits);
            let rip = l::KERNEL_CODE + AT;
            let i = decode_at(&b.b[..b.len], rip, pool.options, bits);
            // Branches to the first 64 KiB lead nowhere.
            if (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::NearBranch16) {
                continue;
            }
            let has = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Memory);
            let narrow = i.flow_control() != FlowControl::Next && i.op_code().operand_size() == 16;
            if narrow
                || i.is_invalid()
                || i.mnemonic() != m
                || has != memory
                || i.has_lock_prefix()
                || i.len() != b.len
            {
                continue;
            }
            if let Some(c) = case(pool, &mut r, &i, memory) {
                out.push(c);
                break;
            }
        }
    }
    out
}

fn case(pool: &Pool, r: &mut Rng, i: &Instruction, memory: bool) -> Option<Case> {
    let bits = if i.code_size() == iced_x86::CodeSize::Code64 { 64 } else { 32 };
    let mut i = *i;
    let mut c = Case { bits, ..Case::default() };
    let base = if bits == 64 { Register::RBX } else { Register::EBX };
    let fixed = i.op_code().op_kinds().contains(&iced_x86::OpCodeOperandKind::mem_offs);
    if memory {
        i.set_segment_prefix(Register::None);
        i.set_memory_base(if fixed { Register::None } else { base });
        if !i.is_vsib() && i.memory_index() != Register::AL {
            i.set_memory_index(Register::None);
            i.set_memory_index_scale(1);
        }
        i.set_memory_displacement64(if fixed { OPERAND + 16 } else { 16 });
        i.set_memory_displ_size(if fixed { bits / 8 } else { 1 });
    }
    let rip = l::KERNEL_CODE + AT;
    let mut encoder = iced_x86::Encoder::new(bits);
    encoder.encode(&i, rip).ok()?;
    c.bytes = encoder.take_buffer();
    let again = decode_at(&c.bytes, rip, pool.options, bits);
    if again.code() != i.code() {
        return None;
    }
    registers(r, &again, &mut c);
    if memory || (0..again.op_count()).any(|o| again.op_kind(o) >= OpKind::MemorySegSI) {
        let mut bytes = vec![0; WATCHED as usize];
        values::memory(r, &mut bytes);
        c.memory.push((OPERAND, bytes));
    }
    let mut name = String::new();
    iced_x86::FastFormatter::new().format(&again, &mut name);
    c.name = name;
    Some(c)
}

/// Chooses what the instruction reads.
fn registers(r: &mut Rng, i: &Instruction, c: &mut Case) {
    let mut info = InstructionInfoFactory::new();
    let mask = if c.bits == 64 { u64::MAX } else { 0xffff_ffff };
    let mut put = |name: String, v: u128| {
        if !c.input.iter().any(|(n, _)| *n == name) {
            c.input.push((name, v));
        }
    };
    let indirect = matches!(i.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall);
    put("rbx".into(), u128::from(OPERAND));
    for u in info.info(i).used_registers() {
        let reg = u.register();
        if matches!(u.access(), OpAccess::Write | OpAccess::CondWrite) {
            continue;
        }
        if reg.is_gpr() {
            let n = reg.full_register().number();
            let v = match n {
                4 => continue,
                6 => OPERAND + 16,
                7 => OPERAND + 48,
                1 if i.has_rep_prefix() || i.has_repne_prefix() => 3,
                2 if matches!(i.mnemonic(), M::Div | M::Idiv) => 0,
                _ if indirect => l::KERNEL_CODE + AT + TAIL,
                _ if undefined::is_xsave(i.mnemonic()) => 7,
                _ => values::int(r) & mask,
            };
            put(NAMES[n].into(), u128::from(v));
        } else if reg.is_vector_register() {
            let n = reg.full_register().number();
            let zero = i.is_vsib() && i.memory_index().number() == n;
            let mut b = [0; 32];
            if !zero {
                values::memory(r, &mut b);
            }
            let half = |b: &[u8]| u128::from_le_bytes(b.try_into().unwrap_or_default());
            put(format!("xmm{n}"), half(&b[..16]));
            put(format!("ymmh{n}"), half(&b[16..]));
        }
    }
    put("rflags".into(), u128::from(2 | r.bits() & 0x8d5));
}

/// Runs a case and says what it changed.
///
/// # Errors
/// The engine refuses the state.
pub fn run(side: &mut Side, helper: &Helper, pool: &Pool, c: &Case) -> anyhow::Result<Vec<String>> {
    let mut p = Program::new(start(pool, c.bits));
    (p.base, p.bits, p.limit) = (l::KERNEL_CODE, c.bits, 4);
    for (name, v) in &c.input {
        set(&mut p.state, name, *v);
    }
    // Wherever it goes on, the program ends.
    for at in p.code[..0x200].chunks_exact_mut(2) {
        at.copy_from_slice(&[0xe6, l::PORT_END]);
    }
    let at = AT as usize;
    p.code[at..at + c.bytes.len()].copy_from_slice(&c.bytes);
    p.code[at + c.bytes.len()..][..2].copy_from_slice(&[0xe6, l::PORT_END]);
    p.insns.push(Insn { off: AT as u16, len: c.bytes.len() as u8 });
    p.used.push((0, 0x200));
    for (lin, bytes) in &c.memory {
        p.patches.push((lin - l::DATA + l::DATA_GPA, bytes[..].into()));
    }
    // A return leads somewhere, too.
    let stack = (l::STACK_TOP - l::STACK) % l::PAGE;
    let back = l::KERNEL_CODE + AT + TAIL;
    p.patches.push((l::STACK_GPA + 2 * l::PAGE + stack, [back.to_le_bytes(); 8].concat().into()));
    let before = p.state.clone();
    let o = side.run(&p, helper)?;
    let mut out = Vec::new();
    anyhow::ensure!(o.ended, "{} does not end", c.name);
    let insn = decode_at(&c.bytes, p.state.rip, pool.options, c.bits);
    let mut mask = undefined::flags(&insn);
    if matches!(insn.mnemonic(), M::Bsf | M::Bsr) {
        // All but ZF are undefined (AMD APM vol. 3, BSF and BSR): Zen 5 keeps them, Zen 4 does not.
        mask |= rflags::ARITH & !rflags::ZF;
    }
    let mut line = String::from("out");
    for ((name, a), (_, b)) in items(&before).into_iter().zip(items(&o.state)) {
        let hide = if name == "rflags" { u128::from(mask | 1 << 16) } else { 0 };
        if (a & !hide) != (b & !hide) {
            let _infallible = write!(line, " {name}={:x}", b & !hide);
        }
    }
    out.push(line);
    events(side, &mut out);
    for (lin, bytes) in &c.memory {
        let mut now = vec![0; bytes.len()];
        side.read(lin - l::DATA + l::DATA_GPA, &mut now);
        let (x, y) = (
            bytes.iter().zip(&now).position(|(a, b)| a != b),
            bytes.iter().zip(&now).rposition(|(a, b)| a != b),
        );
        if let (Some(x), Some(y)) = (x, y) {
            out.push(format!("now {:x}={}", lin + x as u64, hex(&now[x..=y])));
        }
    }
    Ok(out)
}

/// iced-x86's flags and where they are in RFLAGS.
const FLAGS: [(u32, u64); 6] = [
    (RflagsBits::OF, rflags::OF),
    (RflagsBits::SF, rflags::SF),
    (RflagsBits::ZF, rflags::ZF),
    (RflagsBits::AF, rflags::AF),
    (RflagsBits::CF, rflags::CF),
    (RflagsBits::PF, rflags::PF),
];

/// What a case changes as every maker's processor does: without the flags that the manuals leave undefined (SDM vol. 1 app. A), and without
/// the bits of MXCSR that there are, which FXSAVE stores (AMD's have MM, bit 17).
///
/// # Errors
/// `output` is not what [`run`] gives.
pub fn common(pool: &Pool, c: &Case, output: &[String]) -> anyhow::Result<Vec<String>> {
    let i = decode_at(&c.bytes, l::KERNEL_CODE + AT, pool.options, c.bits);
    let undefined = i.rflags_undefined();
    let open: u64 = FLAGS.iter().filter(|(bit, _)| undefined & bit != 0).map(|(_, flag)| flag).sum();
    let mut out = Vec::new();
    for line in output {
        if let Some(items) = line.strip_prefix("out") {
            let before = c.input.iter().find(|(n, _)| n == "rflags").map_or(2, |(_, v)| *v as u64);
            let told = items.split_whitespace().find_map(|x| x.strip_prefix("rflags="));
            let flags = told.map_or(Ok(before), |x| u64::from_str_radix(x, 16))?;
            let rest = items.split_whitespace().filter(|x| !x.starts_with("rflags="));
            let flags = format!("rflags={:x}", flags & !open);
            out.push(rest.fold("out".to_owned(), |all, x| all + " " + x) + " " + &flags);
            continue;
        }
        let mut line = line.clone();
        if matches!(i.mnemonic(), M::Fxsave | M::Fxsave64)
            && let Some(("now", rest)) = line.split_once(' ')
            && let Some((at, hex)) = rest.split_once('=')
        {
            let from = (MXCSR_MASK + OPERAND + 16).saturating_sub(u64::from_str_radix(at, 16)?) as usize * 2;
            anyhow::ensure!(hex.len() >= from + 8, "{} stores no MXCSR_MASK", c.name);
            line = format!("now {at}={}________{}", &hex[..from], &hex[from + 8..]);
        }
        out.push(line);
    }
    Ok(out)
}

/// Where FXSAVE stores which bits of MXCSR there are.
const MXCSR_MASK: u64 = 28;

/// The events in the handlers' log.
fn events(side: &Side, out: &mut Vec<String>) {
    let mut log = [0; 0x200];
    side.read(l::LOG, &mut log);
    let word = |at: usize| u32::from_le_bytes([log[at], log[at + 1], log[at + 2], log[at + 3]]);
    for n in 1..=word(0).min(6) as usize {
        let at = 64 + 64 * n;
        let (vector, code, cr2) = (word(at), word(at + 4), word(at + 48));
        let place = if vector == 14 { format!(" cr2={cr2:x}") } else { String::new() };
        out.push(format!("event vector={vector:x} code={code:x}{place}"));
    }
}

/// The text of a case.
#[must_use]
pub fn text(c: &Case) -> String {
    let mut s = format!("== {}\ncode {} {}\nin", c.name, c.bits, hex(&c.bytes));
    for (name, v) in &c.input {
        let _infallible = write!(s, " {name}={v:x}");
    }
    s.push('\n');
    for (lin, bytes) in &c.memory {
        let _infallible = writeln!(s, "mem {lin:x}={}", hex(bytes));
    }
    for line in &c.output {
        let _infallible = writeln!(s, "{line}");
    }
    s
}

/// The cases of a text.
///
/// # Errors
/// A line that is none.
pub fn parse(text: &str) -> anyhow::Result<Vec<Case>> {
    let mut out: Vec<Case> = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            out.push(Case { name: name.to_owned(), ..Case::default() });
            continue;
        }
        let Some(c) = out.last_mut() else { anyhow::bail!("a line before the first case: {line}") };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "code" => {
                let (bits, bytes) = rest.split_once(' ').unwrap_or((rest, ""));
                (c.bits, c.bytes) = (bits.parse()?, unhex(bytes)?);
            }
            "in" => {
                for item in rest.split_whitespace() {
                    let (name, v) = item.split_once('=').unwrap_or((item, ""));
                    c.input.push((name.to_owned(), u128::from_str_radix(v, 16)?));
                }
            }
            "mem" => {
                let (lin, bytes) = rest.split_once('=').unwrap_or((rest, ""));
                c.memory.push((u64::from_str_radix(lin, 16)?, unhex(bytes)?));
            }
            _ => c.output.push(line.to_owned()),
        }
    }
    Ok(out)
}

fn unhex(s: &str) -> anyhow::Result<Vec<u8>> {
    let pair = |p: &[u8]| -> anyhow::Result<u8> { Ok(u8::from_str_radix(std::str::from_utf8(p)?, 16)?) };
    s.as_bytes().chunks(2).map(pair).collect()
}
