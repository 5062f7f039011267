use super::*;
use crate::msr;

/// A host with all that the engines can pass on, of the given vendor.
fn host(vendor: Vendor) -> impl Fn(u32, u32) -> [u32; 4] {
    let id = vendor.id();
    let reg = |i: usize| u32::from_le_bytes([id[i], id[i + 1], id[i + 2], id[i + 3]]);
    let (b, d, c) = (reg(0), reg(4), reg(8));
    move |leaf, sub| match leaf {
        0 => [0x20, b, c, d],
        1 => [0x00b0_0f21, 0, u32::MAX, u32::MAX],
        7 if sub == 0 => [1, u32::MAX, u32::MAX, u32::MAX],
        0x8000_0000 => [0x8000_0021, b, c, d],
        0x8000_0002..=0x8000_0004 => [0x2020_2041; 4],
        0x8000_0008 => [0x3930, u32::MAX, 0, 0],
        _ => [u32::MAX; 4],
    }
}

fn model(name: &str, vendor: Vendor) -> CpuModel {
    let h = host(vendor);
    CpuModel::named(name, &h, &FeatureSet::software(&h)).unwrap()
}

fn running(vcpus: u32, apic_id: u32) -> CpuidDynamic {
    CpuidDynamic {
        apic_id,
        vcpus,
        osxsave: true,
        xcr0: 7,
        apic_enabled: true,
        tsc_khz: 2_596_098,
        apic_bus_khz: 1_000_000,
        kvm_features: 0x0100_0009,
        kvm_hints: 1,
    }
}

const VENDORS: [Vendor; 2] = [Vendor::Intel, Vendor::Amd];

#[test]
fn levels_are_the_psabi_s() {
    use Feature::*;
    for v in VENDORS {
        let (v2, v3) = (model("x86-64-v2", v).features(), model("x86-64-v3", v).features());
        let baseline = [CMOV, CX8, FPU, FXSR, MMX, SYSCALL, SSE, SSE2];
        let level2 = [CMPXCHG16B, LAHF_SAHF, POPCNT, SSE3, SSE4_1, SSE4_2, SSSE3];
        let level3 = [AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, MOVBE, XSAVE];
        for f in baseline.iter().chain(&level2) {
            assert!(v2.has(*f), "{}", f.name());
        }
        // Of what runs on the host's processor, level 2 has nothing beyond its list, and 3 adds only its own.
        let list2 = FeatureSet::of(&level2);
        assert!(v2.intersection(HOST_INSTRUCTIONS).difference(list2).is_empty());
        let xsave = FeatureSet::of(&[XSAVEOPT, XSAVEC, XGETBV1]);
        assert_eq!(v3.difference(v2), FeatureSet::of(&level3).union(xsave));
        assert!(v2.difference(v3).is_empty());
    }
}

#[test]
fn a_level_is_the_same_on_every_host_of_a_vendor() {
    for v in VENDORS {
        let h = host(v);
        let bigger = |l: u32, s: u32| {
            let mut r = h(l, s);
            if l == 1 {
                r[0] = 0x1234_5678;
            }
            r
        };
        for name in ["x86-64-v2", "x86-64-v3"] {
            let other = CpuModel::named(name, &bigger, &FeatureSet::software(&bigger)).unwrap();
            assert_eq!(other, model(name, v));
        }
    }
}

#[test]
fn missing_features_are_named() {
    let h = host(Vendor::Amd);
    let mut supported = FeatureSet::software(&h);
    supported.remove(Feature::AVX2);
    supported.remove(Feature::LZCNT);
    let e = CpuModel::named("x86-64-v3", &h, &supported).unwrap_err();
    let text = e.to_string();
    assert!(text.contains("x86-64-v3 needs avx2, abm,"), "{text}");
    assert!(CpuModel::named("x86-64-v2", &h, &supported).is_ok());
    assert!(!CpuModel::named("host", &h, &supported).unwrap().has(Feature::AVX2));
    let e = CpuModel::named("z80", &h, &supported).unwrap_err().to_string();
    assert!(e.contains("z80") && e.contains("host, x86-64-v2, x86-64-v3"), "{e}");
}

