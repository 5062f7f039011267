//! Loading and inspecting segments and descriptor tables.

use crate::hostops::fl;
use crate::sys::testing::*;
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::exception::vector as v;
use ringer_arch::regs::cr4;
use ringer_arch::seg::sreg;

fn gp(sel: u16) -> Exception {
    Exception::coded(v::GP, sel.into())
}

#[test]
fn data_segments() {
    let mut cpu = protected(Vendor::Intel);
    // Data at 0x12345000, not accessed; execute-only code; not present.
    put(&cpu, GDT + 0x38, 0x1240_9234_5000_0fff);
    put(&cpu, GDT + 0x40, 0x00cf_9800_0000_ffff);
    put(&cpu, GDT + 0x48, 0x00cf_1200_0000_ffff);
    let load = |cpu: &mut crate::cpu::Cpu, sel: u16| {
        cpu.regs[0] = sel.into();
        exec(cpu, b"\x8e\xd8")
    };
    load(&mut cpu, 0x38).unwrap();
    let ds = cpu.seg[sreg::DS];
    assert_eq!((ds.selector, ds.base, ds.limit, ds.attr.typ()), (0x38, 0x1234_5000, 0xfff, 3));
    assert_eq!(get(&cpu, GDT + 0x38) >> 40 & 0xff, 0x93);
    assert!(!cpu.shadow);
    assert_eq!(load(&mut cpu, 0x40), Err(gp(0x40)));
    assert_eq!(load(&mut cpu, 0x48), Err(Exception::coded(v::NP, 0x48)));
    assert_eq!(load(&mut cpu, 0x3b), Err(gp(0x38)));
    assert_eq!(load(&mut cpu, 0xfff8), Err(gp(0xfff8)));
    assert_eq!(load(&mut cpu, 0x3c), Err(gp(0x3c)));
    assert_eq!(load(&mut cpu, TR), Err(gp(TR)));
    assert_eq!(cpu.seg[sreg::DS], ds);
    load(&mut cpu, 3).unwrap();
    assert!(cpu.seg[sreg::DS].attr.unusable());
    assert!(cpu.seg_lin(sreg::DS, 0, 1, crate::mmu::Acc::Read).is_err());
}

#[test]
fn stack_segments() {
    let mut cpu = protected(Vendor::Intel);
    put(&cpu, GDT + 0x40, 0x00cf_9000_0000_ffff);
    put(&cpu, GDT + 0x48, 0x00cf_1200_0000_ffff);
    let load = |cpu: &mut crate::cpu::Cpu, sel: u16| {
        cpu.regs[0] = sel.into();
        exec(cpu, b"\x8e\xd0")
    };
    for (sel, want) in
        [(0, Exception::GP0), (DS3, gp(DS3 & !3)), (0x40, gp(0x40)), (0x48, Exception::coded(v::SS, 0x48))]
    {
        assert_eq!(load(&mut cpu, sel), Err(want));
    }
    load(&mut cpu, DS0).unwrap();
    assert!(cpu.shadow);
    let mut cpu = long(Vendor::Intel);
    load(&mut cpu, 0).unwrap();
    assert!(cpu.seg[sreg::SS].attr.unusable());
    assert_eq!(load(&mut cpu, 3), Err(Exception::GP0));
    to_ring3(&mut cpu);
    assert_eq!(load(&mut cpu, 3), Err(Exception::GP0));
}

#[test]
fn stores_and_stack_forms() {
    let mut cpu = long(Vendor::Intel);
    cpu.regs[0] = u64::MAX;
    exec(&mut cpu, b"\x8c\xd8").unwrap();
    assert_eq!(cpu.regs[0], u64::from(DS0));
    cpu.regs[0] = u64::MAX;
    exec(&mut cpu, b"\x66\x8c\xd8").unwrap();
    assert_eq!(cpu.regs[0], !0xffff | u64::from(DS0));
    cpu.regs[3] = 0x5000;
    put(&cpu, 0x5000, u64::MAX);
    exec(&mut cpu, b"\x8c\x1b").unwrap();
    assert_eq!(get(&cpu, 0x5000), !0xffff | u64::from(DS0));
    let sp = cpu.regs[4];
    exec(&mut cpu, b"\x0f\xa0").unwrap();
    assert_eq!((cpu.regs[4], get(&cpu, sp - 8)), (sp - 8, u64::from(DS0)));
    put(&cpu, sp - 8, u64::from(CS0) | 3 << 16);
    exec(&mut cpu, b"\x0f\xa1").unwrap();
    assert_eq!((cpu.regs[4], cpu.seg[sreg::FS].selector), (sp, CS0));
    put(&cpu, sp, 0xfff8);
    assert_eq!(exec(&mut cpu, b"\x0f\xa1"), Err(gp(0xfff8)));
    assert_eq!(cpu.regs[4], sp);
    // LSS: no shadow, offset last.
    put(&cpu, 0x5000, u64::from(DS0) << 32 | 0x1234_5678);
    exec(&mut cpu, b"\x0f\xb2\x23").unwrap();
    assert_eq!((cpu.regs[4], cpu.shadow), (0x1234_5678, false));
}

