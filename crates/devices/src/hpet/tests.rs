use super::*;
use crate::testing::{Bench, hammer_mmio, load};

struct Rig {
    b: Bench,
    hpet: Arc<Hpet>,
    legacy: Arc<AtomicBool>,
}

impl Rig {
    fn new() -> Rig {
        let b = Bench::new();
        let legacy = Arc::new(AtomicBool::new(false));
        let hpet = Hpet::new(b.chip.clone(), legacy.clone(), &b.timers);
        Rig { b, hpet, legacy }
    }

    fn r(&self, at: u64) -> u64 {
        u64::from_le_bytes(load(&*self.hpet, at))
    }

    fn w(&self, at: u64, v: u64) {
        self.hpet.mmio_write(at, &v.to_le_bytes());
    }

    fn w32(&self, at: u64, v: u32) {
        self.hpet.mmio_write(at, &v.to_le_bytes());
    }

    fn tick(&self, t: u64) {
        self.b.run_to(t * TICK_NS);
    }
}

#[test]
fn the_counter() {
    let r = Rig::new();
    assert_eq!(r.r(0), 0x0098_9680_8086_a201);
    r.tick(100);
    assert_eq!(r.r(0xf0), 0);
    r.w(0xf0, 5);
    r.w(0x10, 1);
    r.tick(110);
    assert_eq!(r.r(0xf0), 15);
    // Not while it runs.
    r.w(0xf0, 0);
    assert_eq!(r.r(0xf0), 15);
    r.w(0x10, 0);
    r.tick(1000);
    assert_eq!(r.r(0xf0), 15);
    r.w32(0xf4, 1);
    assert_eq!(u32::from_le_bytes(load(&*r.hpet, 0xf4)), 1);
    assert_eq!(r.r(0xf0), 1 << 32 | 15);
}

#[test]
fn one_shot_on_an_edge_input() {
    let r = Rig::new();
    r.w(0x120, 20 << 9 | tn::INTERRUPT);
    assert_eq!(r.r(0x120), 0x00f0_0000_0000_a804 | tn::SIZE_CAP);
    r.w(0x128, 1000);
    r.w(0x10, 1);
    r.tick(999);
    assert_eq!(r.b.chip.edges(20), 0);
    r.tick(1000);
    assert_eq!(r.b.chip.edges(20), 1);
    r.tick(100_000);
    assert_eq!((r.b.chip.edges(20), r.r(0x20)), (1, 0));
    r.w(0x128, 200_000);
    r.tick(200_000);
    assert_eq!(r.b.chip.edges(20), 2);
}

#[test]
fn one_shot_in_32_bits_comes_around() {
    let r = Rig::new();
    r.w(0x120, 20 << 9 | tn::INTERRUPT | tn::MODE_32);
    r.w(0x128, 1000);
    r.w(0x10, 1);
    r.tick((1 << 32) + 999);
    assert_eq!(r.b.chip.edges(20), 1);
    r.tick((1 << 32) + 1000);
    assert_eq!(r.b.chip.edges(20), 2);
}

#[test]
fn level_stays_until_its_status_is_cleared() {
    let r = Rig::new();
    r.w(0x140, 21 << 9 | tn::INTERRUPT | tn::LEVEL);
    r.w(0x148, 10);
    r.w(0x10, 1);
    r.tick(10);
    assert!(r.b.chip.level(21));
    assert_eq!(r.r(0x20), 4);
    r.w(0x20, 3);
    assert!(r.b.chip.level(21));
    r.w(0x20, 4);
    assert!(!r.b.chip.level(21));
    assert_eq!(r.r(0x20), 0);
}

/// As Linux sets it up: accumulator first, then the period.
fn periodic(r: &Rig, first: u64, period: u64) {
    r.w(0x100, tn::INTERRUPT | tn::PERIODIC | tn::SET_VALUE);
    r.w(0x108, first);
    r.w(0x108, period);
    assert_eq!(r.r(0x108), first);
}

#[test]
fn periodic_with_legacy_replacement() {
    let r = Rig::new();
    r.b.chip.set_irq(2, true);
    periodic(&r, 50_000, 100_000);
    r.w(0x10, 3);
    assert!(r.legacy.load(Ordering::SeqCst));
    assert!(!r.b.chip.level(2));
    let before = r.b.chip.edges(2);
    r.tick(1_000_000);
    assert_eq!(r.b.chip.edges(2) - before, 10);
    assert_eq!(r.r(0x108), 1_050_000);
    // Starved: one for all that were missed, and in phase again.
    r.b.at(1_999_000 * TICK_NS);
    assert_eq!(r.b.chip.edges(2) - before, 11);
    assert_eq!(r.r(0x108), 2_050_000);
    r.w(0x10, 1);
    assert!(!r.legacy.load(Ordering::SeqCst));
}

#[test]
fn tiny_periods_do_not_storm() {
    let r = Rig::new();
    periodic(&r, 1, 1);
    r.w(0x10, 3);
    r.tick(100_000_000);
    assert!(r.b.chip.edges(2) <= 10_002, "{}", r.b.chip.edges(2));
}

#[test]
fn messages() {
    let r = Rig::new();
    r.w(0x130, 0xfee0_1000_0000_4051);
    r.w(0x120, tn::INTERRUPT | tn::FSB);
    r.w(0x128, 7);
    r.w(0x10, 1);
    r.tick(7);
    assert_eq!(r.b.chip.msis(), [(0xfee0_1000, 0x4051)]);
}

#[test]
fn inputs_that_it_does_not_have() {
    let r = Rig::new();
    r.w(0x120, 5 << 9 | tn::INTERRUPT);
    r.w(0x128, 7);
    r.w(0x10, 1);
    r.tick(7);
    assert_eq!(r.b.chip.edges(5), 0);
}

#[test]
fn any_access_is_harmless() {
    let r = Rig::new();
    hammer_mmio(&r.b, &*r.hpet, 0x400, 61, || {
        let s = lock(&r.hpet.state);
        assert_eq!(s.status & !7, 0);
        assert!(s.runs() || s.timers.iter().all(|t| t.due.is_none()));
    });
    r.hpet.reset();
    assert_eq!(r.b.timers.next_deadline(), None);
}

#[test]
fn a_periodic_timer_at_the_counters_end() {
    let r = Rig::new();
    r.w(0x100, 20 << 9 | tn::INTERRUPT | tn::PERIODIC | tn::SET_VALUE);
    r.w(0x108, 0);
    r.w(0x108, 1);
    r.w(0xf0, u64::MAX);
    r.w(0x10, 1);
    assert_eq!(r.r(0xf0), u64::MAX);
    r.tick(20_000);
    assert_eq!(r.r(0xf0), 19_999);
}
