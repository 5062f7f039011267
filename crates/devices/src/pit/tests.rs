use super::*;
use crate::testing::{Bench, hammer_pio, inb, outb};

struct Rig {
    b: Bench,
    pit: Arc<Pit>,
    control: PitControlPort,
}

impl Rig {
    fn new() -> Rig {
        let b = Bench::new();
        let pit = Pit::new(b.line(2), &b.timers);
        Rig { control: PitControlPort(pit.clone()), pit, b }
    }

    fn load(&self, counter: u16, command: u8, count: u16) {
        outb(&*self.pit, 3, (counter as u8) << 6 | 0x30 | command);
        self.count(counter, count);
    }

    fn count(&self, counter: u16, count: u16) {
        outb(&*self.pit, counter, count as u8);
        outb(&*self.pit, counter, (count >> 8) as u8);
    }

    /// Goes to tick `t`, serving deadlines on the way.
    fn tick(&self, t: u64) {
        self.b.run_to(tick_ns(t));
    }

    fn latched(&self, counter: u16) -> u16 {
        outb(&*self.pit, 3, (counter as u8) << 6);
        u16::from_le_bytes([inb(&*self.pit, counter), inb(&*self.pit, counter)])
    }

    fn status(&self, counter: u16) -> u8 {
        outb(&*self.pit, 3, 0xe0 | 2 << counter);
        inb(&*self.pit, counter)
    }

    fn out2(&self) -> bool {
        inb(&self.control, 0) & 0x20 != 0
    }

    fn edges(&self) -> u32 {
        self.b.chip.edges(2)
    }
}

#[test]
fn ticks_and_nanoseconds_agree() {
    for t in [0, 1, 2, 1_193_182, 1 << 40] {
        assert_eq!(ticks(tick_ns(t)), t);
        assert!(t == 0 || ticks(tick_ns(t) - 1) == t - 1);
    }
}

#[test]
fn mode_0_interrupts_once_and_counts_on() {
    let r = Rig::new();
    r.load(0, 0, 100);
    assert_eq!(r.status(0), 0x30);
    r.tick(40);
    assert_eq!(r.latched(0), 60);
    r.tick(99);
    assert_eq!((r.edges(), r.status(0) >> 7), (0, 0));
    r.tick(100);
    assert_eq!((r.edges(), r.status(0) >> 7), (1, 1));
    r.tick(101);
    assert_eq!(r.latched(0), 0xffff);
    r.tick(1_000_000);
    assert_eq!(r.edges(), 1);
    // A new count starts it again; the line goes down with OUT.
    r.count(0, 10);
    assert!(!r.b.chip.level(2));
    r.tick(1_000_010);
    assert_eq!(r.edges(), 2);
}

#[test]
fn mode_2_interrupts_each_period_and_takes_new_counts_at_its_end() {
    let r = Rig::new();
    r.load(0, 4, 1000);
    r.tick(999);
    assert_eq!((r.edges(), r.latched(0)), (0, 1));
    assert_eq!(r.status(0), 0x34);
    r.tick(1000);
    assert_eq!((r.edges(), r.latched(0)), (1, 1000));
    r.tick(5999);
    assert_eq!(r.edges(), 5);
    r.count(0, 400);
    assert_eq!(r.status(0) & 0x40, 0x40);
    r.tick(6000);
    assert_eq!((r.edges(), r.latched(0)), (6, 400));
    r.tick(6800);
    assert_eq!((r.edges(), r.status(0) & 0x40), (8, 0));
}

#[test]
fn missed_periods_are_gone_and_the_phase_stays() {
    let r = Rig::new();
    r.load(0, 4, 1000);
    r.b.at(tick_ns(10_500));
    assert_eq!(r.edges(), 1);
    r.tick(11_000);
    assert_eq!(r.edges(), 2);
    r.tick(12_000);
    assert_eq!(r.edges(), 3);
}

#[test]
fn tiny_periods_do_not_storm() {
    let r = Rig::new();
    r.load(0, 4, 2);
    r.tick(PIT_HZ);
    assert!(r.edges() <= 10_200, "{}", r.edges());
}

#[test]
fn mode_3_is_a_square_wave() {
    let r = Rig::new();
    outb(&r.control, 0, 1);
    r.load(2, 6, 10);
    let wave: String = (0..20)
        .map(|t| {
            r.tick(t);
            if r.out2() { '1' } else { '0' }
        })
        .collect();
    assert_eq!(wave, "11111000001111100000");
    r.load(2, 6, 5);
    let wave: String = (20..30)
        .map(|t| {
            r.tick(t);
            if r.out2() { '1' } else { '0' }
        })
        .collect();
    // Loaded at tick 19.
    assert_eq!(wave, "1100111001");
    assert_eq!(r.status(2) & 0xe, 6);
}

