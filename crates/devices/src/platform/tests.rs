//! The devices through the whole chain: bus, chips, processor.

use super::*;
use crate::events::MachineEvent;
use ringer_arch::msr;
use ringer_engine::CpuIo;
use std::sync::mpsc::{Receiver, channel};

pub(crate) struct Machine {
    pub platform: Platform,
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
        let platform = Platform::new(PlatformConfig {
            memory: GuestMemory::new(1 << 20).unwrap(),
            clock: clock.clone(),
            stops: stops.clone(),
            events: Arc::new(tx),
            serial,
        })
        .unwrap();
        Machine { platform, clock, stops, events }
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

    /// Attention, then an acknowledged vector.
    pub(crate) fn take(&self, vcpu: usize) -> Option<u8> {
        if self.stops[vcpu].take(StopToken::ATTENTION) == 0 || !self.io(vcpu).pending().intr {
            return None;
        }
        self.io(vcpu).acknowledge()
    }

    fn init_pics(&self) {
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

    fn route(&self, pin: u32, low: u32, dest: u32) {
        self.store(0, map::IOAPIC, 0x11 + 2 * pin);
        self.store(0, map::IOAPIC + 0x10, dest << 24);
        self.store(0, map::IOAPIC, 0x10 + 2 * pin);
        self.store(0, map::IOAPIC + 0x10, low);
    }
}

const LAPIC: u64 = 0xfee0_0000;

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
    m.store(1, LAPIC + 0xf0, 0x1ff);
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
    let m = Machine::new(1);
    m.io(0).pio_write(map::PM1 + 4, &0x3401u16.to_le_bytes());
    m.out(0x64, 0xfe);
    m.out(0xcf9, 2);
    m.out(0xcf9, 6);
    m.out(0x92, 1);
    assert_eq!(m.inb(0x92), 1);
    m.out(map::DEBUG_EXIT, 3);
    let all: Vec<_> = m.events.try_iter().collect();
    use MachineEvent::{DebugExit, PowerOff, Reset};
    assert_eq!(all, [PowerOff, Reset, Reset, Reset, DebugExit(7)]);
}
