//! Which accesses of a block share one check.
//!
//! Neighbouring accesses off one base register (a run of pushes, the fields of a structure) are checked together, before the first:
//! R10 then holds the host address for all of them, as long as nothing else needs it. If the check fails, the interpreter executes all
//! instructions from the first to the last, one by one, so that what each does or raises is exact.

use super::classify::Class;
use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic as M, OpAccess, OpKind,
    Register,
};

/// The most bytes that one check covers.
const MOST_BYTES: i64 = 512;
/// The most instructions from the first to the last access.
const MOST_INSNS: usize = 40;
/// RSP's number.
pub const RSP: u8 = 4;

/// A decoded instruction of a block.
#[derive(Clone, Copy)]
pub struct Insn {
    /// It.
    pub i: Instruction,
    /// What becomes of it.
    pub class: Class,
    /// What it does with its operands.
    pub access: [OpAccess; 5],
    /// Its place in a group of accesses.
    pub member: Option<Member>,
}

/// The place of an instruction in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Of its access, from the lowest byte of the group.
    pub offset: i32,
    /// For the first of the group.
    pub group: Option<Group>,
    /// It is the last.
    pub last: bool,
}

/// What one check covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// The base register.
    pub base: u8,
    /// Of the lowest byte, from the base register as it is before the first instruction.
    pub lowest: i32,
    /// Bytes.
    pub size: u32,
    /// Some access writes.
    pub write: bool,
    /// What may be looked up before the first instruction.
    pub early: Early,
    /// Instructions from the first to the last, both counted.
    pub insns: u8,
}

/// What may be looked up in the page tables before an instruction that makes accesses, alone or with others: nothing that it does not look
/// up itself, or pages would become accessed or dirty too early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Early {
    /// What all of it needs.
    All,
    /// A read.
    Read,
    /// Nothing.
    Nothing,
}

impl Early {
    /// As two bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        self as u8
    }

    /// Of two bits.
    #[must_use]
    pub fn of(bits: u8) -> Early {
        match bits {
            0 => Early::All,
            1 => Early::Read,
            _ => Early::Nothing,
        }
    }

    /// For a group that begins with `n`.
    fn group(n: &Insn, write: bool) -> Early {
        let memory = (0..n.i.op_count()).find(|k| n.i.op_kind(*k) == OpKind::Memory);
        match (n.class, memory.map(|k| n.access[k as usize])) {
            _ if !write => Early::All,
            (Class::Push | Class::Call, _) => Early::All,
            (Class::Pop | Class::Ret, _) => Early::Read,
            // What is not aligned faults before.
            (Class::Native { aligned: false, .. }, Some(OpAccess::Read)) => Early::Read,
            (Class::Native { aligned: false, .. }, Some(OpAccess::Write | OpAccess::ReadWrite)) => Early::All,
            _ => Early::Nothing,
        }
    }
}

/// An access off a base register.
#[derive(Clone, Copy)]
struct Access {
    base: u8,
    offset: i64,
    size: i64,
    write: bool,
}

/// General register number of `r`.
#[must_use]
pub fn number(r: Register) -> u8 {
    r.full_register() as u8 - Register::RAX as u8
}

fn in_context(r: u8) -> bool {
    (9..=11).contains(&r)
}

/// What `i` does with its operands.
pub fn accesses(info: &mut InstructionInfoFactory, i: &Instruction) -> [OpAccess; 5] {
    let without = InstructionInfoOptions::NO_REGISTER_USAGE | InstructionInfoOptions::NO_MEMORY_USAGE;
    let f = info.info_options(i, without);
    std::array::from_fn(|n| f.op_access(n as u32))
}

/// Whether an operand is written.
#[must_use]
pub fn writes(a: OpAccess) -> bool {
    !matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None)
}

/// The one access of an instruction that may be a group's.
fn access(n: &Insn) -> Option<Access> {
    let i = &n.i;
    match n.class {
        Class::Push if i.op0_kind() != OpKind::Memory => {
            Some(Access { base: RSP, offset: -8, size: 8, write: true })
        }
        Class::Call => Some(Access { base: RSP, offset: -8, size: 8, write: true }),
        Class::Pop if number(i.op0_register()) != RSP => {
            Some(Access { base: RSP, offset: 0, size: 8, write: false })
        }
        Class::Ret if i.op_count() == 0 => Some(Access { base: RSP, offset: 0, size: 8, write: false }),
        Class::Native { .. } if i.mnemonic() != M::Lea => {
            let m = (0..i.op_count()).find(|k| i.op_kind(*k) == OpKind::Memory)?;
            let base = i.memory_base();
            let plain = base.is_gpr64()
                && i.memory_index() == Register::None
                && !matches!(i.memory_segment(), Register::FS | Register::GS);
            let offset = i.memory_displacement64() as i64;
            let size = i.memory_size().size() as i64;
            let near = (-MOST_BYTES * 8..MOST_BYTES * 8).contains(&offset) && (1..=64).contains(&size);
            (plain && near).then(|| Access {
                base: number(base),
                offset,
                size,
                write: writes(n.access[m as usize]),
            })
        }
        _ => None,
    }
}

/// Registers, a bit each, that an instruction of the native kind writes without naming them.
fn silently_written(m: M) -> u16 {
    const RAX: u16 = 1;
    const RCX: u16 = 2;
    const RDX: u16 = 4;
    match m {
        M::Mul | M::Imul | M::Div | M::Idiv | M::Cmpxchg8b | M::Cmpxchg16b | M::Cwd | M::Cdq | M::Cqo => {
            RAX | RDX
        }
        M::Cmpxchg | M::Cbw | M::Cwde | M::Cdqe | M::Lahf | M::Fnstsw => RAX,
        M::Pcmpestri | M::Pcmpistri | M::Vpcmpestri | M::Vpcmpistri => RCX,
        _ => 0,
    }
}

