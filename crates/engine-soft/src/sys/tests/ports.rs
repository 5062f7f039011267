//! Port I/O and its permissions; the debug registers.

use crate::cpu::Cpu;
use crate::sys::testing::*;
use crate::sys::{debug, state};
use ringer_arch::Exception;
use ringer_arch::cpu::Vendor;
use ringer_arch::exception::vector as v;
use ringer_arch::regs::{cr4, dr, rflags};
use ringer_engine::StopToken;

#[test]
fn ring_3_needs_iopl_or_the_map() {
    let mut cpu = long(Vendor::Intel);
    to_ring3(&mut cpu);
    cpu.tr.limit = 0x67 + 0x22;
    cpu.mmu.memory().store(TSS + 0x66, 0x68u16).unwrap();
    cpu.mmu.memory().store(TSS + 0x68, u64::MAX).unwrap();
    // Ports 0x41 and 0x42 are open.
    cpu.mmu.memory().store(TSS + 0x68 + 8, 0xfff9u16).unwrap();
    let try_port = |cpu: &mut Cpu, code: &[u8]| exec(cpu, code).is_ok();
    assert!(!try_port(&mut cpu, b"\xe4\x40"));
    assert!(try_port(&mut cpu, b"\xe4\x41"));
    assert!(try_port(&mut cpu, b"\x66\xe5\x41"));
    assert!(!try_port(&mut cpu, b"\xe5\x41"));
    // Beyond the limit, and the byte behind the last port's.
    cpu.regs[2] = 0x108;
    assert!(!try_port(&mut cpu, b"\xec"));
    cpu.mmu.memory().store(TSS + 0x68 + 0x20, 0u16).unwrap();
    cpu.regs[2] = 0x107;
    assert!(try_port(&mut cpu, b"\xec"));
    cpu.set_rflags(2 | rflags::IOPL);
    assert!(try_port(&mut cpu, b"\xe4\x40"));
}

#[test]
fn in_and_out_move_what_they_should() {
    let (mut cpu, io) = reset(Vendor::Intel);
    cpu.regs[0] = u64::MAX;
    exec(&mut cpu, b"\xe4\x10").unwrap();
    assert_eq!(cpu.regs[0], u64::MAX << 8);
    exec(&mut cpu, b"\x66\xe5\x10").unwrap();
    assert_eq!(cpu.regs[0], 0x0403_0201);
    cpu.regs[2] = 0x1234;
    exec(&mut cpu, b"\xef").unwrap();
    exec(&mut cpu, b"\xe6\x80").unwrap();
    assert_eq!(*io.out.lock().unwrap(), [(0x1234, vec![1, 2]), (0x80, vec![1])]);
    assert_eq!(cpu.stats.pio, 4);
}

#[test]
fn string_io_runs_to_the_end_or_to_a_request() {
    let mut cpu = long(Vendor::Intel);
    (cpu.regs[1], cpu.regs[7]) = (5, 0x5000);
    exec(&mut cpu, b"\xf3\x6c").unwrap();
    assert_eq!((cpu.regs[1], cpu.regs[7], cpu.rip), (0, 0x5005, CODE + 2));
    assert_eq!(get(&cpu, 0x5000), 0x04_0302_0100);
    let stop = StopToken::new();
    let (real, io) = reset_with(Vendor::Intel, FakeIo { stop: Some(stop.clone()), ..FakeIo::default() });
    (cpu.io, cpu.stop) = (real.io.clone(), stop);
    (cpu.regs[1], cpu.regs[6], cpu.regs[2]) = (3, 0x5001, 0x99);
    cpu.set_rflags(2 | rflags::DF);
    cpu.leave = false;
    exec(&mut cpu, b"\xf3\x6e").unwrap();
    assert_eq!((cpu.regs[1], cpu.regs[6], cpu.rip, cpu.leave), (2, 0x5000, CODE + 2, true));
    exec(&mut cpu, b"\xf3\x6e").unwrap();
    exec(&mut cpu, b"\xf3\x6e").unwrap();
    assert_eq!((cpu.regs[1], cpu.rip), (0, CODE + 4));
    let out: Vec<u8> = io.out.lock().unwrap().iter().map(|(_, d)| d[0]).collect();
    assert_eq!(out, [1, 0, 0]);
    // No place to put it: the port is not read.
    (cpu.regs[1], cpu.regs[7]) = (1, 0x4000_0000);
    assert_eq!(exec(&mut cpu, b"\xf3\x6c").unwrap_err().vector, v::PF);
    assert_eq!((*io.next_in.lock().unwrap(), cpu.regs[1]), (0, 1));
}

