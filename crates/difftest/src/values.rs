//! Operand values: edges first.

use crate::layout::{CODE, DATA, DATA_LEN};
use crate::record::XSAVE_LEN;
use crate::rng::Rng;

/// An integer of interest in some width.
pub fn int(r: &mut Rng) -> u64 {
    match r.below(12) {
        0 => r.below(4),
        1 => 0u64.wrapping_sub(r.below(4)),
        2 | 3 => {
            let p = 1u64 << r.below(64);
            p.wrapping_add(r.below(3)).wrapping_sub(1)
        }
        4 => r.below(256),
        5 => r.pick(&[
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            i64::MAX as u64,
            1 << 63,
        ]),
        6 => u64::from(r.bits() as u32),
        7 => i64::from(r.bits() as i32) as u64,
        8 => DATA + r.below(DATA_LEN),
        9 => (r.bits() & r.bits()) | r.below(2) << 63,
        _ => r.bits(),
    }
}

/// A pattern of a single-precision number.
pub fn f32_bits(r: &mut Rng) -> u32 {
    let sign = (r.below(2) as u32) << 31;
    sign | match r.below(14) {
        0 => 0,
        1 => 0x7f80_0000,
        2 => 0x7fc0_0000 | r.below(1 << 22) as u32,
        3 => 0x7f80_0001 + r.below((1 << 22) - 1) as u32,
        4 => r.pick(&[1, 2, 0x7f_ffff, 0x40_0000, 0x80_0000, 0x80_0001, 0x7f7f_ffff]),
        5 => r.below(1 << 23) as u32,
        6 => r.pick(&[
            0x3f80_0000,
            0x3f00_0000,
            0x4b00_0000,
            0x4b80_0000,
            0x4f00_0000,
            0x4f80_0000,
            0x5f00_0000,
            0x5f80_0000,
        ]),
        7 => (r.below(200) as f32).to_bits(),
        8 => (r.below(200) as f32 + 0.5).to_bits(),
        9 => 0x4eff_ffff + r.below(4) as u32,
        _ => r.bits() as u32 & 0x7fff_ffff,
    }
}

/// A pattern of a double-precision number.
pub fn f64_bits(r: &mut Rng) -> u64 {
    let sign = r.below(2) << 63;
    sign | match r.below(14) {
        0 => 0,
        1 => 0x7ff0 << 48,
        2 => 0x7ff8 << 48 | r.bits() >> 13,
        3 => 0x7ff0 << 48 | (r.bits() >> 13).max(1),
        4 => r.pick(&[1, 2, (1 << 52) - 1, 1 << 51, 1 << 52, (1 << 52) + 1, 0x7fef_ffff_ffff_ffff]),
        5 => r.bits() >> 12,
        6 => r.pick(&[
            0x3ff0_0000_0000_0000,
            0x3fe0_0000_0000_0000,
            0x4330_0000_0000_0000,
            0x43e0_0000_0000_0000,
            0x43f0_0000_0000_0000,
            0x41e0_0000_0000_0000,
            0x41df_ffff_ffc0_0000,
            0x41df_ffff_ffe0_0000,
            0x47ef_ffff_e000_0000,
            0x36a0_0000_0000_0000,
            0x3810_0000_0000_0000,
        ]),
        7 => (r.below(2000) as f64).to_bits(),
        8 => (r.below(2000) as f64 + 0.5).to_bits(),
        9 => u64::from(f32_bits(r)) << 29 & !(1 << 63),
        _ => r.bits() >> 1,
    }
}

/// A pattern of an extended-precision number: mantissa, sign and exponent. Unsupported encodings occur too.
pub fn f80_bits(r: &mut Rng) -> (u64, u16) {
    let sign = (r.below(2) as u16) << 15;
    let one = 1 << 63;
    let (m, e) = match r.below(16) {
        0 => (0, 0),
        1 => (one, 0x7fff),
        2 => (3 << 62 | r.bits() >> 2, 0x7fff),
        3 => (one | (r.bits() >> 2).max(1), 0x7fff),
        4 => (r.pick(&[1, 2, one - 1, one >> 1]), 0),
        5 => (one | r.bits(), 0),
        6 => (r.bits() >> 1, r.below(0x8000) as u16),
        7 => (one, 0x3fff + r.below(70) as u16),
        8 => (one | r.bits(), 0x3fff + r.below(70) as u16),
        9 => (one | r.below(16) << 60, 0x3fff + r.below(8) as u16),
        10 => (u64::MAX, r.pick(&[0x7ffe, 1, 0x3ffe, 0x403d, 0x403e, 0x43fe, 0x407e])),
        11 => (one | r.below(1 << 10) << 39, 0x3fff - 128 + r.below(256) as u16),
        12 => (one | r.below(1 << 10) << 10, 0x3fff - 1030 + r.below(2060) as u16),
        13 => (one, r.pick(&[1, 0x7ffe, 0x3ffe, 0x3fff, 0x4000])),
        _ => (one | r.bits(), r.below(0x7fff) as u16),
    };
    (m, sign | e)
}

/// Fills 16 bytes with one kind of lanes.
fn lanes(r: &mut Rng, to: &mut [u8]) {
    let kind = r.below(8);
    let splat = r.below(16) == 0;
    let mut v = 0;
    for (i, q) in to.chunks_exact_mut(8).enumerate() {
        if i == 0 || !splat {
            v = match kind {
                0 | 1 => u64::from(f32_bits(r)) | u64::from(f32_bits(r)) << 32,
                2 | 3 => f64_bits(r),
                4 => r.bits(),
                5 => r.below(0x8000).wrapping_mul(0x1_0001_0001_0001) ^ r.bits() & 0x8000_8000_8000_8000,
                6 => u64::from(int(r) as u32) << 32 | u64::from(int(r) as u32),
                _ => int(r),
            };
        }
        q.copy_from_slice(&v.to_le_bytes());
    }
}

