//! A processor in 64-bit mode without paging, and instructions from bytes.

mod random;
mod state;
mod vectors;
mod vendors;

use super::{execute, x87};
use crate::cpu::{Cpu, R};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_arch::seg::{Attr, Segment, sreg};
use ringer_engine::{CpuIo, Pending, StopToken, VmParams};
use ringer_memory::GuestMemory;
use std::sync::Arc;
use std::time::Instant;

struct NoMachine;

impl CpuIo for NoMachine {
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        assert!(data.len() <= 64);
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, data: &[u8]) {
        assert!(data.len() <= 64);
    }
    fn pending(&self) -> Pending {
        Pending::default()
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _: u64) {}
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn hypercall(&self, _: u64, _: [u64; 4]) -> u64 {
        0
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn reset_apic(&self) {}
}

/// First byte that is not RAM.
const RAM: u64 = 1 << 20;
/// Where instructions stand.
const CODE: u64 = 0x1000;

fn cpu() -> Cpu {
    cpu_of(crate::host_model().unwrap())
}

fn cpu_of(model: ringer_arch::cpu::CpuModel) -> Cpu {
    let model = Arc::new(model);
    let memory = GuestMemory::new(RAM).unwrap();
    let params = VmParams {
        memory,
        cpu: model,
        vcpus: 1,
        code_limit: ringer_engine::CODE_LIMIT,
        started: Instant::now(),
    };
    let mut c = Cpu::new(&params, 0, Arc::new(NoMachine), StopToken::new()).unwrap();
    c.cr0 = cr0::PE | cr0::ET | cr0::NE;
    c.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    c.xcr0 = c.model.xcr0_mask();
    c.efer = efer::LME | efer::LMA;
    c.seg = [Segment { selector: 16, base: 0, limit: u32::MAX, attr: Attr(0xc093) }; 6];
    c.seg[sreg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: Attr(0xa09b) };
    c.xsave.0.fill(0);
    c.xsave.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    c.xsave.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    c.update_mode();
    super::sanitize(&mut c);
    c
}

/// Switches to 32-bit protected mode with flat segments.
fn protected32(c: &mut Cpu) {
    c.efer = 0;
    c.seg[sreg::CS].attr = Attr(0xc09b);
    c.update_mode();
}

fn decode(c: &Cpu, code: &[u8]) -> Instruction {
    let i = Decoder::with_ip(c.bits(), code, CODE, DecoderOptions::NONE).decode();
    assert_eq!(i.len(), code.len(), "{i:?}");
    i
}

/// Executes one instruction.
fn run(c: &mut Cpu, code: &[u8]) -> R<()> {
    poke(c, CODE, code);
    let i = decode(c, code);
    poke(c, CODE, code);
    run_decoded(c, &i)
}

fn run_decoded(c: &mut Cpu, i: &Instruction) -> R<()> {
    c.rip = CODE;
    c.next_rip = CODE + i.len() as u64;
    execute(c, i).unwrap_or_else(|| panic!("not ours: {i:?}"))
}

/// Executes one instruction that raises an exception with this vector.
fn faults(c: &mut Cpu, code: &[u8], vector: u8) {
    assert!(run(c, code).is_err(), "{code:x?} did not fault");
    assert_eq!(c.exc.unwrap().vector, vector, "{code:x?}");
}

fn xmm(c: &Cpu, n: usize) -> u128 {
    u128::from_le_bytes(c.xsave.0[160 + 16 * n..][..16].try_into().unwrap())
}

fn set_xmm(c: &mut Cpu, n: usize, v: u128) {
    c.xsave.0[160 + 16 * n..][..16].copy_from_slice(&v.to_le_bytes());
}

fn high(c: &Cpu, n: usize) -> u128 {
    u128::from_le_bytes(c.xsave.0[576 + 16 * n..][..16].try_into().unwrap())
}

fn set_high(c: &mut Cpu, n: usize, v: u128) {
    c.xsave.0[576 + 16 * n..][..16].copy_from_slice(&v.to_le_bytes());
}

fn poke(c: &Cpu, gpa: u64, b: &[u8]) {
    c.mmu.memory().write(gpa, b).unwrap();
}

fn peek<const N: usize>(c: &Cpu, gpa: u64) -> [u8; N] {
    let mut b = [0; N];
    c.mmu.memory().read(gpa, &mut b).unwrap();
    b
}

/// The host's MXCSR and x87 control word are what Rust code expects.
fn host_is_clean() {
    let (mut mxcsr, mut fcw, mut fsw) = (0u32, 0u16, 0u16);
    // SAFETY: stores into locals.
    unsafe {
        core::arch::asm!("stmxcsr [{m}]", "fnstcw [{c}]", "fnstsw [{s}]", m = in(reg) &raw mut mxcsr,
            c = in(reg) &raw mut fcw, s = in(reg) &raw mut fsw);
    }
    assert_eq!((mxcsr & !0x3f, fcw, fsw), (0x1f80, 0x37f, 0));
}

fn set_mxcsr(c: &mut Cpu, v: u32) {
    c.xsave.0[24..28].copy_from_slice(&v.to_le_bytes());
}

fn mxcsr(c: &Cpu) -> u32 {
    x87::mxcsr(c)
}
