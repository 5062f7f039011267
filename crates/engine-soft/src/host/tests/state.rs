//! x87, MMX and the instructions that save and restore state.

use super::*;
use ringer_arch::cpu::Feature;
use ringer_arch::exception::vector;

fn word(c: &Cpu, gpa: u64) -> u16 {
    u16::from_le_bytes(peek(c, gpa))
}

fn dword(c: &Cpu, gpa: u64) -> u32 {
    u32::from_le_bytes(peek(c, gpa))
}

fn qword(c: &Cpu, gpa: u64) -> u64 {
    u64::from_le_bytes(peek(c, gpa))
}

#[test]
fn x87_computes() {
    let mut c = cpu();
    c.regs[3] = 0x2000;
    poke(&c, 0x2000, &1.5f64.to_le_bytes());
    run(&mut c, &[0xdd, 0x03]).unwrap(); // fld qword [rbx]
    run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1
    run(&mut c, &[0xde, 0xc1]).unwrap(); // faddp
    run(&mut c, &[0xdd, 0x5b, 0x08]).unwrap(); // fstp qword [rbx+8]
    assert_eq!(qword(&c, 0x2008), 2.5f64.to_bits());
    run(&mut c, &[0xd9, 0x7b, 0x10]).unwrap(); // fnstcw [rbx+16]
    assert_eq!(word(&c, 0x2010), 0x37f);
    run(&mut c, &[0xdf, 0xe0]).unwrap(); // fnstsw ax
    assert_eq!(c.regs[0], 0);
    host_is_clean();
}

#[test]
fn pointers_are_the_guests() {
    let mut c = cpu();
    c.regs[3] = 0x2000;
    run(&mut c, &[0xdd, 0x43, 0x20]).unwrap(); // fld qword [rbx+32]
    run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1
    run(&mut c, &[0xd9, 0x73, 0x40]).unwrap(); // fnstenv [rbx+64]
    assert_eq!(dword(&c, 0x2040), 0xffff_037f);
    assert_eq!(dword(&c, 0x2048), 0xffff_4fff);
    assert_eq!(dword(&c, 0x204c), CODE as u32);
    // Some processors note the operand of what raised an exception alone.
    let operand = if c.has(Feature::FDP_EXCPTN_ONLY) { 0 } else { 0x2020 };
    assert_eq!(dword(&c, 0x2054), operand);
    run(&mut c, &[0xdb, 0xe3]).unwrap(); // fninit
    run(&mut c, &[0xd9, 0x63, 0x40]).unwrap(); // fldenv [rbx+64]
    assert_eq!((x87::fip(&c), x87::fdp(&c), x87::fsw(&c)), (CODE, u64::from(operand), 0x3000));
    assert_eq!(c.xsave.0[4], 0xc0);
    // The physical registers have stayed: 1.0 is on top again.
    run(&mut c, &[0xdd, 0x5b, 0x08]).unwrap();
    assert_eq!(qword(&c, 0x2008), 1f64.to_bits());
}

#[test]
fn pending_exceptions() {
    let mut c = cpu();
    c.regs[3] = 0x2000;
    poke(&c, 0x2000, &0x340u16.to_le_bytes());
    run(&mut c, &[0xd9, 0x2b]).unwrap(); // fldcw [rbx]
    run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1
    run(&mut c, &[0xd8, 0x73, 0x10]).unwrap(); // fdiv dword [rbx+16], which is 0
    assert_eq!(x87::fsw(&c) & 0x80ff, 0x8084);
    assert_eq!(x87::fop(&c), 0x073);
    let before = c.xsave.clone();
    faults(&mut c, &[0xd9, 0xe8], vector::MF);
    faults(&mut c, &[0x9b], vector::MF);
    faults(&mut c, &[0x0f, 0xfc, 0xc1], vector::MF); // paddb mm0, mm1
    assert_eq!(c.xsave.0, before.0);
    run(&mut c, &[0xd9, 0x7b, 0x20]).unwrap(); // fnstcw
    run(&mut c, &[0xdb, 0xe2]).unwrap(); // fnclex
    run(&mut c, &[0x9b]).unwrap();
    host_is_clean();
    // A store that raises an unmasked exception stores nothing, whether or not it crosses pages.
    for at in [0x2f00u64, 0x2ffe] {
        run(&mut c, &[0xdb, 0xe3]).unwrap(); // fninit: the stack is empty
        run(&mut c, &[0xd9, 0x2b]).unwrap(); // fldcw
        poke(&c, at, &[0xaa; 4]);
        c.regs[1] = at;
        run(&mut c, &[0xd9, 0x19]).unwrap(); // fstp dword [rcx]
        assert_eq!(dword(&c, at), 0xaaaa_aaaa);
        assert_eq!(x87::fsw(&c) & 0x80ff, 0x80c1);
    }
}

