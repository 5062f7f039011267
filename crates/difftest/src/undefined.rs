//! What the architecture leaves open, or what is the host kernel's doing, and is therefore not compared: each entry with its
//! source.

use crate::aim;
use crate::encode::Bytes;
use crate::layout::USER_CODE;
use crate::record::{Input, Output};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use ringer_arch::cpu::Vendor;
use std::sync::LazyLock;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 16;
const ZF: u64 = 64;
const SF: u64 = 128;
const OF: u64 = 2048;
const AC: u64 = 1 << 18;

/// Flags that are undefined after some instructions, with the source. Where the interpreter runs the instruction itself on the
/// host, they are compared all the same.
pub const FLAGS: &[(&[M], u64, &str)] = &[
    (&[M::Div, M::Idiv], CF | PF | AF | ZF | SF | OF, "SDM vol. 2A DIV, IDIV; APM vol. 3 DIV, IDIV"),
    (&[M::Daa, M::Das], OF, "SDM vol. 2A DAA, DAS; APM vol. 3 DAA, DAS"),
    (&[M::Aaa, M::Aas], PF | ZF | SF | OF, "SDM vol. 2A AAA, AAS; APM vol. 3 AAA, AAS"),
    (&[M::Aad, M::Aam], CF | AF | OF, "SDM vol. 2A AAD, AAM; APM vol. 3 AAD, AAM"),
];

/// Instructions that access memory in several parts, in an order that no manual gives: if several parts fault, or a part
/// and a check of what another part holds, which fault comes first is the processor's choice.
pub const SEVERAL_PARTS: &[M] = &[
    M::Retf,
    M::Iret,
    M::Iretd,
    M::Iretq,
    M::Enter,
    M::Fldenv,
    M::Fnstenv,
    M::Frstor,
    M::Fnsave,
    M::Fxsave,
    M::Fxsave64,
    M::Fxrstor,
    M::Fxrstor64,
    M::Xsave,
    M::Xsave64,
    M::Xsavec,
    M::Xsavec64,
    M::Xrstor,
    M::Xrstor64,
    M::Call,
    M::Arpl,
];

/// Instructions that use the low half of a 128-bit memory operand.
const LOW_HALF: &[M] = &[
    M::Punpcklbw,
    M::Punpcklwd,
    M::Punpckldq,
    M::Punpcklqdq,
    M::Unpcklps,
    M::Unpcklpd,
    M::Psrlw,
    M::Psrld,
    M::Psrlq,
    M::Psraw,
    M::Psrad,
    M::Psllw,
    M::Pslld,
    M::Psllq,
];

/// Instructions that access their operand in parts of which some may be in canonical addresses and others not: which one is
/// looked at first is the processor's choice.
#[must_use]
pub fn elementwise(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        M::Lss
            | M::Lfs
            | M::Lgs
            | M::Les
            | M::Lds
            | M::Bound
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Jmp
            | M::Call
    ) || is_masked_move(insn.mnemonic())
        || insn.memory_size().size() == 10
}

/// Whether `b` is an instruction on mask registers (Intel SDM vol. 2A KADDW to KXORW: maps 1 and 3), whatever registers it names.
fn mask_instruction(b: &[u8]) -> bool {
    match b[prefixes(b)..] {
        [0xc5, _, opcode, ..] => matches!(opcode, 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99),
        [0xc4, map, _, opcode, ..] => match map & 0x1f {
            1 => matches!(opcode, 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99),
            3 => matches!(opcode, 0x30..=0x33),
            _ => false,
        },
        _ => false,
    }
}

fn is_masked_move(m: M) -> bool {
    matches!(m, M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq)
}

