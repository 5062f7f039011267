//! Sets of features: the levels of the x86-64 psABI ("System V ABI, AMD64 supplement", §3.1.1), and what Ringer's
//! software engines offer.

use super::Vendor;
use super::feature::Feature::{self, *};
use super::feature::FeatureSet;

/// What every x86-64 processor has (psABI level 1), with what operating systems expect beside it.
pub const BASE: FeatureSet = FeatureSet::of(&[
    FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR,
    SSE, SSE2, SYSCALL, NX, LM,
]);

/// What psABI level 2 adds.
pub const PSABI_V2: FeatureSet =
    FeatureSet::of(&[CMPXCHG16B, LAHF_SAHF, POPCNT, SSE3, SSE4_1, SSE4_2, SSSE3]);

/// What psABI level 3 adds. Its "OSXSAVE" is XSAVE once the guest has switched it on.
pub const PSABI_V3: FeatureSet = FeatureSet::of(&[AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, MOVBE, XSAVE]);

/// What the named levels have beside the psABI's lists: features for the guest's kernel, and instructions that need
/// nothing from the host.
pub(super) const LEVEL_SYSTEM: FeatureSet = FeatureSet::of(&[
    HYPERVISOR,
    PCID,
    X2APIC,
    TSC_DEADLINE,
    ARAT,
    INVARIANT_TSC,
    FSGSBASE,
    TSC_ADJUST,
    SMEP,
    SMAP,
    UMIP,
    ERMS,
    FSRM,
    INVPCID,
    RDTSCP,
    RDPID,
    RDRAND,
    RDSEED,
    PDPE1GB,
    CLFLUSHOPT,
    CLWB,
    PREFETCHW,
]);

/// Forms of XSAVE that come with level 3.
pub(super) const LEVEL_XSAVE: FeatureSet = FeatureSet::of(&[XSAVEOPT, XSAVEC, XGETBV1]);

/// Features of the machine around the processor, which `--cpu host` has whatever the host reports.
pub(super) const MACHINE: FeatureSet =
    FeatureSet::of(&[HYPERVISOR, X2APIC, TSC_DEADLINE, ARAT, INVARIANT_TSC, TSC_ADJUST]);

/// Intel processors say "not affected" in IA32_ARCH_CAPABILITIES, and have enhanced IBRS, so that guests choose no
/// costly mitigation: translated guest code does not speculate across rings as the hardware's own would.
const INTEL_MITIGATIONS: FeatureSet = FeatureSet::of(&[
    ARCH_CAPABILITIES,
    SPEC_CTRL,
    RDCL_NO,
    IBRS_ALL,
    SKIP_L1DFL_VMENTRY,
    SSB_NO,
    MDS_NO,
    PSCHANGE_MC_NO,
    TAA_NO,
    SBDR_SSDP_NO,
    FBSDP_NO,
    PSDP_NO,
    BHI_NO,
    PBRSB_NO,
    GDS_NO,
    RFDS_NO,
    ITS_NO,
]);

/// The same for AMD processors (AMD APM vol. 3 app. E.4.17): automatic IBRS in place of retpolines.
const AMD_MITIGATIONS: FeatureSet = FeatureSet::of(&[
    AMD_IBPB,
    AMD_SSB_NO,
    BTC_NO,
    LFENCE_SERIALIZING,
    AUTOIBRS,
    SRSO_NO,
    SRSO_USER_KERNEL_NO,
    TSA_SQ_NO,
    TSA_L1_NO,
]);

const INTEL_ONLY: FeatureSet = FeatureSet::of(&[SELFSNOOP]);
const AMD_ONLY: FeatureSet =
    FeatureSet::of(&[MMXEXT, TOPOEXT, XSAVEERPTR, NULL_SEL_CLEARS_BASE, SSE4A, MISALIGNSSE]);

/// What the software engines do themselves, on any x86-64 host.
pub const SOFTWARE: FeatureSet = BASE
    .union(LEVEL_SYSTEM)
    .union(FeatureSet::of(&[
        CMPXCHG16B,
        LAHF_SAHF,
        XSAVE,
        LA57,
        SELFSNOOP,
        MMXEXT,
        TOPOEXT,
        XSAVEERPTR,
        NULL_SEL_CLEARS_BASE,
    ]))
    .union(LEVEL_XSAVE)
    .union(INTEL_MITIGATIONS)
    .union(AMD_MITIGATIONS);

/// What the software engines offer when the host has it, because they run the very instruction on the host.
pub const HOST_INSTRUCTIONS: FeatureSet = FeatureSet::of(&[
    SSE3,
    SSSE3,
    SSE4_1,
    SSE4_2,
    POPCNT,
    PCLMULQDQ,
    AES,
    AVX,
    AVX2,
    FMA,
    F16C,
    BMI1,
    BMI2,
    LZCNT,
    MOVBE,
    ADX,
    SHA,
    GFNI,
    VAES,
    VPCLMULQDQ,
    SSE4A,
    MISALIGNSSE,
    FDP_EXCPTN_ONLY,
    ZERO_FCS_FDS,
]);

/// Vector instructions that compilers use by themselves for newer processors of Intel's than "Skylake" for clients.
pub(super) const NEWER_VECTORS: FeatureSet = FeatureSet::of(&[AVX512F, AVX_VNNI, AVX_IFMA]);

/// What compilers use by themselves for Intel's "Broadwell", and not for "Nehalem".
pub(super) const BROADWELL: FeatureSet = PSABI_V3;

/// What a feature is nothing without.
const NEEDS: &[(Feature, Feature)] = &[
    (XSAVEOPT, XSAVE),
    (XSAVEC, XSAVE),
    (XGETBV1, XSAVE),
    (AVX, XSAVE),
    (AVX2, AVX),
    (FMA, AVX),
    (F16C, AVX),
    (VAES, AVX),
    (VPCLMULQDQ, AVX),
    (VAES, AES),
    (VPCLMULQDQ, PCLMULQDQ),
    (ARCH_CAPABILITIES, SPEC_CTRL),
];

/// The features that can only belong to the other vendor's processors.
pub(super) fn foreign(vendor: Vendor) -> FeatureSet {
    match vendor {
        Vendor::Intel => AMD_MITIGATIONS.union(AMD_ONLY),
        Vendor::Amd => INTEL_MITIGATIONS.union(INTEL_ONLY),
    }
}

/// What describes a vendor's processors beside the instructions: mitigations and its customary features.
pub(super) fn customary(vendor: Vendor) -> FeatureSet {
    match vendor {
        Vendor::Intel => INTEL_MITIGATIONS.union(INTEL_ONLY),
        Vendor::Amd => {
            AMD_MITIGATIONS.union(FeatureSet::of(&[MMXEXT, TOPOEXT, XSAVEERPTR, NULL_SEL_CLEARS_BASE]))
        }
    }
}

impl FeatureSet {
    /// What the software engines offer on a host that answers CPUID so.
    #[must_use]
    pub fn software(host: &dyn Fn(u32, u32) -> [u32; 4]) -> FeatureSet {
        SOFTWARE.union(HOST_INSTRUCTIONS.intersection(FeatureSet::from_cpuid(host)))
    }

    /// Without the features whose foundation is missing.
    pub(super) fn consistent(mut self) -> FeatureSet {
        loop {
            let before = self;
            for (f, needed) in NEEDS {
                if !self.has(*needed) {
                    self.remove(*f);
                }
            }
            if self == before {
                return self;
            }
        }
    }
}
