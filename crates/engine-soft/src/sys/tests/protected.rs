//! Real, protected and virtual-8086 mode: gates, stacks, IRET.

use crate::cpu::Mode;
use crate::sys::interrupt;
use crate::sys::testing::*;
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::desc::{Gate, GateKind};
use ringer_arch::exception::vector as v;
use ringer_arch::regs::{cr4, rflags};
use ringer_arch::seg::sreg;

const HANDLER: u64 = 0x1_2340;

#[test]
fn real_mode_int_and_iret() {
    let mut cpu = real();
    put(&cpu, 0x21 * 4, 0x2345_6789);
    cpu.set_rflags(0x202 | rflags::TF | rflags::CF);
    step(&mut cpu, b"\xcd\x21");
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.seg[sreg::CS].base, cpu.rip), (0x2345, 0x2_3450, 0x6789));
    assert_eq!((cpu.regs[4], cpu.rflags()), (0xfff8, 3));
    let at = 0x1_0000 + 0xfff8;
    assert_eq!([get16(&cpu, at), get16(&cpu, at + 2), get16(&cpu, at + 4)], [2, 0x1000, 0x303]);
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.rip, cpu.regs[4]), (0x1000, 2, 0xfffe));
    assert_eq!(cpu.rflags(), 0x303);
    // Beyond the table's limit: #GP, whose own entry is missing, too, and #DF's as well.
    cpu.idtr.limit = 3;
    step(&mut cpu, b"\xcd\x21");
    assert!(cpu.triple_fault);
}

#[test]
fn a_fault_pushes_no_error_code_in_real_mode() {
    let mut cpu = real();
    put(&cpu, 13 * 4, 0x2000_0010);
    cpu.exc = Some(Exception::GP0);
    interrupt::raise_pending(&mut cpu);
    assert_eq!((cpu.rip, cpu.regs[4]), (0x10, 0xfff8));
}

#[test]
fn a_32_bit_gate_to_an_inner_ring_and_back() {
    let mut cpu = protected(Vendor::Intel);
    set_gate(&cpu, v::GP, Gate { kind: GateKind::Trap, ..gate_to(&cpu, HANDLER) });
    to_ring3(&mut cpu);
    cpu.set_rflags(0x202);
    cpu.exc = Some(Exception::coded(v::GP, 0x88));
    interrupt::raise_pending(&mut cpu);
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (HANDLER, 0, STACK0 - 24));
    assert_eq!(cpu.seg[sreg::SS].selector, DS0);
    let frame: Vec<u64> = (0..6).map(|n| get32(&cpu, STACK0 - 24 + 4 * n)).collect();
    assert_eq!(frame, [0x88, CODE, CS3.into(), 0x202 | rflags::RF, STACK3, DS3.into()]);
    // A trap gate leaves IF.
    assert_eq!(cpu.rflags(), 0x202);
    cpu.regs[4] += 4;
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.regs[4]), (CODE, 3, STACK3));
    assert_eq!(cpu.seg[sreg::SS].selector, DS3);
}

