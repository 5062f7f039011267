//! SSE, AVX and general-register instructions.

use super::*;
use crate::hostops::fl;
use ringer_arch::exception::vector;
use ringer_arch::regs::xcr0;

#[test]
fn sse_keeps_and_avx_clears_the_upper_half() {
    let mut c = cpu();
    set_xmm(&mut c, 3, 0x0102_0304);
    set_xmm(&mut c, 12, 0x1010_1010);
    set_high(&mut c, 3, 77);
    run(&mut c, &[0x66, 0x41, 0x0f, 0xfe, 0xdc]).unwrap(); // paddd xmm3, xmm12
    assert_eq!((xmm(&c, 3), high(&c, 3)), (0x1112_1314, 77));
    run(&mut c, &[0xc5, 0x99, 0xfe, 0xdb]).unwrap(); // vpaddd xmm3, xmm12, xmm3
    assert_eq!((xmm(&c, 3), high(&c, 3)), (0x2122_2324, 0));
    set_high(&mut c, 3, 5);
    set_high(&mut c, 12, 6);
    run(&mut c, &[0xc5, 0x9d, 0xfe, 0xdb]).unwrap(); // vpaddd ymm3, ymm12, ymm3
    assert_eq!((xmm(&c, 3), high(&c, 3)), (0x3132_3334, 11));
    host_is_clean();
}

#[test]
fn general_registers() {
    let mut c = cpu();
    c.regs[4] = 0xffff_0000_0000_00f0;
    c.regs[5] = u64::MAX;
    run(&mut c, &[0xf3, 0x0f, 0xb8, 0xec]).unwrap(); // popcnt ebp, esp
    assert_eq!(c.regs[5], 4);
    assert_eq!(c.regs[4], 0xffff_0000_0000_00f0);
    c.regs[0] = 0x1234;
    run(&mut c, &[0xf2, 0x0f, 0x38, 0xf0, 0xdc]).unwrap(); // crc32 ebx, ah
    c.regs[3] = 0;
    run(&mut c, &[0xf2, 0x0f, 0x38, 0xf0, 0xdc]).unwrap();
    let with_ah = c.regs[3];
    c.regs[0] = 0x12;
    c.regs[3] = 0;
    run(&mut c, &[0xf2, 0x0f, 0x38, 0xf0, 0xd8]).unwrap(); // crc32 ebx, al
    assert_eq!((c.regs[3], c.regs[3] != 0), (with_ah, true));
    c.regs[2] = 1 << 63;
    c.regs[9] = 6;
    run(&mut c, &[0xc4, 0xc2, 0xeb, 0xf6, 0xc1]).unwrap(); // mulx rax, rdx, r9
    assert_eq!((c.regs[0], c.regs[2]), (3, 0));
    c.fl = fl::CF | 0x200;
    c.regs[1] = 5;
    c.regs[6] = u64::MAX - 5;
    run(&mut c, &[0x66, 0x48, 0x0f, 0x38, 0xf6, 0xf1]).unwrap(); // adcx rsi, rcx
    assert_eq!((c.regs[6], c.fl & fl::ALL), (0, fl::CF));
}

