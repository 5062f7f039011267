//! What Intel's and AMD's processors do differently, on either.

use super::*;
use ringer_arch::cpu::{CpuModel, Vendor};
use ringer_arch::exception::vector;
use ringer_arch::regs::rflags;

/// A processor with the host's instructions, of either vendor.
fn of(vendor: Vendor) -> Cpu {
    let id: &[u8; 12] = if vendor == Vendor::Amd { b"AuthenticAMD" } else { b"GenuineIntel" };
    let part = |n: usize| u32::from_le_bytes([id[n], id[n + 1], id[n + 2], id[n + 3]]);
    let host = |leaf, sub| {
        let r = crate::host::cpuid(leaf, sub);
        if leaf == 0 { [r[0], part(0), part(8), part(4)] } else { r }
    };
    cpu_of(CpuModel::named("host", &host, &crate::offered()).unwrap())
}

/// In ring 3 with alignment checks.
fn checking(vendor: Vendor) -> Cpu {
    let mut c = of(vendor);
    c.cpl = 3;
    c.cr0 |= cr0::AM;
    c.set_rflags(2 | rflags::AC);
    c
}

fn integer(c: &mut Cpu, code: &[u8]) -> R<()> {
    poke(c, CODE, code);
    let i = decode(c, code);
    c.rip = CODE;
    c.next_rip = CODE + code.len() as u64;
    crate::exec::generic::execute(c, &i)
}

/// Operands of more than 8 bytes are checked by AMD's processors alone.
#[test]
fn alignment_checks_of_vectors() {
    for (vendor, faulty) in [(Vendor::Intel, false), (Vendor::Amd, true)] {
        let mut c = checking(vendor);
        c.regs[3] = 0x2004;
        // movups xmm0, [rbx]; movups [rbx], xmm0; lddqu xmm0, [rbx]
        for code in [&[0x0f, 0x10, 3][..], &[0x0f, 0x11, 3], &[0xf2, 0x0f, 0xf0, 3]] {
            assert_eq!(run(&mut c, code).is_err(), faulty, "{vendor:?} {code:x?}");
        }
        faults(&mut c, &[0xf3, 0x0f, 0x7e, 3], vector::AC); // movq xmm0, [rbx]
    }
}

/// An access over the end of 4 GiB goes on at 0 on Intel's processors.
#[test]
fn accesses_over_the_end_of_the_offsets() {
    for (vendor, faulty) in [(Vendor::Intel, false), (Vendor::Amd, true)] {
        let mut c = of(vendor);
        protected32(&mut c);
        poke(&c, 0, &[1, 2, 3, 4]);
        c.regs[3] = 0xffff_fffe;
        assert_eq!(integer(&mut c, &[0x8b, 0x03]).is_err(), faulty); // mov eax, [ebx]
        if !faulty {
            assert_eq!(c.regs[0], 0x0201_ffff);
        }
        c.seg[sreg::DS].limit = 0xffff_fffe;
        assert!(integer(&mut c, &[0x8b, 0x03]).is_err());
    }
}

/// A conversion to 16-bit floats raises its exception before its store faults, or after.
#[test]
fn stores_of_conversions() {
    for (vendor, first) in [(Vendor::Intel, vector::XM), (Vendor::Amd, vector::GP)] {
        let mut c = of(vendor);
        if !c.has(ringer_arch::cpu::Feature::F16C) {
            return;
        }
        c.regs[3] = 1 << 47;
        set_xmm(&mut c, 1, 0x7f80_0001); // a signaling NaN
        set_mxcsr(&mut c, 0x1f00);
        faults(&mut c, &[0xc4, 0xe3, 0x79, 0x1d, 0x0b, 0], first); // vcvtps2ph [rbx], xmm1, 0
        set_mxcsr(&mut c, 0x1f80);
        faults(&mut c, &[0xc4, 0xe3, 0x79, 0x1d, 0x0b, 0], vector::GP);
        assert_eq!(mxcsr(&c) & 1, u32::from(vendor == Vendor::Intel));
    }
}

/// An x87 store of what is invalid, unmasked, does not access memory on Intel's processors.
#[test]
fn x87_stores_that_store_nothing() {
    for (vendor, faulty) in [(Vendor::Intel, false), (Vendor::Amd, true)] {
        let mut c = of(vendor);
        c.regs[3] = 1 << 47;
        c.xsave.0[0] = 0x7e;
        // fistp word [rbx], with nothing on the stack
        assert_eq!(run(&mut c, &[0xdf, 0x1b]).is_err(), faulty);
        assert_eq!(x87::fsw(&c) & 0x81 != 0, !faulty);
        // With something there, it faults, and the stack stays.
        let mut c = of(vendor);
        c.xsave.0[0] = 0x7e;
        run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1
        c.regs[3] = 1 << 47;
        let before = c.xsave.0;
        faults(&mut c, &[0xdf, 0x1b], vector::GP);
        assert_eq!(c.xsave.0, before);
        c.regs[3] = 0x2000;
        run(&mut c, &[0xdf, 0x1b]).unwrap();
        assert_eq!(peek(&c, 0x2000), [1, 0]);
    }
}