/// Cases that are not generated, with the reason.
#[must_use]
pub fn avoid(insn: &Instruction, bytes: &Bytes, input: &Input) -> Option<&'static str> {
    if insn.is_invalid() && vpermq_without_w(&bytes.b[..bytes.len]) {
        return Some(
            "VPERMQ and VPERMPD with VEX.W = 0: #UD by the manuals (SDM vol. 2C VPERMQ), but AMD's processors ignore W",
        );
    }
    if insn.is_invalid() && mask_instruction(&bytes.b[..bytes.len]) {
        return Some(
            "VEX-encoded instructions on AVX-512's mask registers: no model has them, but a host with AVX-512 executes them, also where \
             bits of VEX name registers that do not exist",
        );
    }
    if insn.is_invalid() && locked_verw(&bytes.b[..bytes.len]) {
        return Some(
            "LOCK VERW m16: #UD by the manuals (SDM vol. 2A LOCK), but AMD's Zen 3 ignores the prefix there (VERW with a \
             memory operand is what its microcode clears buffers by)",
        );
    }
    let m = insn.mnemonic();
    if intel() && loads_alignment_check(insn, input) {
        return Some(
            "IRET that sets AC while the stack is misaligned: Intel's processors raise #AC then, with the old flags, and the host's kernel \
             takes that for a split lock (arch/x86/kernel/cpu/bus_lock.c, handle_user_split_lock) and goes back to it for ever",
        );
    }
    let rep = insn.has_rep_prefix() || insn.has_repne_prefix();
    if rep && matches!(m, M::Loope | M::Loopne) {
        return Some(
            "REP prefixes are reserved but for string instructions (SDM vol. 2A 2.1.1); AMD's processors let them decide about ZF",
        );
    }
    let across = |a: u64| {
        let edges = if input.bits == 32 { [1 << 32, 1 << 32] } else { [1 << 47, 0xffff_8000_0000_0000u64] };
        edges.iter().any(|e| e.wrapping_sub(a) < 64)
    };
    if elementwise(insn) && aim::address(insn, input, 0).is_some_and(across) {
        return Some(
            "which part of an operand across the canonical boundary is looked at first is the processor's choice",
        );
    }
    let in_two_pages = |a: u64| a & 0xfff > 0x1000 - 10;
    let stored = matches!(m, M::Fstp | M::Fbstp) && insn.memory_size().size() == 10;
    if intel() && stored && aim::address(insn, input, 0).is_some_and(in_two_pages) {
        return Some(
            "whether the first part of a 10-byte operand is stored when the second faults is the processor's choice: Intel's do",
        );
    }
    let wraps = |a| aim::before_wrap(insn, input, a).is_some_and(|left| left < 64);
    if is_masked_move(m) && aim::address(insn, input, 0).is_some_and(wraps) {
        return Some(
            "whether the elements of a masked move go on from the end of the offsets at their start is the processor's choice: \
             AMD's Zen 3 wraps each one's offset, Zen 5 the first one's only",
        );
    }
    if aim::offset_quirk(insn, input) {
        return Some(
            "AMD's processors want the offset to be canonical, too, before the base of FS or GS is added; no manual says so",
        );
    }
    let mm = u32::from_le_bytes([input.xsave[24], input.xsave[25], input.xsave[26], input.xsave[27]])
        & 0x2_0000
        != 0;
    let memory = (0..insn.op_count()).any(|o| insn.op_kind(o) == OpKind::Memory);
    if mm && memory && LOW_HALF.contains(&m) {
        return Some(
            "only the low half of the operand need be accessed (SDM vol. 2B PUNPCKL; APM vol. 4 PSRLD); with MXCSR.MM the rest may fault",
        );
    }
    if matches!(m, M::Popa | M::Popad) && input.gpr[4] & 0xfff > 0x1000 - 32 {
        return Some(
            "which registers a POPA that faults half-way has loaded is the processor's choice; it can be restarted",
        );
    }
    if input.bits == 32 && matches!(m, M::Vpinsrd | M::Vpextrd) {
        return Some(
            "VEX.W is ignored in 32-bit code by the manuals (SDM vol. 2B PINSRD), but not by AMD's processors",
        );
    }
    let mask_register = |r: iced_x86::Register| {
        matches!(r.full_register(), iced_x86::Register::RAX | iced_x86::Register::RDX)
    };
    if is_xsave(m) && (mask_register(insn.memory_base()) || mask_register(insn.memory_index())) {
        return Some("EDX:EAX must not ask for state components that the host has and the model has not");
    }
    None
}

/// Whether the host is Intel's.
fn intel() -> bool {
    static INTEL: LazyLock<bool> =
        LazyLock::new(|| ringer_engine_soft::host_model().is_ok_and(|m| m.vendor() == Vendor::Intel));
    *INTEL
}

