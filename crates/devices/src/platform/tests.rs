//! The devices through the whole chain: bus, chips, processor.

use super::*;
use crate::events::MachineEvent;
use ringer_arch::msr;
use ringer_engine::CpuIo;
use std::sync::mpsc::{Receiver, channel};

pub(crate) struct Machine {
    pub platform: Platform,
    pub memory: GuestMemory,
    pub clock: VmClock,
    pub stops: Vec<StopToken>,
    pub events: Receiver<MachineEvent>,
}

impl Machine {
    pub(crate) fn new(vcpus: usize) -> Machine {
        let clock = VmClock::new(2_000_000);
        let stops: Vec<_> = (0..vcpus).map(|_| StopToken::new()).collect();
        let (tx, events) = channel();
        let serial =
            [(); 4].map(|()| Some(SerialConfig { output: Box::new(std::io::sink()), flow_control: false }));
        let memory = GuestMemory::new(1 << 20).unwrap();
        let platform = Platform::new(PlatformConfig {
            memory: memory.clone(),
            clock: clock.clone(),
            stops: stops.clone(),
            events: Arc::new(tx),
            hypercalls: true,
            serial,
        })
        .unwrap();
        Machine { platform, memory, clock, stops, events }
    }

    pub(crate) fn io(&self, i: usize) -> &VcpuIo {
        &self.platform.vcpus()[i]
    }

    pub(crate) fn at(&self, ns: u64) {
        self.clock.set_ns(ns);
        self.platform.timers().run_expired();
    }

    pub(crate) fn out(&self, port: u16, v: u8) {
        self.io(0).pio_write(port, &[v]);
    }

    pub(crate) fn inb(&self, port: u16) -> u8 {
        let mut d = [0];
        self.io(0).pio_read(port, &mut d);
        d[0]
    }

    pub(crate) fn store(&self, vcpu: usize, gpa: u64, v: u32) {
        self.io(vcpu).mmio_write(gpa, &v.to_le_bytes());
    }

    pub(crate) fn load(&self, vcpu: usize, gpa: u64) -> u32 {
        let mut d = [0; 4];
        self.io(vcpu).mmio_read(gpa, &mut d);
        u32::from_le_bytes(d)
    }

    pub(crate) fn enable_apic(&self, vcpu: usize) {
        self.store(vcpu, LAPIC + 0xf0, 0x1ff);
    }

    /// Attention, then an acknowledged vector.
    pub(crate) fn take(&self, vcpu: usize) -> Option<u8> {
        if self.stops[vcpu].take(StopToken::ATTENTION) == 0 || !self.io(vcpu).pending().intr {
            return None;
        }
        self.io(vcpu).acknowledge()
    }

    pub(crate) fn init_pics(&self) {
        for (port, base, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            self.out(port, 0x11);
            self.out(port + 1, base);
            self.out(port + 1, cascade);
            self.out(port + 1, 1);
        }
    }

    fn start_pit(&self, divisor: u16) {
        self.out(0x43, 0x34);
        self.out(0x40, divisor as u8);
        self.out(0x40, (divisor >> 8) as u8);
    }

    pub(crate) fn route(&self, pin: u32, low: u32, dest: u32) {
        self.store(0, map::IOAPIC, 0x11 + 2 * pin);
        self.store(0, map::IOAPIC + 0x10, dest << 24);
        self.store(0, map::IOAPIC, 0x10 + 2 * pin);
        self.store(0, map::IOAPIC + 0x10, low);
    }
}

pub(crate) const LAPIC: u64 = 0xfee0_0000;

#[test]
fn pit_through_the_pic_in_virtual_wire_mode() {
    let m = Machine::new(2);
    m.init_pics();
    m.start_pit(11932);
    m.at(9_999_000);
    assert_eq!(m.take(0), None);
    m.at(10_001_000);
    assert_eq!(m.take(1), None);
    assert_eq!(m.take(0), Some(0x30));
    // Not ended yet: the next tick waits for that.
    m.at(20_001_000);
    assert_eq!(m.take(0), None);
    m.out(0x20, 0x20);
    assert_eq!(m.take(0), Some(0x30));
    // LINT0 masked: nothing gets through.
    m.store(0, LAPIC + 0x350, 0x1_0700);
    m.out(0x20, 0x20);
    m.at(30_010_000);
    assert_eq!(m.take(0), None);
}

