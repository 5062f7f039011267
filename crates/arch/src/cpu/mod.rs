//! [`CpuModel`]: what a machine's processors are, fixed when the machine is created. CPUID and the MSRs of the model
//! answer from it alone; the host is asked once, while the model is made.

mod answer;
mod feature;
mod levels;
mod msrs;
mod named;

pub use answer::CpuidDynamic;
pub use feature::{Feature, FeatureSet, Reg, Word};
pub use levels::{BASE, HOST_INSTRUCTIONS, PSABI_V2, PSABI_V3, SOFTWARE};
pub use msrs::{ModelMsr, MsrRule};
pub use named::{CpuModelError, MODELS};

use crate::regs::{cr4, efer, xcr0};

/// One CPUID answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidLeaf {
    /// EAX on entry.
    pub leaf: u32,
    /// ECX on entry; `None`: the leaf has no sub-leaves.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX.
    pub regs: [u32; 4],
}

/// A processor model: its name, all of its CPUID leaves, and the MSRs that belong to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuModel {
    name: String,
    leaves: Vec<CpuidLeaf>,
    msrs: Vec<ModelMsr>,
    /// What the leaves and MSRs say, for quick answers.
    features: FeatureSet,
    phys_bits: u32,
    linear_bits: u32,
    vendor: Vendor,
}

/// Whose rules the processor follows where the vendors differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    /// EBX, ECX and EDX of CPUID.0 spell this.
    pub(crate) fn id(self) -> &'static [u8; 12] {
        match self {
            Vendor::Intel => b"GenuineIntel",
            Vendor::Amd => b"AuthenticAMD",
        }
    }
}

impl CpuModel {
    /// A model of its parts. What depends on the processor or on its state ([`CpuidDynamic`]) is zero in `leaves`.
    #[must_use]
    pub fn from_parts(name: String, leaves: Vec<CpuidLeaf>, mut msrs: Vec<ModelMsr>) -> CpuModel {
        msrs.sort_by_key(|m| m.index);
        let mut model = CpuModel {
            name,
            leaves,
            msrs,
            features: FeatureSet::EMPTY,
            phys_bits: 0,
            linear_bits: 0,
            vendor: Vendor::Intel,
        };
        for &f in Feature::all() {
            if model.reports(f) {
                model.features.insert(f);
            }
        }
        let sizes = model.leaf(0x8000_0008, 0)[0];
        model.phys_bits = (sizes & 0xff).clamp(36, 52);
        model.linear_bits = if model.has(Feature::LA57) { 57 } else { 48 };
        // EBX: "Auth" of AuthenticAMD.
        if model.leaf(0, 0)[1] == u32::from_le_bytes(*b"Auth") {
            model.vendor = Vendor::Amd;
        }
        model
    }

    /// The name that `--cpu` takes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CPUID leaves without their dynamic parts.
    #[must_use]
    pub fn leaves(&self) -> &[CpuidLeaf] {
        &self.leaves
    }

    /// MSRs that only hold a value, by number.
    #[must_use]
    pub fn msrs(&self) -> &[ModelMsr] {
        &self.msrs
    }

    /// The static part of an answer; zeros where the model has no such leaf.
    #[must_use]
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let hit = |l: &&CpuidLeaf| l.leaf == leaf && l.subleaf.is_none_or(|s| s == subleaf);
        self.leaves.iter().find(hit).map_or([0; 4], |l| l.regs)
    }

    fn reports(&self, f: Feature) -> bool {
        let word = match f.word() {
            Word::Cpuid { leaf, subleaf, reg } => {
                u64::from(self.leaf(leaf, subleaf.unwrap_or(0))[reg as usize])
            }
            Word::Msr(n) => self.msr(n).map_or(0, |m| m.reset),
        };
        word >> f.bit() & 1 != 0
    }

    /// Whether the model has a feature.
    #[must_use]
    #[inline]
    pub fn has(&self, f: Feature) -> bool {
        self.features.has(f)
    }

    /// All features of the model.
    #[must_use]
    pub fn features(&self) -> FeatureSet {
        self.features
    }

    /// Whose rules the processor follows.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// CPUID.1:EAX, which RDX holds after reset: family, model and stepping.
    #[must_use]
    pub fn signature(&self) -> u32 {
        self.leaf(1, 0)[0]
    }

    /// Bits of a guest-physical address, 36 to 52.
    #[must_use]
    #[inline]
    pub fn max_phys_bits(&self) -> u32 {
        self.phys_bits
    }

    /// Bits of a linear address: 48, or 57 when the model has 5-level paging.
    #[must_use]
    pub fn max_linear_bits(&self) -> u32 {
        self.linear_bits
    }

    /// The bits that may be 1 in CR4; setting another one is #GP(0) (Intel SDM vol. 3A §2.5).
    #[must_use]
    pub fn cr4_mask(&self) -> u64 {
        self.mask(&[
            (Feature::VME, cr4::VME | cr4::PVI),
            (Feature::TSC, cr4::TSD),
            (Feature::DE, cr4::DE),
            (Feature::PSE, cr4::PSE),
            (Feature::PAE, cr4::PAE),
            (Feature::MCE, cr4::MCE),
            (Feature::PGE, cr4::PGE),
            (Feature::MMX, cr4::PCE),
            (Feature::FXSR, cr4::OSFXSR),
            (Feature::SSE, cr4::OSXMMEXCPT),
            (Feature::UMIP, cr4::UMIP),
            (Feature::LA57, cr4::LA57),
            (Feature::FSGSBASE, cr4::FSGSBASE),
            (Feature::PCID, cr4::PCIDE),
            (Feature::XSAVE, cr4::OSXSAVE),
            (Feature::SMEP, cr4::SMEP),
            (Feature::SMAP, cr4::SMAP),
        ])
    }

    /// The bits that may be 1 in EFER; setting another one is #GP(0) (AMD APM vol. 2 §3.1.7).
    #[must_use]
    pub fn efer_mask(&self) -> u64 {
        /// AMD: automatic IBRS (AMD APM vol. 2 §3.1.7).
        const AIBRSE: u64 = 1 << 21;
        self.mask(&[
            (Feature::SYSCALL, efer::SCE),
            (Feature::LM, efer::LME | efer::LMA),
            (Feature::NX, efer::NXE),
            (Feature::FFXSR, efer::FFXSR),
            (Feature::AUTOIBRS, AIBRSE),
        ])
    }

    /// The bits that may be 1 in XCR0; 0 without XSAVE.
    #[must_use]
    pub fn xcr0_mask(&self) -> u64 {
        self.mask(&[(Feature::XSAVE, xcr0::X87 | xcr0::SSE), (Feature::AVX, xcr0::AVX)])
    }

    fn mask(&self, table: &[(Feature, u64)]) -> u64 {
        table.iter().filter(|(f, _)| self.has(*f)).fold(0, |m, (_, bits)| m | bits)
    }
}

#[cfg(test)]
mod tests;
