//! [`Feature`]: every processor feature that Ringer knows by name, where CPUID reports it, and sets of them.
//!
//! Bits: Intel SDM vol. 2A "CPUID", AMD APM vol. 3 app. E; bits of IA32_ARCH_CAPABILITIES: Intel SDM vol. 4 table 2-2.
//! Texts are those of Linux's `/proc/cpuinfo`; the variants are spelled as decoders spell them.

use std::fmt;

/// A register of a CPUID answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where a group of features is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// A CPUID answer.
    Cpuid {
        /// EAX on entry.
        leaf: u32,
        /// ECX on entry; `None` where it does not matter.
        subleaf: Option<u32>,
        /// The register.
        reg: Reg,
    },
    /// An MSR.
    Msr(u32),
}

const fn word(leaf: u32, reg: Reg) -> Word {
    Word::Cpuid { leaf, subleaf: None, reg }
}
const fn subword(leaf: u32, subleaf: u32, reg: Reg) -> Word {
    Word::Cpuid { leaf, subleaf: Some(subleaf), reg }
}

macro_rules! features {
    ($($word:expr => { $($name:ident $bit:literal $text:literal,)* })*) => {
        /// A processor feature.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u8)]
        pub enum Feature { $($($name,)*)* }

        const ALL: &[Feature] = &[$($(Feature::$name,)*)*];
        const TABLE: &[(Word, u8, &str)] = &[$($(($word, $bit, $text),)*)*];
    };
}

