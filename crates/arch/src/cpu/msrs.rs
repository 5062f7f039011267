//! MSRs of a model that only hold a value: what operating systems read and write while they set a processor up.
//!
//! Sources: Intel SDM vol. 4 ch. 2 and vol. 3A §11.11 (MTRRs); AMD APM vol. 2 app. A and the PPR of family 0x19.
//! MSRs with an effect (EFER, APIC_BASE, TSC, FS_BASE and so on) belong to the engine.

use super::feature::{Feature, FeatureSet, Word};
use super::{CpuModel, Vendor};
use crate::msr;

/// Which values an MSR takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrRule {
    /// Bits of `writable` take what is written, a write to bits of `ignored` has no effect, and all other bits must
    /// be written as they are.
    Bits {
        /// Bits that take what is written.
        writable: u64,
        /// Bits that stay whatever is written.
        ignored: u64,
    },
    /// Write-only: the bits that may be 1. Nothing is kept.
    Command(u64),
    /// Eight bytes, each a memory type that PAT has (Intel SDM vol. 3A §11.12.2).
    Pat,
    /// Eight bytes, each a memory type that MTRRs have (Intel SDM vol. 3A §11.11.2.2).
    MtrrFixed,
    /// A memory type in bits 7:0, and the bits that may be 1 beside it.
    MtrrType(u64),
}

/// An MSR that only holds a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelMsr {
    /// Its number.
    pub index: u32,
    /// Its value when the guest starts.
    pub reset: u64,
    /// Which values it takes.
    pub rule: MsrRule,
}

impl ModelMsr {
    /// Whether RDMSR works; if not, it is #GP(0).
    #[must_use]
    pub fn readable(&self) -> bool {
        !matches!(self.rule, MsrRule::Command(_))
    }

    /// What the MSR holds after `value` is written over `old`; `None`: the write is #GP(0) and changes nothing.
    #[must_use]
    pub fn write(&self, old: u64, value: u64) -> Option<u64> {
        let fits = match self.rule {
            MsrRule::Bits { writable, ignored } => {
                let kept = !(writable | ignored);
                return ((value ^ old) & kept == 0).then_some(value & writable | old & !writable);
            }
            MsrRule::Command(bits) => return (value & !bits == 0).then_some(old),
            MsrRule::Pat => value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
            MsrRule::MtrrFixed => value.to_le_bytes().into_iter().all(is_mtrr_type),
            MsrRule::MtrrType(bits) => value & !(bits | 0xff) == 0 && is_mtrr_type(value as u8),
        };
        fits.then_some(value)
    }
}

/// UC, WC, WT, WP, WB.
fn is_mtrr_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4..=6)
}

impl CpuModel {
    /// The model's MSR of a number; `None`: the model leaves it to the engine, or has none.
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<&ModelMsr> {
        self.msrs.binary_search_by_key(&index, |m| m.index).ok().map(|i| &self.msrs[i])
    }

    /// The value that an MSR of the model has when the guest starts.
    #[must_use]
    pub fn msr_reset(&self, index: u32) -> Option<u64> {
        self.msr(index).map(|m| m.reset)
    }
}

const fn fixed(index: u32, reset: u64) -> ModelMsr {
    ModelMsr { index, reset, rule: MsrRule::Bits { writable: 0, ignored: 0 } }
}
const fn ignores(index: u32, reset: u64) -> ModelMsr {
    ModelMsr { index, reset, rule: MsrRule::Bits { writable: 0, ignored: u64::MAX } }
}
const fn holds(index: u32, reset: u64, writable: u64, ignored: u64) -> ModelMsr {
    ModelMsr { index, reset, rule: MsrRule::Bits { writable, ignored } }
}

/// All MSRs of a model.
pub(super) fn table(vendor: Vendor, features: FeatureSet, phys_bits: u32) -> Vec<ModelMsr> {
    let mut t = vec![
        ModelMsr { index: msr::PAT, reset: 0x0007_0406_0007_0406, rule: MsrRule::Pat },
        // No error-reporting banks, no MCG_CTL.
        fixed(msr::MCG_CAP, 0),
        holds(msr::MCG_STATUS, 0, 7, 0),
        // Last-branch records are not kept, and single stepping stops at every instruction whatever BTF says.
        holds(msr::DEBUGCTL, 0, 0, 3),
    ];
    t.extend((0x1db..=0x1de).map(|n| fixed(n, 0)));
    mtrrs(&mut t, phys_bits);
    match vendor {
        Vendor::Intel => intel(&mut t, features),
        Vendor::Amd => amd(&mut t, phys_bits),
    }
    speculation(&mut t, features);
    t
}

