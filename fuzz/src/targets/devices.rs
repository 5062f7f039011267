//! Registers of each device, in any order, at any size and offset, with any value, while time jumps. Every device is
//! on a whole machine's bus, so that its interrupts go all the way.

use crate::input::Input;
use ringer_arch::msr;
use ringer_devices::{MachineEvent, MachineEvents, Platform, PlatformConfig, SerialConfig, VcpuIo, map};
use ringer_engine::{CpuIo, StopToken, VmClock};
use ringer_memory::GuestMemory;
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Processors of the machine.
const VCPUS: usize = 3;
/// The most that machine time goes on at once, and in all: 18 minutes, and 36 years.
const STEP_BITS: u8 = 40;
const LAST_NS: u64 = 1 << 60;

struct Ignore;

impl MachineEvents for Ignore {
    fn event(&self, _event: MachineEvent) {}
}

/// What a target's accesses are aimed at.
#[derive(Default)]
struct Aim {
    ports: &'static [(u16, u16)],
    memory: &'static [(u64, u64)],
    msrs: &'static [RangeInclusive<u32>],
}

fn machine() -> (Platform, VmClock) {
    thread_local!(static RAM: RefCell<Option<GuestMemory>> = const { RefCell::new(None) });
    let memory = RAM.with_borrow_mut(|m| {
        let m = m.get_or_insert_with(|| GuestMemory::new(1 << 20).expect("the host has 1 MiB"));
        m.write(0, &[0; 8192]).expect("inside RAM");
        m.clone()
    });
    let clock = VmClock::new(2_100_000);
    let port = |flow_control| Some(SerialConfig { output: Box::new(std::io::sink()), flow_control });
    let config = PlatformConfig {
        memory,
        clock: clock.clone(),
        stops: (0..VCPUS).map(|_| StopToken::new()).collect(),
        events: Arc::new(Ignore),
        hypercalls: true,
        serial: [port(false), port(true), None, port(false)],
    };
    (Platform::new(config).expect("the machine's map has no overlaps"), clock)
}

/// A value of eight bytes: a few bits, a number near zero on either side, or any.
fn value(input: &mut Input) -> u64 {
    match input.below(5) {
        4 => u64::MAX - u64::from(input.u8()),
        0 => 1 << (input.u8() & 63),
        1 => input.u8().into(),
        2 => u64::from(input.u32()),
        _ => input.u64(),
    }
}

fn drive(data: &[u8], aim: &Aim) {
    let (platform, clock) = machine();
    let mut input = Input(data);
    while !input.is_empty() {
        let op = input.u8();
        let vcpu = Arc::clone(&platform.vcpus()[usize::from(op >> 6) % VCPUS]);
        match op & 0x1f {
            0..6 => port_access(&mut input, &vcpu, aim, true),
            6..9 => port_access(&mut input, &vcpu, aim, false),
            9..14 => memory_access(&mut input, &vcpu, aim, true),
            14..17 => memory_access(&mut input, &vcpu, aim, false),
            17..20 => msr_access(&mut input, &vcpu, aim, true),
            20 => msr_access(&mut input, &vcpu, aim, false),
            21..24 => {
                let step = value(&mut input) & ((1 << STEP_BITS) - 1);
                clock.set_ns((clock.now_ns() + step).min(LAST_NS));
            }
            24 => {
                vcpu.pending();
            }
            25 | 26 => {
                if vcpu.pending().intr {
                    vcpu.acknowledge();
                }
            }
            27 => {
                vcpu.acknowledge();
                vcpu.set_cr8(u64::from(input.u8() & 15));
            }
            28 => {
                let args = [value(&mut input), value(&mut input), value(&mut input), value(&mut input)];
                vcpu.hypercall(value(&mut input), args);
            }
            29 => platform.irqchip().set_irq(input.u8().into(), input.u8() & 1 != 0),
            30 => platform.irqchip().msi(0xfee0_0000 | u64::from(input.u32()), input.u32()),
            _ => outside(&mut input, &platform, &vcpu),
        }
        serve(&platform, &clock);
    }
}

/// What the timers' thread does until it can sleep, which must be soon.
fn serve(platform: &Platform, clock: &VmClock) {
    for _ in 0..64 {
        if platform.timers().next_deadline().is_none_or(|d| d > clock.now_ns()) {
            return;
        }
        platform.timers().run_expired();
    }
    panic!("timers fire without end");
}

/// What the user, or the processor itself, does.
fn outside(input: &mut Input, platform: &Platform, vcpu: &VcpuIo) {
    match input.below(10) {
        0 => platform.reset(),
        1 => platform.ctrl_alt_del(),
        2 => platform.power_button(),
        3 => platform.nmi(),
        4 => vcpu.reset_apic(),
        5 => {
            let cpuid = vcpu.cpuid();
            assert!(cpuid.tsc_khz != 0);
        }
        n => {
            let Some(s) = platform.serial(n % 4) else { return };
            match input.below(4) {
                0 => s.send_break(),
                1 => s.set_carrier(input.u8() & 1 != 0),
                2 => s.on_room(Box::new(|| ())),
                _ => {
                    let n = input.u8().into();
                    let bytes = input.bytes(n);
                    assert!(s.receive(bytes) <= bytes.len());
                }
            }
        }
    }
}

