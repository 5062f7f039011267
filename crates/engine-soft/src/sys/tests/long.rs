//! Long mode: gates, stacks, IRET, SYSCALL.

use crate::cpu::{Cpu, Mode};
use crate::sys::interrupt;
use crate::sys::testing::*;
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::exception::vector as v;
use ringer_arch::regs::rflags;
use ringer_arch::seg::{Attr, sreg};

const HANDLER: u64 = 0xffff_8000_0001_2340;

fn fault(cpu: &mut Cpu, e: Exception) {
    cpu.exc = Some(e);
    interrupt::raise_pending(cpu);
}

#[test]
fn a_fault_in_ring_3_switches_to_rsp0() {
    let mut cpu = long(Vendor::Intel);
    set_gate(&cpu, v::GP, gate_to(&cpu, HANDLER));
    to_ring3(&mut cpu);
    cpu.regs[4] = STACK3 + 5;
    cpu.set_rflags(0x202 | rflags::TF | rflags::CF);
    put(&cpu, TSS + 4, STACK0 + 8);
    fault(&mut cpu, Exception::coded(v::GP, 0x1234));
    assert_eq!((cpu.rip, cpu.cpl, cpu.mode), (HANDLER, 0, Mode::Long));
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.seg[sreg::SS].selector), (CS0, 0));
    assert!(cpu.seg[sreg::SS].attr.unusable());
    // Aligned down to 16 first, then six pushes.
    assert_eq!(cpu.regs[4], STACK0 - 48);
    let frame: Vec<u64> = (0..6).map(|n| get(&cpu, cpu.regs[4] + 8 * n)).collect();
    let flags = 0x203 | rflags::TF | rflags::RF;
    assert_eq!(frame, [0x1234, CODE, u64::from(CS3), flags, STACK3 + 5, u64::from(DS3)]);
    assert_eq!(cpu.rflags() & (rflags::IF | rflags::TF | rflags::RF), 0);
}