#[test]
fn mmx_shares_the_x87_registers() {
    let mut c = cpu();
    c.regs[0] = 0x0102_0304_0506_0708;
    run(&mut c, &[0xd9, 0xe8]).unwrap(); // fld1: physical register 7
    run(&mut c, &[0x48, 0x0f, 0x6e, 0xc8]).unwrap(); // movq mm1, rax
    assert_eq!((c.xsave.0[4], x87::fsw(&c)), (0xff, 0));
    run(&mut c, &[0x0f, 0xfc, 0xc9]).unwrap(); // paddb mm1, mm1
    run(&mut c, &[0x48, 0x0f, 0x7e, 0xcb]).unwrap(); // movq rbx, mm1
    assert_eq!(c.regs[3], 0x0204_0608_0a0c_0e10);
    run(&mut c, &[0x48, 0x0f, 0x7e, 0xfb]).unwrap(); // movq rbx, mm7: the mantissa of 1.0
    assert_eq!(c.regs[3], 1 << 63);
    c.regs[7] = 0x3000;
    run(&mut c, &[0x0f, 0xf7, 0xcf]).unwrap(); // maskmovq mm1, mm7
    assert_eq!(qword(&c, 0x3000), 0x02 << 56);
    run(&mut c, &[0x0f, 0x77]).unwrap(); // emms
    assert_eq!(c.xsave.0[4], 0);
    host_is_clean();
}

#[test]
fn fxsave_and_fxrstor() {
    let mut c = cpu();
    c.regs[3] = 0x2000;
    poke(&c, 0x2000, &[0xcc; 512]);
    run(&mut c, &[0xd9, 0xe8]).unwrap();
    set_xmm(&mut c, 15, 15);
    run(&mut c, &[0x48, 0x0f, 0xae, 0x03]).unwrap(); // fxsave64 [rbx]
    assert_eq!((word(&c, 0x2000), word(&c, 0x2002), word(&c, 0x2004)), (0x37f, 0x3800, 0x80));
    assert_eq!(qword(&c, 0x2020), 1 << 63);
    assert_eq!((qword(&c, 0x2000 + 400), qword(&c, 0x2000 + 416)), (15, 0xcccc_cccc_cccc_cccc));
    let before = c.xsave.clone();
    run(&mut c, &[0xdb, 0xe3]).unwrap();
    c.xsave.0[160..416].fill(9);
    run(&mut c, &[0x48, 0x0f, 0xae, 0x0b]).unwrap(); // fxrstor64 [rbx]
    assert_eq!((&c.xsave.0[..6], &c.xsave.0[24..416]), (&before.0[..6], &before.0[24..416]));
    poke(&c, 0x2018, &0xffff_ffffu32.to_le_bytes());
    faults(&mut c, &[0x48, 0x0f, 0xae, 0x0b], vector::GP);
    c.regs[3] = 0x2008;
    faults(&mut c, &[0x48, 0x0f, 0xae, 0x03], vector::GP);
    // 32-bit code has eight registers.
    protected32(&mut c);
    c.regs[3] = 0x4000;
    run(&mut c, &[0x0f, 0xae, 0x03]).unwrap();
    assert_eq!(qword(&c, 0x4000 + 400), 0);
}

