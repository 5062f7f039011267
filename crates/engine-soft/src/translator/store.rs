//! [`Store`]: the translated blocks of one processor, the links between them, and what is known of their instructions.

mod keep;

use super::area::{self, Area};
use super::asm::{Asm, reg};
use super::classify::Natives;
use super::ctx::Ctx;
use super::groups::Early;
use super::perf::PerfMap;
use super::places::{self, Places, place};
use super::stubs::{self, Stubs};
use crate::block::Decoded;
use crate::cache::Map;
use crate::sites::{Bridge, EARLY, Site, Sites};
use iced_x86::Encoder;
use keep::Keep;
use std::io;
use std::time::{Duration, Instant};

/// What one block may take.
pub const MOST_CODE: usize = 48 << 10;
/// Sites that one block may take.
pub const MOST_SITES: u32 = 512;
/// Entries of any table that one block may take.
const MOST_ENTRIES: usize = 1024;
/// Places in each of [`Store::scattered`], [`Store::split`] and [`Store::hot`].
const MOST_PLACES: usize = 1 << 16;
/// How often the accesses of a group may lie in two pages before each is checked by itself.
const CROSSINGS: u8 = 8;
/// If code fills its room in less than this, it is to be small.
const SOON: Duration = Duration::from_secs(10);
/// Rounds after which a loop is hot.
const ROUNDS: u64 = 1000;
/// The same where two engines are compared: what runs in loops is to be seen both ways.
pub const FEW_ROUNDS: u64 = 4;
/// Blocks that indirect jumps may make hot.
const MOST_OFTEN: u32 = 256;
/// Bytes of the longest loop that is hot as a whole: the sites of longer ones take more of the host's caches than they save.
const MOST_LOOP: u64 = 512;
/// Bytes of code for each entry of [`Store::index`].
const STRETCH: usize = 1024;
/// Bytes that [`Store`] writes over a block's start when it is no more, and so the least that a block has.
pub const LEAST_CODE: usize = 16;

/// No block, no link.
pub const NONE: u32 = u32::MAX;

/// A translated block.
#[derive(Debug)]
pub struct Block {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Where its code starts.
    pub code: u32,
    /// Where its guest bytes start in [`Store::guest`].
    pub bytes: u32,
    /// Its first op; the next block's is the one after its last.
    pub first_op: u32,
    /// The first of the links that lead to it, or [`NONE`].
    pub incoming: u32,
    /// Guest bytes.
    pub len: u16,
    /// What it was translated under.
    pub key: u8,
    /// It may be entered.
    pub alive: bool,
    /// It was translated as code that runs often.
    pub hot: bool,
    /// It expects vector state in the host's registers.
    pub vec: bool,
    /// The same of x87 state.
    pub x87: bool,
    /// Its only instruction lies in two pages: [`Store::second`].
    pub straddles: bool,
}

const _: () = assert!(size_of::<Block>() == 32);

/// The second page of a block.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Version of its code.
    pub version: u32,
    /// The site that holds the generation under which it was found there.
    pub gen_site: u32,
}

/// Versions of the code that a block is translated from.
#[derive(Clone, Copy, Debug)]
pub struct Versions {
    /// Of its page.
    pub first: u32,
    /// The page it goes on in, if it does.
    pub second: Option<Second>,
}

/// An instruction that may leave its block.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// Its block.
    pub block: u32,
    /// Its place in the page.
    pub offset: u16,
    /// [`Op::DERIVES`], and in the lower two bits what may be looked up for its access, where a stub checks that.
    pub notes: u8,
    /// Instructions of its block before it.
    pub before: u8,
    /// Instructions that the interpreter executes in its place, it and those behind it.
    pub insns: u8,
    /// What RSP was moved by before an indirect jump.
    pub undo: i8,
    /// Where its code starts, which is where a fault of the host's lies behind.
    pub start: u32,
    /// How far behind that the code goes on after it; 0 if nothing comes after it in its block.
    pub gap: u16,
}

const _: () = assert!(size_of::<Op>() == 16);

impl Op {
    /// In [`Op::notes`]: the flags are derived before it is left to the interpreter: [`super::derive`].
    pub const DERIVES: u8 = 1 << 2;

    /// Whether the flags are.
    #[must_use]
    pub fn derives(&self) -> bool {
        self.notes & Op::DERIVES != 0
    }

