//! [`Ctx`]: what translated code works on. RSP points to it while guest code runs. An unsafe room: it lies in a mapping of its
//! own, with room below for a signal's frame.

use super::places::{PAGES, Page};
use crate::mapping::{LARGE, Mapping};
use crate::sites::{LOG_LEN, LOGS, STACK_SITES, StackSite};
use std::io;
use std::mem::offset_of;

/// Entries of the jump cache.
pub const JUMPS: usize = 32768;
/// In [`Ctx::x87_op`]: the instruction has raised nothing but what was masked. Its highest byte holds nothing else: there are fewer ops.
pub const X87_CALM: u32 = 1 << 31;
/// Bytes below the context.
const STACK: usize = 256 << 10;

/// Where a guest address led to last. Empty ones have a `gen_key` of 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Jump {
    /// Guest linear address.
    pub lin: u64,
    /// The block's code, from the start of the area.
    pub code: u32,
    /// Low half of the generation of code addresses, and mode, in which it did: [`Ctx::gen_key`].
    pub gen_key: u32,
}

/// Why translated code was left: [`Ctx::kind`].
#[allow(missing_docs)]
pub mod exit {
    /// To a block that is not linked yet; `arg` is the link.
    pub const LINK: u32 = 1;
    /// To the guest address `arg`; `lin` is the op.
    pub const INDIRECT: u32 = 2;
    /// The interpreter is to execute op `arg`.
    pub const INTERP: u32 = 3;
    /// The site at host address `arg` has no entry for `lin`.
    pub const MEM: u32 = 4;
    /// A signal: `fault_pc`, `fault_sig`.
    pub const FAULT: u32 = 5;
    /// Block `arg` is no more.
    pub const STALE: u32 = 6;
    /// Block `arg` needs the x87 state loaded.
    pub const X87: u32 = 7;
    /// The loop that link `arg` closes has gone round often.
    pub const HOT: u32 = 8;
    /// The soft TLB has no entry for `lin`; what the access is stands at `arg`: [`super::Ctx::look`].
    pub const LOOK: u32 = 9;
    /// The indirect jump that is op `arg` has been come to often; it is yet to be executed.
    pub const OFTEN: u32 = 10;
    /// By a jump to another page that is not known to lead there now; `arg` is the host address of its [`crate::sites::Bridge`].
    pub const BRIDGE: u32 = 11;
}

/// See the module.
#[repr(C, align(64))]
#[allow(missing_docs)]
pub struct Ctx {
    /// Guest R9, R10, R11.
    pub spilled: [u64; 3],
    /// The arithmetic flags in [`crate::hostops`]' form, in the low half.
    pub fl: u32,
    /// Vector state is in the host's registers.
    pub vec: u32,
    /// Guest address of the page that runs.
    pub vpage: u64,
    /// Generation of code addresses, and mode.
    pub gen_key: u64,
    /// The soft TLB's table in force.
    pub table: u64,
    /// The stop word.
    pub stop: u64,
    /// One line of the cache.
    pub stack: [StackSite; STACK_SITES],
    // From here on offsets take four bytes.
    /// Bases of FS and GS.
    pub fs: u64,
    pub gs: u64,
    /// x87 state is in the host's registers.
    pub x87: u32,
    pub _pad: u32,
    /// Scratch: the miss stubs' two, and one of blocks'.
    pub tmp: [u64; 3],
    /// Guest instructions executed.
    pub instret: u64,
    /// The general registers of the processor, outside translated code.
    pub regs: u64,
    /// Its XSAVE area.
    pub xsave: u64,
    /// Start of the area's code.
    pub base: u64,
    pub log_len: [u32; LOGS],
    pub kind: u32,
    pub _pad2: u32,
    pub arg: u64,
    /// What R10 held on the way out, and will on the way in.
    pub lin: u64,
    pub host_rsp: u64,
    pub fault_pc: u64,
    pub fault_sig: u32,
    pub host_mxcsr: u32,
    /// Vector state must be loaded on the way in.
    pub want_vec: u32,
    /// Last x87 instruction: its op and 1, with [`X87_CALM`]; its page, its operand's address; and of the one that is on its way.
    pub x87_op: u32,
    pub x87_page: u64,
    pub x87_operand: u64,
    pub x87_next: u64,
    /// Where the processor has RFLAGS without the arithmetic flags, and the bases that SWAPGS swaps.
    pub sysflags: u64,
    pub gs_base: u64,
    pub kernel_gs_base: u64,
    /// Its CR2.
    pub cr2: u64,
    /// Its segment registers.
    pub segments: u64,
    /// An interrupt waits for IF.
    pub irq: u32,
    /// Of an access without an entry: whether it writes, and if a stub has checked it, from bit 8 on the bytes that it has checked.
    pub look: u32,
    /// The table of blocks by place, and the bits of an offset in it.
    pub places: u64,
    pub place_mask: u32,
    pub jumps: [Jump; JUMPS],
    pub pages: [Page; PAGES],
    pub log: [[u32; LOG_LEN]; LOGS],
}

