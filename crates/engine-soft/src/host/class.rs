//! Which instructions run here, and under which conditions of CPUID, CR0, CR4 and XCR0 (Intel SDM vol. 2A §2.4 to 2.7,
//! vol. 3A §2.5; the exception tables of each instruction).

use super::stub::uses_x87;
use crate::cpu::{Cpu, Mode, R};
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, MemorySize, OpKind};
use ringer_arch::Exception;
use ringer_arch::cpu::{Feature, Vendor};
use ringer_arch::exception::vector;
use ringer_arch::regs::{cr0, cr4, xcr0};

/// What must hold for an instruction to execute at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Nothing.
    None,
    /// VEX-encoded on general registers: protected mode.
    VexGpr,
    /// x87, waiting.
    X87,
    /// x87, not waiting: pending exceptions stay pending. FXSAVE, FXRSTOR.
    X87NoWait,
    /// WAIT.
    Wait,
    /// MMX.
    Mmx,
    /// SSE.
    Sse,
    /// SSE with an MMX register.
    SseMmx,
    /// VEX on vector registers.
    Avx,
    /// The XSAVE family.
    Xsave,
    /// Not in this model.
    Undefined,
}

/// How the memory operand must be aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Any.
    Free,
    /// To its size, but not if MXCSR.MM permits (AMD misaligned SSE mode).
    UnlessMm,
    /// To its size.
    Strict,
}

/// Whether the interpreter leaves the instruction to this module.
#[must_use]
pub fn is_ours(i: &Instruction) -> bool {
    use CpuidFeature as F;
    match i.encoding() {
        EncodingKind::Legacy => {}
        EncodingKind::D3NOW => return true,
        _ => return true,
    }
    if matches!(i.code(), Code::Xgetbv | Code::Xsetbv) {
        return false;
    }
    i.cpuid_features().iter().any(|f| {
        matches!(
            f,
            F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::SSE4A
                | F::AES
                | F::PCLMULQDQ
                | F::SHA
                | F::GFNI
                | F::MMX
                | F::FPU
                | F::FPU287
                | F::FPU387
                | F::FPU287XL_ONLY
                | F::FPU387SL_ONLY
                | F::FXSR
                | F::XSAVE
                | F::XSAVEOPT
                | F::XSAVEC
                | F::XSAVES
                | F::POPCNT
                | F::LZCNT
                | F::BMI1
                | F::ADX
                | F::RDRAND
                | F::RDSEED
                | F::MOVBE
                | F::PREFETCHW
                | F::PREFETCHWT1
                | F::D3NOW
                | F::KL
                | F::AESKLE
                | F::WIDE_KL
        )
    }) || is_prefetch(i.code())
        || i.code() == Code::Wait
}

/// Hints: they do nothing.
#[must_use]
pub fn is_prefetch(c: Code) -> bool {
    matches!(
        c,
        Code::Prefetch_m8
            | Code::Prefetchw_m8
            | Code::Prefetchwt1_m8
            | Code::Prefetchreserved3_m8
            | Code::Prefetchreserved4_m8
            | Code::Prefetchreserved5_m8
            | Code::Prefetchreserved6_m8
            | Code::Prefetchreserved7_m8
            | Code::Prefetchnta_m8
            | Code::Prefetcht0_m8
            | Code::Prefetcht1_m8
            | Code::Prefetcht2_m8
    )
}

/// LFENCE, MFENCE, SFENCE.
#[must_use]
pub fn is_fence(c: Code) -> bool {
    let n = c as usize;
    let within = |a: Code, b: Code| (a as usize..=b as usize).contains(&n);
    within(Code::Lfence, Code::Lfence_EF)
        || within(Code::Mfence, Code::Mfence_F7)
        || within(Code::Sfence, Code::Sfence_FF)
}

/// What the decoder calls a feature but CPUID does not: instructions of 64-bit processors' ancestors.
fn every_model_has(f: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(f, F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64)
}

