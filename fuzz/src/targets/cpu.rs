//! Processor models on hosts that answer CPUID with anything.

use crate::input::{Input, Rng};
use ringer_arch::cpu::{CpuModel, CpuidDynamic, Feature, FeatureSet, MODELS, SOFTWARE};

/// Makes a model by name on a random host, and asks it everything.
pub fn cpu_model(data: &[u8]) {
    let mut input = Input(data);
    let seed = input.u64();
    let wild = input.u8();
    let host = |leaf: u32, sub: u32| -> [u32; 4] {
        let mut rng = Rng::new(seed ^ u64::from(leaf) << 32 ^ u64::from(sub));
        let mut r = std::array::from_fn(|_| (rng.u64() | rng.u64()) as u32);
        if wild & 1 == 0 && matches!(leaf, 0 | 0x8000_0000) {
            r[0] = leaf + rng.below(0x30) as u32;
        }
        if wild & 2 == 0 && leaf == 0 {
            (r[1], r[2], r[3]) = (0x6874_7541, 0x444d_4163, 0x6974_6e65);
        }
        r
    };
    let mut rng = Rng::new(seed);
    let mut offered = if wild & 4 == 0 { SOFTWARE } else { FeatureSet::EMPTY };
    for _ in 0..rng.below(40) {
        let f = rng.pick(Feature::all());
        if wild & 8 == 0 { offered.insert(f) } else { offered.remove(f) }
    }
    let mut name = MODELS.get(input.below(4)).map_or(String::new(), |m| (*m).to_owned());
    if input.u8() & 1 == 0 {
        let sign = if wild & 16 == 0 { '+' } else { '-' };
        name = format!("{name},{sign}{}", rng.pick(Feature::all()).name());
    } else {
        name.push_str(&String::from_utf8_lossy(input.bytes(24)));
    }
    let Ok(model) = CpuModel::named(&name, &host, &offered) else { return };
    ask(&model, &mut input);
}

fn ask(model: &CpuModel, input: &mut Input) {
    let dynamic = CpuidDynamic {
        apic_id: input.u32(),
        vcpus: input.u32(),
        osxsave: input.u8() & 1 != 0,
        xcr0: input.u64(),
        apic_enabled: input.u8() & 1 != 0,
        tsc_khz: input.u32(),
        apic_bus_khz: input.u32(),
        kvm_features: input.u32(),
        kvm_hints: input.u32(),
    };
    for leaf in
        model.leaves().iter().map(|l| l.leaf).chain([0x15, 0x16, 0x4000_0000, 0x4000_0010, input.u32()])
    {
        for sub in [0, 1, 2, input.u32()] {
            let _any = model.cpuid(leaf, sub, &dynamic);
        }
    }
    for m in model.msrs() {
        let v = input.u64();
        if let Some(now) = m.write(m.reset, v) {
            assert!(m.write(now, now).is_some() || !m.readable(), "{:#x} holds {now:#x}", m.index);
        }
    }
    assert!((36..=52).contains(&model.max_phys_bits()));
}