/// Whether `insn` is an IRET from a misaligned stack that holds, or may hold, flags with AC.
fn loads_alignment_check(insn: &Instruction, input: &Input) -> bool {
    let size = match insn.mnemonic() {
        M::Iret => 2,
        M::Iretd => 4,
        M::Iretq => 8,
        _ => return false,
    };
    // Bits 23:16 of the flags, the third thing on the stack.
    let at = input.gpr[4].wrapping_add(2 * size + 2);
    let held = input.patch.iter().find_map(|p| {
        let n = at.wrapping_sub(crate::layout::DATA + u64::from(p.off));
        (n < u64::from(p.len)).then(|| p.data[n as usize])
    });
    size > 2 && input.gpr[4] & (size - 1) != 0 && held.is_none_or(|b| u64::from(b) << 16 & AC != 0)
}

/// How many prefixes there are.
fn prefixes(bytes: &[u8]) -> usize {
    let prefix =
        |b: &&u8| matches!(**b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f);
    bytes.iter().take_while(prefix).count()
}

/// 0F 00 /5 with a memory operand, LOCK among its prefixes.
fn locked_verw(bytes: &[u8]) -> bool {
    let (before, code) = bytes.split_at(prefixes(bytes));
    before.contains(&0xf0) && matches!(*code, [0x0f, 0, modrm, ..] if modrm >> 3 & 7 == 5 && modrm < 0xc0)
}

/// VEX.256.66.0F3A.W0 00 and 01, behind any prefixes.
fn vpermq_without_w(bytes: &[u8]) -> bool {
    let n = prefixes(bytes);
    matches!(bytes[n..], [0xc4, map, wvlp, 0 | 1, ..] if map & 0x1f == 3 && wvlp & 0x80 == 0)
}

/// The XSAVE family.
#[must_use]
pub fn is_xsave(m: M) -> bool {
    matches!(m, M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64)
}

/// RFLAGS bits that are not compared after `insn`.
#[must_use]
pub fn flags(insn: &Instruction) -> u64 {
    let m = insn.mnemonic();
    FLAGS.iter().find(|(list, ..)| list.contains(&m)).map_or(0, |(_, bits, _)| *bits)
}

/// Whether two page faults of a string comparison are one of each operand: which one is read first no manual says (AMD's Zen 5
/// begins with the source, Zen 3 with the destination).
fn one_of_each_operand(insn: &Instruction, e: &Output, n: &Output) -> bool {
    let offset = |reg: usize, o: &Output| match insn.op0_kind() {
        OpKind::MemorySegSI => o.gpr[reg] & 0xffff,
        OpKind::MemorySegESI => o.gpr[reg] & 0xffff_ffff,
        _ => o.gpr[reg],
    };
    let base = |o: &Output| match insn.memory_segment() {
        Register::FS => o.fs_base,
        Register::GS => o.gs_base,
        _ => 0,
    };
    // Other faults give no address.
    let at = |o: &Output, operand: u64| o.vector != 14 || o.cr2.wrapping_sub(operand) < 8;
    let source = |o: &Output| at(o, offset(6, o).wrapping_add(base(o)));
    let destination = |o: &Output| at(o, offset(7, o));
    source(e) && destination(n) || source(n) && destination(e)
}

/// Whether that in which two faults differ is open: the order of parts; whether what is no instruction is first found to be none (#UD)
/// or to be longer than 15 bytes (#GP), for which no length is defined. INT1's address, too: hypervisors that intercept it report its own, and not, as
/// the manual says (SDM vol. 2A INT n), the next one's.
#[must_use]
pub fn fault_is_open(insn: &Instruction, e: &Output, n: &Output) -> bool {
    let m = insn.mnemonic();
    let memory = |v: u32| (11..=14).contains(&v) || v == 17;
    let compares = matches!(m, M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq) && insn.is_string_instruction();
    // An element of the same page, where AMD's processors name the first byte.
    let element = is_masked_move(m)
        && (e.vector, n.vector) == (14, 14)
        && e.cr2 & !0xfff == n.cr2 & !0xfff
        && e.cr2.abs_diff(n.cr2) < 32;
    // Intel's processors read the second bound after they have compared with the first.
    let bound = m == M::Bound && n.vector == 5 && memory(e.vector);
    let parts = SEVERAL_PARTS.contains(&m) || compares && one_of_each_operand(insn, e, n);
    (element || bound) && e.rip == n.rip && (bound || e.code == n.code)
        || parts && e.rip == n.rip && memory(e.vector) && memory(n.vector)
        || insn.is_invalid()
            && e.rip == n.rip
            && matches!((e.vector, n.vector), (6, 13) | (13, 6))
            && e.code == n.code
        || m == M::Int1 && (e.vector, n.vector) == (1, 1)
}