    /// What may be looked up for its access.
    #[must_use]
    pub fn early(&self) -> Early {
        Early::of(self.notes & 3)
    }

    /// Where the code goes on after it, or 0.
    #[must_use]
    pub fn next(&self) -> u32 {
        if self.gap == 0 { 0 } else { self.start + u32::from(self.gap) }
    }
}

/// What the way out of an access that the soft TLB has no entry for reads: it stands in the code, so that most need not look for their op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// How far before it the code goes on with the host's address.
    pub back: u32,
    /// Bytes of the access.
    pub size: u16,
    /// What may be looked up for it.
    pub early: Early,
    /// Its block expects vector state in the host's registers.
    pub vec: bool,
    /// The same of x87 state.
    pub x87: bool,
}

impl Told {
    /// Bytes that it takes: four and two for the first two, which translated code reads too, and one for the rest.
    pub const LEN: usize = 7;
    const VEC: u8 = 1 << 2;
    const X87: u8 = 1 << 3;

    /// As it stands in the code.
    #[must_use]
    pub fn bytes(self) -> [u8; Told::LEN] {
        let bit = |yes: bool, bit: u8| if yes { bit } else { 0 };
        let ([a, b, c, d], [e, f]) = (self.back.to_le_bytes(), self.size.to_le_bytes());
        [a, b, c, d, e, f, self.early.bits() | bit(self.vec, Told::VEC) | bit(self.x87, Told::X87)]
    }

    /// What stands in the code.
    #[must_use]
    pub fn of([a, b, c, d, e, f, g]: [u8; Told::LEN]) -> Told {
        Told {
            back: u32::from_le_bytes([a, b, c, d]),
            size: u16::from_le_bytes([e, f]),
            early: Early::of(g & 3),
            vec: g & Told::VEC != 0,
            x87: g & Told::X87 != 0,
        }
    }
}

/// A jump from one block to another.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Its block.
    pub block: u32,
    /// Where the distance of the jump stands.
    pub at: u32,
    /// Where it leads unlinked.
    pub unlinked: u32,
    /// Guest address it leads to, from the start of the block's page.
    pub target: i32,
    /// The site that holds the generation under which it is good; [`NONE`] for a jump within the page.
    pub gen_site: u32,
    /// The block that it leads to, or [`NONE`].
    pub to: u32,
    /// The next of the links that lead there, or [`NONE`].
    pub next: u32,
}

/// Code of one guest page.
#[derive(Debug, Default)]
struct Page {
    version: u32,
    blocks: Vec<u32>,
}

/// See the module.
pub struct Store {
    /// The memory.
    pub area: Area,
    /// The code around.
    pub stubs: Stubs,
    /// For the code of the next block.
    pub asm: Asm,
    /// For guest instructions.
    pub encoder: Encoder,
    /// The host has BMI2.
    pub bmi2: bool,
    /// What all of it may take, in bytes.
    limit: usize,
    /// Bytes in use of each half of the area.
    used: [usize; 2],
    sites_used: u32,
    /// All blocks since the last clearing, in the order of their code.
    pub blocks: Vec<Block>,
    /// Their ops, in the order of their blocks.
    pub ops: Vec<Op>,
    /// Their links.
    pub links: Vec<Link>,
    /// Which op each site belongs to, for the sites of memory accesses, and which link, for bridges.
    pub site_op: Vec<u32>,
    /// Their guest bytes.
    pub guest: Vec<u8>,
    by_place: Places,
    pages: Map<u64, Page>,
    /// Blocks named in `pages` since the last clearing.
    page_places: usize,
    /// By block with two pages, the second.
    seconds: Map<u32, Second>,
    /// For each [`STRETCH`] of code, the first block that starts in it or behind it.
    index: Vec<u32>,
    decoded: Vec<Decoded>,
    /// By op, its place in `decoded`.
    decoded_ops: Map<u32, u32>,
    /// Guest-physical addresses of instructions whose accesses have no locality.
    pub scattered: Map<u64, ()>,
    /// By guest-physical address of a group's first instruction, how often its accesses lay in two pages.
    pub split: Map<u64, u8>,
    /// By page, a bit for each 64 bytes that are of a loop which has gone round often.
    hot: Map<u64, u64>,
    /// Rounds after which a loop is hot.
    pub rounds: u64,
    /// Blocks that indirect jumps made hot since the last clearing.
    often: u32,
    keep: Keep,
    /// Blocks that do not run in loops are to be small: there was no room for code twice in a short time.
    pub dense: bool,
    /// When there was none the last time.
    filled: Instant,
    /// Where each page with code was entered at, under each generation of code addresses.
    entered: Map<(u64, u64), u64>,
    /// Times that everything was dropped for want of room.
    pub clearings: u64,
    /// Offsets of breakpoints in their pages: there, blocks end and none is led to by another.
    pub cuts: Vec<u16>,
    /// What is known of forms of instructions.
    pub natives: Natives,
    perf_map: Option<PerfMap>,
}