#[test]
fn pit_through_the_ioapic_to_another_processor() {
    let m = Machine::new(2);
    m.enable_apic(1);
    m.route(2, 0x51, 1);
    m.start_pit(11932);
    m.at(10_001_000);
    assert_eq!(m.take(0), None);
    assert_eq!(m.take(1), Some(0x51));
    assert_eq!(m.load(1, LAPIC + 0x120), 1 << 17);
    m.at(20_001_000);
    assert_eq!(m.take(1), None);
    m.store(1, LAPIC + 0xb0, 0);
    assert_eq!(m.take(1), Some(0x51));
}

#[test]
fn tsc_deadline_in_x2apic_mode() {
    let m = Machine::new(1);
    let io = m.io(0);
    assert_eq!(io.msr_read(msr::APIC_BASE), Some(0xfee0_0900));
    io.msr_write(msr::APIC_BASE, 0xfee0_0d00).unwrap();
    io.msr_write(0x80f, 0x1ff).unwrap();
    io.msr_write(0x832, 0x4_00ec).unwrap();
    io.msr_write(msr::TSC_DEADLINE, 2_000).unwrap();
    assert_eq!(io.msr_read(msr::TSC_DEADLINE), Some(2_000));
    m.at(999);
    assert!(!io.pending().intr);
    m.at(1_000);
    assert_eq!(m.take(0), Some(0xec));
    assert_eq!(io.msr_read(msr::TSC_DEADLINE), Some(0));
    io.msr_write(0x80b, 0).unwrap();
    // A deadline that has passed fires at once.
    io.msr_write(msr::TSC_DEADLINE, 1_999).unwrap();
    assert_eq!(m.take(0), Some(0xec));
    // Where the page was is nobody now.
    assert_eq!(m.load(0, LAPIC + 0x30), u32::MAX);
}

#[test]
fn power_off_and_resets() {
    use MachineEvent::{DebugExit, PowerOff, Reset};
    let m = Machine::new(1);
    let event = || {
        let all: Vec<_> = m.events.try_iter().collect();
        m.platform.reset();
        all
    };
    m.io(0).pio_write(map::PM1 + 4, &0x3401u16.to_le_bytes());
    assert_eq!(event(), [PowerOff]);
    m.out(0x64, 0xfe);
    assert_eq!(event(), [Reset]);
    m.out(0xcf9, 2);
    m.out(0xcf9, 6);
    assert_eq!(event(), [Reset]);
    m.out(0x92, 1);
    assert_eq!(m.inb(0x92), 1);
    assert_eq!(event(), [Reset]);
    // What comes after the first is not heard.
    m.out(map::DEBUG_EXIT, 3);
    m.out(map::DEBUG_EXIT, 4);
    m.out(0x64, 0xfe);
    assert_eq!(event(), [DebugExit(7)]);
}

#[test]
fn level_interrupts_end_through_the_chain() {
    let m = Machine::new(1);
    m.enable_apic(0);
    m.route(map::SCI, 0x8059, 0);
    m.io(0).pio_write(map::PM1 + 2, &0x100u16.to_le_bytes());
    m.platform.power_button();
    assert_eq!(m.take(0), Some(0x59));
    // Not acknowledged in the device: it comes again.
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!(m.take(0), Some(0x59));
    m.io(0).pio_write(map::PM1, &0x100u16.to_le_bytes());
    m.store(0, LAPIC + 0xb0, 0);
    assert_eq!(m.take(0), None);
}

#[test]
fn the_hpet_takes_the_place_of_pit_and_rtc() {
    let m = Machine::new(1);
    m.enable_apic(0);
    m.route(2, 0x52, 0);
    m.start_pit(11932);
    m.at(10_001_000);
    assert_eq!(m.take(0), Some(0x52));
    m.store(0, LAPIC + 0xb0, 0);
    m.store(0, map::HPET + 0x10, 3);
    m.at(20_002_000);
    assert_eq!(m.take(0), None);
    m.store(0, map::HPET + 0x100, 4);
    m.store(0, map::HPET + 0x108, 2_000_000);
    m.store(0, map::HPET + 0x10c, 0);
    m.at(40_002_000);
    assert_eq!(m.take(0), Some(0x52));
}

#[test]
fn the_pit_agrees_with_the_tsc_however_late_it_is_asked() {
    let m = Machine::new(1);
    m.out(0x61, 1);
    m.out(0x43, 0xb0);
    m.out(0x42, 0xff);
    m.out(0x42, 0xff);
    let tsc0 = m.io(0).tsc();
    for ns in [1_000_000, 23_456_789, 54_000_000] {
        m.clock.set_ns(ns);
        m.out(0x43, 0x80);
        let count = u64::from(u16::from_le_bytes([m.inb(0x42), m.inb(0x42)]));
        let by_tsc = (m.io(0).tsc() - tsc0) * 1_193_182 / 2_000_000_000;
        assert_eq!(0xffff - count, by_tsc);
    }
}