#[test]
fn fs_and_gs_bases() {
    let mut cpu = long(Vendor::Intel);
    assert_eq!(exec(&mut cpu, b"\xf3\x48\x0f\xae\xc0"), Err(Exception::UD));
    cpu.cr4 |= cr4::FSGSBASE;
    cpu.regs[0] = 0xffff_8000_0000_1234;
    exec(&mut cpu, b"\xf3\x48\x0f\xae\xd8").unwrap();
    assert_eq!(cpu.seg[sreg::GS].base, 0xffff_8000_0000_1234);
    exec(&mut cpu, b"\xf3\x0f\xae\xc9").unwrap();
    assert_eq!(cpu.regs[1], 0x1234);
    cpu.regs[0] = 1 << 56;
    assert_eq!(exec(&mut cpu, b"\xf3\x48\x0f\xae\xd8"), Err(Exception::GP0));
    cpu.fast.kernel_gs_base = 0x7777;
    exec(&mut cpu, b"\x0f\x01\xf8").unwrap();
    assert_eq!((cpu.seg[sreg::GS].base, cpu.fast.kernel_gs_base), (0x7777, 0xffff_8000_0000_1234));
    assert_eq!(cpu.regs[crate::cpu::slot::SEG_BASE as usize + sreg::GS], 0x7777);
    // A selector load sets the low half and clears the rest.
    cpu.regs[0] = DS0.into();
    exec(&mut cpu, b"\x8e\xe8").unwrap();
    assert_eq!(cpu.seg[sreg::GS].base, 0);
    to_ring3(&mut cpu);
    assert_eq!(exec(&mut cpu, b"\x0f\x01\xf8"), Err(Exception::GP0));
}

#[test]
fn table_registers() {
    let mut cpu = long(Vendor::Intel);
    cpu.regs[3] = 0x5000;
    put(&cpu, 0x5000, 0x8000_1234_5678_00ff);
    put(&cpu, 0x5008, 0xffff);
    exec(&mut cpu, b"\x0f\x01\x13").unwrap();
    assert_eq!((cpu.gdtr.base, cpu.gdtr.limit), (0xffff_8000_1234_5678, 0xff));
    put(&cpu, 0x5008, 0x0100);
    assert_eq!(exec(&mut cpu, b"\x0f\x01\x1b"), Err(Exception::GP0));
    cpu.regs[3] = 0x6000;
    exec(&mut cpu, b"\x0f\x01\x03").unwrap();
    assert_eq!((get(&cpu, 0x6000), get(&cpu, 0x6008)), (0x8000_1234_5678_00ff, 0xffff));
    to_ring3(&mut cpu);
    assert_eq!(exec(&mut cpu, b"\x0f\x01\x13"), Err(Exception::GP0));
    exec(&mut cpu, b"\x0f\x01\x03").unwrap();
    cpu.cr4 |= cr4::UMIP;
    assert_eq!(exec(&mut cpu, b"\x0f\x01\x03"), Err(Exception::GP0));
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xc8"), Err(Exception::GP0));
    assert_eq!(exec(&mut cpu, b"\x0f\x01\xe0"), Err(Exception::GP0));
    let mut cpu = protected(Vendor::Intel);
    cpu.regs[3] = 0x5000;
    put(&cpu, 0x5000, 0xffff_1234_5678_00ff);
    exec(&mut cpu, b"\x66\x0f\x01\x13").unwrap();
    assert_eq!(cpu.gdtr.base, 0x34_5678);
}