#[test]
fn a_16_bit_gate_pushes_words() {
    let mut cpu = protected(Vendor::Intel);
    set_gate(&cpu, 0x40, Gate { size: 2, ..gate_to(&cpu, 0x1234) });
    let sp = cpu.regs[4];
    cpu.set_rflags(0x202);
    interrupt::external(&mut cpu, 0x40);
    assert_eq!((cpu.rip, cpu.regs[4], cpu.rflags()), (0x1234, sp - 6, 2));
    assert_eq!(get16(&cpu, sp - 6), CODE & 0xffff);
    exec(&mut cpu, b"\x66\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.regs[4]), (CODE & 0xffff, sp));
}

#[test]
fn inner_stacks_that_are_no_good() {
    let mut cpu = protected(Vendor::Intel);
    set_gate(&cpu, 0x40, gate_to(&cpu, HANDLER));
    // What goes wrong is delivered in ring 0 by conforming means: a handler that needs no new stack is not to be had in ring 3,
    // so the first fault's code is told by the double fault's absence: give the later gates a task of their own ring.
    let conforming = 0x00cf_9f00_0000_ffff;
    put(&cpu, GDT + u64::from(FREE), conforming);
    for n in [v::TS, v::SS, v::NP] {
        set_gate(&cpu, n, Gate { selector: FREE, ..gate_to(&cpu, HANDLER) });
    }
    put(&cpu, GDT + 0x40, 0x00cf_1300_0000_ffff);
    for (ss, vector, code) in [
        (0u64, v::TS, 1u64),
        (DS3.into(), v::TS, u64::from(DS3 & !3) | 1),
        (0x40, v::SS, 0x41),
        (0x200, v::TS, 0x201),
        (CS0.into(), v::TS, u64::from(CS0) | 1),
    ] {
        put(&cpu, TSS + 8, ss);
        to_ring3(&mut cpu);
        cpu.rip = CODE;
        interrupt::external(&mut cpu, 0x40);
        assert_eq!((cpu.rip, cpu.cpl), (HANDLER, 3), "ss {ss:#x} vector {vector}");
        assert_eq!(get32(&cpu, cpu.regs[4]), code, "ss {ss:#x}");
    }
    // No room on the new stack: #SS with its selector.
    put(&cpu, TSS + 4, 8);
    put(&cpu, TSS + 8, 0x40);
    put(&cpu, GDT + 0x40, 0x0040_9300_0000_0007);
    to_ring3(&mut cpu);
    interrupt::external(&mut cpu, 0x40);
    assert_eq!((cpu.rip, get32(&cpu, cpu.regs[4])), (HANDLER, 0x41));
}

#[test]
fn iret_to_an_outer_ring_drops_segments() {
    let mut cpu = protected(Vendor::Intel);
    let sp = cpu.regs[4];
    for (n, x) in (0u64..).zip([0x5678, CS3.into(), 0x202, STACK3, DS3.into()]) {
        put(&cpu, sp + 4 * n, x);
    }
    cpu.seg[sreg::FS] = cpu.seg[sreg::DS];
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.cpl, cpu.regs[4], cpu.rip), (3, STACK3, 0x5678));
    for i in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
        assert_eq!((cpu.seg[i].selector, cpu.seg[i].attr.unusable()), (0, true));
    }
}

/// Enters virtual-8086 mode at 1000:0010 with the stack at 2000:0100.
fn v86(iopl: u64) -> crate::cpu::Cpu {
    let mut cpu = protected(Vendor::Intel);
    let f = 2 | rflags::VM | rflags::IF | iopl << 12;
    let frame = [0x10, 0x1000, f, 0x100, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000];
    for (n, x) in (0u64..).zip(frame) {
        put(&cpu, cpu.regs[4] + 4 * n, x);
    }
    exec(&mut cpu, b"\xcf").unwrap();
    cpu
}

#[test]
fn virtual_8086_mode_in_and_out() {
    let mut cpu = v86(0);
    assert_eq!((cpu.mode, cpu.cpl, cpu.rip, cpu.regs[4]), (Mode::V86, 3, 0x10, 0x100));
    let bases = cpu.seg.map(|s| s.base);
    assert_eq!(bases, [0x3_0000, 0x1_0000, 0x2_0000, 0x4_0000, 0x5_0000, 0x6_0000]);
    set_gate(&cpu, 0x40, gate_to(&cpu, HANDLER));
    interrupt::external(&mut cpu, 0x40);
    assert_eq!((cpu.mode, cpu.cpl, cpu.rip, cpu.regs[4]), (Mode::Prot32, 0, HANDLER, STACK0 - 36));
    let frame: Vec<u64> = (0..9).map(|n| get32(&cpu, cpu.regs[4] + 4 * n)).collect();
    let f = 2 | rflags::VM | rflags::IF;
    assert_eq!(frame, [0x10, 0x1000, f, 0x100, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]);
    assert!(cpu.seg[sreg::DS].attr.unusable() && cpu.seg[sreg::GS].attr.unusable());
    assert_eq!(cpu.rflags(), 2);
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.mode, cpu.rip, cpu.seg[sreg::GS].base), (Mode::V86, 0x10, 0x6_0000));
}