#[test]
fn features_are_added_and_taken_away_by_name() {
    let h = host(Vendor::Intel);
    let s = FeatureSet::software(&h);
    let m = CpuModel::named("x86-64-v3,+la57,-smap,+aes", &h, &s).unwrap();
    assert!(m.has(Feature::LA57) && m.has(Feature::AES) && !m.has(Feature::SMAP));
    assert_eq!((m.max_linear_bits(), m.max_phys_bits()), (57, 46));
    assert!(m.cr4_mask() & cr4::LA57 != 0 && m.cr4_mask() & cr4::SMAP == 0);
    // What rests on a feature goes with it.
    let m = CpuModel::named("x86-64-v3,-xsave", &h, &s).unwrap();
    assert!(!m.has(Feature::AVX2) && !m.has(Feature::XSAVEOPT) && m.xcr0_mask() == 0);
    for bad in ["x86-64-v3,", "x86-64-v3,avx", "x86-64-v3,+warp", "host,é"] {
        assert!(matches!(CpuModel::named(bad, &h, &s), Err(CpuModelError::UnknownFeature { .. })), "{bad}");
    }
    let e = CpuModel::named("host,+avx512f", &h, &s).unwrap_err();
    assert!(e.to_string().contains("avx512f"), "{e}");
}

#[test]
fn host_is_what_is_supported_of_the_host() {
    for v in VENDORS {
        let m = model("host", v);
        for f in [Feature::AVX512F, Feature::VMX, Feature::SVM, Feature::PKU, Feature::RTM, Feature::MONITOR]
        {
            assert!(!m.has(f), "{}", f.name());
        }
        assert!(m.has(Feature::AES) && m.has(Feature::LA57) && m.has(Feature::HYPERVISOR));
        // Intel's: this host has AVX-512, the model has not.
        assert_eq!(m.signature(), if v == Vendor::Intel { 0x0004_06f1 } else { 0x00b0_0f21 });
        assert_eq!((m.vendor(), m.max_phys_bits()), (v, 48));
        assert_eq!(m.leaf(0x8000_0003, 0), [0x2020_2041; 4]);
        assert_eq!(m.has(Feature::AUTOIBRS), v == Vendor::Amd);
        assert_eq!(m.has(Feature::RDCL_NO), v == Vendor::Intel);
    }
}

/// Programs with versions for processors by name run AVX-512 where the model number says so.
#[test]
fn an_intel_model_is_no_processor_with_more_vectors() {
    let all = host(Vendor::Intel);
    // Without AVX-512, AVX-VNNI and AVX-IFMA, as Skylake for clients.
    let older = |l: u32, s: u32| {
        let mut r = all(l, s);
        match (l, s) {
            (1, _) => r[0] = 0x0005_06e3,
            (7, 0) => r[1] &= !(1 << 16),
            (7, 1) => r[0] &= !(1 << 4 | 1 << 23),
            _ => {}
        }
        r
    };
    let named = |name, h: &dyn Fn(u32, u32) -> [u32; 4]| {
        CpuModel::named(name, h, &FeatureSet::software(h)).unwrap().signature()
    };
    assert_eq!((named("host", &all), named("host", &older)), (0x0004_06f1, 0x0005_06e3));
    assert_eq!((named("x86-64-v3", &all), named("x86-64-v2", &all)), (0x0004_06f1, 0x0001_06a5));
}

#[test]
fn every_leaf_answers() {
    for v in VENDORS {
        let m = model("x86-64-v3", v);
        let d = running(4, 3);
        let basic = m.cpuid(0, 0, &d)[0];
        let extended = m.cpuid(0x8000_0000, 0, &d)[0];
        for leaf in (0..=basic).chain(0x8000_0000..=extended) {
            for sub in [0, 1, 2, 3, 4, 63, u32::MAX] {
                let _ = m.cpuid(leaf, sub, &d);
            }
        }
        // Past the end: the last basic leaf, or zeros.
        for leaf in [basic + 1, 0x3fff_ffff, 0x5000_0000, extended + 1, u32::MAX] {
            let want = if v == Vendor::Intel { m.cpuid(basic, 1, &d) } else { [0; 4] };
            assert_eq!(m.cpuid(leaf, 1, &d), want, "{leaf:#x}");
        }
        let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .flat_map(|l| m.cpuid(l, 0, &d).into_iter().flat_map(u32::to_le_bytes))
            .take_while(|b| *b != 0)
            .collect();
        assert_eq!(brand, b"Ringer Virtual CPU (x86-64-v3)");
    }
}

