//! Far transfers: direct, gates, returns.

use crate::cpu::{Cpu, Mode};
use crate::sys::testing::*;
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::desc::{Gate, GateKind};
use ringer_arch::exception::vector as v;
use ringer_arch::seg::sreg;

fn gp(sel: u16) -> Exception {
    Exception::coded(v::GP, sel.into())
}

/// `call` or `jmp` to a 32-bit far pointer.
fn far(op: u8, sel: u16, off: u32) -> Vec<u8> {
    let mut c = vec![op];
    c.extend(off.to_le_bytes());
    c.extend(sel.to_le_bytes());
    c
}

fn call_gate(cpu: &Cpu, entry: u16, selector: u16, dpl: u8, params: u8) {
    let size = if cpu.long_active() { 8 } else { 4 };
    let g = Gate { kind: GateKind::Call, params, size, dpl, selector, ..gate_to(cpu, 0x1234) };
    let (low, high) = g.encode();
    put(cpu, GDT + u64::from(entry), low);
    if size == 8 {
        put(cpu, GDT + u64::from(entry) + 8, high);
    }
}

#[test]
fn direct_jumps_and_calls() {
    let mut cpu = protected(Vendor::Intel);
    // Conforming ring 0 code, data, not-present code.
    put(&cpu, GDT + 0x38, 0x00cf_9e00_0000_ffff);
    put(&cpu, GDT + 0x40, 0x00cf_1b00_0000_ffff);
    put(&cpu, GDT + 0x48, 0x0040_9b00_0000_0fff);
    exec(&mut cpu, &far(0xea, CS0, 0x4321)).unwrap();
    assert_eq!(cpu.rip, 0x4321);
    assert_eq!(exec(&mut cpu, &far(0xea, 0, 0)), Err(Exception::GP0));
    assert_eq!(exec(&mut cpu, &far(0xea, DS0, 0)), Err(gp(DS0)));
    assert_eq!(exec(&mut cpu, &far(0xea, CS3, 0)), Err(gp(CS3 & !3)));
    assert_eq!(exec(&mut cpu, &far(0xea, 0x40, 0)), Err(Exception::coded(v::NP, 0x40)));
    assert_eq!(exec(&mut cpu, &far(0xea, 0x48, 0x1000)), Err(Exception::GP0));
    assert_eq!(exec(&mut cpu, &far(0xea, 0x1000, 0)), Err(gp(0x1000)));
    let sp = cpu.regs[4];
    exec(&mut cpu, &far(0x9a, CS0, 0x1000)).unwrap();
    assert_eq!((cpu.rip, cpu.regs[4]), (0x1000, sp - 8));
    assert_eq!((get32(&cpu, sp - 8), get32(&cpu, sp - 4)), (0x4321 + 7, CS0.into()));
    exec(&mut cpu, b"\xca\x10\x00").unwrap();
    assert_eq!((cpu.rip, cpu.regs[4]), (0x4328, sp + 0x10));
    to_ring3(&mut cpu);
    // Ring 3 runs conforming code in ring 3, and marks it accessed.
    exec(&mut cpu, &far(0x9a, 0x38, 0x2000)).unwrap();
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.cpl), (0x3b, 3));
    assert_eq!(get(&cpu, GDT + 0x38) >> 40 & 1, 1);
    exec(&mut cpu, b"\xcb").unwrap();
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.regs[4]), (CS3, STACK3));
}

#[test]
fn a_call_gate_with_parameters_there_and_back() {
    let mut cpu = protected(Vendor::Intel);
    call_gate(&cpu, FREE, CS0, 3, 2);
    to_ring3(&mut cpu);
    cpu.regs[4] = STACK3 - 8;
    put(&cpu, STACK3 - 8, 0x2222_2222_1111_1111);
    exec(&mut cpu, &far(0x9a, FREE | 3, 0xdead)).unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (0x1234, 0, STACK0 - 24));
    let frame: Vec<u64> = (0..6).map(|n| get32(&cpu, STACK0 - 24 + 4 * n)).collect();
    assert_eq!(frame, [CODE + 7, CS3.into(), 0x1111_1111, 0x2222_2222, STACK3 - 8, DS3.into()]);
    // RETF 8 drops the parameters from both stacks.
    exec(&mut cpu, b"\xca\x08\x00").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (CODE + 7, 3, STACK3));
    assert_eq!(cpu.seg[sreg::SS].selector, DS3);
}