features! {
    word(1, Reg::Ecx) => {
        SSE3 0 "pni", PCLMULQDQ 1 "pclmulqdq", MONITOR 3 "monitor", VMX 5 "vmx", SSSE3 9 "ssse3", FMA 12 "fma",
        CMPXCHG16B 13 "cx16", PDCM 15 "pdcm", PCID 17 "pcid", SSE4_1 19 "sse4_1", SSE4_2 20 "sse4_2",
        X2APIC 21 "x2apic", MOVBE 22 "movbe", POPCNT 23 "popcnt", TSC_DEADLINE 24 "tsc_deadline_timer", AES 25 "aes",
        XSAVE 26 "xsave", AVX 28 "avx", F16C 29 "f16c", RDRAND 30 "rdrand", HYPERVISOR 31 "hypervisor",
    }
    word(1, Reg::Edx) => {
        FPU 0 "fpu", VME 1 "vme", DE 2 "de", PSE 3 "pse", TSC 4 "tsc", MSR 5 "msr", PAE 6 "pae", MCE 7 "mce",
        CX8 8 "cx8", APIC 9 "apic", SEP 11 "sep", MTRR 12 "mtrr", PGE 13 "pge", MCA 14 "mca", CMOV 15 "cmov",
        PAT 16 "pat", PSE36 17 "pse36", CLFSH 19 "clflush", MMX 23 "mmx", FXSR 24 "fxsr", SSE 25 "sse", SSE2 26 "sse2",
        SELFSNOOP 27 "ss",
    }
    word(6, Reg::Eax) => { ARAT 2 "arat", }
    subword(7, 0, Reg::Ebx) => {
        FSGSBASE 0 "fsgsbase", TSC_ADJUST 1 "tsc_adjust", BMI1 3 "bmi1", HLE 4 "hle", AVX2 5 "avx2",
        FDP_EXCPTN_ONLY 6 "fdp_excptn_only", SMEP 7 "smep", BMI2 8 "bmi2", ERMS 9 "erms", INVPCID 10 "invpcid",
        RTM 11 "rtm", ZERO_FCS_FDS 13 "zero_fcs_fds", MPX 14 "mpx", AVX512F 16 "avx512f", AVX512DQ 17 "avx512dq",
        RDSEED 18 "rdseed", ADX 19 "adx", SMAP 20 "smap", AVX512_IFMA 21 "avx512ifma", CLFLUSHOPT 23 "clflushopt",
        CLWB 24 "clwb", AVX512CD 28 "avx512cd", SHA 29 "sha_ni", AVX512BW 30 "avx512bw", AVX512VL 31 "avx512vl",
    }
    subword(7, 0, Reg::Ecx) => {
        AVX512_VBMI 1 "avx512vbmi", UMIP 2 "umip", PKU 3 "pku", WAITPKG 5 "waitpkg", AVX512_VBMI2 6 "avx512_vbmi2",
        CET_SS 7 "shstk", GFNI 8 "gfni", VAES 9 "vaes", VPCLMULQDQ 10 "vpclmulqdq", AVX512_VNNI 11 "avx512_vnni",
        AVX512_BITALG 12 "avx512_bitalg", AVX512_VPOPCNTDQ 14 "avx512_vpopcntdq", LA57 16 "la57", RDPID 22 "rdpid",
        CLDEMOTE 25 "cldemote", MOVDIRI 27 "movdiri", MOVDIR64B 28 "movdir64b",
    }
    subword(7, 0, Reg::Edx) => {
        FSRM 4 "fsrm", MD_CLEAR 10 "md_clear", SERIALIZE 14 "serialize", CET_IBT 20 "ibt", SPEC_CTRL 26 "spec_ctrl",
        INTEL_STIBP 27 "intel_stibp", FLUSH_L1D 28 "flush_l1d", ARCH_CAPABILITIES 29 "arch_capabilities",
        SPEC_CTRL_SSBD 31 "spec_ctrl_ssbd",
    }
    subword(7, 1, Reg::Eax) => {
        AVX_VNNI 4 "avx_vnni", AVX512_BF16 5 "avx512_bf16", FZRM 10 "fzrm", FSRS 11 "fsrs", FSRC 12 "fsrc",
        AVX_IFMA 23 "avx_ifma",
    }
    subword(0xd, 1, Reg::Eax) => {
        XSAVEOPT 0 "xsaveopt", XSAVEC 1 "xsavec", XGETBV1 2 "xgetbv1", XSAVES 3 "xsaves",
    }
    word(0x8000_0001, Reg::Ecx) => {
        LAHF_SAHF 0 "lahf_lm", SVM 2 "svm", LZCNT 5 "abm", SSE4A 6 "sse4a", MISALIGNSSE 7 "misalignsse",
        PREFETCHW 8 "3dnowprefetch", XOP 11 "xop", FMA4 16 "fma4", TBM 21 "tbm", TOPOEXT 22 "topoext",
    }
    word(0x8000_0001, Reg::Edx) => {
        SYSCALL 11 "syscall", NX 20 "nx", MMXEXT 22 "mmxext", FFXSR 25 "fxsr_opt", PDPE1GB 26 "pdpe1gb",
        RDTSCP 27 "rdtscp", LM 29 "lm",
    }
    word(0x8000_0007, Reg::Edx) => { INVARIANT_TSC 8 "nonstop_tsc", }
    word(0x8000_0008, Reg::Ebx) => {
        CLZERO 0 "clzero", XSAVEERPTR 2 "xsaveerptr", WBNOINVD 9 "wbnoinvd", AMD_IBPB 12 "amd_ibpb",
        AMD_IBRS 14 "amd_ibrs", AMD_STIBP 15 "amd_stibp", AMD_SSBD 24 "amd_ssbd", VIRT_SSBD 25 "virt_ssbd",
        AMD_SSB_NO 26 "amd_ssb_no", BTC_NO 29 "btc_no",
    }
    word(0x8000_0021, Reg::Eax) => {
        NO_NESTED_DATA_BP 0 "no_nested_data_bp", LFENCE_SERIALIZING 2 "lfence_serializing",
        NULL_SEL_CLEARS_BASE 6 "null_sel_clr_base", AUTOIBRS 8 "autoibrs", NO_SMM_CTL 9 "no_smm_ctl_msr",
        SRSO_NO 29 "srso_no", SRSO_USER_KERNEL_NO 30 "srso_user_kernel_no",
    }
    word(0x8000_0021, Reg::Ecx) => { TSA_SQ_NO 1 "tsa_sq_no", TSA_L1_NO 2 "tsa_l1_no", }
    Word::Msr(crate::msr::ARCH_CAPABILITIES) => {
        RDCL_NO 0 "rdcl_no", IBRS_ALL 1 "ibrs_all", SKIP_L1DFL_VMENTRY 3 "skip_l1dfl_vmentry", SSB_NO 4 "ssb_no",
        MDS_NO 5 "mds_no", PSCHANGE_MC_NO 6 "pschange_mc_no", TAA_NO 8 "taa_no", SBDR_SSDP_NO 13 "sbdr_ssdp_no",
        FBSDP_NO 14 "fbsdp_no", PSDP_NO 15 "psdp_no", BHI_NO 20 "bhi_no", PBRSB_NO 24 "pbrsb_no", GDS_NO 26 "gds_no",
        RFDS_NO 27 "rfds_no", ITS_NO 62 "its_no",
    }
}

impl Feature {
    /// All features, in table order.
    #[must_use]
    pub fn all() -> &'static [Feature] {
        ALL
    }
    /// Where it is reported.
    #[must_use]
    pub fn word(self) -> Word {
        TABLE[self as usize].0
    }
    /// The bit in [`word`](Self::word).
    #[must_use]
    pub fn bit(self) -> u8 {
        TABLE[self as usize].1
    }
    /// Its name for people: that of Linux's `/proc/cpuinfo` where that has one.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].2
    }
    /// The feature of a [`name`](Self::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Feature> {
        ALL.iter().copied().find(|f| f.name() == name)
    }
}

const WORDS: usize = ALL.len().div_ceil(64);