#[test]
fn leaf_1_follows_the_processor() {
    let m = model("x86-64-v3", Vendor::Intel);
    let mut d = running(3, 2);
    let r = m.cpuid(1, 0, &d);
    assert_eq!(r[1], 2 << 24 | 4 << 16 | 8 << 8);
    assert!(r[2] >> 27 & 1 == 1 && r[2] >> 31 == 1 && r[3] >> 28 & 1 == 1 && r[3] >> 9 & 1 == 1);
    d.osxsave = false;
    d.apic_enabled = false;
    let r = m.cpuid(1, 0, &d);
    assert!(r[2] >> 27 & 1 == 0 && r[3] >> 9 & 1 == 0);
}

#[test]
fn xsave_sizes() {
    for v in VENDORS {
        let m = model("x86-64-v3", v);
        let mut d = running(1, 0);
        assert_eq!(m.cpuid(0xd, 0, &d), [7, 832, 832, 0]);
        assert_eq!(m.cpuid(0xd, 1, &d), [7, 832, 0, 0]);
        assert_eq!(m.cpuid(0xd, 2, &d), [256, 576, 0, 0]);
        assert_eq!(m.cpuid(0xd, 3, &d), [0; 4]);
        d.xcr0 = 1;
        assert_eq!(m.cpuid(0xd, 0, &d), [7, 576, 832, 0]);
        assert_eq!(m.xcr0_mask(), 7);
        let m = model("x86-64-v2", v);
        assert_eq!(m.cpuid(0xd, 0, &d), [0; 4]);
        assert_eq!((m.xcr0_mask(), m.cr4_mask() & cr4::OSXSAVE), (0, 0));
    }
}

#[test]
fn hypervisor_leaves() {
    let m = model("x86-64-v2", Vendor::Amd);
    let d = running(1, 0);
    let r = m.cpuid(0x4000_0000, 0, &d);
    let id: Vec<u8> = r[1..].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!((r[0], id.as_slice()), (0x4000_0010, b"KVMKVMKVM\0\0\0".as_slice()));
    assert_eq!(m.cpuid(0x4000_0001, 0, &d), [0x0100_0009, 0, 0, 1]);
    assert_eq!(m.cpuid(0x4000_0010, 0, &d), [2_596_098, 1_000_000, 0, 0]);
    assert_eq!(m.cpuid(0x4000_0100, 0, &d), [0; 4]);
}

#[test]
fn topology_is_one_package_of_single_threaded_cores() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (254, 8), (1024, 10)] {
        for v in VENDORS {
            let m = model("x86-64-v3", v);
            let d = running(vcpus, vcpus - 1);
            assert_eq!(m.cpuid(0xb, 0, &d), [0, 1, 0x100, vcpus - 1]);
            assert_eq!(m.cpuid(0xb, 1, &d), [bits, vcpus, 0x201, vcpus - 1]);
            assert_eq!(m.cpuid(0xb, 2, &d), [0, 0, 2, vcpus - 1]);
            let caches = if v == Vendor::Intel { 4 } else { 0x8000_001d };
            assert_eq!(m.cpuid(caches, 0, &d)[0] >> 14 & 0xfff, 0);
            assert_eq!(m.cpuid(caches, 3, &d)[0] >> 14 & 0xfff, (1 << bits) - 1);
            assert_eq!(m.cpuid(caches, 4, &d), [0; 4]);
            if v == Vendor::Amd {
                assert_eq!(m.cpuid(0x8000_001e, 0, &d), [vcpus - 1, (vcpus - 1) & 0xff, 0, 0]);
                assert_eq!(m.cpuid(0x8000_0008, 0, &d)[2], (vcpus - 1).min(255) | bits << 12);
                assert_eq!(m.cpuid(0x8000_0001, 0, &d)[2] >> 1 & 1, u32::from(vcpus > 1));
            } else {
                assert_eq!(m.cpuid(0x1f, 1, &d), m.cpuid(0xb, 1, &d));
            }
        }
    }
}

