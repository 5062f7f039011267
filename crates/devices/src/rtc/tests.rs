use super::*;
use crate::testing::{Bench, hammer_pio, inb, outb};

/// 2024-02-29 23:59:50 at machine time zero.
const START_S: u64 = 1_709_251_190;

fn wall(clock: &VmClock) -> u64 {
    START_S * SECOND_NS + clock.now_ns()
}

struct Rig {
    b: Bench,
    rtc: Arc<Rtc>,
}

impl Rig {
    fn new() -> Rig {
        let b = Bench::new();
        let rtc = Rtc::with_wall(b.line(8), &b.timers, cmos_for(64 << 20, 0, 2), wall);
        Rig { b, rtc }
    }

    fn r(&self, reg: u8) -> u8 {
        outb(&*self.rtc, 0, reg);
        inb(&*self.rtc, 1)
    }

    fn w(&self, reg: u8, v: u8) {
        outb(&*self.rtc, 0, reg);
        outb(&*self.rtc, 1, v);
    }

    fn time(&self) -> [u8; 8] {
        [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|r| self.r(r))
    }

    fn edges(&self) -> u32 {
        self.b.chip.edges(8)
    }
}

#[test]
fn tells_the_time_in_all_codes() {
    let r = Rig::new();
    assert_eq!(r.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x50]);
    assert_eq!((r.r(0x0a), r.r(0x0b), r.r(0x0d)), (0x26, 0x02, 0x80));
    r.b.at(10 * SECOND_NS);
    assert_eq!(r.time(), [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]);
    r.w(0x0b, b::BINARY);
    assert_eq!(r.time(), [20, 24, 3, 1, 6, 12, 0, 0]);
    r.b.at((10 + 3600 * 13) * SECOND_NS);
    assert_eq!(r.r(4), 0x81);
}

#[test]
fn takes_a_new_time() {
    let r = Rig::new();
    r.w(0x0b, 0x82);
    for (reg, v) in [(0, 0x30), (2, 0x15), (4, 0x07), (7, 0x31), (8, 0x12), (9, 0x99), (CENTURY, 0x19)] {
        r.w(reg, v);
    }
    r.b.at(5 * SECOND_NS);
    assert_eq!(r.r(0), 0x30);
    r.w(0x0b, 0x02);
    r.b.at(6 * SECOND_NS);
    assert_eq!(r.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x07, 0x15, 0x31]);
    // One register on the fly.
    r.w(4, 0x08);
    assert_eq!(r.time()[5..], [0x08, 0x15, 0x31]);
    // A reset does not touch the time.
    r.rtc.reset();
    assert_eq!(r.time()[5..], [0x08, 0x15, 0x31]);
    // What is no time is not taken.
    r.w(8, 0x13);
    assert_eq!(r.r(8), 0x12);
}

#[test]
fn update_in_progress_just_before_the_second() {
    let r = Rig::new();
    r.b.at(SECOND_NS - UIP_NS - 1);
    assert_eq!(r.r(0x0a), 0x26);
    r.b.at(SECOND_NS - UIP_NS);
    assert_eq!(r.r(0x0a), 0xa6);
    r.b.at(SECOND_NS);
    assert_eq!(r.r(0x0a), 0x26);
}

#[test]
fn update_ended_interrupts() {
    let r = Rig::new();
    r.w(0x0b, 0x12);
    r.b.run_to(SECOND_NS - 1);
    assert_eq!(r.edges(), 0);
    r.b.run_to(SECOND_NS);
    assert_eq!(r.edges(), 1);
    assert_eq!((r.r(0x0c) & 0xb0, r.r(0x0c)), (0x90, 0));
    assert!(!r.b.chip.level(8));
    // The flag comes without the interrupt too.
    r.w(0x0b, 0x02);
    r.b.run_to(2 * SECOND_NS);
    assert_eq!((r.r(0x0c) & 0xb0, r.edges()), (0x10, 1));
}

#[test]
fn alarms_also_for_seconds_that_were_missed() {
    let r = Rig::new();
    for (reg, v) in [(1, 0x05), (3, 0xff), (5, 0xc0)] {
        r.w(reg, v);
    }
    r.w(0x0b, 0x22);
    r.b.run_to(14 * SECOND_NS);
    assert_eq!(r.edges(), 0);
    r.b.run_to(15 * SECOND_NS);
    assert_eq!((r.edges(), r.r(0x0c) & 0xb0), (1, 0xb0));
    r.b.at(60 * SECOND_NS);
    assert_eq!(r.edges(), 1);
    r.b.at(200 * SECOND_NS);
    assert_eq!((r.edges(), r.r(0x0c) & 0xb0), (2, 0xb0));
}

