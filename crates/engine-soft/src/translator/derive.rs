//! Flags that need not be saved. Those that the code after an access overwrites before anything reads them are needed only if the access
//! faults or is left to the interpreter; where the registers that they came from still hold what tells them, they are found out then. So are
//! those that are read: what reads them has the instruction that left them, or a TEST of its result, executed again.

use super::classify::Class;
use super::emit::{ARITH, home, needs};
use super::groups::{self, Insn, number};
use crate::cpu::{Cpu, R};
use crate::exec::generic;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic as M, OpKind, Register};

/// The most instructions that are looked at for the one that overwrites flags.
const FAR: usize = 24;

/// How the flags of an instruction are found out after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// It changes no register: it is executed again.
    Again,
    /// They tell of its result alone, as TEST of that would.
    Result,
    /// What it added or subtracted is taken back; then it is executed again.
    Undo,
}

fn high(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The way for `i`, and the registers, a bit each, that must be as they are behind it. None: there is no way.
fn way(i: &Instruction) -> Option<(Way, u16)> {
    let (first, second) = (i.op0_register(), i.op1_register());
    if i.op0_kind() != OpKind::Register || !first.is_gpr() || high(first) {
        return None;
    }
    let target = 1 << number(first);
    let source = match i.op_count() {
        1 => 0,
        _ => match i.op1_kind() {
            OpKind::Register if second.is_gpr() && !high(second) => 1 << number(second),
            OpKind::Register | OpKind::Memory => u16::MAX,
            _ => 0,
        },
    };
    let known = source != u16::MAX;
    match i.mnemonic() {
        M::Cmp | M::Test if known => Some((Way::Again, target | source)),
        M::And | M::Or | M::Xor => Some((Way::Result, target)),
        M::Sub if source == target => Some((Way::Result, target)),
        M::Add | M::Sub if known && source != target => Some((Way::Undo, target | source)),
        M::Neg => Some((Way::Undo, target)),
        _ => None,
    }
}

/// Whether an integer instruction without an access surely runs as itself. Few others do not: 16-bit LEA, high bytes beside RSP, three
/// registers that are in the context.
fn runs_as_itself(i: &Instruction) -> bool {
    let registers =
        || (0..i.op_count()).filter(|k| i.op_kind(*k) == OpKind::Register).map(|k| i.op_register(k));
    if i.mnemonic() == M::Lea {
        return i.op0_register().size() >= 4 && (i.memory_base().is_gpr64() || i.memory_base().is_gpr32());
    }
    registers().count() < 3 && !registers().any(high)
}

/// Whether an instruction may fault, or be left to the interpreter for its access.
fn observes(n: &Insn) -> bool {
    match n.class {
        Class::Native { unit, .. } => {
            let memory = (0..n.i.op_count()).any(|k| n.i.op_kind(k) == OpKind::Memory);
            unit != crate::host::Unit::Integer || memory && n.i.mnemonic() != M::Lea || !runs_as_itself(&n.i)
        }
        Class::Nothing => false,
        _ => true,
    }
}

/// Whether an instruction that stands between one that leaves flags and one that overwrites them may be anything but that.
fn passes(n: &Insn) -> bool {
    matches!(n.class, Class::Native { .. } | Class::Nothing | Class::Push | Class::Pop)
        && !matches!(n.i.mnemonic(), M::Div | M::Idiv)
}

/// Whether an instruction wants the flags, or some of them.
fn wants(n: &Insn) -> bool {
    match n.class {
        Class::Native { .. } => needs(&n.i) != 0,
        Class::Jump => n.i.condition_code() != ConditionCode::None,
        _ => false,
    }
}

/// Whether one that does not want them overwrites them.
fn overwrites(n: &Insn) -> bool {
    matches!(n.class, Class::Native { .. }) && n.i.rflags_modified() & ARITH != 0
}

/// Whether some of `inputs`, registers of which each has a bit, are written by `insns`.
fn lost(inputs: u16, insns: &[Insn]) -> bool {
    insns.iter().any(|n| groups::written(n) & inputs != 0)
}

/// The registers, a bit each, that tell the flags which the first of `insns` left, if they do so behind all of them.
fn inputs(insns: &[Insn]) -> Option<u16> {
    let (producer, rest) = insns.split_first()?;
    let (_, inputs) = way(&producer.i)?;
    (!lost(inputs, rest)).then_some(inputs)
}

/// What tells the flags that `i` left, as an instruction of 64-bit code that changes nothing else: `i` itself, or one on its result. None if
/// there is none, or some of its registers are not in the host's of the same numbers.
pub fn again(i: &Instruction) -> Option<Instruction> {
    let (way, inputs) = way(i)?;
    if (0..16).any(|r| inputs >> r & 1 != 0 && home(r) != Some(r)) {
        return None;
    }
    match way {
        Way::Again => Some(*i),
        Way::Result => test(i.op0_register()),
        Way::Undo => None,
    }
}

fn test(r: Register) -> Option<Instruction> {
    let code = match r.size() {
        1 => Code::Test_rm8_r8,
        2 => Code::Test_rm16_r16,
        4 => Code::Test_rm32_r32,
        _ => Code::Test_rm64_r64,
    };
    Instruction::with2(code, r, r).ok()
}

/// Whether the flags that the first of `insns` left need not be saved before number `at` of them: one from there on overwrites them all or, if
/// they `may` be made [`again`], wants them; and wherever they may be asked for until then they can be found out.
pub fn last(insns: &[Insn], at: usize, may: bool) -> bool {
    let Some(inputs) = insns.get(..at).and_then(inputs) else { return false };
    let mut gone = false;
    for n in insns[at..].iter().take(FAR) {
        if wants(n) {
            return may && !gone;
        }
        if !passes(n) || gone && observes(n) {
            return false;
        }
        if overwrites(n) {
            return true;
        }
        gone |= groups::written(n) & inputs != 0;
    }
    false
}

/// Finds out the flags as `i`, the last instruction to change them, left them, where [`last`] said that this can be done.
///
/// # Errors
/// There is none: what is executed accesses no memory.
pub fn derive(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let Some((way, _)) = way(i) else { return Ok(()) };
    let register = i.op0_register();
    let next = cpu.next_rip;
    let done = match way {
        Way::Again => generic::execute(cpu, i),
        Way::Result => test(register).map_or(Ok(()), |test| generic::execute(cpu, &test)),
        Way::Undo => {
            let size = register.size() as u32;
            let mask = u64::MAX >> (64 - 8 * size);
            let r = &mut cpu.regs[usize::from(number(register))];
            let result = *r;
            let old = match (i.mnemonic(), i.op1_kind()) {
                (M::Neg, _) => result.wrapping_neg(),
                (m, kind) => {
                    let by = if kind == OpKind::Register {
                        cpu.regs[usize::from(number(i.op1_register()))]
                    } else {
                        i.immediate(1)
                    };
                    if m == M::Add { result.wrapping_sub(by) } else { result.wrapping_add(by) }
                }
            };
            let at = usize::from(number(register));
            cpu.regs[at] = result & !mask | old & mask;
            let done = generic::execute(cpu, i);
            cpu.regs[at] = result;
            done
        }
    };
    cpu.next_rip = next;
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;
    use crate::translator::classify::{Natives, classify};
    use crate::translator::key;
    use iced_x86::{Decoder, DecoderOptions};
    use ringer_arch::cpu::Vendor;

    /// cmp, test, and, or, xor, sub, add, neg of all sizes, with registers and immediates.
    const CASES: &[&[u8]] = &[
        &[0x48, 0x39, 0xd8],
        &[0x38, 0xd8],
        &[0x66, 0x83, 0xf8, 0xff],
        &[0x85, 0xd8],
        &[0xa9, 1, 2, 3, 4],
        &[0x21, 0xd8],
        &[0x48, 0x83, 0xe0, 0xf0],
        &[0x40, 0x08, 0xf7],
        &[0x66, 0x31, 0xd8],
        &[0x31, 0xc0],
        &[0x29, 0xc0],
        &[0x48, 0x29, 0xd8],
        &[0x2d, 5, 0, 0, 0x80],
        &[0x28, 0xd8],
        &[0x66, 0x2b, 0xc3],
        &[0x48, 0x01, 0xd8],
        &[0x83, 0xc0, 0xff],
        &[0x04, 0x80],
        &[0x66, 0x05, 0, 0x80],
        &[0x48, 0x83, 0xec, 0x18],
        &[0x48, 0xf7, 0xd8],
        &[0xf6, 0xd8],
        &[0x66, 0xf7, 0xdf],
    ];
    const VALUES: [u64; 8] =
        [0, 1, 0x7f, 0x80, 0xffff_8000, 0x8000_0000_0000_0000, u64::MAX, 0x0123_4567_89ab_cdef];

    #[test]
    fn what_is_derived_is_what_the_instruction_left() {
        let mut cpu = testing::long(Vendor::Amd);
        for bytes in CASES {
            let i = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
            assert!(way(&i).is_some(), "{i}");
            for a in VALUES {
                for b in VALUES {
                    cpu.regs[..16].fill(b);
                    cpu.regs[usize::from(number(i.op0_register()))] = a;
                    generic::execute(&mut cpu, &i).unwrap();
                    let (fl, regs) = (cpu.fl, cpu.regs);
                    cpu.fl = !fl & 0xff01;
                    derive(&mut cpu, &i).unwrap();
                    assert_eq!((cpu.fl, cpu.regs), (fl, regs), "{i} {a:x} {b:x}");
                }
            }
        }
    }

    #[test]
    fn what_is_made_again_is_the_same_and_nothing_else_changes() {
        let mut cpu = testing::long(Vendor::Amd);
        let mut made = 0;
        for bytes in CASES {
            let i = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
            let Some(again) = again(&i) else { continue };
            made += 1;
            for a in VALUES {
                for b in VALUES {
                    cpu.regs[..16].fill(b);
                    cpu.regs[usize::from(number(i.op0_register()))] = a;
                    generic::execute(&mut cpu, &i).unwrap();
                    let (fl, regs) = (cpu.fl, cpu.regs);
                    cpu.fl = !fl & 0xff01;
                    generic::execute(&mut cpu, &again).unwrap();
                    assert_eq!((cpu.fl, cpu.regs), (fl, regs), "{i} {again} {a:x} {b:x}");
                }
            }
        }
        assert_eq!(made, 11);
        // cmp rax,r9; test rsp,rsp: registers that have other homes
        for bytes in [[0x4c, 0x39, 0xc8], [0x48, 0x85, 0xe4]] {
            let i = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
            assert_eq!(again(&i), None, "{i}");
        }
    }

    /// Instructions of kernel code, as a block has them.
    fn block(code: &[u8]) -> Vec<Insn> {
        let cpu = testing::long(Vendor::Intel);
        let mut natives = Natives::default();
        let d = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
        d.into_iter()
            .map(|i| {
                let class = classify(&cpu, &mut natives, &i, key::BITS64 | key::RING0);
                Insn { i, class, access: natives.accesses(&i), member: None }
            })
            .collect()
    }

    #[test]
    fn what_comes_behind_decides_whether_flags_are_saved() {
        let cmp = [0x48, 0x39, 0xd8];
        // Behind `cmp rax,rbx`, and whether nothing need be saved if the flags cannot be made again, and if they can.
        let all: [(&[u8], bool, bool); 8] = [
            // mov rcx,[rsi]; test ecx,ecx
            (&[0x48, 0x8b, 0x0e, 0x85, 0xc9], true, true),
            // mov rcx,[rsi]; jne
            (&[0x48, 0x8b, 0x0e, 0x75, 0], false, true),
            // mov rcx,[rsi]; adc rcx,[rsi]
            (&[0x48, 0x8b, 0x0e, 0x48, 0x13, 0x0e], false, true),
            // mov rax,[rsi]; jne
            (&[0x48, 0x8b, 0x06, 0x75, 0], false, false),
            // mov rcx,[rsi]; jmp
            (&[0x48, 0x8b, 0x0e, 0xeb, 0], false, false),
            // mov rbx,[rsi]; mov rcx,[rsi]; test ecx,ecx
            (&[0x48, 0x8b, 0x1e, 0x48, 0x8b, 0x0e, 0x85, 0xc9], false, false),
            // mov rbx,[rsi]; movzx esp,cl; test ecx,ecx
            (&[0x48, 0x8b, 0x1e, 0x0f, 0xb6, 0xe1, 0x85, 0xc9], true, true),
            // mov rbx,[rsi]; movzx esp,ah, which is the interpreter's; test ecx,ecx
            (&[0x48, 0x8b, 0x1e, 0x0f, 0xb6, 0xe4, 0x85, 0xc9], false, false),
        ];
        for (code, without, with) in all {
            let insns = block(&[&cmp, code].concat());
            assert_eq!((last(&insns, 1, false), last(&insns, 1, true)), (without, with), "{code:x?}");
        }
    }

    #[test]
    fn others_have_no_way() {
        // inc rax; adc rax,rbx; add rax,rax; cmp rax,[rbx]; add [rbx],rax; shl rax,1; sub ah,bl; imul eax,ebx; cmp al,bh
        let all: [&[u8]; 9] = [
            &[0x48, 0xff, 0xc0],
            &[0x48, 0x11, 0xd8],
            &[0x48, 0x01, 0xc0],
            &[0x48, 0x3b, 0x03],
            &[0x48, 0x01, 0x03],
            &[0x48, 0xd1, 0xe0],
            &[0x28, 0xdc],
            &[0x0f, 0xaf, 0xc3],
            &[0x38, 0xf8],
        ];
        for bytes in all {
            let i = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
            assert_eq!(way(&i), None, "{i}");
        }
    }
}