fn port_access(input: &mut Input, vcpu: &VcpuIo, aim: &Aim, write: bool) {
    let n = [1, 2, 4][input.below(3)];
    let port = match aim.ports.get(input.below(aim.ports.len().max(1))) {
        // Also just outside.
        Some((start, len)) => start.wrapping_add(u16::from(input.u8()) % (len + 2)).wrapping_sub(1),
        None => input.u16(),
    };
    let mut v = value(input).to_le_bytes();
    if write {
        vcpu.pio_write(port, &v[..n]);
    } else {
        vcpu.pio_read(port, &mut v[..n]);
    }
}

fn memory_access(input: &mut Input, vcpu: &VcpuIo, aim: &Aim, write: bool) {
    let size = input.u8();
    let n = if size & 0xc0 == 0 {
        usize::from(size) + 1
    } else {
        [4, 4, 4, 1, 2, 8, 16, 64][usize::from(size & 7)]
    };
    let gpa = match aim.memory.get(input.below(aim.memory.len().max(1))) {
        Some((start, len)) => {
            let at = u64::from(input.u16());
            let at = if at & 1 == 0 { at << 2 & !3 } else { at };
            start + at % (len + 8) - 4 * (at >> 15 & 1)
        }
        None => 0xc000_0000 + value(input) % (1 << 50),
    };
    let mut v = [0; 64];
    v[..8].copy_from_slice(&value(input).to_le_bytes());
    if n > 8 {
        v[8..n].fill(input.u8());
    }
    if write {
        vcpu.mmio_write(gpa, &v[..n]);
    } else {
        vcpu.mmio_read(gpa, &mut v[..n]);
    }
}

fn msr_access(input: &mut Input, vcpu: &VcpuIo, aim: &Aim, write: bool) {
    let nr = match aim.msrs.get(input.below(aim.msrs.len().max(1))) {
        Some(r) => r.start() + u32::from(input.u8()) % (r.end() - r.start() + 1),
        None => input.u32(),
    };
    let v = value(input);
    if write {
        vcpu.msr_write(nr, v);
    }
    vcpu.msr_read(nr);
}

macro_rules! devices {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $value:expr),* })*) => {
        $($(#[$doc])*
        pub fn $name(data: &[u8]) {
            #[allow(unused_mut)]
            let mut aim = Aim::default();
            $(aim.$field = &$value;)*
            drive(data, &aim);
        })*
    };
}

const LAPIC: (u64, u64) = (0xfee0_0000, 0x1000);

devices! {
    /// The local APIC: its page, x2APIC MSRs, base, TSC deadline.
    lapic {
        memory: [LAPIC],
        msrs: [msr::X2APIC_FIRST..=0x83f, msr::TSC_DEADLINE..=msr::TSC_DEADLINE, msr::APIC_BASE..=msr::APIC_BASE]
    }
    /// The I/O APIC, with local APICs to end its interrupts.
    ioapic { memory: [(map::IOAPIC, 0x20), (map::IOAPIC, map::PAGE), LAPIC] }
    /// The two 8259s and their edge/level registers.
    pic { ports: [(0x20, 2), (0xa0, 2), (0x4d0, 2)] }
    /// The 8254 and port 0x61.
    pit { ports: [(0x40, 4), (0x61, 1)] }
    /// The HPET.
    hpet { memory: [(map::HPET, map::HPET_LEN), (map::HPET, 0x180)] }
    /// Real-time clock and CMOS.
    rtc { ports: [(0x70, 2)] }
    /// Serial ports.
    serial { ports: [(0x3f8, 8), (0x2f8, 8), (0x2e8, 8)] }
    /// The keyboard controller.
    i8042 { ports: [(0x60, 1), (0x64, 1)] }
    /// ACPI's fixed hardware.
    acpi { ports: [(map::PM1, map::PM1_LEN), (map::GPE0, 4)] }
    /// Reset control, system control, debug exit.
    ports { ports: [(0xcf8, 4), (0x92, 1), (map::DEBUG_EXIT, 1)] }
    /// KVM's paravirtual MSRs, with the local APIC's page, whose EOI register has a twin in memory.
    kvm_pv { memory: [LAPIC], msrs: [0x11..=0x12, msr::KVM_WALL_CLOCK..=msr::KVM_POLL_CONTROL + 1, msr::APIC_BASE..=msr::APIC_BASE] }
    /// Any port, address or MSR.
    bus {}
    /// Every device at once.
    platform {
        ports: [
            (0x20, 2), (0xa0, 2), (0x4d0, 2), (0x40, 4), (0x61, 1), (0x60, 1), (0x64, 1), (0x70, 2), (0x3f8, 8),
            (map::PM1, map::PM1_LEN), (map::GPE0, 4), (0xcf8, 4), (0x92, 1)
        ],
        memory: [LAPIC, (map::IOAPIC, 0x20), (map::HPET, 0x180)],
        msrs: [msr::X2APIC_FIRST..=0x83f, msr::TSC_DEADLINE..=msr::TSC_DEADLINE, 0x4b56_4d00..=0x4b56_4d05, 0x1b..=0x1b]
    }
}
