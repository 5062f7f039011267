//! CPUID as a guest sees it: the model's leaves, with what depends on the processor and its state filled in.

use super::feature::Feature;
use super::{CpuModel, Vendor};
use crate::regs::xcr0;

/// What CPUID's answers depend on beside the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidDynamic {
    /// The processor's APIC id.
    pub apic_id: u32,
    /// How many processors the machine has, at least 1: cores of one package, one thread each.
    pub vcpus: u32,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
    /// APIC_BASE's global enable bit.
    pub apic_enabled: bool,
    /// Frequency of the guest's TSC in kHz.
    pub tsc_khz: u32,
    /// Frequency of the local APIC timer's bus in kHz.
    pub apic_bus_khz: u32,
    /// Features of the KVM paravirtual interface, EAX of leaf 0x40000001.
    pub kvm_features: u32,
    /// Hints of the KVM paravirtual interface, EDX of leaf 0x40000001.
    pub kvm_hints: u32,
}

/// Range that hypervisors answer, and its last leaf here.
const HYPERVISOR: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
const HYPERVISOR_MAX: u32 = 0x4000_0010;

impl CpuModel {
    /// What CPUID returns in EAX, EBX, ECX and EDX for EAX = `leaf` and ECX = `subleaf`.
    ///
    /// Past the last leaf, Intel's processors answer with the last basic one and AMD's with zeros (Intel SDM vol. 2A
    /// "CPUID", AMD APM vol. 3 app. E.1).
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, dynamic: &CpuidDynamic) -> [u32; 4] {
        if HYPERVISOR.contains(&leaf) && self.has(Feature::HYPERVISOR) {
            return hypervisor(leaf, dynamic);
        }
        let last = self.leaf(0, 0)[0];
        if leaf <= last || (0x8000_0000..=self.leaf(0x8000_0000, 0)[0]).contains(&leaf) {
            self.answer(leaf, subleaf, dynamic)
        } else if self.vendor() == Vendor::Intel {
            self.answer(last, subleaf, dynamic)
        } else {
            [0; 4]
        }
    }

    fn answer(&self, leaf: u32, subleaf: u32, dynamic: &CpuidDynamic) -> [u32; 4] {
        let mut r = self.leaf(leaf, subleaf);
        let vcpus = dynamic.vcpus.max(1);
        let amd = self.vendor() == Vendor::Amd;
        match leaf {
            1 => self.leaf_1(&mut r, vcpus, dynamic),
            // Bits 25:14: processors that share the cache, 31:26: cores in the package, both less one.
            4 if r[0] != 0 => r[0] |= shared(r[0], vcpus) << 14 | (id_space(vcpus) - 1).min(63) << 26,
            0x8000_001d if r[0] != 0 => r[0] |= shared(r[0], vcpus) << 14,
            0xb | 0x1f => return topology(subleaf, vcpus, dynamic.apic_id),
            0xd => self.leaf_d(&mut r, subleaf, dynamic.xcr0),
            0x15 => (r[0], r[1], r[2]) = tsc_ratio(dynamic),
            // Base, maximum and bus frequency in MHz.
            0x16 if !amd => r = [dynamic.tsc_khz / 1000, dynamic.tsc_khz / 1000, 100, 0],
            // ECX bit 1: the processors that leaf 1 counts are cores, not threads.
            0x8000_0001 if amd => {
                r[2] |= u32::from(vcpus > 1) << 1;
                r[3] &= !(u32::from(!dynamic.apic_enabled) << 9);
            }
            // ECX 7:0 cores less one, 15:12 bits of the APIC id that number them.
            0x8000_0008 if amd => r[2] |= (vcpus - 1).min(0xff) | id_bits(vcpus) << 12,
            // One thread a core (EBX 15:8 = 0), one node.
            0x8000_001e if self.has(Feature::TOPOEXT) => r = [dynamic.apic_id, dynamic.apic_id & 0xff, 0, 0],
            _ => {}
        }
        r
    }

    fn leaf_1(&self, r: &mut [u32; 4], vcpus: u32, dynamic: &CpuidDynamic) {
        // Intel counts the ids that processors can have, AMD the processors.
        let count = if self.vendor() == Vendor::Amd { vcpus } else { id_space(vcpus) };
        r[1] |= count.min(0xff) << 16 | (dynamic.apic_id & 0xff) << 24;
        r[2] |= u32::from(dynamic.osxsave) << 27;
        // HTT: the count above is valid.
        r[3] |= u32::from(vcpus > 1) << 28;
        if !dynamic.apic_enabled {
            r[3] &= !(1 << 9);
        }
    }

    /// EBX: bytes of the XSAVE area with what XCR0 has on; the standard form in sub-leaf 0, the compacted one in 1.
    /// With x87, SSE and AVX alone both are the same (Intel SDM vol. 1 §13.2).
    fn leaf_d(&self, r: &mut [u32; 4], subleaf: u32, xcr0: u64) {
        let size = if xcr0 & xcr0::AVX != 0 { 832 } else { 576 };
        if self.has(Feature::XSAVE) && (subleaf == 0 || (subleaf == 1 && self.has(Feature::XSAVEC))) {
            r[1] = size;
        }
    }
}

