//! Making a [`CpuModel`] from its name.

use super::feature::{Feature, FeatureSet, Reg, Word};
use super::levels::{self, BASE, LEVEL_SYSTEM, LEVEL_XSAVE, MACHINE, PSABI_V2, PSABI_V3};
use super::{CpuModel, CpuidLeaf, Vendor, msrs};
use thiserror::Error;

/// The names that [`CpuModel::named`] knows.
pub const MODELS: [&str; 3] = ["host", "x86-64-v2", "x86-64-v3"];

/// Guest-physical address bits of the levels: enough for 64 TiB, as today's processors have at least.
const LEVEL_PHYS_BITS: u32 = 46;

/// A processor model that cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CpuModelError {
    /// No such model.
    #[error("no processor model is called \"{name}\"; there are {}", MODELS.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// `+feature` or `-feature` after the model's name names nothing.
    #[error("\"{name}\" is no processor feature; write +NAME or -NAME with a name as in /proc/cpuinfo")]
    UnknownFeature {
        /// What was asked for.
        name: String,
    },
    /// Neither host nor engine can provide all of the model.
    #[error(
        "processor model {model} needs {missing}, which this engine does not offer on this host; choose a lower model with --cpu"
    )]
    Missing {
        /// The model.
        model: String,
        /// The features that are missing.
        missing: FeatureSet,
    },
}

/// What stays of a processor beside its features.
struct Identity {
    vendor: Vendor,
    /// CPUID.1:EAX.
    signature: u32,
    /// Up to 48 bytes, zero-padded.
    brand: [u8; 48],
    phys_bits: u32,
}

impl CpuModel {
    /// The model of a name: one of [`MODELS`], then any number of `,+FEATURE` and `,-FEATURE`. `host` answers CPUID
    /// as the host's processor does; `supported` is what the engine offers on this host.
    ///
    /// `host` is the supported part of the host's features; the levels are the same everywhere but for the vendor, which
    /// is always the host's.
    ///
    /// # Errors
    /// [`CpuModelError`]: an unknown name, or features that are not supported.
    pub fn named(
        name: &str,
        host: &dyn Fn(u32, u32) -> [u32; 4],
        supported: &FeatureSet,
    ) -> Result<CpuModel, CpuModelError> {
        let mut parts = name.split(',');
        let base = parts.next().unwrap_or_default();
        let vendor = vendor_of(host);
        let level =
            |extra| BASE.union(LEVEL_SYSTEM).union(PSABI_V2).union(extra).union(levels::customary(vendor));
        let (mut features, identity) = match base {
            "host" => {
                let own = FeatureSet::from_cpuid(host).union(MACHINE).union(levels::customary(vendor));
                let features = own.intersection(*supported);
                let lacks =
                    FeatureSet::from_cpuid(host).intersection(levels::NEWER_VECTORS).difference(features);
                (features, host_identity(vendor, host, features, !lacks.is_empty()))
            }
            "x86-64-v2" => {
                let features = level(FeatureSet::EMPTY);
                (features, level_identity(vendor, base, features))
            }
            "x86-64-v3" => {
                let features = level(PSABI_V3.union(LEVEL_XSAVE));
                (features, level_identity(vendor, base, features))
            }
            _ => return Err(CpuModelError::Unknown { name: base.to_owned() }),
        };
        features = features.difference(levels::foreign(vendor));
        for change in parts {
            let unknown = || CpuModelError::UnknownFeature { name: change.to_owned() };
            let (sign, f) = change.split_at_checked(1).ok_or_else(unknown)?;
            let f = Feature::from_name(f).ok_or_else(unknown)?;
            match sign {
                "+" => features.insert(f),
                "-" => features.remove(f),
                _ => return Err(unknown()),
            }
        }
        // Mitigations are what guests may rely on, not what they need: an engine without them lacks nothing.
        let optional = levels::customary(vendor);
        let features = features.difference(optional.difference(*supported)).consistent();
        let missing = BASE.union(features).difference(*supported);
        if !missing.is_empty() {
            return Err(CpuModelError::Missing { model: name.to_owned(), missing });
        }
        Ok(build(name, features, &identity))
    }
}