/// Offsets in [`Ctx`].
#[allow(missing_docs)]
pub mod off {
    use super::{Ctx, offset_of};
    pub const FL: i32 = offset_of!(Ctx, fl) as i32;
    pub const VPAGE: i32 = offset_of!(Ctx, vpage) as i32;
    pub const GEN: i32 = offset_of!(Ctx, gen_key) as i32;
    pub const TABLE: i32 = offset_of!(Ctx, table) as i32;
    pub const STOP: i32 = offset_of!(Ctx, stop) as i32;
    pub const STACK: i32 = offset_of!(Ctx, stack) as i32;
    pub const FS: i32 = offset_of!(Ctx, fs) as i32;
    pub const GS: i32 = offset_of!(Ctx, gs) as i32;
    pub const VEC: i32 = offset_of!(Ctx, vec) as i32;
    pub const X87: i32 = offset_of!(Ctx, x87) as i32;
    pub const TMP: i32 = offset_of!(Ctx, tmp) as i32;
    pub const INSTRET: i32 = offset_of!(Ctx, instret) as i32;
    pub const REGS: i32 = offset_of!(Ctx, regs) as i32;
    pub const XSAVE: i32 = offset_of!(Ctx, xsave) as i32;
    pub const LOG_LEN: i32 = offset_of!(Ctx, log_len) as i32;
    pub const KIND: i32 = offset_of!(Ctx, kind) as i32;
    pub const ARG: i32 = offset_of!(Ctx, arg) as i32;
    pub const LIN: i32 = offset_of!(Ctx, lin) as i32;
    pub const HOST_RSP: i32 = offset_of!(Ctx, host_rsp) as i32;
    pub const HOST_MXCSR: i32 = offset_of!(Ctx, host_mxcsr) as i32;
    pub const WANT_VEC: i32 = offset_of!(Ctx, want_vec) as i32;
    pub const X87_OP: i32 = offset_of!(Ctx, x87_op) as i32;
    pub const X87_PAGE: i32 = offset_of!(Ctx, x87_page) as i32;
    pub const X87_OPERAND: i32 = offset_of!(Ctx, x87_operand) as i32;
    pub const X87_NEXT: i32 = offset_of!(Ctx, x87_next) as i32;
    pub const SYSFLAGS: i32 = offset_of!(Ctx, sysflags) as i32;
    pub const GS_BASE: i32 = offset_of!(Ctx, gs_base) as i32;
    pub const KERNEL_GS_BASE: i32 = offset_of!(Ctx, kernel_gs_base) as i32;
    pub const CR2: i32 = offset_of!(Ctx, cr2) as i32;
    pub const SEGMENTS: i32 = offset_of!(Ctx, segments) as i32;
    pub const IRQ: i32 = offset_of!(Ctx, irq) as i32;
    pub const LOOK: i32 = offset_of!(Ctx, look) as i32;
    pub const JUMPS: i32 = offset_of!(Ctx, jumps) as i32;
    pub const PAGES: i32 = offset_of!(Ctx, pages) as i32;
    pub const PLACES: i32 = offset_of!(Ctx, places) as i32;
    pub const PLACE_MASK: i32 = offset_of!(Ctx, place_mask) as i32;
    pub const LOG: i32 = offset_of!(Ctx, log) as i32;
    pub const BASE: i32 = offset_of!(Ctx, base) as i32;
    /// Of `jumps`' fields.
    pub const JUMP_CODE: i32 = JUMPS + 8;
    pub const JUMP_GEN: i32 = JUMPS + 12;
}

