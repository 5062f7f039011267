//! What a processor between two instructions holds that no register shows is in its saved state.

use crate::sys::state;
use crate::sys::testing::*;
use ringer_arch::MpState;
use ringer_arch::cpu::Vendor;
use ringer_arch::regs::{cr0, cr4, dr};

#[test]
fn what_is_pending_goes_along() {
    let mut cpu = long(Vendor::Intel);
    cpu.shadow = true;
    cpu.nmi_blocked = true;
    cpu.nmi_pending = true;
    cpu.debug_trap = dr::DR6_BS | 2;
    cpu.unhalt = true;
    cpu.mp_state = MpState::Halted;
    let saved = state::save(&cpu);
    let mut other = long(Vendor::Intel);
    state::load(&mut other, &saved).unwrap();
    assert_eq!(state::save(&other), saved);
    assert_eq!((other.debug_trap, other.unhalt, other.shadow), (dr::DR6_BS | 2, true, true));
    let bad = ringer_arch::VcpuState { pending_debug: dr::DR6_BD, ..saved };
    assert!(state::load(&mut other, &bad).is_err());
}

#[test]
fn pdptes_are_those_in_the_registers() {
    let mut cpu = protected(Vendor::Intel);
    cpu.cr3 = 0x9000;
    cpu.cr4 |= cr4::PAE;
    cpu.cr0 |= cr0::PG;
    cpu.pdptes = [0x2001, 0, 0x3001, 0];
    cpu.update_mode();
    let saved = state::save(&cpu);
    assert_eq!(saved.pdptes, Some([0x2001, 0, 0x3001, 0]));
    // The guest has changed memory since, to what could not be loaded.
    put(&cpu, 0x9000, u64::MAX);
    state::load(&mut cpu, &saved).unwrap();
    assert_eq!(cpu.pdptes, [0x2001, 0, 0x3001, 0]);
    let of_memory = ringer_arch::VcpuState { pdptes: None, ..saved.clone() };
    assert!(state::load(&mut cpu, &of_memory).is_err());
    assert_eq!(cpu.pdptes, [0x2001, 0, 0x3001, 0], "the old state stays");
    let bad = ringer_arch::VcpuState { pdptes: Some([3, 0, 0, 0]), ..saved };
    assert!(state::load(&mut cpu, &bad).is_err());
}
