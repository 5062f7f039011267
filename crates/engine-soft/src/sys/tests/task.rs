//! Hardware task switches.

use crate::cpu::{Cpu, Mode};
use crate::sys::interrupt;
use crate::sys::testing::*;
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::desc::{Gate, GateKind};
use ringer_arch::exception::vector as v;
use ringer_arch::regs::{cr0, rflags};
use ringer_arch::seg::sreg;

const OTHER: u64 = 0x4000;
const TSS2: u16 = FREE;

/// Protected mode with a second task, at 0x7777 in ring 0.
fn two_tasks(ring: u16) -> Cpu {
    let cpu = protected(Vendor::Intel);
    put(&cpu, GDT + u64::from(TSS2), tss_descriptor(OTHER, 0x67, 9));
    let (cs, ds) = if ring == 3 { (CS3, DS3) } else { (CS0, DS0) };
    for (at, x) in [
        (0x20, 0x7777u64),
        (0x24, 0x2),
        (0x28, 0xaaaa),
        (0x38, STACK0 - 0x1000),
        (0x48, ds.into()),
        (0x4c, cs.into()),
        (0x50, ds.into()),
        (0x54, ds.into()),
        (0x58, 0),
        (0x5c, 0),
        (0x60, 0),
        (0x64, 0),
    ] {
        cpu.mmu.memory().store(OTHER + at, x as u32).unwrap();
    }
    cpu
}

fn busy(cpu: &Cpu, selector: u16) -> bool {
    get(cpu, GDT + u64::from(selector)) >> 41 & 1 != 0
}

const CALL: &[u8] = b"\x9a\x00\x00\x00\x00\x38\x00";
const JUMP: &[u8] = b"\xea\x00\x00\x00\x00\x38\x00";

#[test]
fn call_nests_and_iret_returns() {
    let mut cpu = two_tasks(0);
    cpu.regs[0] = 0x1111;
    let sp = cpu.regs[4];
    exec(&mut cpu, CALL).unwrap();
    assert_eq!((cpu.rip, cpu.regs[0], cpu.regs[4]), (0x7777, 0xaaaa, STACK0 - 0x1000));
    assert_eq!((cpu.tr.selector, cpu.tr.base), (TSS2, OTHER));
    assert_eq!(cpu.rflags(), 2 | rflags::NT);
    assert!(cpu.cr0 & cr0::TS != 0 && busy(&cpu, TR) && busy(&cpu, TSS2));
    assert_eq!(get16(&cpu, OTHER), u64::from(TR));
    assert_eq!((get32(&cpu, TSS + 0x20), get32(&cpu, TSS + 0x28)), (CODE + 7, 0x1111));
    assert!(cpu.seg[sreg::FS].attr.unusable());
    // The current task is busy: no way to call it again.
    assert_eq!(exec(&mut cpu, CALL), Err(Exception::coded(v::GP, TSS2.into())));
    cpu.regs[0] = 0xbbbb;
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.regs[0], cpu.regs[4]), (CODE + 7, 0x1111, sp));
    assert_eq!((cpu.tr.selector, cpu.rflags()), (TR, 2));
    assert!(busy(&cpu, TR) && !busy(&cpu, TSS2));
    assert_eq!((get32(&cpu, OTHER + 0x28), get32(&cpu, OTHER + 0x24)), (0xbbbb, 2));
}

#[test]
fn jump_leaves_no_link() {
    let mut cpu = two_tasks(3);
    cpu.mmu.memory().store(OTHER + 0x64, 1u16).unwrap();
    cpu.dr[7] |= 0x5;
    exec(&mut cpu, JUMP).unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.rflags()), (0x7777, 3, 2));
    assert!(!busy(&cpu, TR) && busy(&cpu, TSS2));
    assert_eq!(get16(&cpu, OTHER), 0);
    // The T bit, and the end of local breakpoints.
    assert_eq!((cpu.debug_trap, cpu.dr[7]), (1 << 15, 0x400));
}

#[test]
fn a_task_gate_takes_an_error_code() {
    let mut cpu = two_tasks(0);
    let g = Gate { kind: GateKind::Task, size: 0, selector: TSS2, offset: 0, ..gate_to(&cpu, 0) };
    set_gate(&cpu, v::GP, g);
    to_ring3(&mut cpu);
    cpu.exc = Some(Exception::coded(v::GP, 0x123));
    interrupt::raise_pending(&mut cpu);
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (0x7777, 0, STACK0 - 0x1004));
    assert_eq!(get32(&cpu, cpu.regs[4]), 0x123);
    assert_eq!((get32(&cpu, TSS + 0x20), get32(&cpu, TSS + 0x4c)), (CODE, CS3.into()));
    assert_eq!(get32(&cpu, TSS + 0x24) & rflags::RF, rflags::RF);
    cpu.regs[4] += 4;
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4], cpu.seg[sreg::CS].selector), (CODE, 3, STACK3, CS3));
}

