//! What goes to the child and comes back: plain data in shared memory.

use crate::layout::DATA_LEN;

/// Bytes of the XSAVE area in standard form for x87, SSE and AVX.
pub const XSAVE_LEN: usize = ringer_arch::state::XSAVE_LEN;
/// Patches of one case.
pub const PATCHES: usize = 3;
/// Bytes of a patch.
pub const PATCH_LEN: usize = 64;
/// Spans of memory that are compared after one case.
pub const SPANS: usize = 3;
/// Bytes of all spans of one case together.
pub const LOG_LEN: usize = 1408;

/// Bytes to write to the data window before a case. Offsets and lengths stay inside it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Patch {
    /// Offset in the data window.
    pub off: u32,
    /// Bytes of `data` in use.
    pub len: u32,
    /// The bytes.
    pub data: [u8; PATCH_LEN],
}

/// Part of the data window whose contents after a case are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    /// Offset in the data window.
    pub off: u32,
    /// Bytes.
    pub len: u32,
}

impl Span {
    /// The part of `start..end` (offsets that may lie outside) that is in the data window, at most `max` bytes.
    #[must_use]
    pub fn clamped(start: i64, end: i64, max: u32) -> Span {
        let start = start.clamp(0, DATA_LEN as i64);
        let end = end.clamp(start, DATA_LEN as i64);
        Span { off: start as u32, len: ((end - start) as u32).min(max) }
    }
}

/// Where a case starts from.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Input {
    /// XSAVE area in standard form.
    pub xsave: [u8; XSAVE_LEN],
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Flags.
    pub rflags: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Memory before the case.
    pub patch: [Patch; PATCHES],
    /// Memory to record after it.
    pub log: [Span; SPANS],
    /// Whether the child runs it: 0 (only the patches are made) or 1.
    pub run: u32,
    /// Bits of its code: 64 or 32.
    pub bits: u32,
}

impl Default for Input {
    fn default() -> Input {
        Input {
            xsave: [0; XSAVE_LEN],
            gpr: [0; 16],
            rflags: 2,
            rip: 0,
            fs_base: 0,
            gs_base: 0,
            patch: [Patch { off: 0, len: 0, data: [0; PATCH_LEN] }; PATCHES],
            log: [Span::default(); SPANS],
            run: 0,
            bits: 64,
        }
    }
}

/// Where a case ended.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Output {
    /// XSAVE area in standard form.
    pub xsave: [u8; XSAVE_LEN],
    /// General registers.
    pub gpr: [u64; 16],
    /// Flags.
    pub rflags: u64,
    /// Where it stands.
    pub rip: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Selectors: ES CS SS DS FS GS.
    pub sel: [u16; 6],
    /// 0 completed, else the signal that ended it.
    pub signal: u32,
    /// Vector.
    pub vector: u32,
    /// Error code.
    pub code: u32,
    /// Memory afterwards, the spans one after another.
    pub log: [u8; LOG_LEN],
}

impl Default for Output {
    fn default() -> Output {
        Output {
            xsave: [0; XSAVE_LEN],
            gpr: [0; 16],
            rflags: 0,
            rip: 0,
            fs_base: 0,
            gs_base: 0,
            cr2: 0,
            sel: [0; 6],
            signal: 0,
            vector: 0,
            code: 0,
            log: [0; LOG_LEN],
        }
    }
}