#[test]
fn iret_goes_back() {
    let mut cpu = long(Vendor::Intel);
    set_gate(&cpu, 0x30, gate_to(&cpu, HANDLER));
    to_ring3(&mut cpu);
    cpu.set_rflags(0x202 | rflags::ZF);
    let before = (cpu.regs[4], cpu.rflags(), cpu.seg[sreg::CS], cpu.seg[sreg::SS]);
    interrupt::external(&mut cpu, 0x30);
    assert_eq!((cpu.rip, cpu.cpl), (HANDLER, 0));
    cpu.nmi_blocked = true;
    exec(&mut cpu, b"\x48\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.nmi_blocked), (CODE, 3, false));
    assert_eq!((cpu.regs[4], cpu.rflags(), cpu.seg[sreg::CS], cpu.seg[sreg::SS]), before);
    // Segment registers of inner rings do not survive.
    assert_eq!(cpu.seg[sreg::DS].selector, DS3);
}

#[test]
fn ist_applies_without_a_change_of_ring() {
    let mut cpu = long(Vendor::Intel);
    set_gate(&cpu, v::DF, ringer_arch::desc::Gate { ist: 3, ..gate_to(&cpu, HANDLER) });
    put(&cpu, TSS + u64::from(ringer_arch::desc::tss64_ist(3)), 0x2_8000);
    let old = cpu.regs[4];
    fault(&mut cpu, Exception::coded(v::DF, 0));
    assert_eq!((cpu.rip, cpu.regs[4]), (HANDLER, 0x2_8000 - 48));
    assert_eq!(get(&cpu, 0x2_8000 - 16), old);
    assert_eq!(cpu.seg[sreg::SS].selector, DS0);
    // #DF pushes no RF.
    assert_eq!(get(&cpu, 0x2_8000 - 24) & rflags::RF, 0);
}

#[test]
fn int_n_checks_the_gate() {
    let mut cpu = long(Vendor::Intel);
    let g = gate_to(&cpu, HANDLER);
    set_gate(&cpu, v::GP, g);
    set_gate(&cpu, v::NP, g);
    set_gate(&cpu, 0x80, g);
    set_gate(&cpu, 0x81, ringer_arch::desc::Gate { dpl: 0, ..g });
    set_gate(&cpu, 0x82, ringer_arch::desc::Gate { present: false, ..g });
    for (n, frame) in [
        // Return address after the instruction; the fault's before it.
        (0x80u64, vec![CODE + 2, CS3.into()]),
        (0x81, vec![0x81 * 8 + 2, CODE, CS3.into()]),
        (0x82, vec![0x82 * 8 + 2, CODE, CS3.into()]),
    ] {
        to_ring3(&mut cpu);
        cpu.rip = CODE;
        let e = exec(&mut cpu, &[0xcd, n as u8]).unwrap_err();
        assert_eq!(u64::from(e.vector), n);
        cpu.exc = Some(e);
        interrupt::raise_pending(&mut cpu);
        assert_eq!(cpu.rip, HANDLER);
        let got: Vec<u64> = (0..frame.len() as u64).map(|i| get(&cpu, cpu.regs[4] + 8 * i)).collect();
        assert_eq!(got, frame, "int {n:#x}");
    }
}

#[test]
fn external_interrupts_ignore_the_gate_s_dpl_and_set_ext() {
    let mut cpu = long(Vendor::Intel);
    let g = gate_to(&cpu, HANDLER);
    set_gate(&cpu, v::NP, g);
    set_gate(&cpu, 0x40, ringer_arch::desc::Gate { dpl: 0, ..g });
    to_ring3(&mut cpu);
    interrupt::external(&mut cpu, 0x40);
    assert_eq!((cpu.rip, cpu.cpl), (HANDLER, 0));
    set_gate(&cpu, 0x40, ringer_arch::desc::Gate { present: false, ..g });
    interrupt::external(&mut cpu, 0x40);
    assert_eq!(get(&cpu, cpu.regs[4]), 0x40 * 8 + 3);
}

#[test]
fn double_and_triple_faults() {
    let mut cpu = long(Vendor::Intel);
    // #GP's gate leads to data: #GP again, so #DF.
    let g = gate_to(&cpu, HANDLER);
    set_gate(&cpu, v::GP, ringer_arch::desc::Gate { selector: DS0, ..g });
    set_gate(&cpu, v::DF, g);
    fault(&mut cpu, Exception::GP0);
    assert_eq!((cpu.rip, get(&cpu, cpu.regs[4]), cpu.triple_fault), (HANDLER, 0, false));
    // #UD is benign: what its delivery raises is delivered in its place.
    set_gate(&cpu, v::NP, g);
    set_gate(&cpu, v::UD, ringer_arch::desc::Gate { present: false, ..g });
    fault(&mut cpu, Exception::UD);
    assert_eq!((cpu.rip, get(&cpu, cpu.regs[4])), (HANDLER, 6 * 8 + 3));
    // #PF, then #NP: #DF.
    set_gate(&cpu, v::PF, ringer_arch::desc::Gate { present: false, ..g });
    fault(&mut cpu, Exception::coded(v::PF, 2));
    assert_eq!((cpu.rip, get(&cpu, cpu.regs[4])), (HANDLER, 0));
    // No stack at all: #PF of the push, #DF's too.
    to_ring3(&mut cpu);
    put(&cpu, TSS + 4, 0x7000_0000_0000);
    set_gate(&cpu, v::PF, g);
    fault(&mut cpu, Exception::GP0);
    assert!(cpu.triple_fault);
    assert_eq!(cpu.cr2, 0x7000_0000_0000 - 8);
}

#[test]
fn a_stack_pointer_that_is_not_canonical_is_a_stack_fault() {
    let mut cpu = long(Vendor::Intel);
    set_gate(&cpu, 0x50, gate_to(&cpu, HANDLER));
    set_gate(&cpu, v::SS, ringer_arch::desc::Gate { ist: 1, ..gate_to(&cpu, HANDLER) });
    put(&cpu, TSS + 36, 0x2_8000);
    to_ring3(&mut cpu);
    put(&cpu, TSS + 4, 0x8000_0000_0000);
    interrupt::external(&mut cpu, 0x50);
    assert_eq!((cpu.rip, get(&cpu, cpu.regs[4])), (HANDLER, 1));
}

#[test]
fn iret_checks_before_it_changes_anything() {
    let mut cpu = long(Vendor::Intel);
    let frames: &[([u64; 5], Exception)] = &[
        // Null CS; data as CS; inner ring's CS with another DPL; RIP; null SS for ring 3; SS of the wrong ring.
        ([CODE, 0, 2, STACK3, DS3.into()], Exception::GP0),
        ([CODE, DS0.into(), 2, STACK3, DS0.into()], Exception::coded(v::GP, DS0.into())),
        ([CODE, u64::from(CS0) | 3, 2, STACK3, DS3.into()], Exception::coded(v::GP, CS0.into())),
        ([1 << 47, CS3.into(), 2, STACK3, DS3.into()], Exception::GP0),
        ([CODE, CS3.into(), 2, STACK3, 0], Exception::GP0),
        ([CODE, CS3.into(), 2, STACK3, DS0.into()], Exception::coded(v::GP, DS0.into())),
        ([CODE, 0x100, 2, STACK3, DS3.into()], Exception::coded(v::GP, 0x100)),
    ];
    for (frame, want) in frames {
        let sp = cpu.regs[4];
        for (n, x) in (0u64..).zip(frame) {
            put(&cpu, sp + 8 * n, *x);
        }
        assert_eq!(exec(&mut cpu, b"\x48\xcf"), Err(*want), "{frame:x?}");
        assert_eq!((cpu.regs[4], cpu.rip, cpu.cpl), (sp, CODE, 0));
    }
    // Ring 0 may return to itself with a null SS.
    for (n, x) in (0u64..).zip([CODE + 9, CS0.into(), 0x3002, 0x1234, 0]) {
        put(&cpu, cpu.regs[4] + 8 * n, x);
    }
    exec(&mut cpu, b"\x48\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.regs[4], cpu.rflags()), (CODE + 9, 0x1234, 0x3002));
    cpu.set_rflags(2 | rflags::NT);
    assert_eq!(exec(&mut cpu, b"\x48\xcf"), Err(Exception::GP0));
}

#[test]
fn ring_3_cannot_change_if_and_iopl() {
    let mut cpu = long(Vendor::Intel);
    to_ring3(&mut cpu);
    put(&cpu, STACK3 - 8, 0xffff_ffff);
    cpu.regs[4] = STACK3 - 8;
    exec(&mut cpu, b"\x9d").unwrap();
    let changed = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    assert_eq!(cpu.rflags(), changed | rflags::FIXED);
    exec(&mut cpu, b"\x9c").unwrap();
    assert_eq!(get(&cpu, STACK3 - 8), changed | rflags::FIXED);
    assert_eq!(exec(&mut cpu, b"\xfa"), Err(Exception::GP0));
    assert_eq!(exec(&mut cpu, b"\xfb"), Err(Exception::GP0));
    assert_eq!(exec(&mut cpu, b"\xf4"), Err(Exception::GP0));
}

#[test]
fn syscall_and_sysret() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut cpu = long(vendor);
        cpu.fast.star = 0x0013_0008_0000_0000;
        cpu.fast.lstar = HANDLER;
        cpu.fast.sfmask = rflags::IF | rflags::TF | rflags::AC;
        to_ring3(&mut cpu);
        cpu.set_rflags(0x202 | rflags::TF | rflags::ZF);
        exec(&mut cpu, b"\x0f\x05").unwrap();
        assert_eq!((cpu.rip, cpu.cpl, cpu.regs[1]), (HANDLER, 0, CODE + 2));
        assert_eq!(cpu.regs[11], 0x202 | rflags::TF | rflags::ZF);
        assert_eq!(cpu.rflags(), 2 | rflags::ZF);
        assert_eq!((cpu.seg[sreg::CS].selector, cpu.seg[sreg::CS].attr), (8, Attr(0xa09b)));
        assert_eq!((cpu.seg[sreg::SS].selector, cpu.seg[sreg::SS].attr), (16, Attr(0xc093)));
        exec(&mut cpu, b"\x48\x0f\x07").unwrap();
        assert_eq!((cpu.rip, cpu.cpl), (CODE + 2, 3));
        assert_eq!(cpu.rflags(), 0x202 | rflags::TF | rflags::ZF);
        assert_eq!((cpu.seg[sreg::CS].selector, cpu.seg[sreg::CS].attr), (0x23, Attr(0xa0fb)));
        // AMD leaves the rights of SS alone.
        let ss = if vendor == Vendor::Amd { 0xc093 } else { 0xc0f3 };
        assert_eq!((cpu.seg[sreg::SS].selector, cpu.seg[sreg::SS].attr), (0x1b, Attr(ss)));
        assert_eq!(exec(&mut cpu, b"\x48\x0f\x07"), Err(Exception::GP0));
        cpu.cpl = 0;
        cpu.update_mode();
        cpu.regs[1] = 1 << 47;
        let r = exec(&mut cpu, b"\x48\x0f\x07");
        assert_eq!(r.is_err(), vendor == Vendor::Intel);
        cpu.efer &= !1;
        assert_eq!(exec(&mut cpu, b"\x0f\x05"), Err(Exception::UD));
    }
}

