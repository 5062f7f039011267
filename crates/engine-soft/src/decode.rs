//! From guest bytes to a [`Block`](crate::block::Block)'s ops. Nothing but iced knows opcodes; nothing but this picks handlers.

use crate::block::{self, Cursor, MAX_OPS, Op, Ops, abort, next, stop_after, stop_at};
use crate::cpu::{Cpu, Mode, R, slot};
use crate::exec::{generic, select};
use crate::host;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

/// What decoding the bytes of a page gave.
pub struct Decoded {
    /// The ops; without an instruction if not one whole instruction was there.
    pub ops: Ops,
    /// Bytes they take.
    pub len: u32,
    /// Memory operands and stack slots that they access, a repeated string instruction counted as one element.
    pub accesses: u32,
}

/// How to decode.
#[derive(Clone, Copy)]
pub struct How {
    /// 16, 32 or 64.
    pub bits: u32,
    /// The model is AMD's: a 66 prefix shortens near branches in 64-bit code, for one.
    pub amd: bool,
    /// Instructions at most.
    pub limit: usize,
}

/// Ops that there is room for at first.
const USUAL_OPS: usize = 20;
/// The longest instruction.
const MAX_INSN: usize = 15;

/// Decodes up to the first instruction that ends a block, that is cut off by the end of `bytes`, or `how.limit`.
#[must_use]
pub fn decode(bytes: &[u8], how: How) -> Decoded {
    let options = if how.amd { DecoderOptions::AMD } else { DecoderOptions::NONE };
    let mut decoder = Decoder::with_ip(how.bits, bytes, 0, options);
    let mut ops: Vec<Op> = Vec::with_capacity(USUAL_OPS);
    let mut len = 0;
    let mut accesses = 0;
    let mut insn = Instruction::default();
    let mut previous = insn;
    let limit = how.limit.min(MAX_OPS);
    let mut closed = false;
    while !closed && ops.len() < limit && decoder.can_decode() {
        decoder.decode_out(&mut insn);
        if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let ip = len;
        len += insn.len() as u32;
        accesses += accesses_of(&insn);
        closed = insn.is_invalid() || ends_block(&insn);
        let op = make_op(&insn, ip, how, insn.is_invalid().then(|| too_long(&bytes[ip as usize..], how)));
        if op.insn.is_none()
            && let Some(before) = ops.last_mut()
            && before.insn.is_none()
            && let Some(both) = select::fuse(&previous, &insn)
        {
            // The branch keeps its op: it is an instruction to be counted, and where it leads to stands there.
            before.handler = both;
        }
        previous = insn;
        ops.push(op);
    }
    Decoded { ops: Ops::new(ops, blank(len, 0)), len, accesses }
}

/// Memory operands (LEA and NOP have none that is accessed) and a stack slot.
fn accesses_of(i: &Instruction) -> u32 {
    if matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Reservednop) {
        return 0;
    }
    let operands = i.op_kinds().filter(|k| *k >= OpKind::MemorySegSI).count() as u32;
    operands + u32::from(i.is_stack_instruction())
}

fn ends_block(i: &Instruction) -> bool {
    i.flow_control() != FlowControl::Next || i.mnemonic() == Mnemonic::Hlt
}

/// Whether an invalid instruction is so because it is longer than 15 bytes: #GP(0), not #UD (Intel SDM vol. 2 §2.3.11). It is
/// decoded once more without the prefixes that say nothing about its length.
fn too_long(bytes: &[u8], how: How) -> bool {
    let is_prefix = |b: &u8| {
        matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || how.bits == 64 && matches!(b, 0x40..=0x4f)
    };
    let bytes = &bytes[..bytes.len().min(MAX_INSN + 1)];
    let prefixes = bytes.iter().take_while(|b| is_prefix(b)).count();
    let (prefix, rest) = bytes.split_at(prefixes);
    let mut short = Vec::with_capacity(bytes.len());
    // VEX, EVEX and XOP take none but 67, but how long they are shows before that.
    let vex = how.bits == 64
        && (matches!(rest, [0xc4 | 0xc5 | 0x62, ..]) || matches!(rest, [0x8f, b, ..] if b & 0x1f >= 8));
    let keep: &[u8] = if vex { &[0x67] } else { &[0x66, 0x67] };
    short.extend(keep.iter().filter(|p| prefix.contains(p)));
    if !vex {
        short.extend(prefix.iter().rfind(|p| matches!(p, 0xf2 | 0xf3)));
        short.extend(prefix.last().filter(|p| matches!(p, 0x40..=0x4f)));
    }
    let dropped = prefixes - short.len();
    short.extend(rest);
    let options = if how.amd { DecoderOptions::AMD } else { DecoderOptions::NONE };
    let mut d = Decoder::with_ip(how.bits, &short, 0, options);
    let len = d.decode().len();
    dropped + len + usize::from(d.last_error() == DecoderError::NoMoreBytes) > MAX_INSN
}