/// Bits of general registers that are compared: after a far transfer to 32-bit code the upper halves are undefined (SDM vol. 1
/// 3.4.1.1).
#[must_use]
pub fn gpr_mask(e: &Output, n: &Output) -> u64 {
    let long = |o: &Output| o.sel[1] == USER_CODE;
    if long(e) && long(n) { u64::MAX } else { 0xffff_ffff }
}

/// A null selector with other bits may read as zero: a timer interrupt's IRET clears it (SDM vol. 2A IRET, return to outer
/// privilege).
#[must_use]
pub fn selector(v: u16) -> u16 {
    if v < 4 { 0 } else { v }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::decode_at;
    use iced_x86::DecoderOptions;

    fn fault(cr2: u64) -> Output {
        let mut o = Output { rip: 0x1000, signal: 1, vector: 14, code: 4, cr2, ..Output::default() };
        (o.gpr[6], o.gpr[7]) = (0x10_0000_2000, 0x3000);
        o
    }

    /// Which operand faults first is open, but a fault must be at an operand.
    #[test]
    fn faults_of_string_comparisons() {
        let insn = decode_at(&[0xf3, 0xa7], 0x1000, DecoderOptions::AMD, 64);
        let open = |e, n| fault_is_open(&insn, &fault(e), &fault(n));
        assert!(open(0x10_0000_2000, 0x3000) && open(0x3000, 0x10_0000_2000));
        assert!(open(0x10_0000_2003, 0x3003));
        assert!(!open(0x10_0000_2000, 0x3008) && !open(0x10_0000_1fff, 0x3000) && !open(0x2000, 0x3000));
        let short = decode_at(&[0x67, 0xf3, 0xa7], 0x1000, DecoderOptions::AMD, 64);
        assert!(fault_is_open(&short, &fault(0x2000), &fault(0x3000)));
        // Another instruction of that name.
        let vector = decode_at(&[0xf2, 0x0f, 0xc2, 0x00, 0x00], 0x1000, DecoderOptions::AMD, 64);
        assert_eq!(vector.mnemonic(), M::Cmpsd);
        assert!(!fault_is_open(&vector, &fault(0x10_0000_2000), &fault(0x3000)));
    }

    /// With LOCK on its memory form only.
    #[test]
    fn locked_verw_is_not_made() {
        let avoided = |code: &[u8]| {
            let mut bytes = Bytes::default();
            code.iter().for_each(|b| bytes.push(*b));
            avoid(&decode_at(code, 0x1000, DecoderOptions::AMD, 64), &bytes, &Input::default()).is_some()
        };
        assert!(avoided(&[0xf0, 0x0f, 0x00, 0x28]) && avoided(&[0xf0, 0x65, 0x48, 0x0f, 0x00, 0x28]));
        assert!(!avoided(&[0x0f, 0x00, 0x28]) && !avoided(&[0xf0, 0x0f, 0x00, 0xe8]));
        assert!(!avoided(&[0xf0, 0x0f, 0x00, 0x20]));
    }

    #[test]
    fn masked_moves_over_the_end_of_offsets() {
        let case = |code: &[u8], bits, rax: u64| {
            let mut bytes = Bytes::default();
            code.iter().for_each(|b| bytes.push(*b));
            let mut input = Input { bits, ..Input::default() };
            input.gpr[0] = rax;
            avoid(&decode_at(code, 0x1000, DecoderOptions::AMD, bits), &bytes, &input).is_some()
        };
        // vpmaskmovd xmm1, xmm0, [rax], and the same with [eax].
        let (wide, short) = ([0xc4, 0xe2, 0x79, 0x8c, 0x08], [0x67, 0xc4, 0xe2, 0x79, 0x8c, 0x08]);
        assert!(case(&short, 64, 0xffff_fff8) && !case(&short, 64, 0xffff_f000));
        assert!(!case(&wide, 64, 0xffff_fff8));
        assert!(case(&wide, 32, 0xffff_fff8) && !case(&wide, 32, 0x1000_0ff8));
    }
}
