//! KVM's paravirtual interface: kvmclock, interrupt ends in memory, and hypercalls (Linux
//! Documentation/virt/kvm/x86/cpuid.rst, msr.rst and hypercalls.rst).

use crate::apic::{Apics, Delivery, Dest, Lapic, Message};
use crate::component::{Component, Saved, StateError};
use crate::sync::lock;
use ringer_arch::msr;
use ringer_engine::VmClock;
use ringer_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;

/// `KVM_FEATURE_*` bits for CPUID 0x4000_0001 EAX: what this machine answers to. CLOCKSOURCE (0), NOP_IO_DELAY (1),
/// CLOCKSOURCE2 (3), PV_EOI (6), PV_UNHALT (7), PV_SEND_IPI (11), POLL_CONTROL (12), PV_SCHED_YIELD (13), CLOCKSOURCE_STABLE_BIT
/// (24).
pub const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 24;

/// Those of them that the guest uses by hypercalls: PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD.
pub const HYPERCALLS: u32 = 1 << 7 | 1 << 11 | 1 << 13;

/// Of the saved state.
const VERSION: u32 = 1;

const HC_VAPIC_POLL_IRQ: u64 = 1;
const HC_KICK_CPU: u64 = 5;
const HC_SEND_IPI: u64 = 10;
const HC_SCHED_YIELD: u64 = 11;
/// -KVM_ENOSYS.
const ENOSYS: u64 = -1000i64 as u64;
/// -KVM_EINVAL.
const EINVAL: u64 = -22i64 as u64;

/// `pvclock_vcpu_time_info.flags`: readings are monotonic across processors.
const TSC_STABLE: u8 = 1;
const ENABLED: u64 = 1;

/// One processor's paravirtual MSRs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    system_time: u64,
    wall_clock: u64,
    poll_control: u64,
}

impl State {
    fn new() -> State {
        State { system_time: 0, wall_clock: 0, poll_control: 1 }
    }
}

/// One processor's side of the interface.
pub(crate) struct KvmPv {
    index: usize,
    state: Mutex<State>,
    memory: GuestMemory,
    clock: VmClock,
}

impl KvmPv {
    /// Of processor `index`.
    pub(crate) fn new(index: usize, memory: GuestMemory, clock: VmClock) -> KvmPv {
        KvmPv { index, state: Mutex::new(State::new()), memory, clock }
    }

    pub(crate) fn msr_read(&self, lapic: &Lapic, nr: u32) -> Option<u64> {
        let s = lock(&self.state);
        Some(match nr {
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_OLD => s.system_time,
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_OLD => s.wall_clock,
            msr::KVM_POLL_CONTROL => s.poll_control,
            msr::KVM_PV_EOI_EN => lapic.pv_eoi_msr(),
            _ => return None,
        })
    }

    pub(crate) fn msr_write(&self, lapic: &Lapic, nr: u32, value: u64) -> Option<()> {
        let mut s = lock(&self.state);
        match nr {
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_OLD => {
                if value & ENABLED != 0 {
                    self.write_time(value & !ENABLED)?;
                }
                s.system_time = value;
            }
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_OLD => {
                self.write_wall_clock(value)?;
                s.wall_clock = value;
            }
            msr::KVM_POLL_CONTROL if value <= 1 => s.poll_control = value,
            msr::KVM_PV_EOI_EN => return lapic.set_pv_eoi_msr(value),
            _ => return None,
        }
        Some(())
    }

    /// Writes `body` at `gpa + 4`, with the version at `gpa` odd while it changes and another even number after.
    fn publish(&self, gpa: u64, body: &[u8]) -> Option<()> {
        if !gpa.is_multiple_of(4) || !self.memory.contains(gpa, 4 + body.len() as u64) {
            return None;
        }
        let version = self.memory.load::<u32>(gpa).ok()? & !1;
        self.memory.store(gpa, version | 1).ok()?;
        self.memory.write(gpa + 4, body).ok()?;
        self.memory.store(gpa, version.wrapping_add(2)).ok()
    }