/// General registers, a bit each, that an instruction writes.
pub fn written(n: &Insn) -> u16 {
    let i = &n.i;
    match n.class {
        Class::Push | Class::Call | Class::Ret => return 1 << RSP,
        Class::Pop => return 1 << RSP | 1 << number(i.op0_register()),
        _ => {}
    }
    (0..i.op_count())
        .filter(|k| {
            i.op_kind(*k) == OpKind::Register && i.op_register(*k).is_gpr() && writes(n.access[*k as usize])
        })
        .fold(silently_written(i.mnemonic()), |w, k| w | 1 << number(i.op_register(k)))
}

/// The constant that an instruction adds to the 64-bit register `base`, if that is what it does to it.
fn moved_by(n: &Insn, base: u8) -> Option<i64> {
    let i = &n.i;
    match n.class {
        Class::Push | Class::Call if base == RSP => return Some(-8),
        Class::Pop if base == RSP && number(i.op0_register()) != RSP => return Some(8),
        Class::Ret if base == RSP => return Some(8),
        _ => {}
    }
    let to = i.op0_register();
    if !to.is_gpr64() || number(to) != base {
        return None;
    }
    match i.code() {
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 => Some(i.immediate(1) as i64),
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 => Some((i.immediate(1) as i64).wrapping_neg()),
        Code::Lea_r64_m
            if i.memory_base() == to && i.memory_index() == Register::None && !in_context(base) =>
        {
            Some(i.memory_displacement64() as i64)
        }
        _ => None,
    }
}

/// Whether an instruction that is not a group's leaves R10 alone.
fn spares_r10(n: &Insn) -> bool {
    let i = &n.i;
    match n.class {
        // Behind a conditional jump a group could make a page dirty that is never written.
        Class::Nothing => true,
        Class::Native { .. } => {
            let mut named = 0u16;
            for k in 0..i.op_count() {
                match i.op_kind(k) {
                    OpKind::Register if i.op_register(k).is_gpr() => named |= 1 << number(i.op_register(k)),
                    OpKind::Memory if i.mnemonic() != M::Lea => return false,
                    _ => {}
                }
            }
            if i.mnemonic() == M::Lea {
                let base = i.memory_base();
                let dest = number(i.op0_register());
                return !(in_context(dest) || base.is_gpr() && in_context(number(base)));
            }
            (named & 0b1110_0000_0000).count_ones() < 2
        }
        _ => false,
    }
}

struct Open {
    base: u8,
    /// What the base register was moved by since the first access.
    moved: i64,
    /// The instructions with an access, a bit each.
    members: u64,
    low: i64,
    high: i64,
    write: bool,
}

/// Finds the groups of a block of 64-bit code, of at most 64 instructions; `may` says whether one may begin with an instruction.
pub fn find(insns: &mut [Insn], may: impl Fn(&Instruction) -> bool) {
    // Offset of each access from its base register, as that was at the first of its group.
    let mut offsets = [0i64; 64];
    let mut open: Option<Open> = None;
    for n in 0..insns.len().min(64) {
        let this = &insns[n];
        let a = access(this);
        let spares = a.is_none() && (open.is_none() || spares_r10(this));
        let mut joined = false;
        if let (Some(o), Some(a)) = (&mut open, a) {
            let at = a.offset + o.moved;
            let (low, high) = (o.low.min(at), o.high.max(at + a.size));
            let first = o.members.trailing_zeros() as usize;
            if a.base == o.base && high - low <= MOST_BYTES && n - first < MOST_INSNS {
                (o.low, o.high) = (low, high);
                o.write |= a.write;
                o.members |= 1 << n;
                offsets[n] = at;
                joined = true;
            }
        }
        if !joined && !spares {
            close(insns, &offsets, open.take());
        }
        let this = &insns[n];
        if open.is_none()
            && let Some(a) = a
            && may(&this.i)
        {
            let (low, high) = (a.offset, a.offset + a.size);
            offsets[n] = low;
            open = Some(Open { base: a.base, moved: 0, members: 1 << n, low, high, write: a.write });
        }
        if let Some(o) = &mut open
            && written(this) & 1 << o.base != 0
        {
            match moved_by(this, o.base) {
                Some(d) if d.abs() < MOST_BYTES * 8 => o.moved += d,
                _ => close(insns, &offsets, open.take()),
            }
        }
    }
    close(insns, &offsets, open);
}

fn close(insns: &mut [Insn], offsets: &[i64; 64], open: Option<Open>) {
    let Some(o) = open else { return };
    if o.members.count_ones() < 2 {
        return;
    }
    let (first, last) = (o.members.trailing_zeros() as usize, o.members.ilog2() as usize);
    let early = Early::group(&insns[first], o.write);
    for (n, insn) in insns.iter_mut().enumerate().take(last + 1).skip(first) {
        if o.members >> n & 1 == 0 {
            continue;
        }
        let group = (n == first).then(|| Group {
            base: o.base,
            lowest: o.low as i32,
            size: (o.high - o.low) as u32,
            write: o.write,
            early,
            insns: (last - first + 1) as u8,
        });
        insn.member = Some(Member { offset: (offsets[n] - o.low) as i32, group, last: n == last });
    }
}
