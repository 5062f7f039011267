use crate::platform::tests::{LAPIC, Machine};
use crate::testing::Rng;
use ringer_arch::msr;
use ringer_engine::{CpuIo, StopToken};

const ICR_LOW: u64 = LAPIC + 0x300;
const ICR_HIGH: u64 = LAPIC + 0x310;
const ESR: u64 = LAPIC + 0x280;

fn machine(n: usize) -> Machine {
    let m = Machine::new(n);
    (0..n).for_each(|i| m.enable_apic(i));
    m
}

fn x2(m: &Machine, vcpu: usize) {
    let base = m.io(vcpu).msr_read(msr::APIC_BASE).unwrap();
    m.io(vcpu).msr_write(msr::APIC_BASE, base | 0x400).unwrap();
}

fn ipi(m: &Machine, dest: u32, low: u32) {
    m.store(0, ICR_HIGH, dest << 24);
    m.store(0, ICR_LOW, low);
}

/// Who has vector `v` requested; takes all away.
fn who(m: &Machine) -> Vec<usize> {
    (0..m.stops.len())
        .filter(|i| {
            let got = m.take(*i).is_some();
            if got {
                m.store(*i, LAPIC + 0xb0, 0);
            }
            got
        })
        .collect()
}

#[test]
fn power_up_values() {
    let m = Machine::new(2);
    for (reg, v) in [
        (0x20, 1 << 24),
        (0x30, 0x5_0014),
        (0x80, 0),
        (0xa0, 0),
        (0xd0, 0),
        (0xe0, u32::MAX),
        (0xf0, 0xff),
        (0x280, 0),
        (0x320, 0x1_0000),
        (0x330, 0x1_0000),
        (0x340, 0x1_0000),
        (0x350, 0x1_0000),
        (0x360, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ] {
        assert_eq!(m.load(1, LAPIC + reg), v, "{reg:#x}");
    }
    assert_eq!(m.load(0, LAPIC + 0x350), 0x700);
    assert_eq!(m.io(0).msr_read(msr::APIC_BASE), Some(0xfee0_0900));
    assert_eq!(m.io(1).msr_read(msr::APIC_BASE), Some(0xfee0_0800));
}

#[test]
fn software_disable_masks_and_refuses() {
    let m = machine(1);
    m.store(0, LAPIC + 0x320, 0x2_0040);
    assert_eq!(m.load(0, LAPIC + 0x320), 0x2_0040);
    m.store(0, LAPIC + 0xf0, 0xff);
    assert_eq!(m.load(0, LAPIC + 0x320), 0x3_0040);
    m.store(0, LAPIC + 0x320, 0x41);
    assert_eq!(m.load(0, LAPIC + 0x320), 0x1_0041);
    ipi(&m, 0, 0x4_0050);
    assert_eq!(m.take(0), None);
    // NMI and INIT get through all the same.
    ipi(&m, 0, 0x4_0400);
    ipi(&m, 0, 0x500);
    let p = m.io(0).pending();
    assert!(!p.nmi && p.init, "INIT drops an NMI that came before");
}

#[test]
fn priorities() {
    let m = machine(1);
    for v in [0x45, 0x31, 0x62] {
        ipi(&m, 0, v);
    }
    assert_eq!(m.take(0), Some(0x62));
    assert_eq!((m.load(0, LAPIC + 0xa0), m.load(0, LAPIC + 0x130)), (0x60, 1 << 2));
    assert_eq!(m.take(0), None);
    // Another of the class in service waits, one of a higher class does not.
    ipi(&m, 0, 0x6f);
    assert_eq!(m.take(0), None);
    ipi(&m, 0, 0x70);
    assert_eq!(m.take(0), Some(0x70));
    for v in [None, Some(0x6f), Some(0x45), Some(0x31), None] {
        m.store(0, LAPIC + 0xb0, 0);
        assert_eq!(m.take(0), v);
    }
}

#[test]
fn task_priority() {
    let m = machine(1);
    m.io(0).set_cr8(4);
    assert_eq!((m.load(0, LAPIC + 0x80), m.load(0, LAPIC + 0xa0)), (0x40, 0x40));
    ipi(&m, 0, 0x4f);
    assert_eq!(m.take(0), None);
    ipi(&m, 0, 0x50);
    assert_eq!(m.take(0), Some(0x50));
    m.store(0, LAPIC + 0xb0, 0);
    m.store(0, LAPIC + 0x80, 0x3f);
    assert_eq!(m.io(0).cr8(), 3);
    assert_eq!(m.take(0), Some(0x4f));
}

#[test]
fn destinations_and_shorthands() {
    let m = machine(4);
    ipi(&m, 2, 0x51);
    assert_eq!(who(&m), [2]);
    ipi(&m, 0xff, 0x51);
    assert_eq!(who(&m), [0, 1, 2, 3]);
    ipi(&m, 9, 0x51);
    assert!(who(&m).is_empty());
    for (shorthand, want) in [(1, vec![0]), (2, vec![0, 1, 2, 3]), (3, vec![1, 2, 3])] {
        ipi(&m, 2, shorthand << 18 | 0x51);
        assert_eq!(who(&m), want);
    }
    // Logical, flat.
    for i in 0..4 {
        m.store(i, LAPIC + 0xd0, 0x100_0000 << i);
    }
    ipi(&m, 0b1010, 0x851);
    assert_eq!(who(&m), [1, 3]);
    ipi(&m, 0xff, 0x851);
    assert_eq!(who(&m), [0, 1, 2, 3]);
    // Logical, clusters of two.
    for i in 0..4u32 {
        m.store(i as usize, LAPIC + 0xe0, 0);
        m.store(i as usize, LAPIC + 0xd0, (i / 2) << 28 | (1 << (i % 2)) << 24);
        assert_eq!(m.load(i as usize, LAPIC + 0xe0), 0x0fff_ffff);
    }
    ipi(&m, 0x12, 0x851);
    assert_eq!(who(&m), [3]);
    ipi(&m, 0xf1, 0x851);
    assert_eq!(who(&m), [0, 2]);
}

#[test]
fn x2apic_destinations() {
    let m = machine(20);
    for i in 0..20 {
        x2(&m, i);
        let id = i as u64;
        assert_eq!(m.io(i).msr_read(0x802), Some(id));
        assert_eq!(m.io(i).msr_read(0x80d), Some((id >> 4) << 16 | 1 << (id & 15)));
    }
    let send = |v: u64| {
        m.io(0).msr_write(0x830, v).unwrap();
        (0..20)
            .filter(|i| m.take(*i).inspect(|_| m.io(*i).msr_write(0x80b, 0).unwrap()).is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(send(17 << 32 | 0x51), [17]);
    assert_eq!(send(0x1_0005 << 32 | 0x851), [16, 18]);
    assert_eq!(send(0xffff_ffff << 32 | 0x851).len(), 20);
    assert!(send(0xff << 32 | 0x51).is_empty());
    assert_eq!(m.io(0).msr_read(0x830), Some(0xff << 32 | 0x51));
    m.io(3).msr_write(0x83f, 0x77).unwrap();
    assert_eq!(m.take(3), Some(0x77));
    // Eight bits from outside: physical, and all.
    m.platform.irqchip().msi(0xfee1_2000, 0x61);
    assert_eq!(m.take(18), Some(0x61));
    m.platform.irqchip().msi(0xfeef_f000, 0x81);
    assert!((0..20).all(|i| m.take(i) == Some(0x81)));
}

#[test]
fn x2apic_refuses_what_is_reserved() {
    let m = machine(1);
    let io = m.io(0);
    assert_eq!((io.msr_read(0x802), io.msr_write(0x80b, 0)), (None, None));
    x2(&m, 0);
    for nr in [0x800, 0x801, 0x804, 0x809, 0x80b, 0x80c, 0x80e, 0x831, 0x82f, 0x83a, 0x83f, 0x840, 0x8ff] {
        assert_eq!(io.msr_read(nr), None, "{nr:#x}");
    }
    for (nr, v) in [
        (0x802, 0),
        (0x803, 0),
        (0x80a, 0),
        (0x80b, 1),
        (0x80d, 0),
        (0x810, 0),
        (0x828, 1),
        (0x839, 0),
        (0x80e, 0),
        (0x808, 0x100),
        (0x80f, 0x200),
        (0x832, 1 << 19),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
        (0x830, 1 << 13),
    ] {
        assert_eq!(io.msr_write(nr, v), None, "{nr:#x}");
    }
    for (nr, v) in [(0x808, 0xff), (0x828, 0), (0x832, 0x4_10ec), (0x838, 0xffff_ffff), (0x83e, 0xb)] {
        assert_eq!(io.msr_write(nr, v), Some(()), "{nr:#x}");
    }
    assert_eq!(io.msr_read(0x832), Some(0x4_00ec));
}

#[test]
fn base_msr_transitions() {
    let m = machine(1);
    let io = m.io(0);
    let base = |mode: u64| io.msr_write(msr::APIC_BASE, 0xfee0_0100 | mode);
    assert_eq!((base(0x400), base(0x801), base(0xa00)), (None, None, None));
    base(0xc00).unwrap();
    assert_eq!(base(0x800), None);
    io.msr_write(0x832, 0xec).unwrap();
    base(0).unwrap();
    assert_eq!((base(0xc00), m.load(0, LAPIC + 0x30)), (None, u32::MAX));
    base(0x800).unwrap();
    assert_eq!(m.load(0, LAPIC + 0x320), 0x1_0000);
    // The page moves.
    io.msr_write(msr::APIC_BASE, 0x1_2345_6900).unwrap();
    assert_eq!((m.load(0, LAPIC + 0x30), m.load(0, 0x1_2345_6030)), (u32::MAX, 0x5_0014));
    assert_eq!(io.msr_write(msr::APIC_BASE, 1 << 40 | 0x900), None);
}

#[test]
fn off_means_the_pic_alone() {
    let m = machine(1);
    m.io(0).msr_write(msr::APIC_BASE, 0xfee0_0100).unwrap();
    assert_eq!(m.io(0).hypercall(10, [1, 0, 0, 0x55]), 0);
    m.init_pics();
    m.platform.irqchip().set_irq(4, true);
    assert_eq!(m.take(0), Some(0x34));
}

#[test]
fn init_and_startup() {
    let m = machine(2);
    m.store(1, LAPIC + 0x80, 0x20);
    ipi(&m, 1, 0xc500);
    // The de-assert that follows is nothing.
    ipi(&m, 1, 0x8500);
    ipi(&m, 1, 0x69a);
    assert_ne!(m.stops[1].take(StopToken::ATTENTION), 0);
    let p = m.io(1).pending();
    assert_eq!((p.init, p.sipi, p.nmi, p.intr), (true, Some(0x9a), false, false));
    let p = m.io(1).pending();
    assert_eq!((p.init, p.sipi), (false, None));
    // A SIPI that comes between the two steps of the processor's own reset stays.
    ipi(&m, 1, 0x69b);
    m.io(1).reset_apic();
    assert_eq!((m.load(1, LAPIC + 0x80), m.load(1, LAPIC + 0xf0)), (0, 0xff));
    assert_eq!(m.io(1).pending().sipi, Some(0x9b));
}

#[test]
fn lowest_priority_goes_to_the_idlest_in_turns() {
    let m = machine(3);
    for i in 0..3 {
        m.store(i, LAPIC + 0xd0, 0x100_0000 << i);
    }
    m.io(1).set_cr8(5);
    let mut got = [0; 3];
    for _ in 0..10 {
        ipi(&m, 7, 0x961);
        for i in who(&m) {
            got[i] += 1;
        }
    }
    assert!(got[1] == 0 && got[0] >= 3 && got[2] >= 3, "{got:?}");
    // A redirectable message does the same.
    m.platform.irqchip().msi(0xfee0_700c, 0x61);
    assert_eq!(who(&m).len(), 1);
}

#[test]
fn errors() {
    let m = machine(1);
    m.store(0, LAPIC + 0x370, 0x33);
    ipi(&m, 0, 5);
    assert_eq!(m.load(0, ESR), 0);
    m.store(0, ESR, 0);
    assert_eq!(m.load(0, ESR), 1 << 5);
    assert_eq!(m.take(0), Some(0x33));
    m.store(0, LAPIC + 0xb0, 0);
    m.platform.irqchip().msi(0xfee0_0000, 3);
    m.load(0, LAPIC + 0x400 - 0x20);
    m.store(0, LAPIC + 0x3f0, 0);
    m.store(0, ESR, 0);
    assert_eq!(m.load(0, ESR), 1 << 6 | 1 << 7);
    m.store(0, ESR, 0);
    assert_eq!(m.load(0, ESR), 0);
    // An illegal error vector does not recurse.
    m.store(0, LAPIC + 0x370, 3);
    ipi(&m, 0, 5);
    m.store(0, ESR, 0);
    assert_eq!(m.load(0, ESR), 1 << 5 | 1 << 6);
}

#[test]
fn timer_one_shot_and_divider() {
    let m = machine(1);
    m.store(0, LAPIC + 0x320, 0x40);
    m.store(0, LAPIC + 0x3e0, 0xb);
    m.store(0, LAPIC + 0x380, 1000);
    m.at(400);
    assert_eq!(m.load(0, LAPIC + 0x390), 600);
    // Four times slower from here on.
    m.store(0, LAPIC + 0x3e0, 1);
    assert_eq!(m.load(0, LAPIC + 0x390), 600);
    m.at(800);
    assert_eq!(m.load(0, LAPIC + 0x390), 500);
    m.at(2799);
    assert_eq!(m.take(0), None);
    m.at(2800);
    assert_eq!((m.take(0), m.load(0, LAPIC + 0x390)), (Some(0x40), 0));
    m.store(0, LAPIC + 0xb0, 0);
    m.at(1_000_000);
    assert_eq!(m.take(0), None);
    for (code, divider) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        m.store(0, LAPIC + 0x3e0, code);
        m.store(0, LAPIC + 0x380, 1000);
        m.at(m.clock.now_ns() + 128 * 5);
        assert_eq!(m.load(0, LAPIC + 0x390), 1000 - 128 * 5 / divider, "{code}");
    }
}

#[test]
fn timer_periodic_coalesces() {
    let m = machine(1);
    m.store(0, LAPIC + 0x3e0, 0xb);
    m.store(0, LAPIC + 0x320, 0x2_0040);
    m.store(0, LAPIC + 0x380, 1_000_000);
    let mut ticks = 0;
    for ms in 1..=10 {
        m.at(ms * 1_000_000);
        if m.take(0).is_some() {
            m.store(0, LAPIC + 0xb0, 0);
            ticks += 1;
        }
    }
    assert_eq!(ticks, 10);
    m.at(15_600_000);
    assert_eq!(m.take(0), Some(0x40));
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!((m.take(0), m.load(0, LAPIC + 0x390)), (None, 400_000));
    assert_eq!(m.platform.timers().next_deadline(), Some(16_000_000));
    // To TSC-deadline mode: disarmed.
    m.store(0, LAPIC + 0x320, 0x4_0040);
    assert_eq!((m.load(0, LAPIC + 0x380), m.platform.timers().next_deadline()), (0, None));
    m.store(0, LAPIC + 0x380, 5);
    assert_eq!(m.load(0, LAPIC + 0x380), 0);
    m.io(0).msr_write(msr::TSC_DEADLINE, u64::MAX).unwrap();
    m.store(0, LAPIC + 0x320, 0x2_0040);
    assert_eq!(m.io(0).msr_read(msr::TSC_DEADLINE), Some(0));
    m.io(0).msr_write(msr::TSC_DEADLINE, 5).unwrap();
    assert_eq!(m.take(0), None);
}

#[test]
fn a_tiny_period_does_not_storm() {
    let m = machine(1);
    m.store(0, LAPIC + 0x320, 0x2_0040);
    m.store(0, LAPIC + 0x380, 1);
    let mut fired = 0;
    while let Some(d) = m.platform.timers().next_deadline().filter(|d| *d <= 10_000_000) {
        m.at(d);
        fired += 1;
    }
    assert!((90..=101).contains(&fired), "{fired}");
}

#[test]
fn lint1_and_local_entries() {
    let m = machine(1);
    m.platform.nmi();
    assert!(!m.io(0).pending().nmi);
    m.store(0, LAPIC + 0x360, 0x400);
    m.platform.nmi();
    assert!(m.io(0).pending().nmi);
    m.store(0, LAPIC + 0x360, 0xffff_ffff);
    m.store(0, LAPIC + 0x330, 0xffff_ffff);
    m.store(0, LAPIC + 0x320, 0xffff_ffff);
    assert_eq!((m.load(0, LAPIC + 0x360), m.load(0, LAPIC + 0x330)), (0x1_a7ff, 0x1_07ff));
    assert_eq!(m.load(0, LAPIC + 0x320), 0x1_00ff);
}

#[test]
fn odd_accesses_to_the_page() {
    let m = machine(1);
    let io = m.io(0);
    let mut d = [0xaa; 8];
    io.mmio_read(LAPIC + 0x2e, &mut d);
    assert_eq!(d, [0, 0, 0x14, 0, 5, 0, 0, 0]);
    io.mmio_write(LAPIC + 0x80, &[0x55]);
    io.mmio_write(LAPIC + 0x84, &[0x55; 4]);
    assert_eq!(m.load(0, LAPIC + 0x80), 0);
    io.mmio_write(LAPIC + 0x80, &[0x55, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(m.load(0, LAPIC + 0x80), 0x55);
    // Across the end of the page: nobody.
    io.mmio_read(LAPIC + 0xffc, &mut d);
    assert_eq!(d, [0xff; 8]);
}

const WORD: u64 = 0x4000;

fn pv_eoi(m: &Machine) {
    m.io(0).msr_write(msr::KVM_PV_EOI_EN, WORD | 1).unwrap();
}

fn word(m: &Machine) -> u32 {
    m.memory.load::<u32>(WORD).unwrap()
}

#[test]
fn an_end_in_memory() {
    let m = machine(2);
    pv_eoi(&m);
    m.memory.store::<u32>(WORD, 0xf0).unwrap();
    ipi(&m, 0, 0x55);
    assert_eq!((m.take(0), word(&m)), (Some(0x55), 0xf1));
    // The guest ends it; another processor cannot know, so it asks for attention, and it goes through.
    m.memory.store::<u32>(WORD, 0xf0).unwrap();
    m.store(1, ICR_LOW, 0x51);
    assert_eq!((m.take(0), word(&m)), (Some(0x51), 0xf1));
    assert_eq!(m.load(0, LAPIC + 0x120), 1 << 17);
    // Reading the chip sees the end too.
    m.memory.store::<u32>(WORD, 0xf0).unwrap();
    assert_eq!(m.load(0, LAPIC + 0x120), 0);
}

#[test]
fn the_offer_is_taken_back_when_something_waits() {
    let m = machine(2);
    pv_eoi(&m);
    ipi(&m, 0, 0x55);
    assert_eq!((m.take(0), word(&m)), (Some(0x55), 1));
    m.store(1, ICR_LOW, 0x51);
    assert_eq!((m.take(0), word(&m)), (None, 0));
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!((m.take(0), word(&m)), (Some(0x51), 1));
    // A guest that writes the register all the same: the offer is gone, one interrupt ended.
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!((word(&m), m.load(0, LAPIC + 0x120)), (0, 0));
}

#[test]
fn no_offer_for_levels_and_nested_ones() {
    let m = machine(1);
    pv_eoi(&m);
    m.route(9, 0x8059, 0);
    m.platform.irqchip().set_irq(9, true);
    assert_eq!((m.take(0), word(&m)), (Some(0x59), 0));
    ipi(&m, 0, 0x61);
    assert_eq!((m.take(0), word(&m)), (Some(0x61), 0));
    m.store(0, LAPIC + 0xb0, 0);
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!(m.take(0), Some(0x59));
    m.platform.irqchip().set_irq(9, false);
    m.store(0, LAPIC + 0xb0, 0);
    // Two wait at once: the first is to be ended where it is seen.
    ipi(&m, 0, 0x61);
    ipi(&m, 0, 0x62);
    assert_eq!((m.take(0), word(&m)), (Some(0x62), 0));
    // Turned off: no offers.
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!((m.take(0), word(&m)), (Some(0x61), 1));
    m.io(0).msr_write(msr::KVM_PV_EOI_EN, 0).unwrap();
    assert_eq!(word(&m), 0);
    m.store(0, LAPIC + 0xb0, 0);
    ipi(&m, 0, 0x61);
    assert_eq!((m.take(0), word(&m)), (Some(0x61), 0));
}

#[test]
fn interrupts_from_other_threads_are_all_seen() {
    let m = machine(2);
    pv_eoi(&m);
    let n = 20_000u32;
    let chip = m.platform.irqchip();
    let sender = std::thread::spawn(move || {
        for i in 0..n {
            chip.msi(0xfee0_0000, 0x40 + i % 64);
        }
        chip.msi(0xfee0_0000, 0x30);
    });
    let mut rng = Rng(3);
    let mut seen = 0;
    loop {
        m.stops[0].wait(None);
        m.stops[0].take(StopToken::ATTENTION);
        if !m.io(0).pending().intr {
            continue;
        }
        let v = m.io(0).acknowledge().expect("pending said so");
        seen += 1;
        // End it as a guest does, or by the register alone.
        if rng.below(4) != 0 && word(&m) & 1 != 0 {
            m.memory.store::<u32>(WORD, 0).unwrap();
        } else {
            m.store(0, LAPIC + 0xb0, 0);
        }
        if v == 0x30 {
            break;
        }
        m.stops[0].raise(StopToken::ATTENTION);
    }
    sender.join().unwrap();
    assert!(seen > 64);
}

#[test]
fn any_access_is_harmless() {
    let m = Machine::new(3);
    let mut rng = Rng(0x1234);
    for n in 0..300_000u32 {
        let vcpu = rng.below(3) as usize;
        let io = m.io(vcpu);
        let len = [1, 2, 4, 4, 8, 16, 64][rng.below(7) as usize];
        let mut d = [0; 64];
        d[..8].copy_from_slice(&rng.value().to_le_bytes());
        let at = LAPIC + if rng.below(3) == 0 { rng.below(0x1000) } else { rng.below(0x40) * 16 };
        match rng.below(12) {
            0..4 => io.mmio_write(at, &d[..len]),
            4 => io.mmio_read(at, &mut d[..len]),
            5 => drop(io.msr_write(0x800 + rng.below(0x100) as u32, rng.value())),
            6 => drop(io.msr_read(0x800 + rng.below(0x100) as u32)),
            7 if rng.below(8) == 0 => drop(io.msr_write(msr::APIC_BASE, 0xfee0_0000 | rng.below(8) << 9)),
            7 => drop(io.msr_write(msr::TSC_DEADLINE, m.clock.tsc() + rng.below(100_000))),
            8 => drop(io.msr_write(msr::KVM_PV_EOI_EN, rng.value() % (1 << 21))),
            9 => m.platform.irqchip().msi(0xfee0_0000 | rng.value() & 0xf_ffff, rng.value() as u32),
            10 => io.set_cr8(rng.value()),
            _ => m.at(m.clock.now_ns() + rng.below(2_000_000)),
        }
        let p = io.pending();
        if p.intr && rng.below(2) == 0 {
            let v = io.acknowledge();
            assert!(v.is_some(), "step {n}: pending and not there");
        }
        if p.init {
            io.reset_apic();
        }
        let l = m.platform.fabric.apics().get(vcpu).unwrap();
        let s = l.lock();
        // Below 16 nothing is ever requested, and no more are in service than the sixteen classes allow.
        assert_eq!(s.irr.word(0) & 0xffff, 0);
        assert!(s.isr.count() <= 15);
        assert!(s.base & 0x400 == 0 || s.base & 0x800 != 0);
        drop(s);
    }
    m.platform.reset();
    assert_eq!(m.load(0, LAPIC + 0xf0), 0xff);
}