/// Bits that APIC ids of `vcpus` processors need.
fn id_bits(vcpus: u32) -> u32 {
    32 - (vcpus - 1).leading_zeros()
}

fn id_space(vcpus: u32) -> u32 {
    1u32.checked_shl(id_bits(vcpus)).unwrap_or(u32::MAX)
}

/// Ids that share a cache with EAX `eax`, less one: the third level is the package's, the others a core's.
fn shared(eax: u32, vcpus: u32) -> u32 {
    if eax >> 5 & 7 == 3 { (id_space(vcpus) - 1).min(0xfff) } else { 0 }
}

/// Leaves 0xB and 0x1F: level 0 is threads (1 a core), level 1 cores.
fn topology(subleaf: u32, vcpus: u32, apic_id: u32) -> [u32; 4] {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    match subleaf {
        0 => [0, 1, SMT, apic_id],
        1 => [id_bits(vcpus), vcpus & 0xffff, CORE | 1, apic_id],
        n => [0, 0, n & 0xff, apic_id],
    }
}

/// Leaf 0x15: TSC frequency = ECX Hz * EBX / EAX. The crystal also feeds the local APIC's timer, so it is the bus. EBX
/// is kept so small that kHz * EBX fits 32 bits, in which guests compute; the ratio is the best one of that size.
fn tsc_ratio(dynamic: &CpuidDynamic) -> (u32, u32, u32) {
    let (tsc, bus) = (u64::from(dynamic.tsc_khz), u64::from(dynamic.apic_bus_khz));
    let Some(hz) = dynamic.apic_bus_khz.checked_mul(1000) else { return (0, 0, 0) };
    if hz == 0 || tsc == 0 {
        return (0, 0, 0);
    }
    let most = u64::from(u32::MAX) / bus;
    let mut best = (1, 0, u64::MAX >> 16);
    for den in 1..=most.min(10_000) {
        let num = (tsc * den + bus / 2) / bus;
        if num > most {
            break;
        }
        // Compares error / den without dividing.
        let error = (tsc * den).abs_diff(num * bus);
        if num > 0 && error * best.0 < best.2 * den {
            best = (den, num, error);
        }
    }
    if best.1 == 0 { (0, 0, 0) } else { (best.0 as u32, best.1 as u32, hz) }
}

/// The KVM paravirtual interface (Linux Documentation/virt/kvm/x86/cpuid.rst).
fn hypervisor(leaf: u32, dynamic: &CpuidDynamic) -> [u32; 4] {
    match leaf {
        0x4000_0000 => [
            HYPERVISOR_MAX,
            u32::from_le_bytes(*b"KVMK"),
            u32::from_le_bytes(*b"VMKV"),
            u32::from_le_bytes(*b"M\0\0\0"),
        ],
        0x4000_0001 => [dynamic.kvm_features, 0, 0, dynamic.kvm_hints],
        HYPERVISOR_MAX => [dynamic.tsc_khz, dynamic.apic_bus_khz, 0, 0],
        _ => [0; 4],
    }
}