/// The model's feature for one that the decoder names; `None` if no model has it.
fn feature(f: CpuidFeature) -> Option<Feature> {
    use CpuidFeature as F;
    Some(match f {
        F::FPU | F::FPU287 | F::FPU387 => Feature::FPU,
        F::CMOV => Feature::CMOV,
        F::MMX => Feature::MMX,
        F::FXSR => Feature::FXSR,
        F::SSE => Feature::SSE,
        F::SSE2 => Feature::SSE2,
        F::SSE3 => Feature::SSE3,
        F::SSSE3 => Feature::SSSE3,
        F::SSE4_1 => Feature::SSE4_1,
        F::SSE4_2 => Feature::SSE4_2,
        F::SSE4A => Feature::SSE4A,
        F::AES => Feature::AES,
        F::PCLMULQDQ => Feature::PCLMULQDQ,
        F::SHA => Feature::SHA,
        F::GFNI => Feature::GFNI,
        F::AVX => Feature::AVX,
        F::AVX2 => Feature::AVX2,
        F::FMA => Feature::FMA,
        F::F16C => Feature::F16C,
        F::VAES => Feature::VAES,
        F::VPCLMULQDQ => Feature::VPCLMULQDQ,
        F::AVX_VNNI => Feature::AVX_VNNI,
        F::AVX_IFMA => Feature::AVX_IFMA,
        F::BMI1 => Feature::BMI1,
        F::BMI2 => Feature::BMI2,
        F::ADX => Feature::ADX,
        F::POPCNT => Feature::POPCNT,
        F::LZCNT => Feature::LZCNT,
        F::MOVBE => Feature::MOVBE,
        F::RDRAND => Feature::RDRAND,
        F::RDSEED => Feature::RDSEED,
        F::XSAVE => Feature::XSAVE,
        F::XSAVEOPT => Feature::XSAVEOPT,
        F::XSAVEC => Feature::XSAVEC,
        _ => return None,
    })
}

/// The gate of an instruction under `cpu`'s model.
#[must_use]
pub fn gate(cpu: &Cpu, i: &Instruction) -> Gate {
    if is_prefetch(i.code()) || is_fence(i.code()) {
        return Gate::None;
    }
    let has = |f: &CpuidFeature| every_model_has(*f) || feature(*f).is_some_and(|f| cpu.has(f));
    if !i.cpuid_features().iter().all(has) {
        return Gate::Undefined;
    }
    match i.encoding() {
        EncodingKind::Legacy => legacy_gate(i),
        EncodingKind::VEX if on_general_registers(i) => Gate::VexGpr,
        EncodingKind::VEX => Gate::Avx,
        _ => Gate::Undefined,
    }
}

fn on_general_registers(i: &Instruction) -> bool {
    i.cpuid_features().iter().any(|f| matches!(f, CpuidFeature::BMI1 | CpuidFeature::BMI2))
}

fn legacy_gate(i: &Instruction) -> Gate {
    use CpuidFeature as F;
    let any = |list: &[F]| i.cpuid_features().iter().any(|f| list.contains(f));
    match i.code() {
        Code::Wait => return Gate::Wait,
        Code::Movnti_m32_r32 | Code::Movnti_m64_r64 => return Gate::None,
        Code::Fninit
        | Code::Fneni
        | Code::Fndisi
        | Code::Fnsetpm
        | Code::Fnclex
        | Code::Fnstcw_m2byte
        | Code::Fnstsw_m2byte
        | Code::Fnstsw_AX
        | Code::Fnstenv_m14byte
        | Code::Fnstenv_m28byte
        | Code::Fnsave_m94byte
        | Code::Fnsave_m108byte => {
            return Gate::X87NoWait;
        }
        Code::Crc32_r32_rm8
        | Code::Crc32_r64_rm8
        | Code::Crc32_r32_rm16
        | Code::Crc32_r32_rm32
        | Code::Crc32_r64_rm64 => {
            return Gate::None;
        }
        _ => {}
    }
    // BSF and BSR, which is what TZCNT and LZCNT are to a model without them.
    if i.cpuid_features().iter().all(|f| every_model_has(*f)) {
        return Gate::None;
    }
    if any(&[F::POPCNT, F::LZCNT, F::BMI1, F::ADX, F::RDRAND, F::RDSEED, F::MOVBE]) {
        return Gate::None;
    }
    if any(&[F::XSAVE, F::XSAVEOPT, F::XSAVEC]) {
        return Gate::Xsave;
    }
    if any(&[F::FXSR]) {
        return Gate::X87NoWait;
    }
    if any(&[F::FPU, F::FPU287, F::FPU387]) {
        return Gate::X87;
    }
    let reg = |test: fn(iced_x86::Register) -> bool| {
        (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Register && test(i.op_register(o)))
    };
    if uses_x87(i) {
        if reg(iced_x86::Register::is_xmm) || to_mmx(i.code()) { Gate::SseMmx } else { Gate::Mmx }
    } else {
        Gate::Sse
    }
}

/// SSE conversions to MMX registers, whose source may be memory.
fn to_mmx(c: Code) -> bool {
    matches!(
        c,
        Code::Cvtps2pi_mm_xmmm64
            | Code::Cvttps2pi_mm_xmmm64
            | Code::Cvtpd2pi_mm_xmmm128
            | Code::Cvttpd2pi_mm_xmmm128
    )
}