/// Forgets where guest addresses led.
pub fn clear_jumps(c: &mut Ctx) {
    for j in &mut c.jumps {
        j.gen_key = 0;
    }
}

/// Which entry of the jump cache is for guest address `lin`.
#[must_use]
#[inline]
pub fn jump_index(lin: u64) -> usize {
    let offset = (lin.wrapping_mul(JUMP_FACTOR as u64) >> JUMP_SHIFT) as usize;
    (offset / size_of::<Jump>()) & (JUMPS - 1)
}

/// What guest addresses are multiplied with: their low halves alone leave a program's hot places in each other's way.
pub const JUMP_FACTOR: i32 = 0x61c8_8647;
/// How far the product is shifted to have the entry's offset at its end. The bits that are taken then depend on all the low ones of the
/// address and on those of its page.
pub const JUMP_SHIFT: u8 = 20;
/// Bits of that offset.
pub const JUMP_MASK: i32 = ((JUMPS - 1) * size_of::<Jump>()) as i32;

/// The home of guest register `r`, where it has none among the host's.
#[must_use]
pub fn spilled(r: u8) -> Option<i32> {
    (9..=11).contains(&r).then(|| i32::from(r - 9) * 8)
}

/// A context in its mapping: a page that faults, the stack, the context on the boundary of a large page, a page that faults.
pub struct CtxBox {
    _map: Mapping,
    ctx: *mut Ctx,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for CtxBox {}

const _: () = assert!(size_of::<Ctx>() <= LARGE && STACK + 4096 <= LARGE);

impl CtxBox {
    /// Bytes of memory that it takes, if it is not in a large page.
    pub const LEN: usize = STACK + size_of::<Ctx>().next_multiple_of(4096);
    /// The same if it is.
    pub const LEN_LARGE: usize = STACK + LARGE;

    /// A context of zeros, in a large page if `large` says so and the host has one.
    ///
    /// # Errors
    /// The host's, when it gives no memory.
    pub fn new(large: bool) -> io::Result<CtxBox> {
        let map = Mapping::new(2 * LARGE + 4096)?;
        map.guard(LARGE - STACK - 4096)?;
        map.guard(2 * LARGE)?;
        if large {
            map.enlarge(LARGE, 2 * LARGE);
        }
        // SAFETY: within the mapping.
        let ctx = unsafe { map.start().add(LARGE).cast() };
        Ok(CtxBox { _map: map, ctx })
    }

    /// Its address.
    #[must_use]
    pub fn ptr(&self) -> *mut Ctx {
        self.ctx
    }

    /// The context.
    #[must_use]
    #[inline]
    pub fn get(&self) -> &Ctx {
        // SAFETY: mapped for the life of this value; all zeros are a valid context; translated code, which changes it behind the
        // reference, does not run while one is held.
        unsafe { &*self.ctx }
    }

    /// The context, to change.
    #[inline]
    pub fn get_mut(&mut self) -> &mut Ctx {
        // SAFETY: as in `get`.
        unsafe { &mut *self.ctx }
    }
}