#[test]
fn virtual_8086_mode_goes_by_iopl() {
    let mut cpu = v86(0);
    for code in [&b"\xcd\x21"[..], b"\x9c", b"\x9d", b"\xcf", b"\xfa", b"\xfb"] {
        assert_eq!(exec(&mut cpu, code), Err(Exception::GP0), "{code:x?}");
    }
    let mut cpu = v86(3);
    exec(&mut cpu, b"\xfa").unwrap();
    exec(&mut cpu, b"\x9c").unwrap();
    assert_eq!(get16(&cpu, 0x2_00fe), 0x3002);
    put(&cpu, 0x2_00fe, 0xffff);
    exec(&mut cpu, b"\x9d").unwrap();
    // IOPL stays.
    assert_eq!(cpu.rflags() & (rflags::IOPL | rflags::IF | rflags::VM), 0x3200 | rflags::VM);
    let e = exec(&mut cpu, b"\xcd\x21").unwrap_err();
    assert_eq!(e.vector, 0x21);
    // Its gate must lead to ring 0.
    set_gate(&cpu, 0x21, Gate { selector: CS3 & !3, ..gate_to(&cpu, HANDLER) });
    set_gate(&cpu, v::GP, gate_to(&cpu, HANDLER));
    cpu.exc = Some(e);
    cpu.soft_int = Some(2);
    interrupt::raise_pending(&mut cpu);
    assert_eq!((cpu.cpl, get32(&cpu, cpu.regs[4])), (0, u64::from(CS3 & !3)));
}

#[test]
fn virtual_8086_extensions() {
    let mut cpu = v86(0);
    cpu.cr4 |= cr4::VME;
    // INT 21h goes to the program's own table, INT 22h does not.
    put(&cpu, TSS + 0x66, 0x88);
    cpu.tr.limit = 0x100;
    put(&cpu, TSS + 0x68 + 4, 0x04);
    put(&cpu, 0x21 * 4, 0x1000_0abc);
    exec(&mut cpu, b"\xfb").unwrap();
    assert_eq!(cpu.rflags() & (rflags::VIF | rflags::IF), rflags::VIF | rflags::IF);
    exec(&mut cpu, b"\xcd\x21").unwrap();
    assert_eq!((cpu.rip, cpu.mode, cpu.seg[sreg::CS].selector), (0xabc, Mode::V86, 0x1000));
    // VIF is shown as IF, IOPL as 3, and is cleared by the interrupt.
    assert_eq!(get16(&cpu, 0x2_00fe), 0x3202);
    assert_eq!(cpu.rflags() & (rflags::VIF | rflags::IF), rflags::IF);
    exec(&mut cpu, b"\xcf").unwrap();
    assert_eq!((cpu.rip, cpu.rflags() & rflags::VIF), (0x13, rflags::VIF));
    assert_eq!(exec(&mut cpu, b"\xcd\x22"), Err(Exception::GP0));
    exec(&mut cpu, b"\xfa").unwrap();
    cpu.sysflags |= rflags::VIP;
    assert_eq!(exec(&mut cpu, b"\xfb"), Err(Exception::GP0));
}

#[test]
fn int3_into_bound_and_int1() {
    let mut cpu = protected(Vendor::Intel);
    for n in [v::DB, v::BP, v::OF, v::BR] {
        set_gate(&cpu, n, gate_to(&cpu, HANDLER));
    }
    cpu.set_rflags(2 | rflags::OF);
    put(&cpu, 0x5000, 0x0000_0005_ffff_fffb);
    cpu.regs[3] = 0x5000;
    for (code, back) in [(&b"\xcc"[..], 1), (b"\xce", 1), (b"\xf1", 1), (b"\x62\x03", 0)] {
        cpu.rip = CODE;
        cpu.regs[0] = 6;
        step(&mut cpu, code);
        assert_eq!((cpu.rip, get32(&cpu, cpu.regs[4])), (HANDLER, CODE + back), "{code:x?}");
    }
    for v in [5u64, 0, 0xffff_fffb] {
        cpu.regs[0] = v;
        exec(&mut cpu, b"\x62\x03").unwrap();
    }
    cpu.regs[0] = 0xffff_fffa;
    assert_eq!(exec(&mut cpu, b"\x62\x03"), Err(Exception::plain(v::BR)));
}

#[test]
fn an_exception_that_raises_itself_does_not_hang() {
    use ringer_arch::regs::cr0;
    let mut cpu = protected(Vendor::Intel);
    // #AC's handler runs in ring 3 on a misaligned stack.
    set_gate(&cpu, v::AC, Gate { selector: CS3 & !3, ..gate_to(&cpu, HANDLER) });
    to_ring3(&mut cpu);
    cpu.cr0 |= cr0::AM;
    cpu.regs[4] = STACK3 + 1;
    cpu.set_rflags(2 | rflags::AC);
    cpu.update_mode();
    cpu.exc = Some(Exception::coded(v::AC, 0));
    interrupt::raise_pending(&mut cpu);
    assert_eq!((cpu.rip, cpu.triple_fault), (CODE, false));
}