#[test]
fn flags_and_string_compare() {
    let mut c = cpu();
    set_xmm(&mut c, 1, u128::from_le_bytes(*b"hello world\0\0\0\0\0"));
    set_xmm(&mut c, 2, u128::from_le_bytes(*b"w\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    run(&mut c, &[0x66, 0x0f, 0x3a, 0x63, 0xd1, 0x0c]).unwrap(); // pcmpistri xmm2, xmm1, 12
    assert_eq!((c.regs[1], c.fl & fl::CF), (6, fl::CF));
    (c.regs[0], c.regs[2]) = (1, 11);
    run(&mut c, &[0x66, 0x0f, 0x3a, 0x61, 0xd1, 0x0c]).unwrap(); // pcmpestri xmm2, xmm1, 12
    assert_eq!(c.regs[1], 6);
    run(&mut c, &[0x66, 0x0f, 0x38, 0x17, 0xd2]).unwrap(); // ptest xmm2, xmm2
    assert_eq!(c.fl & fl::ALL, fl::CF);
}

#[test]
fn memory_operands_in_ram_across_pages_and_in_mmio() {
    let mut c = cpu();
    poke(&c, 0x2ff8, &[1; 16]);
    c.regs[3] = 0x2ff8;
    run(&mut c, &[0xf3, 0x0f, 0x6f, 0x03]).unwrap(); // movdqu xmm0, [rbx]
    assert_eq!(xmm(&c, 0), u128::from_le_bytes([1; 16]));
    run(&mut c, &[0xc5, 0xf9, 0xfc, 0x0b]).unwrap(); // vpaddb xmm1, xmm0, [rbx]
    assert_eq!(xmm(&c, 1), u128::from_le_bytes([2; 16]));
    run(&mut c, &[0xf3, 0x0f, 0x7f, 0x0b]).unwrap(); // movdqu [rbx], xmm1
    assert_eq!(peek::<16>(&c, 0x2ff8), [2; 16]);
    run(&mut c, &[0x66, 0x0f, 0x3a, 0x16, 0x03, 0x01]).unwrap(); // pextrd [rbx], xmm0, 1
    assert_eq!(peek::<5>(&c, 0x2ff8), [1, 1, 1, 1, 2]);
    c.regs[3] = RAM;
    run(&mut c, &[0x66, 0x0f, 0xef, 0x03]).unwrap(); // pxor xmm0, [rbx]
    assert_eq!(xmm(&c, 0), u128::from_le_bytes([0xfe; 16]));
    run(&mut c, &[0x66, 0x0f, 0x7f, 0x03]).unwrap(); // movdqa [rbx], xmm0
}

#[test]
fn alignment() {
    let mut c = cpu();
    c.regs[3] = 0x2008;
    for code in [
        &[0x66, 0x0f, 0x6f, 0x03][..],
        &[0x66, 0x0f, 0xef, 0x03],
        &[0x0f, 0x2b, 0x03],
        &[0xc5, 0xf8, 0x28, 0x03],
    ] {
        faults(&mut c, code, vector::GP);
    }
    run(&mut c, &[0xc5, 0xf9, 0xef, 0x03]).unwrap(); // vpxor xmm0, xmm0, [rbx]
    run(&mut c, &[0x66, 0x0f, 0x3a, 0x63, 0x13, 0x0c]).unwrap(); // pcmpistri xmm2, [rbx], 12
    if c.has(ringer_arch::cpu::Feature::MISALIGNSSE) {
        set_mxcsr(&mut c, 0x2_1f80);
        run(&mut c, &[0x66, 0x0f, 0xef, 0x03]).unwrap();
        faults(&mut c, &[0x66, 0x0f, 0x6f, 0x03], vector::GP);
    }
}

#[test]
fn gates() {
    let sse = &[0x0f, 0x58, 0xc1][..]; // addps xmm0, xmm1
    let avx = &[0xc5, 0xf0, 0x58, 0xc1][..];
    let mut c = cpu();
    c.cr0 |= cr0::TS;
    faults(&mut c, sse, vector::NM);
    faults(&mut c, avx, vector::NM);
    faults(&mut c, &[0xd9, 0xe8], vector::NM);
    run(&mut c, &[0x9b]).unwrap();
    run(&mut c, &[0xf3, 0x0f, 0xb8, 0xec]).unwrap();
    c.cr0 |= cr0::MP;
    faults(&mut c, &[0x9b], vector::NM);
    c.cr4 &= !cr4::OSFXSR;
    faults(&mut c, sse, vector::UD);
    faults(&mut c, &[0x0f, 0xfc, 0xc1], vector::NM); // paddb mm0, mm1
    c.cr0 = cr0::PE | cr0::EM;
    c.cr4 |= cr4::OSFXSR;
    faults(&mut c, sse, vector::UD);
    faults(&mut c, &[0x0f, 0xfc, 0xc1], vector::UD);
    faults(&mut c, &[0xd9, 0xe8], vector::NM);
    run(&mut c, avx).unwrap();
    c.cr0 = cr0::PE;
    c.xcr0 = xcr0::X87 | xcr0::SSE;
    faults(&mut c, avx, vector::UD);
    c.xcr0 |= xcr0::AVX;
    c.cr4 &= !cr4::OSXSAVE;
    faults(&mut c, avx, vector::UD);
    run(&mut c, &[0xc4, 0xc2, 0xeb, 0xf6, 0xc1]).unwrap(); // mulx
    c.cr0 = 0;
    c.efer = 0;
    c.update_mode();
    faults(&mut c, &[0xc4, 0xe2, 0x6b, 0xf6, 0xc1], vector::UD);
    // 512-bit forms and 3DNow! are no model's.
    let mut c = cpu();
    faults(&mut c, &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc1], vector::UD);
    faults(&mut c, &[0x0f, 0x0f, 0xc1, 0x9e], vector::UD);
}

#[test]
fn simd_exceptions() {
    let mut c = cpu();
    set_xmm(&mut c, 0, u128::from(1f32.to_bits()));
    set_xmm(&mut c, 1, 0);
    set_mxcsr(&mut c, 0x1f80 & !0x200);
    let before = c.xsave.clone();
    faults(&mut c, &[0xf3, 0x0f, 0x5e, 0xc1], vector::XM); // divss xmm0, xmm1
    assert_eq!(mxcsr(&c), 0x1d84);
    assert_eq!((xmm(&c, 0), high(&c, 0)), (u128::from(1f32.to_bits()), 0));
    assert_eq!(c.xsave.0[32..], before.0[32..]);
    host_is_clean();
    c.cr4 &= !cr4::OSXMMEXCPT;
    faults(&mut c, &[0xf3, 0x0f, 0x5e, 0xc1], vector::UD);
    set_mxcsr(&mut c, 0x1f80);
    run(&mut c, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap();
    assert_eq!((xmm(&c, 0) as u32, mxcsr(&c)), (f32::INFINITY.to_bits(), 0x1f84));
    // Rounding up is the guest's choice alone.
    set_mxcsr(&mut c, 0x5f80);
    set_xmm(&mut c, 0, u128::from(1f64.to_bits()));
    set_xmm(&mut c, 1, u128::from(3f64.to_bits()));
    run(&mut c, &[0xf2, 0x0f, 0x5e, 0xc1]).unwrap(); // divsd
    assert_eq!(xmm(&c, 0) as u64, (1f64 / 3.0).to_bits() + 1);
    assert_eq!(mxcsr(&c), 0x5fa0);
    host_is_clean();
    c.cr4 |= cr4::OSXMMEXCPT;
    set_mxcsr(&mut c, 0x1f80 & !0x80);
    c.xsave.0[2] = 0;
    set_xmm(&mut c, 1, u128::from(f32::NAN.to_bits() & !0x40_0000 | 1));
    faults(&mut c, &[0x0f, 0x2d, 0xc9], vector::XM); // cvtps2pi mm1, xmm1
    host_is_clean();
}

#[test]
fn masked_stores_touch_only_their_elements() {
    let mut c = cpu();
    set_xmm(&mut c, 1, 1 << 31 | 1 << 127);
    set_xmm(&mut c, 2, 0x4444_4444_3333_3333_2222_2222_1111_1111);
    // The second element would be outside the canonical addresses.
    c.regs[3] = 0x7fff_ffff_fffc;
    set_xmm(&mut c, 1, 1 << 31);
    run(&mut c, &[0xc4, 0xe2, 0x71, 0x2e, 0x13]).unwrap(); // vmaskmovps [rbx], xmm1, xmm2
    set_xmm(&mut c, 1, 1 << 31 | 1 << 63);
    faults(&mut c, &[0xc4, 0xe2, 0x71, 0x2e, 0x13], vector::GP);
    c.regs[3] = 0x2000;
    set_xmm(&mut c, 1, 1 << 31 | 1 << 127);
    run(&mut c, &[0xc4, 0xe2, 0x71, 0x2e, 0x13]).unwrap();
    assert_eq!(u128::from_le_bytes(peek(&c, 0x2000)), 0x4444_4444_0000_0000_0000_0000_1111_1111);
    set_high(&mut c, 5, 9);
    run(&mut c, &[0xc4, 0xe2, 0x71, 0x2c, 0x2b]).unwrap(); // vmaskmovps xmm5, xmm1, [rbx]
    assert_eq!((xmm(&c, 5), high(&c, 5)), (0x4444_4444_0000_0000_0000_0000_1111_1111, 0));
    c.regs[7] = 0x3000;
    set_xmm(&mut c, 1, 0x80_0000_0080);
    run(&mut c, &[0x66, 0x0f, 0xf7, 0xd1]).unwrap(); // maskmovdqu xmm2, xmm1
    assert_eq!(u128::from_le_bytes(peek(&c, 0x3000)), 0x22_0000_0011);
}

#[test]
fn gathers() {
    let mut c = cpu();
    for n in 0..16u32 {
        poke(&c, 0x2000 + 4 * u64::from(n), &(100 + n).to_le_bytes());
    }
    c.regs[3] = 0x2010;
    // Indexes 1, -1, 3, 0 by 4.
    set_xmm(&mut c, 1, 3 << 64 | 0xffff_ffff << 32 | 1);
    set_xmm(&mut c, 2, !0 ^ 0x8000_0000 << 96);
    set_xmm(&mut c, 0, 7 << 96);
    set_high(&mut c, 0, 1);
    set_high(&mut c, 2, 1);
    let code = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0x8b]; // vpgatherdd xmm0, [rbx+xmm1*4], xmm2
    run(&mut c, &code).unwrap();
    assert_eq!(xmm(&c, 0), 7 << 96 | 107 << 64 | 103 << 32 | 105);
    assert_eq!((xmm(&c, 2), high(&c, 0), high(&c, 2)), (0, 0, 0));
    // The third one faults: the first two are there, their masks gone.
    set_xmm(&mut c, 2, !0);
    set_xmm(&mut c, 0, 9 << 64);
    c.regs[3] = 0x7fff_ffff_fff8;
    set_xmm(&mut c, 1, 5 << 64 | 0xffff_fffe << 32);
    faults(&mut c, &code, vector::GP);
    assert_eq!(xmm(&c, 0), 9 << 64 | u128::from(u64::MAX));
    assert_eq!(xmm(&c, 2), !0 << 64);
}

#[test]
fn moves_without_stubs() {
    let mut c = cpu();
    set_xmm(&mut c, 9, 0x1111_2222_3333_4444_5555_6666_7777_8888);
    set_high(&mut c, 9, 3);
    c.regs[3] = 0x2000;
    run(&mut c, &[0xc5, 0x7e, 0x7f, 0x0b]).unwrap(); // vmovdqu [rbx], ymm9
    run(&mut c, &[0xc5, 0xfe, 0x6f, 0x23]).unwrap(); // vmovdqu ymm4, [rbx]
    assert_eq!((xmm(&c, 4), high(&c, 4)), (xmm(&c, 9), 3));
    run(&mut c, &[0xf3, 0x0f, 0x7e, 0x2b]).unwrap(); // movq xmm5, [rbx]
    assert_eq!(xmm(&c, 5), 0x5555_6666_7777_8888);
    run(&mut c, &[0x0f, 0x16, 0x2b]).unwrap(); // movhps xmm5, [rbx]
    assert_eq!(xmm(&c, 5), 0x5555_6666_7777_8888_5555_6666_7777_8888);
    run(&mut c, &[0x66, 0x49, 0x0f, 0x7e, 0xe8]).unwrap(); // movq r8, xmm5
    assert_eq!(c.regs[8], 0x5555_6666_7777_8888);
    run(&mut c, &[0xc5, 0xf9, 0x6e, 0xd3]).unwrap(); // vmovd xmm2, ebx
    assert_eq!(xmm(&c, 2), 0x2000);
    run(&mut c, &[0xc5, 0xd9, 0xef, 0xe4]).unwrap(); // vpxor xmm4, xmm4, xmm4
    assert_eq!((xmm(&c, 4), high(&c, 4)), (0, 0));
    set_high(&mut c, 5, 8);
    run(&mut c, &[0x66, 0x0f, 0xef, 0xed]).unwrap(); // pxor xmm5, xmm5
    assert_eq!((xmm(&c, 5), high(&c, 5)), (0, 8));
    run(&mut c, &[0xc5, 0xf8, 0x77]).unwrap(); // vzeroupper
    assert_eq!((xmm(&c, 9) != 0, high(&c, 9)), (true, 0));
}

#[test]
fn bit_scans_of_old_processors() {
    let mut c = cpu();
    c.regs[1] = 8;
    run(&mut c, &[0xf3, 0x0f, 0xbd, 0xc1]).unwrap(); // lzcnt eax, ecx
    assert_eq!(c.regs[0], 28);
    let mut c = cpu();
    c.model = Arc::new(
        ringer_arch::cpu::CpuModel::named("x86-64-v2", &super::super::cpuid, &crate::offered()).unwrap(),
    );
    c.regs[1] = 8;
    // Also before the guest has switched SSE on.
    c.cr4 &= !cr4::OSFXSR;
    run(&mut c, &[0xf3, 0x0f, 0xbd, 0xc1]).unwrap();
    assert_eq!(c.regs[0], 3);
    run(&mut c, &[0xf3, 0x48, 0x0f, 0xbc, 0xd1]).unwrap(); // tzcnt rdx, rcx
    assert_eq!(c.regs[2], 3);
    c.cr4 |= cr4::OSFXSR;
    faults(&mut c, &[0xc5, 0xf0, 0x58, 0xc1], vector::UD);
}

#[test]
fn dropping_all_stubs_is_invisible() {
    let mut c = cpu();
    let i = decode(&c, &[0x66, 0x0f, 0xfe, 0xd9]); // paddd xmm3, xmm1
    let op = super::super::prepare(&i).unwrap();
    set_xmm(&mut c, 1, 1);
    for _ in 0..3 {
        super::super::run(&mut c, &op, &i).unwrap();
        c.host.clear();
    }
    // Far more different instructions than an area holds.
    for a in 0..=255u8 {
        for b in 0..=255 {
            c.next_rip = 0;
            let i = decode(&c, &[0x66, 0x0f, 0x70, 0xc0 | a & 63, b]); // pshufd
            super::super::execute(&mut c, &i).unwrap().unwrap();
        }
        set_xmm(&mut c, 1, 1);
        set_xmm(&mut c, 3, u128::from(a));
        super::super::run(&mut c, &op, &i).unwrap();
        assert_eq!(xmm(&c, 3), u128::from(a) + 1);
    }
}

#[test]
fn smaller_modes() {
    let mut c = cpu();
    protected32(&mut c);
    c.regs[3] = 0x2000;
    c.regs[0] = 0xffff_ffff_0000_0000 | 0x55;
    poke(&c, 0x2000, &[1; 32]);
    run(&mut c, &[0xc5, 0xf5, 0xfc, 0x0b]).unwrap(); // vpaddb ymm1, ymm1, [ebx]
    assert_eq!((xmm(&c, 1), high(&c, 1)), (u128::from_le_bytes([1; 16]), u128::from_le_bytes([1; 16])));
    run(&mut c, &[0x66, 0x0f, 0x6e, 0xd0]).unwrap(); // movd xmm2, eax
    assert_eq!(xmm(&c, 2), 0x55);
    run(&mut c, &[0x66, 0x0f, 0x74, 0x0b]).unwrap(); // pcmpeqb xmm1, [ebx]
    run(&mut c, &[0x66, 0x0f, 0xd7, 0xc9]).unwrap(); // pmovmskb ecx, xmm1
    assert_eq!(c.regs[1], 0xffff);
    c.seg[sreg::DS].limit = 0x200e;
    faults(&mut c, &[0x66, 0x0f, 0x74, 0x0b], vector::GP);
    let mut c = cpu();
    c.efer = 0;
    c.cr0 = 0;
    for s in &mut c.seg {
        *s = Segment::real(0);
    }
    c.update_mode();
    (c.regs[3], c.regs[6]) = (0x1ff0, 0x10);
    poke(&c, 0x2000, &[7; 16]);
    run(&mut c, &[0x66, 0x0f, 0xfc, 0x08]).unwrap(); // paddb xmm1, [bx+si]
    assert_eq!(xmm(&c, 1), u128::from_le_bytes([7; 16]));
    run(&mut c, &[0xf3, 0x0f, 0xb8, 0x08]).unwrap(); // popcnt cx, [bx+si]
    assert_eq!(c.regs[1], 6);
    faults(&mut c, &[0xc5, 0xf9, 0xfc, 0xc1], vector::UD);
}