impl Store {
    /// An empty store that takes no more than `limit` bytes, or what its smallest takes. `avx`: the host has it. `large`: code lies in large pages, of which it takes
    /// at least two.
    ///
    /// # Errors
    /// The host's, when it gives no memory.
    pub fn new(limit: usize, avx: bool, large: bool) -> io::Result<Store> {
        // In kernels and programs as they are, the tables take somewhat more than the code.
        let half = limit / 2;
        let area = Area::new(half, half / 64, large)?;
        area::map_tables();
        let mut s = Store {
            stubs: Stubs::default(),
            asm: Asm::default(),
            encoder: Encoder::new(64),
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            limit,
            used: [0; 2],
            sites_used: 0,
            blocks: Vec::new(),
            ops: Vec::new(),
            links: Vec::new(),
            site_op: Vec::new(),
            guest: Vec::new(),
            by_place: Places::default(),
            pages: Map::default(),
            page_places: 0,
            seconds: Map::default(),
            index: Vec::new(),
            decoded: Vec::new(),
            decoded_ops: Map::default(),
            scattered: Map::default(),
            split: Map::default(),
            hot: Map::default(),
            rounds: ROUNDS,
            often: 0,
            keep: Keep::default(),
            dense: false,
            filled: Instant::now(),
            entered: Map::default(),
            clearings: 0,
            cuts: Vec::new(),
            natives: Natives::default(),
            perf_map: PerfMap::open(),
            area,
        };
        s.asm.start(s.area.exec());
        s.stubs = stubs::make(&mut s.asm, avx);
        let code = std::mem::take(&mut s.asm.code);
        if !s.area.put(0, &code) {
            return Err(io::Error::other("no room for the stubs"));
        }
        s.used[0] = s.stubs.len.next_multiple_of(64);
        s.area.divert_faults(s.stubs.fault);
        Ok(s)
    }

    /// The block at `gpa` translated under `key`, if the page's code still has `version`.
    #[must_use]
    pub fn find(&mut self, gpa: u64, key: u32, version: u32) -> Option<u32> {
        let page = gpa >> 12;
        if self.pages.get(&page).is_some_and(|p| p.version != version) {
            self.drop_page(page);
        }
        self.by_place.get(place(gpa, key as u8))
    }

    /// Whether there is a block at `gpa` translated under `key`; it may be out of date.
    #[must_use]
    pub fn has(&self, gpa: u64, key: u32) -> bool {
        self.by_place.get(place(gpa, key as u8)).is_some()
    }

    /// Lets translated code find blocks by their places, but for where breakpoints may stand: none is led to another there.
    pub fn show(&self, c: &mut Ctx) {
        self.by_place.show(c, self.cuts.is_empty());
    }