/// An MMX store that faults has turned the stack of x87 on Intel's processors.
#[test]
fn mmx_stores_that_fault() {
    for (vendor, top) in [(Vendor::Intel, 0), (Vendor::Amd, 7)] {
        let mut c = of(vendor);
        run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1
        c.regs[3] = 1 << 47;
        faults(&mut c, &[0x0f, 0x7f, 0x03], vector::GP); // movq [rbx], mm0
        assert_eq!((x87::fsw(&c) >> 11 & 7, c.xsave.0[4]), (top, 0x80));
    }
}

/// The masks that a gather leaves when it faults.
#[test]
fn gathers_that_fault() {
    let code = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8b]; // vpgatherdd xmm0, [rbx+xmm1*4], xmm2
    for (vendor, left, upper) in [(Vendor::Intel, u32::MAX, 0), (Vendor::Amd, 0x8000_0001, 5)] {
        let mut c = of(vendor);
        if !c.has(ringer_arch::cpu::Feature::AVX2) {
            return;
        }
        c.regs[3] = 0x7fff_ffff_fff8;
        set_xmm(&mut c, 1, 5 << 32 | 0xffff_fffe);
        set_xmm(&mut c, 2, 0x8000_0001 << 32 | 0x8000_0001);
        for n in [0, 2] {
            set_high(&mut c, n, 5);
        }
        faults(&mut c, &code, vector::GP);
        assert_eq!(xmm(&c, 2), u128::from(left) << 32);
        assert_eq!((high(&c, 0), high(&c, 2)), (upper, upper));
    }
}

/// Repeated instructions with 32-bit addresses in 64-bit code, comparisons that fault, calls to what is no address.
#[test]
fn integer_instructions() {
    let wide = 0x1234_5678_0000_0000;
    for (vendor, upper) in [(Vendor::Intel, 0), (Vendor::Amd, wide)] {
        let mut c = of(vendor);
        (c.regs[1], c.regs[6], c.regs[7]) = (wide, wide, wide);
        integer(&mut c, &[0x67, 0xf3, 0xa6]).unwrap(); // repe cmpsb
        assert_eq!((c.regs[1], c.regs[6], c.regs[7]), (upper, wide, wide));
        c.regs[1] = wide;
        integer(&mut c, &[0x67, 0xf3, 0xaa]).unwrap(); // rep stosb
        assert_eq!((c.regs[1], c.regs[6], c.regs[7]), (upper, wide, upper));
        (c.regs[1], c.regs[7]) = (wide, wide);
        integer(&mut c, &[0x67, 0xf3, 0xa4]).unwrap(); // rep movsb
        assert_eq!((c.regs[1], c.regs[6], c.regs[7]), (upper, upper, upper));

        // repne scasb: one element, then a fault.
        (c.regs[0], c.regs[1], c.regs[7]) = (1, 2, 0x7fff_ffff_ffff);
        c.set_rflags(2 | rflags::ZF);
        c.leave = false;
        assert!(integer(&mut c, &[0xf2, 0xae]).is_err());
        assert_eq!((c.regs[1], c.rflags() & rflags::ZF != 0), (1, vendor == Vendor::Intel));

        c.regs[4] = 0x3000;
        c.regs[0] = 1 << 63;
        poke(&c, 0x2ff8, &[7; 8]);
        assert!(integer(&mut c, &[0xff, 0xd0]).is_err()); // call rax
        let stored = if vendor == Vendor::Intel { CODE + 2 } else { 0x0707_0707_0707_0707 };
        assert_eq!((c.regs[4], u64::from_le_bytes(peek(&c, 0x2ff8))), (0x3000, stored));
    }
}

/// In 32-bit code PUSH writes a selector's two bytes, or four.
#[test]
fn selectors_on_the_stack() {
    for (vendor, stored) in [(Vendor::Intel, [16, 0, 7, 7]), (Vendor::Amd, [16, 0, 0, 0])] {
        let mut c = of(vendor);
        protected32(&mut c);
        c.regs[4] = 0x3000;
        poke(&c, 0x2ffc, &[7; 4]);
        integer(&mut c, &[0x1e]).unwrap(); // push ds
        assert_eq!((c.regs[4], peek(&c, 0x2ffc)), (0x2ffc, stored));
    }
}

/// WRFSBASE takes addresses of the width in use, or of the widest.
#[test]
fn bases_of_57_bits() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut c = of(vendor);
        c.cr4 |= cr4::FSGSBASE;
        c.regs[3] = 1 << 50;
        let wide = c.model.max_linear_bits() == 57;
        let done = integer(&mut c, &[0xf3, 0x48, 0x0f, 0xae, 0xd3]).is_ok();
        assert_eq!(done, wide && vendor == Vendor::Amd);
    }
}