/// Fills memory with a mixture of what instructions may find there.
pub fn memory(r: &mut Rng, to: &mut [u8]) {
    if r.below(8) == 0 && to.len() >= 16 {
        let (m, e) = f80_bits(r);
        let (a, rest) = to.split_at_mut(10);
        a[..8].copy_from_slice(&m.to_le_bytes());
        a[8..].copy_from_slice(&e.to_le_bytes());
        for b in rest {
            *b = r.bits() as u8;
        }
        return;
    }
    if r.below(40) == 0 {
        // Packed decimals.
        for b in to {
            *b = (r.below(10) << 4 | r.below(10)) as u8;
        }
        return;
    }
    for chunk in to.chunks_mut(16) {
        let mut full = [0; 16];
        lanes(r, &mut full);
        chunk.copy_from_slice(&full[..chunk.len()]);
    }
}

/// MXCSR: mostly all exceptions masked.
fn mxcsr(r: &mut Rng, mask: u32) -> u32 {
    let masks = match r.below(10) {
        0 => (r.below(64) as u32) << 7,
        1 => 0x1f80 & !(1 << (7 + r.below(6))),
        _ => 0x1f80,
    };
    let flags = if r.chance(30) { r.below(64) as u32 } else { 0 };
    let rest = r.bits() as u32 & if r.chance(30) { 0xe040 } else { 0x6000 };
    let mm = if r.chance(10) { 0x2_0000 } else { 0 };
    (masks | flags | rest | mm) & mask
}

/// A whole XSAVE area (x87, SSE, AVX). `mxcsr_mask`: the bits that MXCSR has.
pub fn vector_state(r: &mut Rng, x: &mut [u8; XSAVE_LEN], mxcsr_mask: u32) {
    x.fill(0);
    let precision = r.pick(&[3u16, 3, 3, 3, 2, 0, 1]);
    let masks = match r.below(12) {
        0 => r.below(64) as u16,
        1 => 0x3f & !(1 << r.below(6)),
        _ => 0x3f,
    };
    let rounding = if r.chance(40) { r.below(4) as u16 } else { 0 };
    let fcw = masks | 0x40 | precision << 8 | rounding << 10 | (r.below(2) as u16) << 12;
    let top = r.below(8) as u16;
    let mut fsw = top << 11;
    if r.chance(20) {
        fsw |= (r.bits() as u16) & 0x473f;
    }
    if r.chance(80) {
        // Without this most cases under unmasked exceptions would only find one pending.
        fsw &= !0x3f | fcw & 0x3f;
    }
    if fsw & 0x3f & !fcw != 0 {
        fsw |= 0x8080;
    }
    x[0..2].copy_from_slice(&fcw.to_le_bytes());
    x[2..4].copy_from_slice(&fsw.to_le_bytes());
    x[4] = match r.below(8) {
        0 => 0,
        1 | 2 => r.bits() as u8,
        _ => 0xff,
    };
    if r.chance(50) {
        let fop = r.bits() as u16 & 0x7ff;
        x[6..8].copy_from_slice(&fop.to_le_bytes());
        // Canonical, for more than that the registers of a processor with 48-bit addresses do not hold: XRSTOR drops the rest.
        x[8..16].copy_from_slice(&(r.bits() as i64 >> 17).to_le_bytes());
        x[16..24].copy_from_slice(&(r.bits() as i64 >> 17).to_le_bytes());
    }
    x[24..28].copy_from_slice(&mxcsr(r, mxcsr_mask).to_le_bytes());
    x[28..32].copy_from_slice(&mxcsr_mask.to_le_bytes());
    for n in 0..8 {
        let at = 32 + 16 * n;
        let (m, e) = if r.chance(20) { (int(r), 0xffff) } else { f80_bits(r) };
        x[at..at + 8].copy_from_slice(&m.to_le_bytes());
        x[at + 8..at + 10].copy_from_slice(&e.to_le_bytes());
    }
    for n in 0..16 {
        lanes(r, &mut x[160 + 16 * n..][..16]);
        lanes(r, &mut x[576 + 16 * n..][..16]);
    }
    x[512] = 7;
}

/// Flags that user code may have: arithmetic ones, DF, sometimes AC, ID, NT; IF and the fixed bit set.
pub fn flags(r: &mut Rng) -> u64 {
    let mut f = 0x202 | r.bits() & 0x8d5;
    if r.chance(25) {
        f |= 0x400;
    }
    if r.chance(3) {
        f |= 0x4_0000;
    }
    if r.chance(3) {
        f |= 0x20_0000;
    }
    f
}

/// An address in a code window where a branch may land; see [`crate::layout`].
pub fn landing(r: &mut Rng, which: usize) -> u64 {
    CODE[which & 1] + crate::layout::LANDING + r.below(crate::layout::LANDINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a register cannot hold would differ after any instruction.
    #[test]
    fn x87_pointers_are_canonical() {
        let (mut r, mut x, mut high) = (Rng::new(1, 1), [0; XSAVE_LEN], 0);
        for _ in 0..1000 {
            vector_state(&mut r, &mut x, 0xffff);
            for at in [8, 16] {
                let mut b = [0; 8];
                b.copy_from_slice(&x[at..at + 8]);
                let v = i64::from_le_bytes(b);
                assert_eq!(v << 16 >> 16, v);
                high += u32::from(v < 0);
            }
        }
        assert!(high > 100);
    }
}