#[test]
fn serial_ports_have_lines_of_their_own() {
    let m = Machine::new(1);
    m.enable_apic(0);
    for (i, (port, gsi)) in map::SERIAL.iter().enumerate() {
        m.route(*gsi, 0x70 + gsi, 0);
        m.out(port + 1, 1);
        assert_eq!(m.platform.serial(i).unwrap().receive(b"x"), 1);
        assert_eq!(m.take(0), Some(0x70 + *gsi as u8));
        assert_eq!(m.inb(*port), b'x');
        m.store(0, LAPIC + 0xb0, 0);
    }
    assert!(m.platform.serial(4).is_none());
}

#[test]
fn reset_is_power_up() {
    let m = Machine::new(2);
    m.enable_apic(1);
    m.init_pics();
    m.start_pit(100);
    m.out(0x21, 0xfe);
    m.at(5_000_000);
    m.route(4, 0x54, 1);
    m.store(0, map::HPET + 0x10, 3);
    m.io(0).msr_write(msr::KVM_SYSTEM_TIME, 0x5001).unwrap();
    m.io(1).msr_write(msr::TSC_DEADLINE, 1).unwrap();
    m.platform.reset();
    assert_eq!(m.platform.timers().next_deadline(), None);
    for i in 0..2 {
        assert_eq!(m.io(i).pending(), ringer_engine::Pending::default());
        assert_eq!(m.load(i, LAPIC + 0xf0), 0xff);
        assert_eq!(m.io(i).msr_read(msr::KVM_SYSTEM_TIME), Some(0));
    }
    assert_eq!((m.inb(0x21), m.load(0, map::HPET + 0x10)), (0xff, 0));
    // And it works again.
    m.init_pics();
    m.start_pit(11932);
    m.at(m.clock.now_ns() + 10_001_000);
    assert_eq!(m.take(0), Some(0x30));
}

#[test]
fn time_runs_between_resume_and_pause_only() {
    let m = Machine::new(1);
    m.platform.start().unwrap();
    m.enable_apic(0);
    m.store(0, LAPIC + 0x3e0, 0xb);
    m.store(0, LAPIC + 0x320, 0x60);
    m.store(0, LAPIC + 0x380, 1000);
    m.platform.resume();
    m.stops[0].wait(None);
    m.platform.pause();
    assert_eq!(m.take(0), Some(0x60));
    let t = m.clock.now_ns();
    assert!(t >= 1000);
    assert_eq!(m.clock.now_ns(), t);
}

#[test]
fn any_access_anywhere_is_harmless() {
    let m = Machine::new(2);
    let mut rng = crate::testing::Rng(0x5eed);
    let ports =
        [0x20, 0x40, 0x60, 0x70, 0x92, 0xa0, 0xf4, 0x2e8, 0x2f8, 0x3e8, 0x3f8, 0x4d0, 0x600, 0x620, 0xcf8];
    for _ in 0..300_000 {
        let io = m.io(rng.below(2) as usize);
        let mut d = [0; 64];
        d[..8].copy_from_slice(&rng.value().to_le_bytes());
        let port = match rng.below(8) {
            0 => rng.next() as u16,
            n => ports[rng.below(15) as usize] + (rng.below(8) * u64::from(n != 1)) as u16,
        };
        let base = [map::IOAPIC, map::HPET, LAPIC, 0xffff_ffff_ffff_ffc0][rng.below(4) as usize];
        let gpa = base.wrapping_add(rng.below(0x410)).wrapping_sub(8);
        let wide = rng.below(64) as usize + 1;
        match rng.below(5) {
            0 => io.pio_read(port, &mut d[..1 << rng.below(3)]),
            1 => io.pio_write(port, &d[..1 << rng.below(3)]),
            2 => io.mmio_read(gpa, &mut d[..wide]),
            3 => io.mmio_write(gpa, &d[..wide]),
            _ => m.at(m.clock.now_ns() + rng.below(3_000_000)),
        }
        if io.pending().intr {
            assert!(io.acknowledge().is_some());
        }
    }
    m.platform.reset();
    assert_eq!(m.platform.timers().next_deadline(), None);
    assert!(m.events.try_iter().count() <= 1);
}