#[test]
fn xsave_family() {
    let mut c = cpu();
    c.regs[3] = 0x2000;
    (c.regs[0], c.regs[2]) = (u64::MAX, u64::MAX);
    set_high(&mut c, 2, 5);
    poke(&c, 0x2000, &[0xcc; 832]);
    poke(&c, 0x2200, &[0; 64]);
    poke(&c, 0x2200, &[0xf8]);
    run(&mut c, &[0x48, 0x0f, 0xae, 0x23]).unwrap(); // xsave64 [rbx]
    assert_eq!((qword(&c, 0x2200), word(&c, 0x2000)), (0xfc, 0x37f));
    assert_eq!(qword(&c, 0x2000 + 576 + 32), 5);
    set_high(&mut c, 2, 0);
    faults(&mut c, &[0x48, 0x0f, 0xae, 0x2b], vector::GP); // xrstor64: bits that XCR0 has not
    poke(&c, 0x2200, &[4]);
    set_xmm(&mut c, 3, 3);
    run(&mut c, &[0x48, 0x0f, 0xae, 0x2b]).unwrap();
    assert_eq!((high(&c, 2), xmm(&c, 3)), (5, 0));
    poke(&c, 0x2000, &[0xcc; 512]);
    run(&mut c, &[0x48, 0x0f, 0xae, 0x33]).unwrap(); // xsaveopt64 [rbx]
    assert_eq!((qword(&c, 0x2200), word(&c, 0x2000), dword(&c, 0x2018)), (4, 0xcccc, 0x1f80));
    run(&mut c, &[0x48, 0x0f, 0xc7, 0x23]).unwrap(); // xsavec64 [rbx]
    assert_eq!((qword(&c, 0x2200), qword(&c, 0x2208)), (4, 1 << 63 | 7));
    c.xsave.0[576..].fill(0);
    run(&mut c, &[0x48, 0x0f, 0xae, 0x2b]).unwrap();
    assert_eq!(high(&c, 2), 5);
    poke(&c, 0x2220, &[1]);
    faults(&mut c, &[0x48, 0x0f, 0xae, 0x2b], vector::GP);
    c.cr4 &= !cr4::OSXSAVE;
    faults(&mut c, &[0x48, 0x0f, 0xae, 0x23], vector::UD);
}

#[test]
fn real_mode_environment() {
    let mut c = cpu();
    c.efer = 0;
    c.cr0 = 0;
    for (n, s) in c.seg.iter_mut().enumerate() {
        *s = Segment::real(0x100 * n as u16);
    }
    c.update_mode();
    c.regs[3] = 0x40;
    run(&mut c, &[0xdd, 0x07]).unwrap(); // fld qword [bx]
    run(&mut c, &[0xdd, 0x37]).unwrap(); // fnsave [bx]
    let at = 0x3040;
    assert_eq!((word(&c, at), word(&c, at + 2), word(&c, at + 4)), (0x37f, 0x3800, 0x7fff));
    // CS = 0x100, IP = CODE; DS = 0x300, offset 0x40. Some processors note no selectors, some no operands.
    let selectors = !c.has(Feature::ZERO_FCS_FDS);
    let ip = CODE as u16 + if selectors { 0x1000 } else { 0 };
    let operand = match (c.has(Feature::FDP_EXCPTN_ONLY), selectors) {
        (true, _) => 0,
        (false, true) => 0x3040,
        (false, false) => 0x40,
    };
    assert_eq!((word(&c, at + 6), word(&c, at + 10)), (ip, operand));
    assert_eq!(word(&c, at + 12), 0);
    assert_eq!(x87::fsw(&c), 0);
    run(&mut c, &[0xdd, 0x27]).unwrap(); // frstor [bx]
    assert_eq!(x87::fsw(&c), 0x3800);
}

#[test]
fn mxcsr_moves() {
    let mut c = cpu();
    c.regs[3] = 0x2000;
    poke(&c, 0x2000, &0x9fc0u32.to_le_bytes());
    run(&mut c, &[0x0f, 0xae, 0x13]).unwrap(); // ldmxcsr [rbx]
    run(&mut c, &[0x0f, 0xae, 0x5b, 0x04]).unwrap(); // stmxcsr [rbx+4]
    assert_eq!(dword(&c, 0x2004), 0x9fc0);
    poke(&c, 0x2000, &0x8001_9fc0u32.to_le_bytes());
    faults(&mut c, &[0x0f, 0xae, 0x13], vector::GP);
    run(&mut c, &[0x0f, 0xc7, 0xf0]).unwrap(); // rdrand eax
    host_is_clean();
}