fn blank(ip: u32, len: u8) -> Op {
    Op {
        handler: run_generic,
        a: 0,
        b: 0,
        base: slot::ZERO,
        index: slot::ZERO,
        scale: 0,
        seg_slot: slot::ZERO,
        stack: false,
        len,
        ip: ip as u16,
        disp: 0,
        imm: 0,
        insn: None,
    }
}

fn make_op(i: &Instruction, ip: u32, how: How, invalid: Option<bool>) -> Op {
    let mut op = blank(ip, i.len() as u8);
    match invalid {
        Some(true) => op.handler = raise_gp,
        Some(false) => op.handler = raise_ud,
        None => {
            let next = u64::from(ip) + i.len() as u64;
            match if how.bits == 64 { select::select(&mut op, i, next) } else { None } {
                Some(h) => op.handler = h,
                None => {
                    op = blank(ip, i.len() as u8);
                    let host = host::prepare(i);
                    if host.is_some() {
                        let hot = if how.bits == 64 { host::select(&mut op, i, next) } else { None };
                        op.handler = hot.unwrap_or(run_host);
                    }
                    op.insn = Some(Box::new(block::Decoded {
                        insn: *i,
                        is_host: host.is_some(),
                        host: host.unwrap_or_default(),
                    }));
                }
            }
        }
    }
    op
}

fn raise_ud(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.ud();
    abort(cpu, at);
}

fn raise_gp(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.gp(0);
    abort(cpu, at);
}

/// Executes an op from its decoded instruction.
fn run_generic(cpu: &mut Cpu, at: Cursor<'_>) {
    let Some(d) = &at.op().insn else { return raise_ud(cpu, at) };
    run_decoded(cpu, at, d, |cpu, d| generic::execute(cpu, &d.insn));
}

/// Executes an op that the host runs.
pub(crate) fn run_host(cpu: &mut Cpu, at: Cursor<'_>) {
    let Some(d) = &at.op().insn else { return raise_ud(cpu, at) };
    run_decoded(cpu, at, d, |cpu, d| host::run(cpu, &d.host, &d.insn));
}

#[inline(always)]
fn run_decoded(
    cpu: &mut Cpu,
    at: Cursor<'_>,
    d: &block::Decoded,
    execute: impl FnOnce(&mut Cpu, &block::Decoded) -> R<()>,
) {
    let op = at.op();
    let wrap = match cpu.mode {
        Mode::Long => u64::MAX,
        Mode::Prot32 => 0xffff_ffff,
        _ => 0xffff,
    };
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(u64::from(op.ip)) & wrap;
    let following = cpu.rip.wrapping_add(u64::from(op.len)) & wrap;
    cpu.next_rip = following;
    cpu.last_mnemonic = d.insn.mnemonic();
    match execute(cpu, d) {
        Ok(()) => {
            cpu.rip = cpu.next_rip;
            if cpu.rip == following && !cpu.leave {
                next(cpu, at);
            } else {
                stop_after(cpu, at);
            }
        }
        Err(_) => stop_at(cpu, at),
    }
}

/// Whether `m` is an instruction that REP repeats. MOVSD and CMPSD are also vector instructions', which do no harm here: they go on.
pub(crate) fn is_string(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsd
            | M::Cmpsq
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
    )
}