    /// `pvclock_vcpu_time_info`. TSC and machine time are one clock, so one pair of origins, zero and zero, is right
    /// on every processor, for ever.
    fn write_time(&self, gpa: u64) -> Option<()> {
        let (mul, shift) = tsc_scale(self.clock.tsc_khz());
        let mut body = [0; 28];
        // 4..12 TSC and 12..20 nanoseconds at the origin: zero.
        body[20..24].copy_from_slice(&mul.to_le_bytes());
        body[24] = shift.to_le_bytes()[0];
        body[25] = TSC_STABLE;
        self.publish(gpa, &body)
    }

    /// `pvclock_wall_clock`: the time of day when machine time was zero.
    fn write_wall_clock(&self, gpa: u64) -> Option<()> {
        let boot = VmClock::wall_ns().saturating_sub(self.clock.now_ns());
        let mut body = [0; 8];
        // Seconds since 1970 in 32 bits, as the guest declares them.
        body[..4].copy_from_slice(&(((boot / 1_000_000_000) & 0xffff_ffff) as u32).to_le_bytes());
        body[4..].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
        self.publish(gpa, &body)
    }
}

/// What is in the guest's memory is saved with that.
impl Component for KvmPv {
    fn name(&self) -> String {
        format!("kvm{}", self.index)
    }

    fn reset(&self) {
        *lock(&self.state) = State::new();
    }

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let new: State = saved.read(self, VERSION)?;
        saved.ensure(new.poll_control <= 1, "poll control has unknown bits")?;
        *lock(&self.state) = new;
        Ok(())
    }
}

/// Factor and shift with which `((tsc << shift) * mul) >> 32` is nanoseconds (a negative shift goes right). The factor
/// uses all its 32 bits.
fn tsc_scale(tsc_khz: u64) -> (u32, i8) {
    let khz = u128::from(tsc_khz.max(1));
    for shift in -31i8..32 {
        // The distance from -32 on is 1 to 63.
        let scaled = (1_000_000u128 << (32 - i32::from(shift))) / khz;
        if let Ok(mul) = u32::try_from(scaled) {
            return (mul, shift);
        }
    }
    (u32::MAX, 31)
}

/// A hypercall.
pub(crate) fn hypercall(apics: &Apics, nr: u64, args: [u64; 4]) -> u64 {
    match nr {
        HC_VAPIC_POLL_IRQ => 0,
        HC_KICK_CPU => match usize::try_from(args[1]).ok().and_then(|i| apics.get(i)) {
            Some(l) => {
                l.unhalt();
                0
            }
            None => EINVAL,
        },
        HC_SEND_IPI => send_ipi(apics, args),
        HC_SCHED_YIELD => {
            std::thread::yield_now();
            0
        }
        _ => ENOSYS,
    }
}

/// `KVM_HC_SEND_IPI`: to the local APICs whose bits are set in the 128-bit map `args[1]:args[0]`, which starts at id
/// `args[2]`, what the ICR value `args[3]` says. Returns how many were reached.
fn send_ipi(apics: &Apics, [low, high, first, icr]: [u64; 4]) -> u64 {
    let Some(delivery) = Delivery::from_bits((icr >> 8 & 7) as u32) else { return EINVAL };
    if !matches!(delivery, Delivery::Fixed | Delivery::Nmi) {
        return EINVAL;
    }
    let mut map = u128::from(high) << 64 | u128::from(low);
    let mut reached = 0;
    while map != 0 {
        let bit = map.trailing_zeros();
        map &= map - 1;
        let Some(id) = first.checked_add(u64::from(bit)).and_then(|i| u32::try_from(i).ok()) else { break };
        let m = Message { dest: Dest::Physical(id), delivery, vector: (icr & 0xff) as u8, level: false };
        reached += u64::from(apics.deliver(&m));
    }
    reached
}

#[cfg(test)]
mod tests;