#[test]
fn tsc_leaf_is_right_and_fits_32_bits() {
    let m = model("x86-64-v3", Vendor::Intel);
    for khz in [1_000_000, 2_000_000, 2_596_098, 3_579_545, 800_001] {
        let d = CpuidDynamic { tsc_khz: khz, ..running(1, 0) };
        let [den, num, hz, _] = m.cpuid(0x15, 0, &d);
        assert_eq!(hz, 1_000_000_000);
        let got = (hz / 1000).checked_mul(num).unwrap() / den;
        assert!(got.abs_diff(khz) <= 2, "{khz} {got}");
    }
    assert_eq!(m.cpuid(0x15, 0, &CpuidDynamic { tsc_khz: 0, ..running(1, 0) }), [0; 4]);
}

#[test]
fn masks() {
    let (i, a) = (model("x86-64-v3", Vendor::Intel), model("x86-64-v3", Vendor::Amd));
    assert_eq!(i.efer_mask(), efer::SCE | efer::LME | efer::LMA | efer::NXE);
    assert_eq!(a.efer_mask(), i.efer_mask() | 1 << 21);
    assert_eq!(i.cr4_mask(), a.cr4_mask());
    assert_eq!(i.cr4_mask() & (cr4::LA57 | cr4::VME), 0);
    assert!(i.cr4_mask() & cr4::PCIDE != 0 && i.cr4_mask() & cr4::SMAP != 0);
}

#[test]
fn msrs_take_what_hardware_takes() {
    let (i, a) = (model("x86-64-v3", Vendor::Intel), model("x86-64-v3", Vendor::Amd));
    for m in [&i, &a] {
        assert!(m.msrs().windows(2).all(|w| w[0].index < w[1].index));
        for e in m.msrs() {
            assert!(e.write(e.reset, e.reset).is_some(), "{:#x}", e.index);
        }
        let pat = m.msr(msr::PAT).unwrap();
        assert_eq!(pat.reset, 0x0007_0406_0007_0406);
        assert_eq!(pat.write(0, 0x0007_0106_0007_0106), Some(0x0007_0106_0007_0106));
        assert_eq!(pat.write(0, 2), None);
        let def = m.msr(msr::MTRR_DEF_TYPE).unwrap();
        assert_eq!(
            (def.write(0, 0xc00), def.write(0, 0xc02), def.write(0, 0x1c00)),
            (Some(0xc00), None, None)
        );
        assert_eq!(m.msr(0x201).unwrap().reset, 0x3fff_c000_0800);
        assert_eq!(m.msr(0x200).unwrap().write(0, 1 << 46), None);
        assert_eq!(m.msr(msr::MTRR_CAP).unwrap().write(0x508, 0), None);
        let ibpb = m.msr(msr::PRED_CMD).unwrap();
        assert_eq!((ibpb.readable(), ibpb.write(0, 1), ibpb.write(0, 2)), (false, Some(0), None));
    }
    assert_eq!(i.msr_reset(msr::ARCH_CAPABILITIES).unwrap() & 0x3b, 0x3b);
    assert_eq!(i.msr(msr::SPEC_CTRL).unwrap().write(0, 1), Some(1));
    assert_eq!(i.msr(msr::BIOS_SIGN_ID).unwrap().write(1 << 32, 0), Some(1 << 32));
    assert!(i.msr(msr::AMD_HWCR).is_none() && a.msr(msr::ARCH_CAPABILITIES).is_none());
    assert!(a.msr(msr::SPEC_CTRL).is_none());
    assert_eq!(a.msr_reset(msr::AMD_DE_CFG), Some(2));
    assert_eq!(a.msr_reset(msr::AMD_HWCR), Some(1 << 24));
}
