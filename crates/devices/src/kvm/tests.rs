use super::*;
use crate::platform::tests::Machine;
use ringer_engine::CpuIo;

#[test]
fn the_scale_is_exact_to_31_bits() {
    for khz in [1, 999, 1_000_000, 2_596_098, 4_000_000, 100_000_000] {
        let (mul, shift) = tsc_scale(khz);
        assert!(mul >= 1 << 31, "{khz}");
        let tsc = u128::from(khz) * 1000;
        let shifted = if shift < 0 { tsc >> -shift } else { tsc << shift };
        let ns = (shifted * u128::from(mul)) >> 32;
        assert!((999_990_000..=1_000_000_000).contains(&ns) || khz < 1000, "{khz}: {ns}");
    }
}

#[test]
fn kvmclock_follows_the_machine() {
    let m = Machine::new(2);
    let memory = m.memory.clone();
    m.clock.set_ns(123_456_789);
    memory.store(0x2000u64, 7u32).unwrap();
    for (vcpu, nr, gpa) in [(0, msr::KVM_SYSTEM_TIME, 0x2000u64), (1, msr::KVM_SYSTEM_TIME_OLD, 0x2040)] {
        m.io(vcpu).msr_write(nr, gpa | 1).unwrap();
        assert_eq!(m.io(vcpu).msr_read(nr), Some(gpa | 1));
    }
    let (mut a, mut b) = ([0; 32], [0; 32]);
    memory.read(0x2000, &mut a).unwrap();
    memory.read(0x2040, &mut b).unwrap();
    // Even, and not what stood there.
    assert_eq!((a[0], b[0]), (8, 2));
    assert_eq!(a[4..], b[4..]);
    let at = |i: usize| u64::from_le_bytes(a[i..i + 8].try_into().unwrap());
    let mul = u64::from(u32::from_le_bytes(a[24..28].try_into().unwrap()));
    assert_eq!((a[28] as i8, a[29]), (0, 1));
    let tsc = m.io(0).tsc();
    assert_eq!(at(16) + (((tsc - at(8)) * mul) >> 32), 123_456_789);
}

#[test]
fn wall_clock_is_the_time_at_boot() {
    let m = Machine::new(1);
    m.clock.set_ns(10_000_000_000);
    m.io(0).msr_write(msr::KVM_WALL_CLOCK, 0x3000).unwrap();
    let seconds = u64::from(m.memory.load::<u32>(0x3004).unwrap());
    let now = VmClock::wall_ns() / 1_000_000_000;
    assert!((now - 60..=now).contains(&(seconds + 10)) || (now - 60..=now).contains(&(seconds + 11)));
    assert_eq!(m.memory.load::<u32>(0x3000).unwrap(), 2);
}

#[test]
fn refuses_what_is_not_ram() {
    let m = Machine::new(1);
    let io = m.io(0);
    for nr in [msr::KVM_SYSTEM_TIME, msr::KVM_WALL_CLOCK, msr::KVM_PV_EOI_EN] {
        for gpa in [0xf_fff1u64, 0x10_0001, u64::MAX, 0xffff_f001] {
            let gpa = if nr == msr::KVM_PV_EOI_EN && gpa == 0xf_fff1 { gpa + 16 } else { gpa };
            assert_eq!(io.msr_write(nr, gpa), None, "{nr:#x} {gpa:#x}");
        }
    }
    io.msr_write(msr::KVM_SYSTEM_TIME, 0).unwrap();
    assert_eq!(io.msr_write(msr::KVM_POLL_CONTROL, 2), None);
    assert_eq!(io.msr_read(msr::KVM_POLL_CONTROL), Some(1));
    assert_eq!(io.msr_write(msr::KVM_STEAL_TIME, 0), None);
    assert_eq!(io.msr_read(msr::KVM_ASYNC_PF_EN), None);
}

#[test]
fn hypercalls() {
    let m = Machine::new(3);
    for i in 0..3 {
        m.enable_apic(i);
    }
    let io = m.io(0);
    // Ids 1 and 2, and 5, which is not there.
    assert_eq!(io.hypercall(HC_SEND_IPI, [0b10011, 0, 1, 0x66]), 2);
    assert_eq!((m.take(0), m.take(1), m.take(2)), (None, Some(0x66), Some(0x66)));
    assert_eq!(io.hypercall(HC_SEND_IPI, [0, 1, u64::MAX - 63, 0x66]), 0);
    assert_eq!(io.hypercall(HC_SEND_IPI, [1, 0, 0, 0x400]), 1);
    assert!(io.pending().nmi);
    assert_eq!(io.hypercall(HC_SEND_IPI, [1, 0, 0, 0x500]), EINVAL);
    assert_eq!(io.hypercall(HC_VAPIC_POLL_IRQ, [0; 4]), 0);
    assert_eq!(io.hypercall(HC_SCHED_YIELD, [1, 0, 0, 0]), 0);
    assert_eq!(io.hypercall(HC_KICK_CPU, [0, 99, 0, 0]), EINVAL);
    assert_eq!(io.hypercall(HC_KICK_CPU, [0, 2, 0, 0]), 0);
    assert_ne!(m.stops[2].take(ringer_engine::StopToken::ATTENTION), 0);
    assert!(m.io(2).pending().unhalt && !m.io(2).pending().unhalt);
    assert_eq!(io.hypercall(99, [0; 4]) as i64, -1000);
}