    /// Whether there is room for one block more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.used.iter().all(|used| used + MOST_CODE <= self.area.half())
            && (self.sites_used + MOST_SITES) < self.area.site_count() as u32
            && self.in_memory(true) + MOST_CODE <= self.limit
    }

    /// Bytes that code, sites and all that is known of blocks take; `grown`: with what another block may make them grow by.
    #[must_use]
    pub fn in_memory(&self, grown: bool) -> usize {
        let vec = |len: usize, capacity: usize, size: usize| {
            let full = grown && capacity - len < MOST_ENTRIES;
            (if full { capacity + growth(len) } else { capacity }) * size
        };
        // A map has eight places for seven entries, with a byte each; both halves are there while it doubles.
        let map = |len: usize, capacity: usize, size: usize| {
            let places = capacity * 8 / 7;
            (if grown && capacity - len < 2 { places * 3 } else { places }) * (size + 1)
        };
        let code = |used: &usize| if grown { self.area.taken(used + MOST_CODE) } else { *used };
        self.used.iter().map(code).sum::<usize>()
            + self.sites_used as usize * size_of::<Site>()
            + vec(self.blocks.len(), self.blocks.capacity(), size_of::<Block>())
            + vec(self.ops.len(), self.ops.capacity(), size_of::<Op>())
            + vec(self.links.len(), self.links.capacity(), size_of::<Link>())
            + vec(self.site_op.len(), self.site_op.capacity(), size_of::<u32>())
            + vec(self.guest.len(), self.guest.capacity(), 1)
            + vec(self.decoded.len(), self.decoded.capacity(), size_of::<Decoded>())
            + map(self.decoded_ops.len(), self.decoded_ops.capacity(), size_of::<(u32, u32)>())
            + map(self.seconds.len(), self.seconds.capacity(), size_of::<(u32, Second)>())
            + self.index.capacity() * size_of::<u32>()
            + self.by_place.in_memory(grown)
            + map(self.pages.len(), self.pages.capacity(), size_of::<(u64, Page)>())
            + map(self.entered.len(), self.entered.capacity(), size_of::<((u64, u64), u64)>())
            + map(self.scattered.len(), self.scattered.capacity(), size_of::<u64>())
            + map(self.split.len(), self.split.capacity(), size_of::<(u64, u8)>())
            + map(self.hot.len(), self.hot.capacity(), size_of::<(u64, u64)>())
            + self.page_places * 2 * size_of::<u32>()
    }

    /// Drops everything. The processor's jump cache and its sites' log must be dropped with it.
    pub fn clear(&mut self) {
        self.used = [self.stubs.len.next_multiple_of(64), 0];
        self.sites_used = 0;
        // Their memory goes too: what comes next may want more of one and less of another.
        self.blocks = Vec::new();
        self.ops = Vec::new();
        self.links = Vec::new();
        self.site_op = Vec::new();
        self.guest = Vec::new();
        self.by_place = Places::default();
        self.pages = Map::default();
        self.page_places = 0;
        self.seconds = Map::default();
        self.index = Vec::new();
        self.decoded = Vec::new();
        self.decoded_ops = Map::default();
        self.entered = Map::default();
        self.often = 0;
        self.keep = Keep::default();
        self.clearings += 1;
        self.give_back();
    }

    /// Returns to the host what was used before blocks were dropped.
    fn give_back(&mut self) {
        for (half, used) in self.used.into_iter().enumerate() {
            self.area.give_back(half, used);
        }
        area::give_back();
    }

    /// Bytes of code and sites in use.
    #[must_use]
    pub fn in_use(&self) -> (usize, u32) {
        (self.used[0] + self.used[1], self.sites_used)
    }

    /// Host address at which the next block's code will stand.
    #[must_use]
    pub fn next_code(&self) -> u64 {
        self.area.exec() + self.used[0] as u64
    }

    /// The same of what of it is seldom executed.
    #[must_use]
    pub fn next_cold(&self) -> u64 {
        self.area.exec() + (self.area.half() + self.used[1]) as u64
    }

    /// Whether the block at `gpa` is to be small rather than fast, unless it is hot. Where two engines are compared, some are.
    #[must_use]
    pub fn is_dense(&self, gpa: u64) -> bool {
        self.dense || self.rounds == FEW_ROUNDS && gpa >> 4 & 1 != 0
    }

    /// Whether the code at `gpa` is of a loop that has gone round often.
    #[must_use]
    pub fn is_hot(&self, gpa: u64) -> bool {
        self.hot.get(&(gpa >> 12)).is_some_and(|bits| bits >> (gpa >> 6 & 63) & 1 != 0)
    }

    /// Takes the loop that block `n` closes by a jump back to `target`, from the start of its page, for one that goes round often: drops
    /// its blocks, to be translated anew.
    pub fn set_hot(&mut self, n: u32, target: u64) {
        let b = &self.blocks[n as usize];
        let from = b.gpa.min(b.gpa & !0xfff | target);
        let whole = b.gpa + u64::from(b.len) - from <= MOST_LOOP;
        self.heat(n, if whole { from } else { b.gpa });
    }

    /// Whether an indirect jump may make its block hot: a few may, as those of an interpreter in a tight loop; the sites of many take more
    /// of the host's caches than they save.
    #[must_use]
    pub fn may_be_hot(&self) -> bool {
        self.often < MOST_OFTEN
    }

    /// Takes block `n`, which ends in an indirect jump that is come to often, for hot.
    pub fn set_often(&mut self, n: u32) {
        self.often += 1;
        self.heat(n, self.blocks[n as usize].gpa);
        // The jump is yet to be executed: it must not come to the same counter.
        self.drop_block(n);
    }

    /// Makes hot what lies from `from` to the end of block `n`.
    fn heat(&mut self, n: u32, from: u64) {
        let b = &self.blocks[n as usize];
        // Where it goes on in the next page is not of interest: it is known by its start.
        let to = (b.gpa + u64::from(b.len.saturating_sub(1))).min(b.gpa | 0xfff);
        let (first, last) = (from >> 6 & 63, to >> 6 & 63);
        let bits = u64::MAX << first & u64::MAX >> (63 - last);
        remember(&mut self.hot);
        *self.hot.entry(from >> 12).or_default() |= bits;
        let Some(p) = self.pages.get(&(from >> 12)) else { return };
        let inside =
            |n: &u32| self.blocks.get(*n as usize).is_some_and(|b| b.alive && !b.hot && self.is_hot(b.gpa));
        let all: Vec<u32> = p.blocks.iter().copied().filter(inside).collect();
        for n in all {
            self.drop_block(n);
        }
    }

    /// Takes all code of the page of `gpa` for hot.
    #[cfg(test)]
    pub fn set_all_hot(&mut self, gpa: u64) {
        self.hot.insert(gpa >> 12, u64::MAX);
    }

    /// Notes that the accesses of the instruction at `gpa` have no locality.
    pub fn set_scattered(&mut self, gpa: u64) {
        remember(&mut self.scattered);
        self.scattered.insert(gpa, ());
    }

    /// Notes that the accesses of the group that begins at `gpa` lie in two pages; true if they have done so often, and are to be checked
    /// one by one.
    pub fn crossed(&mut self, gpa: u64) -> bool {
        remember(&mut self.split);
        let times = self.split.entry(gpa).or_default();
        *times = times.saturating_add(1);
        *times >= CROSSINGS
    }

    /// Whether a group may begin at `gpa`.
    #[must_use]
    pub fn may_group(&self, gpa: u64) -> bool {
        self.split.get(&gpa).is_none_or(|times| *times < CROSSINGS)
    }

    /// A counter of a loop's rounds.
    pub fn new_counter(&mut self, sites: &Sites) -> u32 {
        let n = self.new_site(sites, u32::MAX, 1, false, 0);
        self.set_gen(n, self.rounds);
        n
    }

    /// A site for accesses of op `op`.
    pub fn new_site(&mut self, sites: &Sites, op: u32, size: u64, write: bool, refills: i8) -> u32 {
        let n = self.sites_used;
        self.sites_used += 1;
        self.area.write_site(n, sites.empty(size, write, refills));
        push(&mut self.site_op, op);
        n
    }

    /// Says where the code goes on behind the check of site `n`, and what may be looked up for it.
    pub fn set_resume(&mut self, n: u32, resume: u32, early: Early) {
        if let Some(mut s) = self.area.read_site(n) {
            s.resume = resume;
            s.flags |= early.bits() << EARLY;
            self.area.write_site(n, s);
        }
    }

    /// A place for a generation, of which none is good yet.
    pub fn new_gen_site(&mut self, sites: &Sites) -> u32 {
        let n = self.new_site(sites, u32::MAX, 1, false, 0);
        self.set_gen(n, 0);
        n
    }

    /// Sets the generation that a site holds.
    pub fn set_gen(&mut self, site: u32, generation: u64) {
        if let Some(mut s) = self.area.read_site(site) {
            s.tag = generation;
            self.area.write_site(site, s);
        }
    }

    /// Puts the finished code of a new block, translated from `bytes`, in place: what is mostly executed at [`Store::next_code`], and what is seldom at
    /// [`Store::next_cold`].
    pub fn add(
        &mut self,
        mut b: Block,
        versions: Versions,
        bytes: &[u8],
        (code, cold): (&[u8], &[u8]),
    ) -> Option<u32> {
        let n = self.blocks.len() as u32;
        b.code = self.used[0] as u32;
        (b.bytes, b.len) = (self.guest.len() as u32, bytes.len() as u16);
        b.straddles = versions.second.is_some();
        if self.guest.capacity() - self.guest.len() < bytes.len() {
            self.guest.reserve_exact(growth(self.guest.len()));
        }
        self.guest.extend_from_slice(bytes);
        for (half, code) in [code, cold].into_iter().enumerate() {
            let (used, at) = (self.used[half], half * self.area.half() + self.used[half]);
            self.area.enlarge(half, used + code.len());
            if !self.area.put(at, code) {
                return None;
            }
            if let Some(m) = &mut self.perf_map {
                m.add(self.area.exec() + at as u64, code.len(), b.gpa, b.key.into());
            }
            let end = used + code.len();
            // Blocks begin where the processor fetches anew, unless they are to be small.
            let align = if half == 0 && !self.dense { 16 } else { 1 };
            self.used[half] = end.next_multiple_of(align);
        }
        self.note_page(b.gpa >> 12, versions.first, n);
        if let Some(s) = versions.second {
            self.note_page(s.gpa >> 12, s.version, n);
            self.seconds.insert(n, s);
        }
        while self.index.len() <= b.code as usize / STRETCH {
            self.index.push(n);
        }
        self.by_place.insert(place(b.gpa, b.key), b.code, n);
        push(&mut self.blocks, b);
        Some(n)
    }

    /// Notes that block `n` is from a page at `version`.
    fn note_page(&mut self, page: u64, version: u32, n: u32) {
        if self.pages.get(&page).is_some_and(|p| p.version != version) {
            self.drop_page(page);
        }
        let p = self.pages.entry(page).or_default();
        p.version = version;
        p.blocks.push(n);
        self.page_places += 1;
    }

    /// Host address of a block's code.
    #[must_use]
    pub fn code_of(&self, block: u32) -> u64 {
        self.area.exec() + u64::from(self.blocks[block as usize].code)
    }

    /// The second page of block `n`, if it has one.
    #[must_use]
    pub fn second(&self, n: u32) -> Option<Second> {
        let straddles = self.blocks.get(n as usize).is_some_and(|b| b.straddles);
        if straddles { self.seconds.get(&n).copied() } else { None }
    }

    /// Drops the blocks of a page, by its number.
    pub fn drop_page(&mut self, page: u64) {
        if let Some(p) = self.pages.remove(&page) {
            for b in p.blocks {
                self.drop_block(b);
            }
        }
    }

    /// Drops all blocks of all pages, as after writes that were too many to tell.
    pub fn drop_pages(&mut self) {
        let all: Vec<u64> = self.pages.keys().copied().collect();
        for p in all {
            self.drop_page(p);
        }
    }

    /// Lets nothing lead to a block any more, and makes its start a way out.
    pub fn drop_block(&mut self, n: u32) {
        let Some(b) = self.blocks.get_mut(n as usize) else { return };
        if !std::mem::take(&mut b.alive) {
            return;
        }
        let (place, code) = (place(b.gpa, b.key), b.code as usize);
        let mut l = std::mem::replace(&mut b.incoming, NONE);
        self.by_place.remove(place, n);
        while let Some(link) = self.links.get_mut(l as usize) {
            link.to = NONE;
            let next = std::mem::replace(&mut link.next, NONE);
            self.unlink(l);
            l = next;
        }
        let mut a = Asm::default();
        a.start(self.area.exec() + code as u64);
        a.mov_imm32(reg::R11, n);
        a.jmp_to(self.stubs.stale);
        let _fits = self.area.put(code, &a.code);
    }

    fn point(&mut self, at: u32, to: u32) {
        let d = i64::from(to) - (i64::from(at) + 4);
        let _fits = self.area.put(at as usize, &(d as i32).to_le_bytes());
    }

    fn unlink(&mut self, l: u32) {
        let Some(link) = self.links.get(l as usize).copied() else { return };
        if !self.blocks[link.block as usize].alive {
            // Its code may be the way out that stands at the block's start now; what it leads to is a way out too.
            return;
        }
        self.unbridge(l);
        self.point(link.at, link.unlinked);
    }

    /// Takes link `l` out of the list of the block that it leads to.
    fn forget_link(&mut self, l: u32) {
        let Link { to, next, .. } = self.links[l as usize];
        let Some(b) = self.blocks.get_mut(to as usize) else { return };
        if b.incoming == l {
            b.incoming = next;
            return;
        }
        let mut before = b.incoming;
        while let Some(link) = self.links.get_mut(before as usize) {
            if link.next == l {
                link.next = next;
                return;
            }
            before = link.next;
        }
    }

    /// Lets link `l` lead to `block` from now on: under generation `gen_key`, if it leads to another page.
    pub fn link(&mut self, l: u32, block: u32, gen_key: u64) {
        let Some(link) = self.links.get(l as usize).copied() else { return };
        if link.to != block {
            self.forget_link(l);
            let b = &mut self.blocks[block as usize];
            let next = std::mem::replace(&mut b.incoming, l);
            let link = &mut self.links[l as usize];
            (link.to, link.next) = (block, next);
        }
        let b = &self.blocks[block as usize];
        let (code, page) = (b.code, places::page(b.gpa, b.key));
        self.point(link.at, code);
        if link.gen_site != NONE {
            self.area.write_bridge(link.gen_site, Bridge { gen_key, page, code, target: link.target });
        }
    }

    /// Lets link `l`, if it is one to another page, know nothing of where it leads.
    pub fn unbridge(&mut self, l: u32) {
        let Link { gen_site, target, .. } = self.links[l as usize];
        if gen_site != NONE {
            self.site_op[gen_site as usize] = l;
            self.area.write_bridge(gen_site, Bridge { gen_key: 0, page: 0, code: 0, target });
        }
    }

    /// The decoded instruction of op `op`, made by `make` from its bytes the first time.
    pub fn decoded(&mut self, op: u32, make: impl FnOnce(&[u8]) -> Decoded) -> &Decoded {
        let n = *self.decoded_ops.entry(op).or_insert_with(|| {
            push(&mut self.decoded, make(bytes_of(&self.ops, &self.blocks, &self.guest, op)));
            self.decoded.len() as u32 - 1
        });
        &self.decoded[n as usize]
    }

    /// The bytes of op `op` and of what comes after it in its block.
    #[must_use]
    pub fn bytes(&self, op: u32) -> &[u8] {
        bytes_of(&self.ops, &self.blocks, &self.guest, op)
    }

    /// The bytes of op's block from place `offset` of its page on.
    #[must_use]
    pub fn bytes_from(&self, op: u32, offset: u16) -> &[u8] {
        let b = &self.blocks[self.ops[op as usize].block as usize];
        let from = usize::from(offset).saturating_sub((b.gpa & 0xfff) as usize);
        guest_bytes(b, &self.guest).get(from..).unwrap_or_default()
    }

    /// The guest bytes of the block of op `op`, and how many of them come before the op.
    #[must_use]
    pub fn before(&self, op: u32) -> (&[u8], usize) {
        let o = &self.ops[op as usize];
        let b = &self.blocks[o.block as usize];
        (guest_bytes(b, &self.guest), usize::from(o.offset).saturating_sub((b.gpa & 0xfff) as usize))
    }

    /// What stands in the code at host address `p` about an access.
    #[must_use]
    pub fn told(&self, p: u64) -> Told {
        let at = p.wrapping_sub(self.area.exec()) as usize;
        Told::of(self.area.bytes(at))
    }

    /// The op at whose code host address `pc` lies.
    #[must_use]
    pub fn op_at(&self, pc: u64) -> Option<u32> {
        let at = u32::try_from(pc.wrapping_sub(self.area.exec())).ok()?;
        // The block is the last that starts at or before it.
        let (low, high) = (at as usize / STRETCH, at as usize / STRETCH + 1);
        let place = |k: usize| self.index.get(k).map_or(self.blocks.len(), |n| *n as usize);
        let (low, high) = (place(low).saturating_sub(1), place(high));
        let n = low + self.blocks.get(low..high)?.partition_point(|b| b.code <= at).checked_sub(1)?;
        let first = self.blocks[n].first_op;
        let end = self.blocks.get(n + 1).map_or(self.ops.len(), |b| b.first_op as usize);
        let ops = self.ops.get(first as usize..end)?;
        let k = ops.partition_point(|o| o.start <= at).checked_sub(1)?;
        Some(first + k as u32)
    }

    /// Notes that the page of `gpa` is entered at `vpage` under `generation`; false if it was entered elsewhere before, so that
    /// jumps out of it that were linked then would lead astray.
    #[must_use]
    pub fn enter(&mut self, generation: u64, gpa: u64, vpage: u64) -> bool {
        if self.entered.len() > 1 << 16 {
            self.entered.clear();
            return false;
        }
        *self.entered.entry((generation, gpa >> 12)).or_insert(vpage) == vpage
    }
}

