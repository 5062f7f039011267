//! Control registers, MSRs, CPUID and the like.

use crate::cpu::{Cpu, Mode};
use crate::sys::testing::*;
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::msr;
use ringer_arch::regs::{cr0, cr4, efer};

fn mov_to_cr(cpu: &mut Cpu, n: u8, v: u64) -> Result<(), Exception> {
    cpu.regs[0] = v;
    if n == 8 { exec(cpu, b"\x44\x0f\x22\xc0") } else { exec(cpu, &[0x0f, 0x22, 0xc0 | n << 3]) }
}

fn wrmsr(cpu: &mut Cpu, n: u32, v: u64) -> Result<(), Exception> {
    (cpu.regs[0], cpu.regs[1], cpu.regs[2]) = (v & 0xffff_ffff, n.into(), v >> 32);
    exec(cpu, b"\x0f\x30")
}

fn rdmsr(cpu: &mut Cpu, n: u32) -> Result<u64, Exception> {
    cpu.regs[1] = n.into();
    exec(cpu, b"\x0f\x32")?;
    Ok(cpu.regs[2] << 32 | cpu.regs[0])
}

const GP: Result<(), Exception> = Err(Exception::GP0);

#[test]
fn cr0_refuses_what_makes_no_sense() {
    let mut cpu = protected(Vendor::Intel);
    let base = cpu.cr0;
    assert_eq!(mov_to_cr(&mut cpu, 0, cr0::PG), GP);
    assert_eq!(mov_to_cr(&mut cpu, 0, base | cr0::NW), GP);
    cpu.efer = efer::LME;
    assert_eq!(mov_to_cr(&mut cpu, 0, base | cr0::PG), GP);
    assert_eq!((cpu.cr0, cpu.efer), (base, efer::LME));
    mov_to_cr(&mut cpu, 0, base | cr0::WP | 1 << 28).unwrap();
    assert_eq!(cpu.cr0, base | cr0::WP);
    // Back to real mode.
    mov_to_cr(&mut cpu, 0, cr0::ET).unwrap();
    assert_eq!(cpu.mode, Mode::Real);
    let mut cpu = long(Vendor::Intel);
    let base = cpu.cr0;
    assert_eq!(mov_to_cr(&mut cpu, 0, base & !cr0::PG), GP);
    assert_eq!(mov_to_cr(&mut cpu, 0, base | 1 << 32), GP);
    to_ring3(&mut cpu);
    assert_eq!(mov_to_cr(&mut cpu, 0, base), GP);
    assert_eq!(exec(&mut cpu, b"\x0f\x06"), GP);
}

#[test]
fn into_long_mode_and_out() {
    let mut cpu = protected(Vendor::Intel);
    let base = cpu.cr0;
    put(&cpu, 0x8000, 0x9007);
    put(&cpu, 0x9000, 0x87);
    mov_to_cr(&mut cpu, 4, cr4::PAE).unwrap();
    mov_to_cr(&mut cpu, 3, 0x8000).unwrap();
    wrmsr(&mut cpu, msr::EFER, efer::LME | efer::NXE).unwrap();
    mov_to_cr(&mut cpu, 0, base | cr0::PG).unwrap();
    assert_eq!((cpu.efer, cpu.mode), (efer::LME | efer::LMA | efer::NXE, Mode::Prot32));
    assert_eq!(mov_to_cr(&mut cpu, 4, 0), GP);
    assert_eq!(mov_to_cr(&mut cpu, 4, cr4::PAE | cr4::LA57), GP);
    assert_eq!(wrmsr(&mut cpu, msr::EFER, 0), GP);
    // LMA cannot be written.
    wrmsr(&mut cpu, msr::EFER, efer::LME).unwrap();
    assert_eq!(cpu.efer, efer::LME | efer::LMA);
    assert_eq!(wrmsr(&mut cpu, msr::EFER, efer::LME | 1 << 1), GP);
    mov_to_cr(&mut cpu, 0, base).unwrap();
    assert_eq!(cpu.efer, efer::LME);
}

#[test]
fn pae_reads_its_first_level_into_registers() {
    let mut cpu = protected(Vendor::Intel);
    let base = cpu.cr0;
    for n in 0..4 {
        put(&cpu, 0x8020 + 8 * n, 0x9000 + n * 0x1000 + 1);
    }
    mov_to_cr(&mut cpu, 4, cr4::PAE).unwrap();
    mov_to_cr(&mut cpu, 3, 0x8020).unwrap();
    mov_to_cr(&mut cpu, 0, base | cr0::PG).unwrap();
    assert_eq!(cpu.pdptes, [0x9001, 0xa001, 0xb001, 0xc001]);
    put(&cpu, 0x8020, 0x9007);
    assert_eq!(mov_to_cr(&mut cpu, 3, 0x8020), GP);
    put(&cpu, 0x8020, 6);
    mov_to_cr(&mut cpu, 3, 0x8020).unwrap();
    assert_eq!(cpu.pdptes[0], 6);
}