#[test]
fn debug_registers() {
    let mut cpu = long(Vendor::Intel);
    cpu.regs[0] = 0xffff_ffff;
    exec(&mut cpu, b"\x0f\x23\xf0").unwrap();
    assert_eq!(cpu.dr[6], 0xffff_efff);
    cpu.regs[0] = 0x402;
    exec(&mut cpu, b"\x0f\x23\xf8").unwrap();
    exec(&mut cpu, b"\x0f\x21\xe9").unwrap();
    assert_eq!(cpu.regs[1], 0x402);
    cpu.regs[0] = 1 << 32;
    assert_eq!(exec(&mut cpu, b"\x0f\x23\xf8"), Err(Exception::GP0));
    cpu.regs[0] = CODE;
    exec(&mut cpu, b"\x0f\x23\xc0").unwrap();
    cpu.cr4 |= cr4::DE;
    assert_eq!(exec(&mut cpu, b"\x0f\x21\xe9"), Err(Exception::UD));
    cpu.rip = CODE;
    assert!(debug::code_breakpoint(&mut cpu));
    assert_eq!(cpu.exc.take(), Some(Exception::plain(v::DB)));
    assert_eq!(cpu.dr[6] & 0xf, 1);
    assert!(cpu.sysflags & rflags::RF != 0);
    assert!(!debug::code_breakpoint(&mut cpu));
    // General detect.
    cpu.dr[7] |= dr::DR7_GD;
    assert_eq!(exec(&mut cpu, b"\x0f\x21\xf9"), Err(Exception::plain(v::DB)));
    assert!(cpu.dr[6] & dr::DR6_BD != 0 && cpu.dr[7] & dr::DR7_GD == 0);
    to_ring3(&mut cpu);
    assert_eq!(exec(&mut cpu, b"\x0f\x21\xf9"), Err(Exception::GP0));
}

#[test]
fn port_breakpoints() {
    let mut cpu = long(Vendor::Intel);
    cpu.cr4 |= cr4::DE;
    cpu.dr[1] = 0x80;
    // Breakpoint 1: I/O, two bytes.
    cpu.dr[7] = dr::DR7_FIXED | 1 << 2 | 0x6 << 20;
    exec(&mut cpu, b"\xe6\x82").unwrap();
    assert_eq!(cpu.debug_trap, 0);
    exec(&mut cpu, b"\xe6\x81").unwrap();
    assert_eq!((cpu.debug_trap, cpu.leave), (2, true));
}

#[test]
fn state_goes_there_and_back() {
    let mut cpu = long(Vendor::Intel);
    to_ring3(&mut cpu);
    cpu.fast.lstar = 0xffff_8000_0000_0000;
    cpu.regs[1] = 0x277;
    cpu.set_rflags(0x246);
    cpu.mp_state = ringer_arch::MpState::Halted;
    let s = state::save(&cpu);
    let mut other = reset(Vendor::Intel).0;
    state::load(&mut other, &s).unwrap();
    assert_eq!(state::save(&other), s);
    assert_eq!((other.mode, other.cpl), (crate::cpu::Mode::Long, 3));
    let bad: [fn(&mut ringer_arch::VcpuState); 9] = [
        |s| s.cr0 &= !1,
        |s| s.cr4 |= 1 << 40,
        |s| s.efer &= !(1 << 10),
        |s| {
            s.rip = 1 << 47;
            s.seg[1].attr.0 = 0xc0fb;
        },
        |s| s.rflags = 0,
        |s| s.seg[4].base = 1 << 56,
        |s| s.xcr0 = 0,
        |s| s.cpl = 4,
        |s| *s.msrs.get_mut(&0xc000_0082).unwrap() = 1 << 56,
    ];
    for (n, f) in bad.iter().enumerate() {
        let mut t = s.clone();
        f(&mut t);
        assert!(state::load(&mut other, &t).is_err(), "{n}");
        assert_eq!(state::save(&other), s, "{n}");
    }
}

#[test]
fn init_and_start_up() {
    let mut cpu = long(Vendor::Intel);
    cpu.index = 1;
    cpu.fast.star = 77;
    cpu.cr0 &= !(1 << 30 | 1 << 29);
    state::init(&mut cpu);
    assert_eq!(cpu.mp_state, ringer_arch::MpState::WaitForSipi);
    assert_eq!((cpu.cr0, cpu.efer, cpu.cr4, cpu.fast.star), (0x10, 0, 0, 77));
    state::start_up(&mut cpu, 0x9a);
    assert_eq!((cpu.rip, cpu.seg[1].selector, cpu.seg[1].base), (0, 0x9a00, 0x9_a000));
    assert_eq!((cpu.mp_state, cpu.mode), (ringer_arch::MpState::Running, crate::cpu::Mode::Real));
}