#[test]
fn ldtr_and_tr() {
    let mut cpu = long(Vendor::Intel);
    put(&cpu, GDT + 0x38, tss_descriptor(0x4000, 0x1f, 2));
    put(&cpu, GDT + 0x40, 0xffff_8000);
    put(&cpu, GDT + 0x48, tss_descriptor(0x4000, 0x67, 9));
    put(&cpu, GDT + 0x50, 0xffff_8000);
    cpu.regs[0] = 0x38;
    exec(&mut cpu, b"\x0f\x00\xd0").unwrap();
    assert_eq!((cpu.ldtr.base, cpu.ldtr.limit), (0xffff_8000_0000_4000, 0x1f));
    // A descriptor from it.
    put(&cpu, 0x4008, 0x00cf_9300_0000_ffff);
    cpu.regs[0] = 0xc;
    exec(&mut cpu, b"\x8e\xd8").unwrap();
    cpu.regs[0] = 0x24;
    assert_eq!(exec(&mut cpu, b"\x8e\xd8"), Err(gp(0x24)));
    cpu.regs[0] = 0x48;
    exec(&mut cpu, b"\x0f\x00\xd8").unwrap();
    assert_eq!((cpu.tr.base, cpu.tr.attr.typ()), (0xffff_8000_0000_4000, 11));
    assert_eq!(get(&cpu, GDT + 0x48) >> 40 & 15, 11);
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xd8"), Err(gp(0x48)));
    cpu.regs[0] = 0;
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xd8"), Err(Exception::GP0));
    exec(&mut cpu, b"\x0f\x00\xd0").unwrap();
    cpu.regs[0] = 0xc;
    assert_eq!(exec(&mut cpu, b"\x8e\xd8"), Err(gp(0xc)));
    // Not canonical, type field of the second half not zero, second half beyond the table.
    cpu.regs[0] = 0x38;
    put(&cpu, GDT + 0x40, 0x0100_0000);
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xd0"), Err(gp(0x38)));
    put(&cpu, GDT + 0x40, 0x0000_0100_0000_0000);
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xd0"), Err(gp(0x38)));
    cpu.gdtr.limit = 0x3f;
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xd0"), Err(gp(0x38)));
    let mut cpu = real();
    assert_eq!(exec(&mut cpu, b"\x0f\x00\xd0"), Err(Exception::UD));
}

#[test]
fn lar_lsl_verr_verw_arpl() {
    let mut cpu = protected(Vendor::Intel);
    put(&cpu, GDT + 0x38, 0x00cf_9800_0000_ffff);
    put(&cpu, GDT + 0x40, 0x00cf_9e00_0000_ffff);
    put(&cpu, GDT + 0x48, 0x0000_8600_0000_0000);
    let zf = |cpu: &crate::cpu::Cpu| cpu.fl & fl::ZF != 0;
    // (selector, LAR, VERR, VERW) as ring 0 and as ring 3.
    for (sel, ring0, ring3) in [
        (CS0, (true, true, false), (false, false, false)),
        (DS0, (true, true, true), (false, false, false)),
        (DS3, (true, true, true), (true, true, true)),
        (0x38, (true, false, false), (false, false, false)),
        (0x40, (true, true, false), (true, true, false)),
        (0x48, (false, false, false), (false, false, false)),
        (TR, (true, false, false), (false, false, false)),
        (0, (false, false, false), (false, false, false)),
        (0x7f8, (false, false, false), (false, false, false)),
    ] {
        for (ring, want) in [(0, ring0), (3, ring3)] {
            cpu.cpl = ring;
            cpu.update_mode();
            cpu.regs[0] = sel.into();
            let mut got = [false; 3];
            for (g, code) in got.iter_mut().zip([&b"\x0f\x02\xc8"[..], b"\x0f\x00\xe0", b"\x0f\x00\xe8"]) {
                exec(&mut cpu, code).unwrap();
                *g = zf(&cpu);
            }
            assert_eq!((got[0], got[1], got[2]), want, "{sel:#x} ring {ring}");
        }
    }
    cpu.cpl = 0;
    cpu.update_mode();
    cpu.regs[0] = DS0.into();
    exec(&mut cpu, b"\x0f\x03\xc8").unwrap();
    assert_eq!((cpu.regs[1], zf(&cpu)), (0xffff_ffff, true));
    exec(&mut cpu, b"\x0f\x02\xc8").unwrap();
    assert_eq!(cpu.regs[1] & 0x00f0_ff00, 0x00c0_9300);
    // ARPL raises the RPL of AX to that of CX.
    (cpu.regs[0], cpu.regs[1]) = (0xffff_0008, 0x1b);
    exec(&mut cpu, b"\x63\xc8").unwrap();
    assert_eq!((cpu.regs[0], zf(&cpu)), (0xffff_000b, true));
    exec(&mut cpu, b"\x63\xc8").unwrap();
    assert!(!zf(&cpu));
}

#[test]
fn real_mode_keeps_limits() {
    let mut cpu = real();
    cpu.seg[sreg::DS].limit = 0xffff_ffff;
    cpu.regs[0] = 0x1234;
    exec(&mut cpu, b"\x8e\xd8").unwrap();
    let ds = cpu.seg[sreg::DS];
    assert_eq!((ds.selector, ds.base, ds.limit), (0x1234, 0x1_2340, 0xffff_ffff));
}