#[test]
fn faults_before_the_switch_are_the_old_task_s() {
    let mut cpu = two_tasks(0);
    let d = GDT + u64::from(TSS2);
    for (raw, want) in [
        (tss_descriptor(OTHER, 0x66, 9), Exception::coded(v::TS, TSS2.into())),
        (tss_descriptor(OTHER, 0x67, 9) & !(1 << 47), Exception::coded(v::NP, TSS2.into())),
        (tss_descriptor(OTHER, 0x67, 2), Exception::coded(v::GP, TSS2.into())),
    ] {
        put(&cpu, d, raw);
        assert_eq!(exec(&mut cpu, JUMP), Err(want));
        assert_eq!((cpu.rip, cpu.tr.selector, busy(&cpu, TR)), (CODE, TR, true));
    }
    put(&cpu, d, tss_descriptor(OTHER, 0x67, 9));
    to_ring3(&mut cpu);
    assert_eq!(exec(&mut cpu, JUMP), Err(Exception::coded(v::GP, TSS2.into())));
    // IRET with a link to a task that is not busy.
    cpu.cpl = 0;
    cpu.set_rflags(2 | rflags::NT);
    cpu.mmu.memory().store(TSS, TSS2).unwrap();
    assert_eq!(exec(&mut cpu, b"\xcf"), Err(Exception::coded(v::TS, TSS2.into())));
}

#[test]
fn faults_after_it_are_the_new_one_s() {
    for (at, selector, want) in [
        (0x4c, DS0, v::TS),
        (0x50, DS3, v::TS),
        (0x50, 0x48, v::SS),
        (0x54, 0x48, v::NP),
        (0x60, 0x48, v::TS),
    ] {
        let mut cpu = two_tasks(0);
        put(&cpu, GDT + 0x48, 0x00cf_1300_0000_ffff);
        cpu.mmu.memory().store(OTHER + at, selector).unwrap();
        let e = exec(&mut cpu, JUMP);
        assert_eq!(e, Err(Exception::coded(want, u32::from(selector & !3))), "{at:#x}");
        assert_eq!((cpu.rip, cpu.tr.selector, busy(&cpu, TSS2)), (0x7777, TSS2, true));
    }
}

#[test]
fn sixteen_bit_tasks() {
    let mut cpu = two_tasks(0);
    put(&cpu, GDT + u64::from(TSS2), tss_descriptor(OTHER, 0x2b, 1));
    for (at, x) in
        [(14, 0x4444u16), (16, 2), (18, 0x99), (26, 0x8000), (34, DS0), (36, CS0), (38, DS0), (40, DS0)]
    {
        cpu.mmu.memory().store(OTHER + at, x).unwrap();
    }
    cpu.mmu.memory().store(OTHER + 42, 0u16).unwrap();
    exec(&mut cpu, CALL).unwrap();
    assert_eq!((cpu.rip, cpu.regs[0] & 0xffff, cpu.regs[4] & 0xffff), (0x4444, 0x99, 0x8000));
    assert_eq!(cpu.tr.attr.typ(), 3);
    assert!(cpu.seg[sreg::GS].attr.unusable());
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.tr.selector), (CODE + 7, TR));
    assert_eq!(get16(&cpu, OTHER + 14), 0x4445);
}

#[test]
fn a_task_in_virtual_8086_mode() {
    let mut cpu = two_tasks(0);
    cpu.mmu.memory().store(OTHER + 0x24, 0x0002_0002u32).unwrap();
    cpu.mmu.memory().store(OTHER + 0x4c, 0x1000u16).unwrap();
    exec(&mut cpu, JUMP).unwrap();
    assert_eq!((cpu.mode, cpu.cpl, cpu.seg[sreg::CS].base), (Mode::V86, 3, 0x1_0000));
}

#[test]
fn long_mode_has_no_task_switches() {
    let mut cpu = long(Vendor::Intel);
    put(&cpu, GDT + u64::from(TSS2), tss_descriptor(OTHER, 0x67, 9));
    put(&cpu, 0x5004, u64::from(TSS2));
    cpu.regs[3] = 0x5000;
    assert_eq!(exec(&mut cpu, b"\xff\x2b"), Err(Exception::coded(v::GP, TSS2.into())));
}