#[test]
fn cr3_cr4_and_process_ids() {
    let mut cpu = long(Vendor::Intel);
    let pages = cpu.cr3;
    assert_eq!(mov_to_cr(&mut cpu, 3, pages | 1 << 60), GP);
    mov_to_cr(&mut cpu, 3, pages | 8).unwrap();
    assert_eq!(mov_to_cr(&mut cpu, 4, cr4::PAE | cr4::PCIDE), GP);
    mov_to_cr(&mut cpu, 3, pages).unwrap();
    mov_to_cr(&mut cpu, 4, cr4::PAE | cr4::PCIDE).unwrap();
    // The mapping of 0x20_0000 changes: only a load without bit 63 sees it.
    let entry = pages + 0x1000;
    assert!(cpu.load::<u64>(0x1000).is_ok());
    put(&cpu, entry, 0);
    mov_to_cr(&mut cpu, 3, pages | 1 << 63).unwrap();
    assert_eq!(cpu.cr3, pages);
    assert!(cpu.load::<u64>(0x1000).is_ok());
    mov_to_cr(&mut cpu, 3, pages | 5).unwrap();
    assert!(cpu.load::<u64>(0x1000).is_err());
    mov_to_cr(&mut cpu, 3, pages | 1 << 63).unwrap();
    assert!(cpu.load::<u64>(0x1000).is_ok());
    mov_to_cr(&mut cpu, 3, pages).unwrap();
    assert!(cpu.load::<u64>(0x1000).is_err());
    cpu.exc = None;
    assert_eq!(mov_to_cr(&mut cpu, 4, 1 << 31), GP);
    let c = cpu.cr0;
    assert_eq!(mov_to_cr(&mut cpu, 0, c & !cr0::PG), GP);
    mov_to_cr(&mut cpu, 8, 9).unwrap();
    assert_eq!(mov_to_cr(&mut cpu, 8, 16), GP);
    exec(&mut cpu, b"\x44\x0f\x20\xc1").unwrap();
    assert_eq!(cpu.regs[1], 9);
}

#[test]
fn invlpg_and_invpcid() {
    let mut cpu = long(Vendor::Intel);
    let entry = cpu.cr3 + 0x1000;
    let invpcid = |cpu: &mut Cpu, kind: u64, pcid: u64, lin: u64| {
        put(cpu, 0x5000, pcid);
        put(cpu, 0x5008, lin);
        (cpu.regs[0], cpu.regs[3]) = (kind, 0x5000);
        exec(cpu, b"\x66\x0f\x38\x82\x03")
    };
    assert!(cpu.load::<u64>(0x1000).is_ok() && cpu.load::<u64>(0x5000).is_ok());
    assert_eq!(invpcid(&mut cpu, 4, 0, 0), GP);
    assert_eq!(invpcid(&mut cpu, 0, 1, 0), GP);
    assert_eq!(invpcid(&mut cpu, 2, 1 << 12, 0), GP);
    assert_eq!(invpcid(&mut cpu, 0, 0, 1 << 56), GP);
    put(&cpu, entry, 0);
    cpu.regs[3] = 0x1000;
    exec(&mut cpu, b"\x0f\x01\x3b").unwrap();
    assert!(cpu.load::<u64>(0x1000).is_err());
    to_ring3(&mut cpu);
    assert_eq!(exec(&mut cpu, b"\x0f\x01\x3b"), GP);
}

#[test]
fn msrs() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut cpu = long(vendor);
        for n in [msr::LSTAR, msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE, msr::SYSENTER_EIP] {
            wrmsr(&mut cpu, n, 0xffff_8000_1234_5678).unwrap();
            assert_eq!(rdmsr(&mut cpu, n), Ok(0xffff_8000_1234_5678));
            // The model has five-level paging: 57 bits.
            assert_eq!(wrmsr(&mut cpu, n, 1 << 56), GP, "{n:#x}");
        }
        assert_eq!(rdmsr(&mut cpu, 0x1234_5678), Err(Exception::GP0));
        assert_eq!(wrmsr(&mut cpu, 0x1234_5678, 0), GP);
        wrmsr(&mut cpu, msr::PAT, 0x0606_0606_0606_0606).unwrap();
        assert_eq!(rdmsr(&mut cpu, msr::PAT), Ok(0x0606_0606_0606_0606));
        assert_eq!(wrmsr(&mut cpu, msr::PAT, 2), GP);
        wrmsr(&mut cpu, msr::TSC_AUX, 5).unwrap();
        exec(&mut cpu, b"\x0f\x01\xf9").unwrap();
        assert_eq!((cpu.regs[0], cpu.regs[1], cpu.regs[2]), (1000, 5, 0));
        // The TSC moves TSC_ADJUST, and the other way round.
        wrmsr(&mut cpu, msr::TSC, 1 << 40).unwrap();
        assert_eq!(rdmsr(&mut cpu, msr::TSC_ADJUST), Ok((1 << 40) - 1000));
        wrmsr(&mut cpu, msr::TSC_ADJUST, 7).unwrap();
        assert_eq!(rdmsr(&mut cpu, msr::TSC), Ok(1007));
        assert_eq!(rdmsr(&mut cpu, msr::APIC_BASE), Ok(0xfee0_0900));
        to_ring3(&mut cpu);
        assert_eq!(rdmsr(&mut cpu, msr::TSC), Err(Exception::GP0));
        exec(&mut cpu, b"\x0f\x31").unwrap();
        cpu.cr4 |= cr4::TSD;
        assert_eq!(exec(&mut cpu, b"\x0f\x31"), GP);
    }
}