fn vendor_of(host: &dyn Fn(u32, u32) -> [u32; 4]) -> Vendor {
    let [_, b, c, d] = host(0, 0);
    let mut id = [0; 12];
    for (to, reg) in id.chunks_exact_mut(4).zip([b, d, c]) {
        to.copy_from_slice(&reg.to_le_bytes());
    }
    if &id == Vendor::Amd.id() || &id == b"HygonGenuine" { Vendor::Amd } else { Vendor::Intel }
}

/// EPYC "Genoa" (family 0x19, model 0x11); of Intel's the newest server processor of which a model with `features` has all instructions:
/// Xeon "Broadwell" (family 6, model 0x4f), else "Nehalem" (model 0x1a).
///
/// Programs whose compiler chose between versions of a function for processors by name (GCC's `target_clones("arch=...")`) believe
/// the model number alone, and where it is that of a processor with AVX-512 they run AVX-512, whatever CPUID says of it. Guests
/// choose the cheapest correct mitigations on all of these, given the features that say which they need.
fn level_signature(vendor: Vendor, features: FeatureSet) -> u32 {
    match vendor {
        Vendor::Intel if levels::BROADWELL.difference(features).is_empty() => 0x0004_06f1,
        Vendor::Intel => 0x0001_06a5,
        Vendor::Amd => 0x00a1_0f11,
    }
}

fn level_identity(vendor: Vendor, level: &str, features: FeatureSet) -> Identity {
    let text = format!("Ringer Virtual CPU ({level})");
    let mut brand = [0; 48];
    for (to, from) in brand.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    Identity { vendor, signature: level_signature(vendor, features), brand, phys_bits: LEVEL_PHYS_BITS }
}

/// The host's identity; `lacks`: the host has instructions that programs would expect by its model number alone and the model has not.
fn host_identity(
    vendor: Vendor,
    host: &dyn Fn(u32, u32) -> [u32; 4],
    features: FeatureSet,
    lacks: bool,
) -> Identity {
    let mut id = level_identity(vendor, "host", features);
    let extended = host(0x8000_0000, 0)[0];
    if host(0, 0)[0] >= 1 && !(lacks && vendor == Vendor::Intel) {
        id.signature = host(1, 0)[0];
    }
    if extended >= 0x8000_0004 {
        let regs = (0x8000_0002..=0x8000_0004).flat_map(|l| host(l, 0));
        for (to, reg) in id.brand.chunks_exact_mut(4).zip(regs) {
            to.copy_from_slice(&reg.to_le_bytes());
        }
    }
    if extended >= 0x8000_0008 {
        id.phys_bits = (host(0x8000_0008, 0)[0] & 0xff).clamp(36, 52);
    }
    id
}

fn build(name: &str, features: FeatureSet, id: &Identity) -> CpuModel {
    let msrs = msrs::table(id.vendor, features, id.phys_bits);
    let mut b = Builder { features, leaves: Vec::new() };
    b.basic(id);
    b.extended(id);
    CpuModel::from_parts(name.to_owned(), b.leaves, msrs)
}

/// One cache as leaves 4 and 0x8000001D describe it: EAX type and level, ways, sets. Lines are 64 bytes.
struct Cache {
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

const INTEL_CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 12, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 16, sets: 2048 },
    Cache { kind: 3, level: 3, ways: 16, sets: 32768 },
];
const AMD_CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 8, sets: 2048 },
    Cache { kind: 3, level: 3, ways: 16, sets: 32768 },
];

struct Builder {
    features: FeatureSet,
    leaves: Vec<CpuidLeaf>,
}

impl Builder {
    /// Adds a leaf: `regs`, and the bits of the features that it reports.
    fn put(&mut self, leaf: u32, subleaf: Option<u32>, mut regs: [u32; 4]) {
        for reg in [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx] {
            let bits = self.features.word(Word::Cpuid { leaf, subleaf, reg });
            regs[reg as usize] |= bits as u32;
        }
        self.leaves.push(CpuidLeaf { leaf, subleaf, regs });
    }

    fn caches(&mut self, leaf: u32, caches: &[Cache]) {
        for (sub, c) in (0..).zip(caches) {
            // Bit 8: self-initializing. L2 and L3 hold what is above them: not claimed.
            let eax = c.kind | c.level << 5 | 1 << 8;
            self.put(leaf, Some(sub), [eax, (c.ways - 1) << 22 | 63, c.sets - 1, 0]);
        }
    }