/// MTRRs as a PC's firmware leaves them: RAM is write-back, what lies below 4 GiB from 3 GiB up and the VGA window are not
/// cached. Eight variable ranges, the fixed ones, write-combining.
fn mtrrs(t: &mut Vec<ModelMsr>, phys_bits: u32) {
    const WB: u64 = 6;
    const ALL_WB: u64 = 0x0606_0606_0606_0606;
    const VALID: u64 = 1 << 11;
    const FIXED_ON: u64 = 1 << 10;
    const ON: u64 = 1 << 11;
    let page_bits = ((1u64 << phys_bits.min(52)) - 1) & !0xfff;
    t.push(fixed(msr::MTRR_CAP, 8 | 1 << 8 | 1 << 10));
    t.push(ModelMsr {
        index: msr::MTRR_DEF_TYPE,
        reset: ON | FIXED_ON | WB,
        rule: MsrRule::MtrrType(ON | FIXED_ON),
    });
    for n in (msr::MTRR_PHYS_BASE0..msr::MTRR_PHYS_MASK7).step_by(2) {
        let hole = n == msr::MTRR_PHYS_BASE0;
        let base = if hole { 0xc000_0000 } else { 0 };
        let mask = if hole { page_bits & !0x3fff_ffff | VALID } else { 0 };
        t.push(ModelMsr { index: n, reset: base, rule: MsrRule::MtrrType(page_bits) });
        t.push(holds(n + 1, mask, page_bits | VALID, 0));
    }
    // 64 KiB steps from 0; 16 KiB steps from 0x80000 and 0xa0000; 4 KiB steps from 0xc0000.
    for n in [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f) {
        let reset = if n == 0x259 { 0 } else { ALL_WB };
        t.push(ModelMsr { index: n, reset, rule: MsrRule::MtrrFixed });
    }
}

fn intel(t: &mut Vec<ModelMsr>, features: FeatureSet) {
    t.push(fixed(msr::PLATFORM_ID, 0));
    // Locked, with VMX and SGX off.
    t.push(fixed(msr::FEATURE_CONTROL, 1));
    // Microcode revision in bits 63:32; software writes 0 before CPUID fills it in.
    t.push(ignores(msr::BIOS_SIGN_ID, 1 << 32));
    // Bit 0 fast strings; 11 and 12: no branch trace store, no PEBS; 22 CPUID limit and 34 XD disable stay off.
    t.push(holds(msr::MISC_ENABLE, 1 | 1 << 11 | 1 << 12, 1, 1 << 22 | 1 << 34));
    if features.has(Feature::ARCH_CAPABILITIES) {
        t.push(fixed(msr::ARCH_CAPABILITIES, features.word(Word::Msr(msr::ARCH_CAPABILITIES))));
    }
}

fn amd(t: &mut Vec<ModelMsr>, phys_bits: u32) {
    let top = ((1u64 << phys_bits.min(52)) - 1) & !0x7f_ffff;
    t.extend([
        // Patch level, bits 31:0.
        ignores(msr::BIOS_SIGN_ID, 0x0a10_1154),
        // MTRR attributes 18 to 22; DRAM above 4 GiB is told by MTRRs, not by TOM2.
        holds(msr::AMD_SYSCFG, 0, 0x1f << 18, 0),
        // Bit 24: the TSC counts at P0. 18 McStatusWrEn. TLB cache, FERR, INVD, IRPERF: no effect.
        holds(msr::AMD_HWCR, 1 << 24, 1 << 18 | 1 << 24, 1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 30),
        // TOP_MEM and TOM2.
        holds(0xc001_001a, 0xc000_0000, top, 0),
        holds(0xc001_001d, 0, top, 0),
        // Northbridge configuration, pending-interrupt message, MMIO configuration base: none of them here.
        ignores(0xc001_001f, 0),
        ignores(0xc001_0055, 0),
        ignores(0xc001_0058, 0),
        // SVM is off, and locked so.
        ignores(msr::AMD_VM_CR, 1 << 3 | 1 << 4),
        // Configuration of load/store, instruction and data cache, prefetch, bus unit, execution: no effect.
        ignores(msr::AMD_LS_CFG, 0),
        ignores(0xc001_1021, 0),
        ignores(0xc001_1022, 0),
        ignores(0xc001_1023, 0),
        // Bit 1: LFENCE is serializing.
        ignores(msr::AMD_DE_CFG, 1 << 1),
        ignores(0xc001_102a, 0),
        ignores(0xc001_102c, 0),
        ignores(0xc001_102e, 0),
    ]);
}

/// SPEC_CTRL and PRED_CMD, with the bits that CPUID offers.
fn speculation(t: &mut Vec<ModelMsr>, features: FeatureSet) {
    use Feature::{AMD_IBPB, AMD_IBRS, AMD_SSBD, AMD_STIBP, INTEL_STIBP, SPEC_CTRL, SPEC_CTRL_SSBD};
    let any = |list: &[Feature]| list.iter().any(|f| features.has(*f));
    let bits = u64::from(any(&[SPEC_CTRL, AMD_IBRS]))
        | u64::from(any(&[INTEL_STIBP, AMD_STIBP])) << 1
        | u64::from(any(&[SPEC_CTRL_SSBD, AMD_SSBD])) << 2;
    if bits != 0 {
        t.push(holds(msr::SPEC_CTRL, 0, bits, 0));
    }
    if any(&[SPEC_CTRL, AMD_IBPB]) {
        t.push(ModelMsr { index: msr::PRED_CMD, reset: 0, rule: MsrRule::Command(1) });
    }
}
