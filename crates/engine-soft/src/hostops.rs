//! Arithmetic on the host's own ALU, with its flags: an unsafe room (inline assembly without memory).
//!
//! Guest arithmetic flags are kept as the value that `lahf; seto al` leaves in AX: SF ZF 0 AF 0 PF 1 CF in bits 15..8
//! and OF in bit 0. Running the very instruction on the host makes results and flags (the architecturally
//! undefined ones too) equal to the host's by construction.

use ringer_arch::regs::rflags;
use std::sync::LazyLock;

/// Bits of the flag image.
#[allow(missing_docs)]
pub mod fl {
    pub const OF: u16 = 1;
    pub const CF: u16 = 0x100;
    pub const PF: u16 = 0x400;
    pub const AF: u16 = 0x1000;
    pub const ZF: u16 = 0x4000;
    pub const SF: u16 = 0x8000;
    pub const ALL: u16 = OF | CF | PF | AF | ZF | SF;
}

/// The arithmetic bits of RFLAGS that a flag image stands for.
#[must_use]
#[inline]
pub fn flags_to_rflags(f: u16) -> u64 {
    u64::from(f >> 8 & 0xd5) | u64::from(f & 1) << 11
}

/// The flag image of RFLAGS.
#[must_use]
#[inline]
pub fn flags_from_rflags(r: u64) -> u16 {
    ((r & (rflags::ARITH & 0xff)) << 8) as u16 | (r >> 11 & 1) as u16 | 0x200
}

/// Evaluates condition code `CC` (the low four bits of Jcc's opcode) on a flag image.
#[must_use]
#[inline(always)]
pub fn cond<const CC: u8>(f: u16) -> bool {
    let v = match CC >> 1 {
        0 => f & fl::OF != 0,
        1 => f & fl::CF != 0,
        2 => f & fl::ZF != 0,
        3 => f & (fl::CF | fl::ZF) != 0,
        4 => f & fl::SF != 0,
        5 => f & fl::PF != 0,
        6 => (f >> 15 ^ f) & 1 != 0,
        _ => (f >> 15 ^ f) & 1 != 0 || f & fl::ZF != 0,
    };
    v != (CC & 1 != 0)
}

/// [`cond`] with the condition known at run time only.
#[must_use]
pub fn cond_dyn(cc: u8, f: u16) -> bool {
    match cc & 15 {
        0 => cond::<0>(f),
        1 => cond::<1>(f),
        2 => cond::<2>(f),
        3 => cond::<3>(f),
        4 => cond::<4>(f),
        5 => cond::<5>(f),
        6 => cond::<6>(f),
        7 => cond::<7>(f),
        8 => cond::<8>(f),
        9 => cond::<9>(f),
        10 => cond::<10>(f),
        11 => cond::<11>(f),
        12 => cond::<12>(f),
        13 => cond::<13>(f),
        14 => cond::<14>(f),
        _ => cond::<15>(f),
    }
}

/// The host's ALU for one operand size.
pub trait Alu: ringer_memory::raw::GuestInt + PartialEq {
    /// Bits.
    const BITS: u32 = Self::SIZE as u32 * 8;
    #[allow(missing_docs)]
    fn add(a: Self, b: Self) -> (Self, u16);
    #[allow(missing_docs)]
    fn sub(a: Self, b: Self) -> (Self, u16);
    #[allow(missing_docs)]
    fn and(a: Self, b: Self) -> (Self, u16);
    #[allow(missing_docs)]
    fn or(a: Self, b: Self) -> (Self, u16);
    #[allow(missing_docs)]
    fn xor(a: Self, b: Self) -> (Self, u16);
    /// With CF of the image in.
    fn adc(a: Self, b: Self, f: u16) -> (Self, u16);
    /// With CF of the image in.
    fn sbb(a: Self, b: Self, f: u16) -> (Self, u16);
    /// Keeps CF of the image.
    fn inc(a: Self, f: u16) -> (Self, u16);
    /// Keeps CF of the image.
    fn dec(a: Self, f: u16) -> (Self, u16);
    #[allow(missing_docs)]
    fn neg(a: Self) -> (Self, u16);
    /// Shift or rotate number `OP` (ModRM.reg of the group: ROL ROR RCL RCR SHL SHR SAL SAR) by CL.
    fn shift<const OP: u8>(a: Self, cl: u8, f: u16) -> (Self, u16);
}