#[test]
fn periodic_interrupts_on_machine_time() {
    let r = Rig::new();
    r.w(0x0b, 0x42);
    let mut edges = 0;
    for ms in 1..=1000 {
        r.b.run_to(ms * 1_000_000);
        if r.b.chip.level(8) {
            assert_eq!(r.r(0x0c) & 0xc0, 0xc0);
            edges += 1;
        }
    }
    // 1024 Hz looked at a thousand times.
    assert_eq!(edges, r.edges());
    assert!((990..=1000).contains(&edges), "{edges}");
    r.w(0x0a, 0x2f);
    for _ in 0..4 {
        r.b.run_to(r.b.timers.next_deadline().unwrap());
        r.r(0x0c);
    }
    assert_eq!(r.edges(), edges + 4);
    assert_eq!(r.b.clock.now_ns() / 500_000_000, 6);
    r.w(0x0a, 0x20);
    assert_eq!(r.b.timers.next_deadline(), None);
}

#[test]
fn cmos_says_how_much_memory_there_is() {
    let m = cmos_for(3 << 30, 5 << 30, 4);
    assert_eq!(u16::from_le_bytes([m[0x15], m[0x16]]), 640);
    assert_eq!(u16::from_le_bytes([m[0x30], m[0x31]]), 0xffff);
    assert_eq!(u16::from_le_bytes([m[0x34], m[0x35]]), (((3 << 30) - (16 << 20)) >> 16) as u16);
    assert_eq!(u32::from_le_bytes([m[0x5b], m[0x5c], m[0x5d], 0]), 5 << 14);
    assert_eq!(m[0x5f], 3);
    let r = Rig::new();
    assert_eq!(u16::from_le_bytes([r.r(0x17), r.r(0x18)]), 63 << 10);
    r.w(0x40, 0xab);
    assert_eq!(r.r(0xc0), 0xab);
}

#[test]
fn any_access_is_harmless() {
    let r = Rig::new();
    hammer_pio(&r.b, &*r.rtc, 2, 41, || {
        let s = lock(&r.rtc.state);
        let (b, c) = (s.cmos[usize::from(REG_B)], s.cmos[usize::from(REG_C)]);
        assert_eq!(c & c::IRQF != 0, b & c & 0x70 != 0);
        assert_eq!(r.b.chip.level(8), c & c::IRQF != 0);
    });
}

#[test]
fn a_loaded_clock_goes_on() {
    use crate::component::Component;
    let r = Rig::new();
    r.w(0x0b, b::BINARY | b::HOURS24);
    r.w(0x32, 19);
    r.w(9, 99);
    // An alarm at 23:59:55, interrupts by it, by updates, and 2 Hz.
    for (reg, v) in [(5, 23), (3, 59), (1, 55), (0x0a, 0x2f), (0x5f, 0xab)] {
        r.w(reg, v);
    }
    r.w(0x0b, b::BINARY | b::HOURS24 | c::PERIODIC | c::ALARM | c::UPDATE);
    r.b.run_to(1_300_000_000);
    outb(&*r.rtc, 0, 0x5f);
    let saved = r.rtc.save();
    let other = Rig::new();
    other.b.clock.set_ns(1_300_000_000);
    other.rtc.restore(&saved).unwrap();
    assert_eq!(other.rtc.save(), saved);
    assert_eq!((inb(&*other.rtc, 1), other.edges()), (0xab, 0), "the line was up already");
    let (mut edges, mut flags) = (r.edges(), 0);
    for tenth in 14..150 {
        for rig in [&r, &other] {
            rig.b.run_to(tenth * 100_000_000);
        }
        let c = r.r(0x0c);
        assert_eq!((r.time(), c, r.r(0x5f)), (other.time(), other.r(0x0c), other.r(0x5f)), "{tenth}");
        flags |= c;
    }
    edges = r.edges() - edges;
    assert_eq!(other.edges(), edges);
    assert_eq!((flags, r.time()[..2].to_vec()), (c::IRQF | c::PERIODIC | c::ALARM | c::UPDATE, vec![19, 99]));
    assert!(edges > 20, "{edges}");
}