#[test]
fn mode_1_waits_for_the_gate() {
    let r = Rig::new();
    r.load(2, 2, 50);
    assert!(r.out2());
    r.tick(1000);
    assert!(r.out2());
    outb(&r.control, 0, 1);
    assert!(!r.out2());
    r.tick(1049);
    assert!(!r.out2());
    r.tick(1050);
    assert!(r.out2());
    // Triggered again before the end: the pulse gets longer.
    for t in [1060, 1100] {
        outb(&r.control, 0, 0);
        r.tick(t);
        outb(&r.control, 0, 1);
    }
    r.tick(1149);
    assert!(!r.out2());
    r.tick(1150);
    assert!(r.out2());
}

#[test]
fn modes_4_and_5_strobe_for_one_tick() {
    let r = Rig::new();
    outb(&r.control, 0, 1);
    r.load(2, 8, 20);
    for (t, out) in [(19, true), (20, false), (21, true), (500, true)] {
        r.tick(t);
        assert_eq!(r.out2(), out, "{t}");
    }
    r.load(0, 8, 20);
    r.tick(520);
    assert_eq!(r.edges(), 0);
    r.tick(521);
    assert_eq!(r.edges(), 1);
    r.load(2, 10, 20);
    r.tick(600);
    assert!(r.out2());
    outb(&r.control, 0, 0);
    outb(&r.control, 0, 1);
    for (t, out) in [(619, true), (620, false), (621, true)] {
        r.tick(t);
        assert_eq!(r.out2(), out, "{t}");
    }
}

#[test]
fn the_gate_holds_counters() {
    let r = Rig::new();
    outb(&r.control, 0, 1);
    r.load(2, 0, 100);
    r.tick(30);
    outb(&r.control, 0, 0);
    r.tick(1000);
    assert_eq!(r.latched(2), 70);
    outb(&r.control, 0, 1);
    r.tick(1069);
    assert!(!r.out2());
    r.tick(1070);
    assert!(r.out2());
    // Rate generator: the gate forces OUT high and starts it over.
    r.load(2, 4, 10);
    r.tick(1074);
    outb(&r.control, 0, 0);
    r.tick(1079);
    assert!(r.out2());
    outb(&r.control, 0, 1);
    assert_eq!(r.latched(2), 10);
    r.tick(1088);
    assert!(!r.out2());
}

#[test]
fn bcd_counts() {
    let r = Rig::new();
    r.load(0, 1, 0x1234);
    r.tick(235);
    assert_eq!(r.latched(0), 0x0999);
    r.tick(1235);
    assert_eq!(r.latched(0), 0x9999);
    r.load(0, 5, 0);
    r.tick(1236);
    assert_eq!(r.latched(0), 0x9999);
}

#[test]
fn latches_hold_until_read() {
    let r = Rig::new();
    r.load(0, 4, 1000);
    r.tick(100);
    outb(&*r.pit, 3, 0);
    r.tick(200);
    outb(&*r.pit, 3, 0);
    assert_eq!([inb(&*r.pit, 0), inb(&*r.pit, 0)], 900u16.to_le_bytes());
    assert_eq!([inb(&*r.pit, 0), inb(&*r.pit, 0)], 800u16.to_le_bytes());
    // Read-back of status and count: status comes first.
    outb(&*r.pit, 3, 0xc2);
    r.tick(300);
    assert_eq!(inb(&*r.pit, 0), 0xb4);
    assert_eq!([inb(&*r.pit, 0), inb(&*r.pit, 0)], 800u16.to_le_bytes());
    // One-byte access.
    outb(&*r.pit, 3, 0x14);
    outb(&*r.pit, 0, 77);
    assert_eq!(inb(&*r.pit, 0), 77);
    outb(&*r.pit, 3, 0x24);
    outb(&*r.pit, 0, 2);
    assert_eq!((inb(&*r.pit, 0), r.status(0)), (2, 0xa4));
    assert_eq!(inb(&*r.pit, 3), 0xff);
}

#[test]
fn port_61_shows_the_refresh() {
    let r = Rig::new();
    let mut last = inb(&r.control, 0) & 0x10;
    let mut turns = 0;
    for us in 1..1000u64 {
        r.b.at(us * 1000);
        let now = inb(&r.control, 0) & 0x10;
        turns += u32::from(now != last);
        last = now;
    }
    assert_eq!(turns, 66);
    outb(&r.control, 0, 0xff);
    assert_eq!(inb(&r.control, 0) & 0xcf, 3);
}

#[test]
fn any_access_is_harmless() {
    let r = Rig::new();
    hammer_pio(&r.b, &*r.pit, 4, 11, || {
        let s = lock(&r.pit.state);
        assert!(s.counters.iter().all(|c| (1..=0x1_0000).contains(&c.period().max(1))));
    });
    hammer_pio(&r.b, &r.control, 1, 12, || {});
    let mut flip = 0u8;
    hammer_pio(&r.b, &*r.pit, 4, 13, || {
        flip = flip.wrapping_add(1);
        outb(&r.control, 0, flip >> 2);
        inb(&r.control, 0);
    });
    r.pit.reset();
    assert_eq!(r.b.timers.next_deadline(), None);
}