    fn basic(&mut self, id: &Identity) {
        let [b, d, c] = id_regs(id.vendor);
        let intel = id.vendor == Vendor::Intel;
        // Intel: through the V2 topology leaf; AMD: through XSAVE.
        self.put(0, None, [if intel { 0x1f } else { 0xd }, b, c, d]);
        // EBX 15:8: CLFLUSH line in units of 8 bytes.
        self.put(1, None, [id.signature, 8 << 8, 0, 0]);
        if intel {
            // One byte each: 0x01 (AL: ask once), 0xff (caches: see leaf 4), 0xfe (TLBs: see leaf 0x18, none said).
            self.put(2, None, [0x00fe_ff01, 0, 0, 0]);
            self.caches(4, &INTEL_CACHES);
        }
        self.put(6, None, [0; 4]);
        let sub1 = Feature::all().iter().any(|f| {
            self.features.has(*f) && matches!(f.word(), Word::Cpuid { leaf: 7, subleaf: Some(1), .. })
        });
        self.put(7, Some(0), [u32::from(sub1), 0, 0, 0]);
        if sub1 {
            self.put(7, Some(1), [0; 4]);
        }
        if self.features.has(Feature::XSAVE) {
            let avx = self.features.has(Feature::AVX);
            // Sub-leaf 0: EAX = bits of XCR0, ECX = bytes with all of them on.
            self.put(0xd, Some(0), if avx { [7, 0, 832, 0] } else { [3, 0, 576, 0] });
            self.put(0xd, Some(1), [0; 4]);
            if avx {
                // 256 bytes at 576: the upper halves of YMM.
                self.put(0xd, Some(2), [256, 576, 0, 0]);
            }
        }
    }

    fn extended(&mut self, id: &Identity) {
        const COMMON_EDX: u32 = 0x0183_f3ff;
        let amd = id.vendor == Vendor::Amd;
        let [b, d, c] = id_regs(id.vendor);
        self.put(0x8000_0000, None, if amd { [0x8000_0021, b, c, d] } else { [0x8000_0008, 0, 0, 0] });
        let edx = self.features.word(Word::Cpuid { leaf: 1, subleaf: None, reg: Reg::Edx }) as u32;
        // AMD repeats leaf 1's EDX here (AMD APM vol. 3 app. E.4.2).
        self.put(0x8000_0001, None, if amd { [id.signature, 0, 0, edx & COMMON_EDX] } else { [0; 4] });
        for (leaf, part) in (0x8000_0002..).zip(id.brand.chunks_exact(16)) {
            let mut regs = [0; 4];
            for (r, b) in regs.iter_mut().zip(part.chunks_exact(4)) {
                *r = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
            self.put(leaf, None, regs);
        }
        if amd {
            // L1 TLBs of 64 entries, L1 caches of 32 KiB 8-way (AMD APM vol. 3 app. E.4.4).
            self.put(0x8000_0005, None, [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140]);
            // L2 1 MiB 8-way; L3 in units of 512 KiB: 32 MiB 16-way.
            self.put(0x8000_0006, None, [0x4800_4800, 0x6800_4800, 0x0400_6140, 64 << 18 | 0x8140]);
        } else {
            // L2 2 MiB, 16-way, lines of 64 bytes.
            self.put(0x8000_0006, None, [0, 0, 0x0800_8040, 0]);
        }
        self.put(0x8000_0007, None, [0; 4]);
        let linear = if self.features.has(Feature::LA57) { 57 } else { 48 };
        self.put(0x8000_0008, None, [linear << 8 | id.phys_bits, 0, 0, 0]);
        if amd {
            if self.features.has(Feature::TOPOEXT) {
                self.caches(0x8000_001d, &AMD_CACHES);
            }
            self.put(0x8000_0021, None, [0; 4]);
        }
    }
}

/// The vendor's EBX, EDX, ECX of leaf 0.
fn id_regs(vendor: Vendor) -> [u32; 3] {
    let id = vendor.id();
    std::array::from_fn(|i| u32::from_le_bytes([id[4 * i], id[4 * i + 1], id[4 * i + 2], id[4 * i + 3]]))
}