macro_rules! bin {
    ($name:ident, $ins:literal, $reg:ident, $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self) -> (Self, u16) {
            let (r, f);
            // SAFETY: register-only arithmetic.
            unsafe {
                core::arch::asm!(concat!($ins, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($reg) a => r, b = in($reg) b, out("ax") f, options(pure, nomem, nostack));
            }
            (r, f)
        }
    };
}
macro_rules! carry {
    ($name:ident, $ins:literal, $reg:ident, $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self, f: u16) -> (Self, u16) {
            let (r, g);
            // SAFETY: register-only arithmetic.
            unsafe {
                core::arch::asm!("bt {f:e}, 8", concat!($ins, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    f = in(reg) u32::from(f), a = inout($reg) a => r, b = in($reg) b, out("ax") g,
                    options(pure, nomem, nostack));
            }
            (r, g)
        }
    };
}
macro_rules! un {
    ($name:ident, $ins:literal, $reg:ident, $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, f: u16) -> (Self, u16) {
            let (r, g);
            // SAFETY: register-only arithmetic.
            unsafe {
                core::arch::asm!("bt {f:e}, 8", concat!($ins, " {a", $m, "}"), "lahf", "seto al",
                    f = in(reg) u32::from(f), a = inout($reg) a => r, out("ax") g, options(pure, nomem, nostack));
            }
            (r, g)
        }
    };
}
macro_rules! shifts {
    ($reg:ident, $m:literal, $($op:literal $ins:literal),*) => {
        #[inline(always)]
        fn shift<const OP: u8>(a: Self, cl: u8, f: u16) -> (Self, u16) {
            let (r, g);
            match OP {
                $($op => {
                    // SAFETY: register-only arithmetic; `add al, 127` and `sahf` put the image's flags in place first, for a
                    // count of zero leaves all of them and rotates leave most.
                    unsafe {
                        core::arch::asm!("add al, 127", "sahf", concat!($ins, " {a", $m, "}, cl"), "lahf", "seto al",
                            a = inout($reg) a => r, in("cl") cl, inout("ax") f => g, options(pure, nomem, nostack));
                    }
                })*
                _ => return (a, f),
            }
            (r, g)
        }
    };
}
macro_rules! alu {
    ($t:ty, $reg:ident, $m:literal) => {
        impl Alu for $t {
            bin!(add, "add", $reg, $m);
            bin!(sub, "sub", $reg, $m);
            bin!(and, "and", $reg, $m);
            bin!(or, "or", $reg, $m);
            bin!(xor, "xor", $reg, $m);
            carry!(adc, "adc", $reg, $m);
            carry!(sbb, "sbb", $reg, $m);
            un!(inc, "inc", $reg, $m);
            un!(dec, "dec", $reg, $m);
            #[inline(always)]
            fn neg(a: Self) -> (Self, u16) {
                let (r, f);
                // SAFETY: register-only arithmetic.
                unsafe {
                    core::arch::asm!(concat!("neg {a", $m, "}"), "lahf", "seto al",
                        a = inout($reg) a => r, out("ax") f, options(pure, nomem, nostack));
                }
                (r, f)
            }
            shifts!($reg, $m, 0 "rol", 1 "ror", 2 "rcl", 3 "rcr", 4 "shl", 5 "shr", 6 "shl", 7 "sar");
        }
    };
}
alu!(u8, reg_byte, "");
alu!(u16, reg, ":x");
alu!(u32, reg, ":e");
alu!(u64, reg, ":r");

