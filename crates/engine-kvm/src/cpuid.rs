//! What KVM can offer of a processor model, and the model's CPUID as KVM takes it.

use crate::raw;
use kvm_bindings::kvm_msr_entry;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2};
use kvm_ioctls::{Error, Kvm};
use ringer_arch::cpu::{CpuModel, CpuidDynamic, Feature, FeatureSet, Word};
use ringer_arch::msr;
use ringer_arch::regs::{cr0, cr4, efer};
use std::sync::OnceLock;

/// What this engine does itself, around KVM: the local APIC, its timer, and MSRs that KVM passes on.
const OWN: FeatureSet = FeatureSet::of(&[
    Feature::HYPERVISOR,
    Feature::X2APIC,
    Feature::TSC_DEADLINE,
    Feature::ARAT,
    Feature::TSC_ADJUST,
]);

/// The processor's, asked directly.
fn host(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The features that KVM offers on this host, of those that the state and the software engines know.
pub fn offered(kvm: &Kvm) -> Result<FeatureSet, Error> {
    let entries = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let answers = |leaf, subleaf| answer(entries.as_slice(), leaf, subleaf);
    let mut known = FeatureSet::from_cpuid(&answers);
    let says = feature_msr(kvm, msr::ARCH_CAPABILITIES);
    for f in Feature::all() {
        if f.word() == Word::Msr(msr::ARCH_CAPABILITIES) && says >> f.bit() & 1 != 0 {
            known.insert(*f);
        }
    }
    if known.has(Feature::LA57) && !takes_la57(kvm, &entries)? {
        known.remove(Feature::LA57);
    }
    Ok(known.union(OWN).intersection(FeatureSet::software(&host)))
}

/// Whether a processor with the features in KVM's list can page with 5 levels. KVM lists LA57 for the processor's sake (Linux
/// arch/x86/kvm/cpuid.c), whatever the host itself uses; one on paging-only virtualization (PVM) refuses CR4.LA57 nevertheless.
fn takes_la57(kvm: &Kvm, listed: &CpuId) -> Result<bool, Error> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    if let Some(takes) = FOUND.get() {
        return Ok(*takes);
    }
    let vm = kvm.create_vm()?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(listed)?;
    let mut s = raw::sregs2(&vcpu)?;
    (s.cr0, s.cr4, s.efer) = (cr0::PG | cr0::PE | cr0::ET, cr4::PAE | cr4::LA57, efer::LMA | efer::LME);
    (s.cs.l, s.cs.db) = (1, 0);
    let taken = raw::set_sregs2(&vcpu, &s).is_ok() && raw::sregs2(&vcpu)?.cr4 & cr4::LA57 != 0;
    Ok(*FOUND.get_or_init(|| taken))
}

/// What KVM's list answers; zeros where it has nothing.
fn answer(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> [u32; 4] {
    let hit = |e: &&kvm_cpuid_entry2| {
        e.function == leaf && (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || e.index == subleaf)
    };
    entries.iter().find(hit).map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

/// An MSR that says which features there are; 0 if KVM has none such.
fn feature_msr(kvm: &Kvm, index: u32) -> u64 {
    let Ok(mut list) = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]) else { return 0 };
    match kvm.get_msrs(&mut list) {
        Ok(1) => list.as_slice()[0].data,
        _ => 0,
    }
}

/// The features of the model that are not offered.
pub fn missing(model: &CpuModel, offered: &FeatureSet) -> FeatureSet {
    model.features().difference(*offered)
}

/// Leaves that the model answers beside those it holds, with their sub-leaves.
const MADE: [(u32, Option<u32>); 10] = [
    (0xb, Some(0)),
    (0xb, Some(1)),
    (0x1f, Some(0)),
    (0x1f, Some(1)),
    (0x15, None),
    (0x16, None),
    (0x8000_001e, None),
    (0x4000_0000, None),
    (0x4000_0001, None),
    (0x4000_0010, None),
];

/// All that CPUID answers on a processor of the model. KVM itself keeps up what follows CR4, XCR0 and the APIC base.
pub fn entries(model: &CpuModel, dynamic: &CpuidDynamic) -> Vec<kvm_cpuid_entry2> {
    let (basic, extended) = (model.leaf(0, 0)[0], model.leaf(0x8000_0000, 0)[0]);
    let there = |leaf: u32| match leaf {
        0x4000_0000..=0x4fff_ffff => model.has(Feature::HYPERVISOR),
        0x8000_0000.. => leaf <= extended,
        _ => leaf <= basic,
    };
    let held = model.leaves().iter().map(|l| (l.leaf, l.subleaf));
    let mut all: Vec<_> = held.chain(MADE).filter(|(leaf, _)| there(*leaf)).collect();
    all.sort_unstable();
    all.dedup();
    let entry = |(function, subleaf): (u32, Option<u32>)| {
        let [eax, ebx, ecx, edx] = model.cpuid(function, subleaf.unwrap_or(0), dynamic);
        let flags = if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        kvm_cpuid_entry2 { function, index: subleaf.unwrap_or(0), flags, eax, ebx, ecx, edx, padding: [0; 3] }
    };
    all.into_iter().map(entry).collect()
}

/// The same in the form of the ioctl.
pub fn for_vcpu(model: &CpuModel, dynamic: &CpuidDynamic) -> Option<CpuId> {
    CpuId::from_entries(&entries(model, dynamic)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> CpuModel {
        CpuModel::named(name, &host, &FeatureSet::software(&host)).unwrap()
    }

    #[test]
    fn entries_answer_as_the_model_does() {
        let m = model("x86-64-v2");
        let dynamic = CpuidDynamic {
            apic_id: 1,
            vcpus: 2,
            apic_enabled: true,
            tsc_khz: 2_000_000,
            ..Default::default()
        };
        let list = entries(&m, &dynamic);
        assert!(list.len() <= KVM_MAX_CPUID_ENTRIES);
        for (leaf, sub) in
            [(0, 0), (1, 0), (7, 0), (0x8000_0001, 0), (0x8000_0008, 0), (0x4000_0000, 0), (0x4000_0010, 0)]
        {
            assert_eq!(answer(&list, leaf, sub), m.cpuid(leaf, sub, &dynamic), "{leaf:#x}.{sub}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let m = model("x86-64-v2");
        let less = m.features().difference(FeatureSet::of(&[Feature::SSE4_2, Feature::SMEP]));
        assert_eq!(missing(&m, &less).to_string(), "sse4_2, smep");
        assert!(missing(&m, &m.features()).is_empty());
    }
}
