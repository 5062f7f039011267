//! The block cache: decoded blocks by guest-physical address, with a direct-mapped table by linear address in front.

use crate::block::Block;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The most blocks kept, and the most instructions in them; past that all are dropped. An instruction takes up to some
/// 120 bytes, so a guest that makes its blocks long has a processor take no more than about 120 MB for them.
const MAX_BLOCKS: usize = 1 << 16;
const MAX_INSNS: u64 = 1 << 20;
/// Entries of the jump table.
const JUMPS: usize = 1 << 15;

/// A fast hasher for keys that are one integer.
#[derive(Default)]
pub struct IntHasher(u64);

impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }
    fn write_u16(&mut self, v: u16) {
        self.write_u64(u64::from(v));
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }
}

/// A map with keys of integers.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<IntHasher>>;

#[derive(Clone, Copy)]
struct Jump {
    lin: u64,
    ctx: u64,
    block: u32,
}

const NO_JUMP: Jump = Jump { lin: u64::MAX, ctx: u64::MAX, block: 0 };

/// Decoded blocks of one processor.
pub struct Cache {
    blocks: Vec<Block>,
    /// Instructions in all of them.
    insns: u64,
    by_gpa: Map<(u64, u8), u32>,
    jumps: Box<[Jump; JUMPS]>,
    straddling: Map<(u64, u64), (u8, Block)>,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            blocks: Vec::new(),
            insns: 0,
            by_gpa: Map::default(),
            jumps: Box::new([NO_JUMP; JUMPS]),
            straddling: Map::default(),
        }
    }
}

fn jump_index(lin: u64) -> usize {
    (lin ^ lin >> 12) as usize & (JUMPS - 1)
}

impl Cache {
    /// The block that linear address `lin` led to under context `ctx`.
    #[inline(always)]
    #[must_use]
    pub fn jump(&self, lin: u64, ctx: u64) -> Option<u32> {
        let j = &self.jumps[jump_index(lin)];
        (j.lin == lin && j.ctx == ctx).then_some(j.block)
    }

    /// Remembers where `lin` leads under `ctx`.
    pub fn set_jump(&mut self, lin: u64, ctx: u64, block: u32) {
        self.jumps[jump_index(lin)] = Jump { lin, ctx, block };
    }

    /// The block with number `n`.
    #[inline(always)]
    #[must_use]
    pub fn block(&self, n: u32) -> &Block {
        &self.blocks[n as usize]
    }

    /// The same, to change.
    pub fn block_mut(&mut self, n: u32) -> &mut Block {
        &mut self.blocks[n as usize]
    }

    /// The block decoded at `gpa` under `key`.
    #[must_use]
    pub fn find(&self, gpa: u64, key: u8) -> Option<u32> {
        self.by_gpa.get(&(gpa, key)).copied()
    }

    /// Puts a block in, in place of the one that was decoded there before.
    pub fn insert(&mut self, gpa: u64, key: u8, block: Block) -> u32 {
        let insns = u64::from(block.ops.insns());
        if self.blocks.len() >= MAX_BLOCKS || self.insns + insns > MAX_INSNS {
            self.clear();
        }
        self.insns += insns;
        if let Some(n) = self.find(gpa, key) {
            let old = std::mem::replace(&mut self.blocks[n as usize], block);
            self.insns -= u64::from(old.ops.insns());
            return n;
        }
        let n = self.blocks.len() as u32;
        self.blocks.push(block);
        self.by_gpa.insert((gpa, key), n);
        n
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.insns = 0;
        self.by_gpa.clear();
        self.straddling.clear();
        self.jumps.fill(NO_JUMP);
    }

    /// Whether the instruction that straddles `first` and `second` is kept and still has the same bytes.
    #[must_use]
    pub fn straddling(&self, first: u64, second: u64, key: u8, bytes: &[u8]) -> bool {
        self.straddling.get(&(first, second)).is_some_and(|(k, b)| *k == key && bytes.starts_with(&b.bytes))
    }

    /// The instruction that straddles `first` and `second`.
    #[must_use]
    pub fn straddling_block(&self, first: u64, second: u64) -> Option<&Block> {
        self.straddling.get(&(first, second)).map(|(_, b)| b)
    }

    /// Keeps such an instruction.
    pub fn insert_straddling(&mut self, first: u64, second: u64, key: u8, block: Block) {
        if self.straddling.len() >= 4096 {
            self.straddling.clear();
        }
        self.straddling.insert((first, second), (key, block));
    }
}