/// A set of [`Feature`]s.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FeatureSet([u64; WORDS]);

impl FeatureSet {
    /// No feature.
    pub const EMPTY: FeatureSet = FeatureSet([0; WORDS]);

    /// The set of the listed features.
    #[must_use]
    pub const fn of(list: &[Feature]) -> FeatureSet {
        let mut s = FeatureSet::EMPTY;
        let mut i = 0;
        while i < list.len() {
            let f = list[i] as usize;
            s.0[f / 64] |= 1 << (f % 64);
            i += 1;
        }
        s
    }
    /// Whether the set has `f`.
    #[must_use]
    pub const fn has(&self, f: Feature) -> bool {
        self.0[f as usize / 64] >> (f as usize % 64) & 1 != 0
    }
    /// Adds `f`.
    pub fn insert(&mut self, f: Feature) {
        self.0[f as usize / 64] |= 1 << (f as usize % 64);
    }
    /// Takes `f` out.
    pub fn remove(&mut self, f: Feature) {
        self.0[f as usize / 64] &= !(1 << (f as usize % 64));
    }
    /// What is in either set.
    #[must_use]
    pub const fn union(mut self, other: FeatureSet) -> FeatureSet {
        let mut i = 0;
        while i < WORDS {
            self.0[i] |= other.0[i];
            i += 1;
        }
        self
    }
    /// What is in both sets.
    #[must_use]
    pub const fn intersection(mut self, other: FeatureSet) -> FeatureSet {
        let mut i = 0;
        while i < WORDS {
            self.0[i] &= other.0[i];
            i += 1;
        }
        self
    }
    /// What is here and not in `other`.
    #[must_use]
    pub const fn difference(mut self, other: FeatureSet) -> FeatureSet {
        let mut i = 0;
        while i < WORDS {
            self.0[i] &= !other.0[i];
            i += 1;
        }
        self
    }
    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == FeatureSet::EMPTY
    }
    /// The features, in table order.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        ALL.iter().copied().filter(|f| self.has(*f))
    }
    /// The features that CPUID answers claim. Features that an MSR reports are not among them.
    #[must_use]
    pub fn from_cpuid(cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> FeatureSet {
        let (basic, extended) = (cpuid(0, 0)[0], cpuid(0x8000_0000, 0)[0]);
        let mut s = FeatureSet::EMPTY;
        for &f in ALL {
            let Word::Cpuid { leaf, subleaf, reg } = f.word() else { continue };
            let max = if leaf >= 0x8000_0000 { extended } else { basic };
            // CPUID.7.0:EAX is the last sub-leaf of leaf 7; sub-leaf 1 of leaf 0xD exists whenever the leaf does.
            let sub = subleaf.unwrap_or(0);
            let there = leaf <= max && (leaf != 7 || sub <= cpuid(7, 0)[0]);
            if there && cpuid(leaf, sub)[reg as usize] >> f.bit() & 1 != 0 {
                s.insert(f);
            }
        }
        s
    }
    /// The bits of one word that the set's features make.
    #[must_use]
    pub fn word(&self, word: Word) -> u64 {
        self.iter().filter(|f| f.word() == word).fold(0, |w, f| w | 1 << f.bit())
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, x) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, x.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_bit_and_no_name_stands_twice() {
        let bits: HashSet<_> = ALL.iter().map(|f| format!("{:?} {}", f.word(), f.bit())).collect();
        let names: HashSet<_> = ALL.iter().map(|f| f.name()).collect();
        assert_eq!((bits.len(), names.len()), (ALL.len(), ALL.len()));
        for f in ALL {
            assert_eq!(Feature::from_name(f.name()), Some(*f));
        }
    }

    #[test]
    fn sets() {
        let mut s = FeatureSet::of(&[Feature::SSE3, Feature::ITS_NO]);
        assert!(s.has(Feature::SSE3) && s.has(Feature::ITS_NO) && !s.has(Feature::AVX));
        assert_eq!(s.to_string(), "pni, its_no");
        s.remove(Feature::SSE3);
        assert_eq!(s.word(Word::Msr(0x10a)), 1 << 62);
        assert_eq!(s.difference(s), FeatureSet::EMPTY);
    }

    #[test]
    fn cpuid_past_the_last_leaf_is_not_believed() {
        let all_ones = |leaf: u32, _: u32| match leaf {
            0 => [1, 0, 0, 0],
            0x8000_0000 => [0x8000_0001, 0, 0, 0],
            _ => [u32::MAX; 4],
        };
        let s = FeatureSet::from_cpuid(&all_ones);
        assert!(s.has(Feature::AVX) && s.has(Feature::LM));
        assert!(!s.has(Feature::AVX2) && !s.has(Feature::AUTOIBRS) && !s.has(Feature::RDCL_NO));
    }
}
