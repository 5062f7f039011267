//! Flags that need not be saved. Those that the code after an access overwrites before anything reads them are needed only if the access
//! faults or is left to the interpreter; where the registers that they came from still hold what tells them, they are found out then.

use super::classify::Class;
use super::emit::{ARITH, needs};
use super::groups::{self, Insn, number};
use crate::cpu::{Cpu, R};
use crate::exec::generic;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};

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

/// The way for `i`, and the registers, a bit each, that must be as they are behind it. None: there is no way.
fn way(i: &Instruction) -> Option<(Way, u16)> {
    let (first, second) = (i.op0_register(), i.op1_register());
    let high = |r: Register| matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
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

/// Whether an instruction may fault, or be left to the interpreter for its access.
fn observes(n: &Insn) -> bool {
    match n.class {
        Class::Native { unit, .. } => {
            let memory = (0..n.i.op_count()).any(|k| n.i.op_kind(k) == OpKind::Memory);
            unit != crate::host::Unit::Integer || memory && n.i.mnemonic() != M::Lea
        }
        Class::Nothing => false,
        _ => true,
    }
}

/// Whether the flags that `producer` left need not be saved for the instructions behind it: one of them overwrites them all, nothing
/// reads them before, and wherever they may be asked for until then they can be found out.
pub fn dead(producer: &Instruction, rest: &[Insn]) -> bool {
    let Some((_, inputs)) = way(producer) else { return false };
    let mut lost = false;
    for n in rest.iter().take(FAR) {
        if !matches!(n.class, Class::Native { .. } | Class::Nothing | Class::Push | Class::Pop) {
            return false;
        }
        if lost && observes(n) {
            return false;
        }
        if matches!(n.class, Class::Native { .. }) {
            if matches!(n.i.mnemonic(), M::Div | M::Idiv) || needs(&n.i) != 0 {
                return false;
            }
            if n.i.rflags_modified() & ARITH != 0 {
                return true;
            }
        }
        lost |= groups::written(n) & inputs != 0;
    }
    false
}

/// Finds out the flags as `i`, the last instruction to change them, left them, for code of which [`dead`] said that this can be done.
///
/// # Errors
/// There is none: what is executed accesses no memory.
pub fn derive(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let Some((way, _)) = way(i) else { return Ok(()) };
    let register = i.op0_register();
    let next = cpu.next_rip;
    let done = match way {
        Way::Again => generic::execute(cpu, i),
        Way::Result => {
            let code = match register.size() {
                1 => Code::Test_rm8_r8,
                2 => Code::Test_rm16_r16,
                4 => Code::Test_rm32_r32,
                _ => Code::Test_rm64_r64,
            };
            match Instruction::with2(code, register, register) {
                Ok(test) => generic::execute(cpu, &test),
                Err(_) => Ok(()),
            }
        }
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