fn guest_bytes<'a>(b: &Block, guest: &'a [u8]) -> &'a [u8] {
    &guest[b.bytes as usize..][..usize::from(b.len)]
}

fn bytes_of<'a>(ops: &[Op], blocks: &[Block], guest: &'a [u8], op: u32) -> &'a [u8] {
    let o = &ops[op as usize];
    let b = &blocks[o.block as usize];
    let from = usize::from(o.offset) - (b.gpa & 0xfff) as usize;
    &guest_bytes(b, guest)[from..]
}

/// By how much a full table of `len` entries grows: a sixteenth, where [`Vec`] would double. This is what the limit is spent on.
fn growth(len: usize) -> usize {
    (len / 16).max(2048)
}

/// Makes room for one entry more in what is remembered of places.
fn remember<T>(places: &mut Map<u64, T>) {
    if places.len() >= MOST_PLACES {
        places.clear();
    }
}

/// Pushes to a table.
pub fn push<T>(v: &mut Vec<T>, t: T) {
    if v.len() == v.capacity() {
        v.reserve_exact(growth(v.len()));
    }
    v.push(t);
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const LIMIT: usize = 8 << 20;

    /// Adds a block with a link to the one before it.
    pub(super) fn add(s: &mut Store, gpa: u64, code: usize, bytes: usize) -> u32 {
        let n = s.blocks.len() as u32;
        let (at, first) = ((s.next_code() - s.area.exec()) as u32, s.ops.len() as u32);
        let op = Op {
            block: n,
            offset: (gpa & 0xfff) as u16,
            notes: 0,
            before: 0,
            insns: 1,
            undo: 0,
            start: at,
            gap: 0,
        };
        push(&mut s.ops, op);
        let link = Link { block: n, at, unlinked: 0, target: 0, gen_site: NONE, to: NONE, next: NONE };
        push(&mut s.links, link);
        let block = Block {
            gpa,
            key: 0,
            code: 0,
            bytes: 0,
            len: 0,
            first_op: first,
            incoming: NONE,
            alive: true,
            hot: false,
            vec: false,
            x87: false,
            straddles: false,
        };
        s.add(
            block,
            Versions { first: 0, second: None },
            &vec![0x90; bytes],
            (&vec![0xcc; code], &[0xcc; 10]),
        )
        .unwrap()
    }

    #[test]
    fn small_blocks_and_large_ones_stay_below_the_limit() {
        for (code, bytes) in [(LEAST_CODE, 1), (200, 20), (2000, 15), (40_000, 1000)] {
            let mut s = Store::new(LIMIT, true, false).unwrap();
            for round in 0..3 {
                let mut gpa = 0x1000;
                while s.has_room() {
                    let n = add(&mut s, gpa, code, bytes);
                    s.link(n, n.saturating_sub(1), 1);
                    gpa += 1024;
                    assert!(s.in_memory(false) <= LIMIT, "{code} {bytes}");
                }
                assert!(s.in_memory(false) > LIMIT / 3, "{code} {bytes} {round}: {}", s.in_memory(false));
                s.clear();
                assert!(s.in_memory(false) < 1 << 14);
            }
        }
    }

    #[test]
    fn links_move_from_block_to_block() {
        let mut s = Store::new(LIMIT, true, false).unwrap();
        let b: Vec<u32> = (0..5).map(|i| add(&mut s, 0x1000 * (i + 1), 64, 4)).collect();
        let list = |s: &Store, block: u32| {
            let mut all = Vec::new();
            let mut l = s.blocks[block as usize].incoming;
            while l != NONE {
                assert_eq!(s.links[l as usize].to, block);
                all.push(l);
                l = s.links[l as usize].next;
            }
            all
        };
        for l in 0..4 {
            s.link(l, b[4], 1);
        }
        s.link(2, b[4], 2);
        assert_eq!(list(&s, b[4]), [3, 2, 1, 0]);
        for l in [1, 3, 0] {
            s.link(l, b[0], 1);
        }
        assert_eq!((list(&s, b[4]), list(&s, b[0])), (vec![2], vec![0, 3, 1]));
        s.drop_block(b[0]);
        assert_eq!(list(&s, b[0]), []);
        s.link(3, b[4], 1);
        assert_eq!(list(&s, b[4]), [3, 2]);
        assert!(s.links.iter().all(|l| l.to == NONE || l.to == b[4]));
    }
}