/// IMUL of two operands.
pub trait Imul: Alu {
    /// The low half of the product; the flags that IMUL leaves undefined come from `f`, as far as the host keeps them.
    fn imul(a: Self, b: Self, f: u16) -> (Self, u16);
}
macro_rules! imul {
    ($t:ty, $m:literal) => {
        impl Imul for $t {
            #[inline(always)]
            fn imul(a: Self, b: Self, f: u16) -> (Self, u16) {
                let (r, g);
                // SAFETY: register-only arithmetic, flags prepared as in `shift`.
                unsafe {
                    core::arch::asm!("add al, 127", "sahf", concat!("imul {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                        a = inout(reg) a => r, b = in(reg) b, inout("ax") f => g, options(pure, nomem, nostack));
                }
                (r, g)
            }
        }
    };
}
imul!(u16, ":x");
imul!(u32, ":e");
imul!(u64, ":r");

macro_rules! double_shift {
    ($name:ident, $ins:literal) => {
        /// SHLD or SHRD of `a` with bits of `b` by `cl`, for an operand of 2, 4 or 8 bytes (flags of the image in).
        #[must_use]
        pub fn $name(size: u32, a: u64, b: u64, cl: u8, f: u16) -> (u64, u16) {
            let (r, g);
            // SAFETY: register-only arithmetic, flags prepared as in `shift`.
            unsafe {
                match size {
                    2 => core::arch::asm!("add al, 127", "sahf", concat!($ins, " {a:x}, {b:x}, cl"), "lahf", "seto al",
                        a = inout(reg) a => r, b = in(reg) b, in("cl") cl, inout("ax") f => g, options(pure, nomem, nostack)),
                    4 => core::arch::asm!("add al, 127", "sahf", concat!($ins, " {a:e}, {b:e}, cl"), "lahf", "seto al",
                        a = inout(reg) a => r, b = in(reg) b, in("cl") cl, inout("ax") f => g, options(pure, nomem, nostack)),
                    _ => core::arch::asm!("add al, 127", "sahf", concat!($ins, " {a:r}, {b:r}, cl"), "lahf", "seto al",
                        a = inout(reg) a => r, b = in(reg) b, in("cl") cl, inout("ax") f => g, options(pure, nomem, nostack)),
                }
            }
            (r, g)
        }
    };
}
double_shift!(shld, "shld");
double_shift!(shrd, "shrd");

/// Loads `size` (1, 2, 4, 8) bytes.
///
/// # Safety
/// `p..p+size` is mapped.
#[inline]
pub unsafe fn load(p: *const u8, size: u32) -> u64 {
    use ringer_memory::raw::GuestInt;
    // SAFETY: the caller vouches for p.
    unsafe {
        match size {
            1 => u64::from(u8::load(p)),
            2 => u64::from(u16::load(p)),
            4 => u64::from(u32::load(p)),
            _ => u64::load(p),
        }
    }
}

/// Stores the low `size` (1, 2, 4, 8) bytes of `v`.
///
/// # Safety
/// `p..p+size` is mapped.
#[inline]
pub unsafe fn store(p: *mut u8, size: u32, v: u64) {
    use ringer_memory::raw::GuestInt;
    // SAFETY: the caller vouches for p.
    unsafe {
        match size {
            1 => u8::store(p, v as u8),
            2 => u16::store(p, v as u16),
            4 => u32::store(p, v as u32),
            _ => u64::store(p, v),
        }
    }
}

/// LOCK CMPXCHG of `size` (1, 2, 4, 8) bytes, at any alignment; returns what stood there, zero-extended.
///
/// # Safety
/// `p..p+size` is mapped.
pub unsafe fn compare_exchange(p: *mut u8, size: u32, old: u64, new: u64) -> u64 {
    let seen: u64;
    // SAFETY: the caller vouches for p; one locked instruction.
    unsafe {
        match size {
            1 => core::arch::asm!("lock cmpxchg byte ptr [{p}], {n}", "movzx eax, al", p = in(reg) p,
                n = in(reg_byte) new as u8, inout("rax") old => seen, options(nostack)),
            2 => {
                core::arch::asm!("lock cmpxchg word ptr [{p}], {n:x}", "movzx eax, ax", p = in(reg) p, n = in(reg) new,
                inout("rax") old => seen, options(nostack))
            }
            4 => {
                core::arch::asm!("lock cmpxchg dword ptr [{p}], {n:e}", "mov eax, eax", p = in(reg) p, n = in(reg) new,
                inout("rax") old => seen, options(nostack))
            }
            _ => core::arch::asm!("lock cmpxchg qword ptr [{p}], {n}", p = in(reg) p, n = in(reg) new,
                inout("rax") old => seen, options(nostack)),
        }
    }
    seen
}

/// LOCK CMPXCHG16B; returns what stood there.
///
/// # Safety
/// `p..p+16` is mapped and `p` is 16-aligned.
pub unsafe fn compare_exchange_16(p: *mut u8, old: u128, new: u128) -> u128 {
    let (lo, hi): (u64, u64);
    // SAFETY: the caller vouches for p; rbx is saved around the instruction, for the compiler keeps it to itself. It may
    // choose it for an operand of class `reg`, though, so all of them are named.
    unsafe {
        core::arch::asm!("xchg rsi, rbx", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
            inout("rsi") new as u64 => _, in("rdi") p, in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => lo, inout("rdx") (old >> 64) as u64 => hi, options(nostack));
    }
    u128::from(hi) << 64 | u128::from(lo)
}

/// MUL or IMUL (`signed`) of `size` bytes: low half (for bytes: the 16-bit product), high half, flags.
#[must_use]
pub fn multiply(size: u32, signed: bool, a: u64, b: u64, f: u16) -> (u64, u64, u16) {
    macro_rules! mul {
        ($ins:literal, $b:literal) => {{
            let (lo, hi): (u64, u64);
            let g: u64;
            // SAFETY: register-only arithmetic; flags prepared as in `shift` because the undefined ones may be kept.
            unsafe {
                core::arch::asm!("xchg rax, {t}", "add al, 127", "sahf", "mov rax, {t}", concat!($ins, " ", $b),
                    "mov {t}, rax", "lahf", "seto al", "movzx eax, ax", "xchg rax, {t}",
                    t = inout(reg) u64::from(f) => g, b = in(reg) b, inout("rax") a => lo, inout("rdx") 0u64 => hi,
                    options(pure, nomem, nostack));
            }
            (lo, hi, g as u16)
        }};
    }
    match (size, signed) {
        (1, s) => {
            macro_rules! byte {
                ($ins:literal) => {{
                    let (lo, g): (u64, u64);
                    // SAFETY: register-only arithmetic, flags prepared as above.
                    unsafe {
                        core::arch::asm!("xchg rax, {t}", "add al, 127", "sahf", "mov rax, {t}", $ins, "mov {t}, rax",
                            "lahf", "seto al", "movzx eax, ax", "xchg rax, {t}", t = inout(reg) u64::from(f) => g,
                            b = in(reg_byte) b as u8, inout("rax") a & 0xff => lo, options(pure, nomem, nostack));
                    }
                    (lo & 0xffff, 0, g as u16)
                }};
            }
            if s { byte!("imul {b}") } else { byte!("mul {b}") }
        }
        (2, false) => mul!("mul", "{b:x}"),
        (2, true) => mul!("imul", "{b:x}"),
        (4, false) => mul!("mul", "{b:e}"),
        (4, true) => mul!("imul", "{b:e}"),
        (_, false) => mul!("mul", "{b}"),
        (_, true) => mul!("imul", "{b}"),
    }
}

/// BSF or BSR (`reverse`) of `v`, with `old` in the destination: result and flags.
#[must_use]
pub fn bit_scan(size: u32, reverse: bool, v: u64, old: u64, f: u16) -> (u64, u16) {
    macro_rules! scan {
        ($ins:literal) => {{
            let (r, g);
            // SAFETY: register-only arithmetic, flags prepared as in `shift`.
            unsafe {
                core::arch::asm!("add al, 127", "sahf", $ins, "lahf", "seto al", d = inout(reg) old => r, s = in(reg) v,
                    inout("ax") f => g, options(pure, nomem, nostack));
            }
            (r, g)
        }};
    }
    match (size, reverse) {
        (2, false) => scan!("bsf {d:x}, {s:x}"),
        (2, true) => scan!("bsr {d:x}, {s:x}"),
        (4, false) => scan!("bsf {d:e}, {s:e}"),
        (4, true) => scan!("bsr {d:e}, {s:e}"),
        (_, false) => scan!("bsf {d}, {s}"),
        (_, true) => scan!("bsr {d}, {s}"),
    }
}

/// The flags of a rotate of a register, `bits` wide, by the immediate `count`: from those before it and those of the same by CL.
///
/// OF is undefined unless the count is 1 (Intel SDM vol. 2, "RCL/RCR/ROL/ROR"). There are processors that leave it as it was after this
/// form, and not after rotates by CL or of memory.
#[must_use]
pub fn rotated_by_immediate(before: u16, after: u16, count: u8, bits: u32) -> u16 {
    let count = count & if bits == 64 { 63 } else { 31 };
    if count != 1 && *IMMEDIATE_KEEPS_OF { after & !1 | before & 1 } else { after }
}

/// Whether the host leaves OF as it was after rotates of registers by immediates.
static IMMEDIATE_KEEPS_OF: LazyLock<bool> = LazyLock::new(|| {
    (0..16u64).all(|n| {
        let before = n % 2 == 1;
        let after: u8;
        // SAFETY: register-only arithmetic. An addition of 1 to 0x7f sets OF, one to 0 clears it.
        unsafe {
            core::arch::asm!("add {s}, 1", "rol {v}, 3", "rol {v}, 9", "seto {s}",
                s = inout(reg_byte) if before { 0x7fu8 } else { 0 } => after, v = inout(reg) n << 59 => _,
                options(pure, nomem, nostack));
        }
        (after != 0) == before
    })
});

#[cfg(test)]
mod tests {
    #[test]
    fn products() {
        assert_eq!(multiply(8, false, u64::MAX, 2, 0x200).0, u64::MAX - 1);
        assert_eq!(multiply(8, false, u64::MAX, 2, 0x200).1, 1);
        assert_eq!(multiply(4, true, 0xffff_ffff, 5, 0x200).0 as u32, -5i32 as u32);
        assert_eq!(multiply(1, true, 0xff, 5, 0x200).0, 0xfffb);
        assert_eq!(multiply(2, false, 0x1_8000, 2, 0x200).1 & 0xffff, 1);
        assert_eq!(bit_scan(8, true, 0x8000, 7, 0x200).0, 15);
    }
    use super::*;

    #[test]
    fn flag_images_round_trip() {
        for bits in 0..64u64 {
            let r = bits & 1
                | (bits & 2) << 1
                | (bits & 4) << 2
                | (bits & 8) << 3
                | (bits & 16) << 3
                | (bits & 32) << 6;
            assert_eq!(flags_to_rflags(flags_from_rflags(r)), r);
        }
    }

    #[test]
    fn add_sets_flags() {
        let (r, f) = u8::add(0x7f, 1);
        assert_eq!((r, f & fl::ALL), (0x80, fl::OF | fl::SF | fl::AF));
        let (r, f) = u64::add(u64::MAX, 1);
        assert_eq!((r, f & fl::ALL), (0, fl::CF | fl::ZF | fl::AF | fl::PF));
        assert_eq!(u32::adc(1, 1, fl::CF).0, 3);
        assert_eq!(u16::inc(0xffff, fl::CF).1 & fl::CF, fl::CF);
    }

    #[test]
    fn shift_by_zero_keeps_flags() {
        for f in [0x200, fl::ALL | 0x200, fl::OF | 0x200, fl::CF | 0x200] {
            assert_eq!(u32::shift::<4>(5, 0, f), (5, f));
            assert_eq!(u32::shift::<0>(5, 32, f), (5, f));
        }
    }

    #[test]
    fn rotates_by_immediates_are_the_hosts() {
        for f in [0x200, fl::OF | 0x200] {
            for v in [1u32, 0x8000_0001, 0x1234_5678, 0xf000_000f] {
                let (r, by_cl) = u32::shift::<1>(v, 7, f);
                let (same, host): (u32, u8);
                // SAFETY: register-only arithmetic. The ADD sets OF as `f` has it.
                unsafe {
                    core::arch::asm!("add {o}, 1", "ror {v:e}, 7", "seto {o}",
                        o = inout(reg_byte) if f & fl::OF != 0 { 0x7fu8 } else { 0 } => host, v = inout(reg) v => same);
                }
                assert_eq!((r, rotated_by_immediate(f, by_cl, 7, 32) & fl::OF), (same, u16::from(host)));
            }
        }
        assert_eq!(rotated_by_immediate(fl::OF, 0, 0x21, 32), 0);
    }

    #[test]
    fn conditions() {
        assert!(cond::<0xc>(fl::SF) && !cond::<0xc>(fl::SF | fl::OF) && cond::<0xe>(fl::ZF));
        assert!(cond_dyn(0xf, 0) && !cond_dyn(0xf, fl::ZF) && cond_dyn(6, fl::CF));
    }
}