#[test]
fn sysenter_and_sysexit() {
    let mut cpu = long(Vendor::Intel);
    (cpu.fast.sysenter_cs, cpu.fast.sysenter_esp, cpu.fast.sysenter_eip) = (8, STACK0, HANDLER);
    to_ring3(&mut cpu);
    cpu.set_rflags(0x202);
    exec(&mut cpu, b"\x0f\x34").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4], cpu.rflags()), (HANDLER, 0, STACK0, 2));
    (cpu.regs[1], cpu.regs[2]) = (STACK3, CODE);
    exec(&mut cpu, b"\x0f\x35").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4], cpu.mode), (CODE, 3, STACK3, Mode::Prot32));
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.seg[sreg::SS].selector), (0x1b, 0x23));
    let mut cpu = long(Vendor::Amd);
    cpu.fast.sysenter_cs = 8;
    assert_eq!(exec(&mut cpu, b"\x0f\x34"), Err(Exception::UD));
}

#[test]
fn interrupts_in_compatibility_mode_enter_64_bit_mode() {
    let mut cpu = long(Vendor::Intel);
    set_gate(&cpu, 0x33, gate_to(&cpu, HANDLER));
    put(&cpu, GDT + u64::from(FREE), 0x00cf_fb00_0000_ffff);
    to_ring3(&mut cpu);
    cpu.seg[sreg::CS] = ringer_arch::Segment::from_descriptor(FREE | 3, 0x00cf_fb00_0000_ffff);
    cpu.update_mode();
    assert_eq!(cpu.mode, Mode::Prot32);
    interrupt::external(&mut cpu, 0x33);
    assert_eq!((cpu.rip, cpu.mode, cpu.cpl), (HANDLER, Mode::Long, 0));
    exec(&mut cpu, b"\x48\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.mode, cpu.cpl, cpu.regs[4]), (CODE, Mode::Prot32, 3, STACK3));
    // A gate to code that is not 64-bit is no good.
    set_gate(&cpu, 0x33, ringer_arch::desc::Gate { selector: FREE, ..gate_to(&cpu, HANDLER) });
    set_gate(&cpu, v::GP, gate_to(&cpu, HANDLER));
    interrupt::external(&mut cpu, 0x33);
    assert_eq!(get(&cpu, cpu.regs[4]), u64::from(FREE) | 1);
}

#[test]
fn the_debug_trap_reports_and_returns_to_the_next_instruction() {
    let mut cpu = long(Vendor::Intel);
    set_gate(&cpu, v::DB, gate_to(&cpu, HANDLER));
    cpu.dr[6] |= 0xf;
    cpu.dr[7] |= ringer_arch::regs::dr::DR7_GD;
    cpu.debug_trap = 1 << 14;
    interrupt::debug_trap(&mut cpu);
    assert_eq!((cpu.rip, cpu.dr[6]), (HANDLER, 0xffff_4ff0));
    assert_eq!(cpu.dr[7] & ringer_arch::regs::dr::DR7_GD, 0);
    assert_eq!(get(&cpu, cpu.regs[4] + 16) & rflags::RF, 0);
    assert_eq!(cpu.debug_trap, 0);
}

#[test]
fn an_exception_that_raises_itself_for_ever_does_not_hang() {
    let mut cpu = long(Vendor::Intel);
    // #AC delivered in ring 3 on a misaligned stack: 16-byte alignment makes that impossible in long mode, so an IDT
    // that is all #UD gates to a page that is not there must do: it triple-faults.
    cpu.idtr.limit = 0;
    fault(&mut cpu, Exception::UD);
    assert!(cpu.triple_fault);
}