/// How the memory operand of an instruction must be aligned (Intel SDM vol. 2A tables 2-18 to 2-23, AMD APM vol. 1 §4.3.2).
#[must_use]
pub fn alignment(cpu: &Cpu, i: &Instruction) -> Align {
    use Code as C;
    let size = i.memory_size().size();
    if size < 16 || (i.encoding() == EncodingKind::Legacy && i.memory_size() == MemorySize::Unknown) {
        return Align::Free;
    }
    let name = format!("{:?}", i.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let aligned_move =
        ["movaps", "movapd", "movdqa", "movntps", "movntpd", "movntdq", "movntdqa"].contains(&name);
    if aligned_move {
        return Align::Strict;
    }
    // SHA instructions are free on AMD's processors, and not on Intel's (SDM vol. 2B table 2-18, type 4).
    let sha = i.cpuid_features().contains(&CpuidFeature::SHA) && cpu.model.vendor() == Vendor::Amd;
    let free = i.encoding() != EncodingKind::Legacy
        || sha
        || ["movups", "movupd", "movdqu", "lddqu", "pcmpestri", "pcmpestrm", "pcmpistri", "pcmpistrm"]
            .contains(&name)
        || matches!(i.code(), C::Pcmpestri64_xmm_xmmm128_imm8 | C::Pcmpestrm64_xmm_xmmm128_imm8)
        || uses_x87(i)
            && !(0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Register && i.op_register(o).is_xmm())
            && name.starts_with('f');
    if free { Align::Free } else { Align::UnlessMm }
}

impl Cpu {
    /// Checks a gate.
    ///
    /// # Errors
    /// #UD, #NM, #MF.
    #[inline]
    pub(super) fn pass(&mut self, g: Gate) -> R<()> {
        if self.open(g) { Ok(()) } else { self.pass_slowly(g) }
    }

    /// Whether a gate is open, for the usual gates in their usual state.
    #[inline]
    pub(super) fn open(&self, g: Gate) -> bool {
        match g {
            Gate::None => true,
            Gate::Sse => self.cr0 & (cr0::EM | cr0::TS) == 0 && self.cr4 & cr4::OSFXSR != 0,
            Gate::X87 | Gate::Mmx => self.cr0 & (cr0::EM | cr0::TS) == 0 && !self.x87_pending(),
            Gate::X87NoWait => self.cr0 & (cr0::EM | cr0::TS) == 0,
            Gate::Avx => {
                const BOTH: u64 = xcr0::SSE | xcr0::AVX;
                self.cr0 & cr0::TS == 0
                    && self.cr4 & cr4::OSXSAVE != 0
                    && self.xcr0 & BOTH == BOTH
                    && !matches!(self.mode, Mode::Real | Mode::V86)
            }
            Gate::VexGpr => !matches!(self.mode, Mode::Real | Mode::V86),
            _ => false,
        }
    }

    /// FSW.ES: an unmasked x87 exception waits for the next waiting instruction.
    #[must_use]
    pub(super) fn x87_pending(&self) -> bool {
        self.xsave.0[2] & 0x80 != 0
    }

    #[cold]
    #[inline(never)]
    fn pass_slowly(&mut self, g: Gate) -> R<()> {
        let (em, ts) = (self.cr0 & cr0::EM != 0, self.cr0 & cr0::TS != 0);
        let real = matches!(self.mode, Mode::Real | Mode::V86);
        let fxsr = self.cr4 & cr4::OSFXSR != 0;
        let osxsave = self.cr4 & cr4::OSXSAVE != 0;
        let (undefined, not_available, waits) = match g {
            Gate::None => (false, false, false),
            Gate::Undefined => (true, false, false),
            Gate::VexGpr => (real, false, false),
            Gate::X87 => (false, em || ts, true),
            Gate::X87NoWait => (false, em || ts, false),
            Gate::Wait => (false, ts && self.cr0 & cr0::MP != 0, true),
            Gate::Mmx => (em, ts, true),
            Gate::Sse => (em || !fxsr, ts, false),
            Gate::SseMmx => (em || !fxsr, ts, true),
            Gate::Avx => (real || !osxsave || self.xcr0 & 6 != 6, ts, false),
            Gate::Xsave => (!osxsave, ts, false),
        };
        if undefined {
            return Err(self.ud());
        }
        if not_available {
            return Err(self.raise(Exception::NM));
        }
        // With CR0.NE = 0 a PC would report it through FERR# and IRQ 13 instead; no guest that Ringer runs asks for that.
        if waits && self.x87_pending() {
            return Err(self.raise(Exception::plain(vector::MF)));
        }
        Ok(())
    }
}