#[test]
fn call_gates_check_rings() {
    let mut cpu = protected(Vendor::Intel);
    call_gate(&cpu, 0x38, CS0, 0, 0);
    call_gate(&cpu, 0x40, CS0, 3, 0);
    call_gate(&cpu, 0x48, CS3 & !3, 3, 0);
    // A jump does not change rings, a call only inwards.
    assert_eq!(exec(&mut cpu, &far(0x9a, 0x48, 0)), Err(gp(CS3 & !3)));
    assert_eq!(exec(&mut cpu, &far(0x9a, 0x3b, 0)), Err(gp(0x38)));
    exec(&mut cpu, &far(0xea, 0x40, 0)).unwrap();
    to_ring3(&mut cpu);
    assert_eq!(exec(&mut cpu, &far(0x9a, 0x38, 0)), Err(gp(0x38)));
    assert_eq!(exec(&mut cpu, &far(0xea, 0x40, 0)), Err(gp(CS0)));
    exec(&mut cpu, &far(0xea, 0x48, 0)).unwrap();
    assert_eq!((cpu.rip, cpu.cpl), (0x1234, 3));
    put(&cpu, GDT + 0x40, get(&cpu, GDT + 0x40) & !(1 << 47));
    assert_eq!(exec(&mut cpu, &far(0x9a, 0x40, 0)), Err(Exception::coded(v::NP, 0x40)));
}

#[test]
fn long_mode_call_gate() {
    let mut cpu = long(Vendor::Intel);
    call_gate(&cpu, FREE, CS0, 3, 0);
    to_ring3(&mut cpu);
    put(&cpu, 0x5000, 0);
    put(&cpu, 0x5004, u64::from(FREE));
    cpu.regs[3] = 0x5000;
    exec(&mut cpu, b"\xff\x1b").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (0x1234, 0, STACK0 - 32));
    assert!(cpu.seg[sreg::SS].attr.unusable());
    let frame: Vec<u64> = (0..4).map(|n| get(&cpu, STACK0 - 32 + 8 * n)).collect();
    assert_eq!(frame, [CODE + 2, CS3.into(), STACK3, DS3.into()]);
    exec(&mut cpu, b"\x48\xcb").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (CODE + 2, 3, STACK3));
    // The second half's type field must be zero.
    put(&cpu, GDT + u64::from(FREE) + 8, 0x0000_0100_0000_0000);
    assert_eq!(exec(&mut cpu, b"\xff\x1b"), Err(gp(FREE)));
}

#[test]
fn to_compatibility_mode_and_back() {
    let mut cpu = long(Vendor::Intel);
    put(&cpu, GDT + 0x38, 0x00cf_9b00_0000_ffff);
    put(&cpu, GDT + 0x40, 0x00ef_9b00_0000_ffff);
    put(&cpu, 0x5000, 0x0038_0000_1111);
    put(&cpu, 0x5010, 0x0040_0000_1111);
    put(&cpu, 0x5020, u64::from(CS0) << 32 | 0x2222);
    exec(&mut cpu, b"\xff\x2c\x25\x00\x50\x00\x00").unwrap();
    assert_eq!((cpu.mode, cpu.rip), (Mode::Prot32, 0x1111));
    // L and D together.
    assert_eq!(exec(&mut cpu, b"\xff\x2d\x10\x50\x00\x00"), Err(gp(0x40)));
    exec(&mut cpu, b"\xff\x2d\x20\x50\x00\x00").unwrap();
    assert_eq!((cpu.mode, cpu.rip), (Mode::Long, 0x2222));
}

#[test]
fn real_mode() {
    let mut cpu = real();
    exec(&mut cpu, b"\x9a\x34\x12\x00\x20").unwrap();
    assert_eq!((cpu.rip, cpu.seg[sreg::CS].base, cpu.regs[4]), (0x1234, 0x2_0000, 0xfffa));
    exec(&mut cpu, b"\xcb").unwrap();
    assert_eq!((cpu.rip, cpu.seg[sreg::CS].base, cpu.regs[4]), (5, 0x1_0000, 0xfffe));
    assert_eq!(exec(&mut cpu, b"\x66\xea\x00\x00\x01\x00\x00\x20"), Err(Exception::GP0));
}

#[test]
fn far_returns_check_the_outer_stack() {
    let mut cpu = protected(Vendor::Intel);
    for (frame, want) in [
        ([CODE, CS3.into(), STACK3, DS0.into()], gp(DS0)),
        ([CODE, CS3.into(), STACK3, 0], Exception::GP0),
        ([CODE, DS3.into(), STACK3, DS3.into()], gp(DS3 & !3)),
        ([CODE, 0, STACK3, DS3.into()], Exception::GP0),
    ] {
        let sp = cpu.regs[4];
        for (n, x) in (0u64..).zip(frame) {
            put(&cpu, sp + 4 * n, x);
        }
        assert_eq!(exec(&mut cpu, b"\xcb"), Err(want));
        assert_eq!((cpu.regs[4], cpu.cpl), (sp, 0));
    }
    to_ring3(&mut cpu);
    put(&cpu, STACK3, u64::from(CS0) << 32 | CODE);
    assert_eq!(exec(&mut cpu, b"\xcb"), Err(gp(CS0)));
}