#[test]
fn xcr0() {
    let mut cpu = long(Vendor::Intel);
    assert_eq!(exec(&mut cpu, b"\x0f\x01\xd0"), Err(Exception::UD));
    cpu.cr4 |= cr4::OSXSAVE;
    (cpu.regs[1], cpu.regs[2]) = (0, 0);
    for (v, ok) in [(7, true), (3, true), (1, true), (5, false), (6, false), (15, false), (0, false)] {
        cpu.regs[0] = v;
        assert_eq!(exec(&mut cpu, b"\x0f\x01\xd1").is_ok(), ok, "{v}");
    }
    cpu.xcr0 = 7;
    exec(&mut cpu, b"\x0f\x01\xd0").unwrap();
    assert_eq!(cpu.regs[0], 7);
    cpu.regs[1] = 1;
    exec(&mut cpu, b"\x0f\x01\xd0").unwrap();
    assert_eq!(cpu.regs[0], 0);
    cpu.xsave.0[600] = 1;
    exec(&mut cpu, b"\x0f\x01\xd0").unwrap();
    assert_eq!(cpu.regs[0], 4);
    cpu.regs[1] = 2;
    assert_eq!(exec(&mut cpu, b"\x0f\x01\xd0"), GP);
}

#[test]
fn machine_status_word() {
    let mut cpu = protected(Vendor::Intel);
    cpu.regs[0] = 0xe;
    exec(&mut cpu, b"\x0f\x01\xf0").unwrap();
    assert_eq!(cpu.cr0 & 0xf, 0xf);
    exec(&mut cpu, b"\x0f\x06").unwrap();
    exec(&mut cpu, b"\x0f\x01\xe1").unwrap();
    assert_eq!(cpu.regs[1], cpu.cr0);
    assert_eq!(cpu.cr0 & cr0::TS, 0);
}

#[test]
fn hypercalls_cpuid_and_hlt() {
    let mut cpu = long(Vendor::Intel);
    cpu.regs[0] = 5;
    exec(&mut cpu, b"\xf3\x48\x0f\x1e\xc8").unwrap();
    assert_eq!(cpu.regs[0], 5);
    for code in [b"\x0f\x01\xc1", b"\x0f\x01\xd9"] {
        for (n, v) in [(0, 1), (3, 10), (1, 100), (2, 1000), (6, 10000)] {
            cpu.regs[n] = v;
        }
        exec(&mut cpu, code).unwrap();
        assert_eq!(cpu.regs[0], 11111);
    }
    cpu.regs[0] = 0x4000_0000;
    exec(&mut cpu, b"\x0f\xa2").unwrap();
    assert_eq!(cpu.regs[3], u64::from(u32::from_le_bytes(*b"KVMK")));
    exec(&mut cpu, b"\xf4").unwrap();
    assert_eq!(cpu.mp_state, ringer_arch::MpState::Halted);
    to_ring3(&mut cpu);
    exec(&mut cpu, b"\x0f\x01\xc1").unwrap();
    assert_eq!(cpu.regs[0] as i64, -1);
    assert_eq!(exec(&mut cpu, b"\x0f\x01\xcb"), Err(Exception::UD));
    cpu.cr4 |= cr4::SMAP;
    assert_eq!(exec(&mut cpu, b"\x0f\x01\xca"), Err(Exception::UD));
}

#[test]
fn sti_holds_interrupts_off_once() {
    let mut cpu = long(Vendor::Intel);
    exec(&mut cpu, b"\xfb").unwrap();
    assert!(cpu.shadow && cpu.leave);
    cpu.shadow = false;
    exec(&mut cpu, b"\xfb").unwrap();
    assert!(!cpu.shadow);
}
