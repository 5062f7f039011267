//! Makes programs.
//!
//! [`Pool`] holds what they are made of; a [`Gen`] emits one program: straight code ([`straight`]) whose memory operands are aimed at
//! places of interest ([`aim`]), control flow around it ([`flow`]), and what changes or leaves the mode, the page tables or the code
//! itself ([`system`], [`fragments`], [`smc`]).

mod aim;
mod asm;
mod flow;
mod fragments;
mod pool;
mod setup;
mod smc;
mod straight;
mod system;

pub use pool::{Pool, ends_or_leaves};

use crate::layout as l;
use crate::program::Program;
use iced_x86::{Encoder, InstructionInfoFactory};
use pool::Classes;
use ringer_difftest::rng::Rng;

/// Makes program `number` of `seed`.
#[must_use]
pub fn program(pool: &Pool, seed: u64, number: u64) -> Program {
    let r = Rng::new(seed, number);
    let mut g = Gen::new(pool, r);
    g.make();
    g.p
}

/// A program on its way.
pub(crate) struct Gen<'a> {
    r: Rng,
    pool: &'a Pool,
    p: Program,
    bits: u32,
    /// Ring 0.
    kernel: bool,
    /// Ports may be used.
    ports: bool,
    /// There are two address spaces, told apart by PCID.
    pcid: bool,
    /// User pages are only accessed between STAC and CLAC.
    smap: bool,
    /// Offset in the code window of the next instruction.
    cursor: usize,
    /// Where the range in use started.
    start: usize,
    /// What general registers hold, as far as that is known.
    known: [Option<u64>; 16],
    /// General registers that must not be written: loop counters.
    locked: u32,
    /// General registers that may count loops; functions leave them alone.
    loops: u32,
    /// General registers that mostly hold pointers.
    pointers: u32,
    /// Places accessed lately.
    recent: [u64; 4],
    /// Percentages of the classes of instructions.
    mix: [u64; 6],
    encoder: Encoder,
    info: InstructionInfoFactory,
    functions: Vec<u64>,
    /// Next free places in the scratch page.
    counters: u64,
    tables: u64,
    bytes: u64,
    /// Instructions still to make.
    left: i32,
    /// Wild jumps and edits of page tables are allowed once in a while.
    wild: bool,
    /// Code pages that get another frame: the page, and the place and bytes of a slot that differs there.
    remaps: Vec<(usize, (usize, Vec<u8>))>,
}

impl<'a> Gen<'a> {
    fn new(pool: &'a Pool, r: Rng) -> Gen<'a> {
        Gen {
            r,
            pool,
            p: Program::new(pool.base.clone()),
            bits: 64,
            kernel: false,
            ports: false,
            pcid: false,
            smap: false,
            cursor: 0,
            start: 0,
            known: [None; 16],
            locked: 1 << 4,
            loops: 0,
            pointers: 0,
            recent: [l::DATA + l::PAGE; 4],
            mix: [100, 0, 0, 0, 0, 0],
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            functions: Vec::new(),
            counters: l::SCRATCH + l::SCRATCH_COUNTERS,
            tables: l::SCRATCH + l::SCRATCH_TABLES,
            bytes: l::SCRATCH + l::SCRATCH_BYTES,
            left: 40,
            wild: true,
            remaps: Vec::new(),
        }
    }

    fn classes(&self) -> &'a Classes {
        if self.bits == 64 { &self.pool.long } else { &self.pool.legacy }
    }

    /// Linear address of offset `off` in the code window.
    fn lin(&self, off: usize) -> u64 {
        self.p.base + off as u64
    }

    fn make(&mut self) {
        self.choose();
        self.place();
        let functions = self.r.below(4);
        for _ in 0..functions {
            self.function();
        }
        let entry = self.cursor;
        self.left = self.r.pick(&[6, 12, 24, 24, 40]);
        self.body(0);
        self.end();
        self.close();
        if !self.kernel {
            self.fragments();
        }
        self.finish_remaps();
        self.start_state(entry);
    }

    /// Makes a function that the rest of the program may call.
    fn function(&mut self) {
        let entry = self.lin(self.cursor);
        self.left = self.r.pick(&[2, 5, 10]);
        let locked = self.locked;
        self.locked |= self.loops;
        self.function_body();
        self.locked = locked;
        self.functions.push(entry);
        self.hop_silently();
    }
}
