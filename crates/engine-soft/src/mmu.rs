//! The soft MMU: per-processor TLBs in front of the page walker. An unsafe room: a TLB hit dereferences host memory.
//!
//! An entry's tags are linear page addresses; `lin - tag <= 4096 - size` tests the page and the crossing at once.
//! Invariant that every `unsafe` here rests on: a tag that can match belongs to an entry whose `host` is the host address
//! of one page of guest RAM, which stays mapped as long as the `GuestMemory` that this `Mmu` holds.
//!
//! Translated code probes the same tables, and keeps one entry more for each of its access sites ([`crate::sites`]): whatever
//! drops entries here drops those too.

use crate::cpu::{Cpu, Fault, Mode, R};
use crate::fetched::Fetched;
use crate::large::Large;
use crate::mapping::Mapping;
use crate::sites::Sites;
use ringer_arch::cpu::{CpuModel, Feature, Vendor};
use ringer_arch::exception::{Exception, pf, vector};
use ringer_arch::paging::{self, Access, Kind};
use ringer_arch::regs::{cr0, cr4, rflags};
use ringer_engine::{WatchKind, Watchpoint};
use ringer_memory::raw::{self, GuestInt};
use ringer_memory::{GuestMemory, PAGE_SIZE, PageFlags};
use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Entries of one table.
pub const ENTRIES: usize = 16384;
/// Address spaces (PCIDs) that keep their entries while others run.
const SLOTS: usize = 6;
/// Tables a slot: supervisor, supervisor with user data accessible (AC set), user.
const MODES: usize = 3;
/// Bytes that devices take at once; a TSS that a task switch reads is longer.
const MMIO_MOST: usize = 64;
const KERNEL: usize = 0;
const KERNEL_AC: usize = 1;
const USER: usize = 2;

/// A page that may be accessed without asking. Translated code knows the layout.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Linear address of the page if it may be read, else one that cannot match.
    pub read: u64,
    /// The same for writes.
    pub write: u64,
    /// The same for instruction fetches.
    pub fetch: u64,
    /// Host address of the page.
    pub host: u64,
}

/// The entries of one table: [`ENTRIES`] of them.
struct Entries(*mut Entry);

impl Deref for Entries {
    type Target = [Entry];
    fn deref(&self) -> &[Entry] {
        // SAFETY: so many lie there in the mapping that the [`Mmu`] holds, and they are this table's alone; translated code, which reads them, changes none.
        unsafe { std::slice::from_raw_parts(self.0, ENTRIES) }
    }
}

impl DerefMut for Entries {
    fn deref_mut(&mut self) -> &mut [Entry] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.0, ENTRIES) }
    }
}

/// All tables of a processor: those of [`SLOTS`] address spaces in [`MODES`] modes, and the empty one.
const TABLES: usize = SLOTS * MODES + 1;
const TABLE_LEN: usize = ENTRIES * size_of::<Entry>();

struct Table {
    entries: Entries,
    /// Indexes that may be live, each once.
    live: Vec<u16>,
    is_live: Box<[bool]>,
    global: Box<[bool]>,
    /// log2 of the sizes of the pages that they are pieces of.
    shift: Box<[u8]>,
    /// Tags of pages that may be written, but not without telling: they hold code.
    careful: Box<[u64]>,
    /// Regions of which some live entry is a piece of a large page: INVLPG must drop all its pieces.
    large: Large,
}

/// A tag that cannot match at `index`: a page that belongs to another index. Mostly zero, so that new tables take no memory.
fn invalid(index: usize) -> u64 {
    u64::from(index == 0) << 12
}

fn index_of(lin: u64) -> usize {
    (lin >> 12) as usize & (ENTRIES - 1)
}

/// How many write entries there are to the host pages of each hash: most pages that become code have none by then.
struct Writers(Box<[u32; WRITERS]>);

const WRITERS: usize = 1 << 14;

impl Writers {
    fn of(&mut self, host: u64) -> &mut u32 {
        &mut self.0[(host >> 12) as usize & (WRITERS - 1)]
    }
}

impl Table {
    /// Table `n` of those in `map`, which is [`TABLES`] times [`TABLE_LEN`] bytes.
    fn new(map: &Mapping, n: usize) -> Table {
        assert!(n < TABLES);
        // SAFETY: within the mapping; zeros are entries.
        let mut entries = Entries(unsafe { map.start().add(n * TABLE_LEN).cast() });
        let t = invalid(0);
        entries[0] = Entry { read: t, write: t, fetch: t, host: 0 };
        let mut careful = vec![0; ENTRIES].into_boxed_slice();
        careful[0] = t;
        Table {
            entries,
            live: Vec::new(),
            is_live: vec![false; ENTRIES].into_boxed_slice(),
            global: vec![false; ENTRIES].into_boxed_slice(),
            shift: vec![0; ENTRIES].into_boxed_slice(),
            careful,
            large: Large::NONE,
        }
    }

    fn drop_write(&mut self, i: usize, w: &mut Writers) {
        let e = &mut self.entries[i];
        if e.write != invalid(i) {
            e.write = invalid(i);
            let n = w.of(e.host);
            *n = n.saturating_sub(1);
        }
    }

    fn drop_entry(&mut self, i: usize, w: &mut Writers) {
        self.drop_write(i, w);
        let t = invalid(i);
        let e = &mut self.entries[i];
        (e.read, e.fetch) = (t, t);
        self.careful[i] = t;
    }

    /// `forgotten` comes to know what it does not know any more of large pages.
    fn flush(&mut self, keep_global: bool, w: &mut Writers, forgotten: &mut Large) {
        let mut live = std::mem::take(&mut self.live);
        live.retain(|&i| {
            let i = i as usize;
            if keep_global && self.global[i] {
                return true;
            }
            self.drop_entry(i, w);
            self.is_live[i] = false;
            false
        });
        self.live = live;
        if self.live.is_empty() && !self.large.is_empty() {
            forgotten.add(&self.large);
            self.large = Large::NONE;
        }
    }

    /// Drops what maps the page `page`, and if there may be a piece of a large page, all pieces of the region of `1 << shift` bytes around it.
    fn drop_around(&mut self, page: u64, shift: Option<u8>, w: &mut Writers) {
        let Some(shift) = shift else {
            let i = index_of(page);
            let e = &self.entries[i];
            if e.read == page || e.write == page || e.fetch == page {
                self.drop_entry(i, w);
            }
            return;
        };
        let inside = |tag: u64| tag >> shift == page >> shift;
        let first = index_of(page >> shift << shift);
        let last = (first + (1 << (shift - 12))).min(ENTRIES);
        for i in first..last {
            let e = &self.entries[i];
            if inside(e.read) || inside(e.write) || inside(e.fetch) {
                self.drop_entry(i, w);
            }
        }
    }

    fn flush_writes(&mut self, w: &mut Writers) {
        for n in 0..self.live.len() {
            self.drop_write(self.live[n] as usize, w);
        }
    }
}

/// The soft TLBs of one processor.
pub struct Mmu {
    /// Entries of the table in force.
    cur: *mut Entry,
    memory: GuestMemory,
    base: u64,
    tables: Vec<Table>,
    /// Never filled: in force while alignment checks are on, so that every access takes the slow path.
    empty: Table,
    /// Where the tables' entries lie.
    map: Mapping,
    slot_pcid: [u64; SLOTS],
    slot_used: [u64; SLOTS],
    slot_gen: [u64; SLOTS],
    /// `slot_gen` of the current slot.
    current_gen: u64,
    slot: usize,
    mode: usize,
    next_gen: u64,
    /// Pages that code may have been fetched from since the generations last changed.
    fetched: Fetched,
    tick: u64,
    phys_bits: u32,
    page_1g: bool,
    amd: bool,
    /// As `current_gen`, for supervisor code: pages of the kernel's are global, and outlive the address space.
    kernel_gen: u64,
    /// Supervisor code has been fetched from a page that is not global.
    kernel_code_local: bool,
    /// Some entry for the upper half of the address space is not global.
    local_high: bool,
    writers: Writers,
    watched_code: Box<[WatchedCode; WATCHED_CODE]>,
    /// Where large pages lie that tables have forgotten: sites may outlive the entries they came from.
    forgotten: Large,
    /// What translated code's sites hold.
    pub sites: Sites,
}

// SAFETY: `cur` points into `tables` or `empty`, which the same value owns on the heap; nothing is tied to a thread.
unsafe impl Send for Mmu {}

impl Mmu {
    /// Empty TLBs over `memory`, for a processor of `model`.
    #[must_use]
    pub fn new(memory: GuestMemory, model: &CpuModel) -> Mmu {
        let len = TABLES * TABLE_LEN;
        let map = Mapping::new(len)
            .unwrap_or_else(|_| handle_alloc_error(Layout::new::<[[Entry; ENTRIES]; TABLES]>()));
        let mut tables: Vec<Table> = (0..TABLES - 1).map(|n| Table::new(&map, n)).collect();
        let empty = Table::new(&map, TABLES - 1);
        let cur = tables[0].entries.as_mut_ptr();
        let base = memory.host_base() as u64;
        Mmu {
            cur,
            memory,
            base,
            tables,
            empty,
            map,
            slot_pcid: [u64::MAX; SLOTS],
            slot_used: [0; SLOTS],
            slot_gen: [0; SLOTS],
            current_gen: 0,
            slot: 0,
            mode: 0,
            next_gen: 1,
            fetched: Fetched::new(SLOTS),
            tick: 0,
            phys_bits: model.max_phys_bits(),
            page_1g: model.has(Feature::PDPE1GB),
            amd: model.vendor() == Vendor::Amd,
            kernel_gen: 1,
            kernel_code_local: false,
            local_high: false,
            writers: Writers(Box::new([0; WRITERS])),
            watched_code: Box::new([WatchedCode::default(); WATCHED_CODE]),
            forgotten: Large::NONE,
            sites: Sites::none(),
        }
    }

    /// Puts the tables in large pages, where the host has them.
    pub fn enlarge(&self) {
        self.map.enlarge(0, TABLES * TABLE_LEN);
    }

    /// Guest RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// A number that changes whenever a linear address may have come to mean another instruction: what caches that are keyed
    /// by linear address are tagged with.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> u64 {
        self.current_gen
    }

    /// The same for translated code, which tells user from supervisor code: supervisor code in global pages keeps its number
    /// when the address space changes.
    #[must_use]
    pub fn code_generation(&self, user: bool) -> u64 {
        if user { self.current_gen } else { self.kernel_gen }
    }

    /// Linear addresses have come to mean something else to translated code, in all address spaces.
    pub fn renew_code_generation(&mut self) {
        for s in 0..SLOTS {
            self.renew_slot(s);
        }
        self.current_gen = self.slot_gen[self.slot];
        self.kernel_gen = self.fresh_gen();
    }

    fn renew_slot(&mut self, slot: usize) {
        self.slot_gen[slot] = self.fresh_gen();
        self.fetched.forget_user(slot);
    }

    /// Whether code in the page at `gpa` has of late been written over so often that fast writes to it do not pay: each time it becomes
    /// code again, they would have to be sought out and dropped. Pages that are code now and data then, as memory goes from
    /// one program to the next, are not meant.
    pub fn keeps_changing(&mut self, gpa: u64) -> bool {
        let (page, version) = (gpa / PAGE_SIZE, self.memory.code_version(gpa));
        if version < OFTEN {
            return false;
        }
        // SAFETY: every x86-64 processor has RDTSC, and Linux lets programs use it.
        let period = unsafe { core::arch::x86_64::_rdtsc() } >> PERIOD_BITS;
        let w = &mut self.watched_code[page as usize & (WATCHED_CODE - 1)];
        if w.page != page || w.period != period {
            *w = WatchedCode { page, period, version };
            return false;
        }
        version.wrapping_sub(w.version) >= OFTEN
    }

    /// Whether the page at `gpa` is dirty, holds no code, and may be written fast by some processor.
    fn is_written(&self, gpa: u64) -> bool {
        let written = PageFlags::DIRTY | PageFlags::WCACHED;
        self.memory.page_flags(gpa).0 & (written | PageFlags::CODE) == written
    }

    /// Whatever was written to code so far does not tell what the guest is about to do.
    pub fn forget_changes(&mut self) {
        self.watched_code.fill(WatchedCode::default());
    }

    /// Entries of the table in force, for translated code.
    #[must_use]
    pub fn table(&self) -> *const Entry {
        self.cur
    }

    /// Whether the table in force is the empty one.
    #[must_use]
    pub fn is_checking_alignment(&self) -> bool {
        std::ptr::eq(self.cur, self.empty.entries.as_ptr())
    }

    /// Which of the tables of an address space is in force: supervisor, supervisor with AC, user.
    #[must_use]
    pub fn mode(&self) -> usize {
        self.mode
    }

    /// Entries that are not global are about to go.
    fn leave_local(&mut self) {
        if self.local_high {
            self.drop_sites();
        } else {
            self.sites.drop_low();
            self.forgotten.clear_low();
        }
        if self.kernel_code_local {
            self.kernel_code_local = false;
            self.kernel_gen = self.fresh_gen();
        }
    }

    fn drop_sites(&mut self) {
        self.sites.drop_all();
        self.forgotten = Large::NONE;
    }

    fn fresh_gen(&mut self) -> u64 {
        self.next_gen += 1;
        self.next_gen
    }

    fn select(&mut self, mode: Option<usize>) {
        self.cur = match mode {
            None => self.empty.entries.as_mut_ptr(),
            Some(m) => {
                self.mode = m;
                self.tables[self.slot * MODES + m].entries.as_mut_ptr()
            }
        };
    }

    /// Makes the address space `pcid` current, taking over the least recently used slot if it has none.
    fn switch(&mut self, pcid: u64) {
        self.tick += 1;
        let slot = match self.slot_pcid.iter().position(|&p| p == pcid) {
            Some(s) => s,
            None => {
                let s = (0..SLOTS).min_by_key(|&s| self.slot_used[s]).unwrap_or(0);
                self.slot_pcid[s] = pcid;
                self.flush_slot(s, false);
                s
            }
        };
        if slot != self.slot {
            self.leave_local();
        }
        self.slot = slot;
        self.current_gen = self.slot_gen[slot];
        self.slot_used[slot] = self.tick;
    }

    fn flush_slot(&mut self, slot: usize, keep_global: bool) {
        for t in &mut self.tables[slot * MODES..(slot + 1) * MODES] {
            t.flush(keep_global, &mut self.writers, &mut self.forgotten);
        }
        if slot == self.slot {
            if keep_global {
                self.leave_local();
            } else {
                self.drop_sites();
                self.kernel_gen = self.fresh_gen();
            }
        }
        self.renew_slot(slot);
        self.current_gen = self.slot_gen[self.slot];
    }

    /// Drops every entry of every address space.
    pub fn flush_all(&mut self) {
        for s in 0..SLOTS {
            self.flush_slot(s, false);
        }
        self.local_high = false;
    }

    /// Drops the entries of the current address space that are not global.
    pub fn flush_current(&mut self) {
        self.flush_slot(self.slot, true);
    }

    /// Drops the entries of address space `pcid` that are not global.
    pub fn flush_pcid(&mut self, pcid: u64) {
        if let Some(s) = self.slot_pcid.iter().position(|&p| p == pcid) {
            self.flush_slot(s, true);
        }
    }

    /// Drops all entries that are not global.
    pub fn flush_nonglobal(&mut self) {
        for s in 0..SLOTS {
            self.flush_slot(s, true);
        }
    }

    /// Drops what maps linear address `lin`, in all address spaces (more than INVLPG must, never less).
    pub fn flush_page(&mut self, lin: u64) {
        let page = lin & !0xfff;
        let mut region = self.forgotten.region(lin);
        for t in &mut self.tables {
            let known = t.large.region(lin);
            t.drop_around(page, known, &mut self.writers);
            region = region.max(known);
        }
        self.sites.drop_region(page, region.unwrap_or(12));
        if self.fetched.by_supervisor(lin) {
            self.fetched.forget();
            self.renew_code_generation();
        } else {
            for s in 0..SLOTS {
                if self.fetched.by_user(s, lin) {
                    self.renew_slot(s);
                }
            }
        }
        self.current_gen = self.slot_gen[self.slot];
    }

    /// Drops all fast write entries: pages may have become code, or clean.
    pub fn flush_writes(&mut self) {
        for t in &mut self.tables {
            t.flush_writes(&mut self.writers);
        }
        self.sites.drop_writes();
    }

    /// Drops fast write entries to the RAM page at `gpa`.
    pub fn flush_writes_to(&mut self, gpa: u64) {
        let host = self.base.wrapping_add(gpa & !0xfff);
        if *self.writers.of(host) != 0 {
            for t in &mut self.tables {
                for n in 0..t.live.len() {
                    let i = t.live[n] as usize;
                    if t.entries[i].host == host {
                        t.drop_write(i, &mut self.writers);
                    }
                }
            }
        }
        self.sites.drop_writes_to(host);
    }

    fn fill(&mut self, table: usize, lin: u64, gpa: u64, rights: Rights) {
        let i = index_of(lin);
        let page = lin & !0xfff;
        let t = &mut self.tables[table];
        if !t.is_live[i] {
            t.is_live[i] = true;
            t.live.push(i as u16);
        }
        t.large.note(lin, rights.shift);
        t.global[i] = rights.global;
        t.shift[i] = rights.shift;
        self.local_high |= !rights.global && lin >> 63 != 0;
        let host = self.base.wrapping_add(gpa & !0xfff);
        let no = invalid(i);
        let pick = |yes: bool| if yes { page } else { no };
        t.drop_write(i, &mut self.writers);
        if rights.write {
            *self.writers.of(host) += 1;
        }
        t.careful[i] = pick(rights.careful);
        t.entries[i] =
            Entry { read: pick(rights.read), write: pick(rights.write), fetch: pick(rights.fetch), host };
    }
}

/// Changes of a page's code within a period after which it is taken for one that keeps changing.
const OFTEN: u32 = 4;
/// log2 of the ticks of the host's TSC in a period: about a tenth of a second.
const PERIOD_BITS: u32 = 28;
/// Pages that are watched at once for changes of their code.
const WATCHED_CODE: usize = 256;

/// The version that a page's code had when it was first looked at in a period.
#[derive(Clone, Copy, Default)]
struct WatchedCode {
    page: u64,
    period: u64,
    version: u32,
}

/// What a new TLB entry permits on the fast path.
#[derive(Clone, Copy)]
struct Rights {
    read: bool,
    write: bool,
    /// Written with telling.
    careful: bool,
    fetch: bool,
    global: bool,
    /// Of the page: 12, 21, 22 or 30.
    shift: u8,
}

/// The page walker's view of guest RAM.
struct PhysView<'a>(&'a GuestMemory);

impl paging::PhysMemory for PhysView<'_> {
    fn load_u64(&self, gpa: u64) -> Option<u64> {
        self.0.load(gpa).ok()
    }
    fn load_u32(&self, gpa: u64) -> Option<u32> {
        self.0.load(gpa).ok()
    }
    fn compare_exchange_u64(&self, gpa: u64, old: u64, new: u64) -> Option<u64> {
        self.0.compare_exchange(gpa, old, new).ok()
    }
    fn compare_exchange_u32(&self, gpa: u64, old: u32, new: u32) -> Option<u32> {
        // The half of the aligned quadword that holds the entry; the other half must stay as it is.
        let q = gpa & !7;
        let shift = (gpa & 4) * 8;
        loop {
            let cur: u64 = self.0.load(q).ok()?;
            let half = (cur >> shift) as u32;
            if half != old {
                return Some(half);
            }
            let want = cur & !(0xffff_ffff << shift) | u64::from(new) << shift;
            if self.0.compare_exchange(q, cur, want).ok()? == cur {
                return Some(old);
            }
        }
    }
}

/// What kind of access is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acc {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

impl Cpu {
    /// Puts the soft TLB in force that CPL, RFLAGS.AC, CR0, CR4 and CR3 call for.
    pub(crate) fn select_tlb(&mut self) {
        let pcid = if self.cr4 & cr4::PCIDE != 0 { self.cr3 & 0xfff } else { 0 };
        if self.mmu.slot_pcid[self.mmu.slot] != pcid {
            self.mmu.switch(pcid);
        }
        let mode = if self.cpl == 3 {
            USER
        } else if self.cr4 & cr4::SMAP == 0 || self.sysflags & rflags::AC != 0 {
            KERNEL_AC
        } else {
            KERNEL
        };
        let checked = self.alignment_checked();
        self.mmu.select(Some(mode));
        if checked {
            self.mmu.select(None);
        }
    }

    /// Whether misaligned data accesses raise #AC now.
    #[must_use]
    pub fn alignment_checked(&self) -> bool {
        self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.sysflags & rflags::AC != 0
    }

    /// Loads from `lin` if the TLB in force has a fast entry for it.
    #[inline(always)]
    #[must_use]
    pub fn load_hit<T: GuestInt>(&self, lin: u64) -> Option<T> {
        // SAFETY: `cur` points to ENTRIES entries; the index is masked.
        let e = unsafe { &*self.mmu.cur.add(index_of(lin)) };
        let off = lin.wrapping_sub(e.read);
        // SAFETY: the tag matched: the invariant of this module.
        let load = || unsafe { T::load(e.host.wrapping_add(off) as *const u8) };
        (off <= PAGE_SIZE - T::SIZE).then(load)
    }

    /// Stores to `lin` if the TLB in force has a fast entry for it, and says whether it had.
    #[inline(always)]
    #[must_use]
    pub fn store_hit<T: GuestInt>(&mut self, lin: u64, v: T) -> bool {
        // SAFETY: as in `load_hit`.
        let e = unsafe { &*self.mmu.cur.add(index_of(lin)) };
        let off = lin.wrapping_sub(e.write);
        let hit = off <= PAGE_SIZE - T::SIZE;
        if hit {
            // SAFETY: as in `load_hit`.
            unsafe { T::store(e.host.wrapping_add(off) as *mut u8, v) };
        }
        hit
    }

    /// Reads, changes and writes back an integer at `lin`, not atomically, if the TLB in force has a fast entry for it.
    #[inline(always)]
    #[must_use]
    pub fn modify_hit<T: GuestInt>(&mut self, lin: u64, f: impl FnOnce(T) -> T) -> bool {
        // SAFETY: as in `load_hit`.
        let e = unsafe { &*self.mmu.cur.add(index_of(lin)) };
        let off = lin.wrapping_sub(e.write);
        let hit = off <= PAGE_SIZE - T::SIZE;
        if hit {
            let p = e.host.wrapping_add(off) as *mut u8;
            // SAFETY: as in `load_hit`.
            unsafe { T::store(p, f(T::load(p))) };
        }
        hit
    }

    /// Loads from linear address `lin` as this processor's program would.
    ///
    /// # Errors
    /// The fault that the access raises.
    #[inline(always)]
    pub fn load<T: GuestInt>(&mut self, lin: u64) -> R<T> {
        match self.load_hit(lin) {
            Some(v) => Ok(v),
            None => self.load_slow(lin),
        }
    }

    /// Stores to linear address `lin` as this processor's program would.
    ///
    /// # Errors
    /// The fault that the access raises; nothing is written then.
    #[inline(always)]
    pub fn store<T: GuestInt>(&mut self, lin: u64, v: T) -> R<()> {
        if self.store_hit(lin, v) { Ok(()) } else { self.store_slow(lin, v) }
    }

    /// Reads, changes and writes back an integer, not atomically, whatever it takes.
    ///
    /// # Errors
    /// The fault that a write would raise; nothing is written then.
    #[cold]
    #[inline(never)]
    pub fn modify_slow<T: GuestInt>(&mut self, lin: u64, mut f: impl FnMut(T) -> T) -> R<()> {
        self.rmw(lin, T::SIZE as u32, false, |v| f(T::of_u64(v)).to_u64())?;
        Ok(())
    }

    /// [`Cpu::load`] for what has no fast entry.
    ///
    /// # Errors
    /// The fault that the access raises.
    #[cold]
    #[inline(never)]
    pub fn load_slow<T: GuestInt>(&mut self, lin: u64) -> R<T> {
        self.check_alignment(lin, T::SIZE)?;
        let mut buf = [0; 8];
        self.access(lin, T::SIZE as usize, false, |cpu, gpa, at, n| {
            cpu.phys_read(gpa, &mut buf[at..at + n])
        })?;
        Ok(T::of_u64(u64::from_le_bytes(buf)))
    }

    /// [`Cpu::store`] for what has no fast entry.
    ///
    /// # Errors
    /// The fault that the access raises; nothing is written then.
    #[cold]
    #[inline(never)]
    pub fn store_slow<T: GuestInt>(&mut self, lin: u64, v: T) -> R<()> {
        self.check_alignment(lin, T::SIZE)?;
        self.write_bytes_unchecked(lin, &v.to_u64().to_le_bytes()[..T::SIZE as usize])
    }

    fn check_alignment(&mut self, lin: u64, size: u64) -> R<()> {
        if self.alignment_checked() && !lin.is_multiple_of(size) {
            let part = self.amd() && !self.canonical(lin.wrapping_add(size - 1));
            if part || !self.canonical(lin) {
                return Err(self.gp(0));
            }
            return Err(self.raise(Exception::coded(vector::AC, 0)));
        }
        Ok(())
    }

    /// Raises #AC if alignment is checked and `lin` is not a multiple of `align`.
    ///
    /// # Errors
    /// #AC.
    pub fn require_alignment(&mut self, lin: u64, align: u64) -> R<()> {
        self.check_alignment(lin, align)
    }

    /// The linear address `n` bytes on, wrapped as the mode wraps it.
    #[must_use]
    pub fn lin_add(&self, lin: u64, n: u64) -> u64 {
        let l = lin.wrapping_add(n);
        // Above 4 GiB lie only the system structures that the events of compatibility-mode code use.
        if self.mode == Mode::Long || lin >> 32 != 0 { l } else { l & 0xffff_ffff }
    }

    /// Raises #GP(0) for an access that begins at a canonical address and ends at another: before its first part is looked up, as where
    /// operands are checked by their segment.
    fn check_end(&mut self, lin: u64, len: u64) -> R<()> {
        if len > PAGE_SIZE - lin % PAGE_SIZE && !self.canonical(lin.wrapping_add(len - 1)) {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Splits `lin..+len` (at most a page long) at a page boundary, translates both parts before either is touched.
    fn access(
        &mut self,
        lin: u64,
        len: usize,
        write: bool,
        mut f: impl FnMut(&mut Cpu, u64, usize, usize),
    ) -> R<()> {
        self.stats.tlb_slow += 1;
        let acc = if write { Acc::Write } else { Acc::Read };
        let room = (PAGE_SIZE - lin % PAGE_SIZE) as usize;
        self.check_end(lin, len as u64)?;
        let g1 = self.translate(lin, acc)?;
        if len <= room {
            self.watch(lin, len as u64, write);
            f(self, g1, 0, len);
        } else {
            let next = self.lin_add(lin, room as u64);
            let g2 = self.translate(next, acc)?;
            self.watch(lin, len as u64, write);
            f(self, g1, 0, room);
            f(self, g2, room, len - room);
        }
        Ok(())
    }

    /// Reads bytes at a linear address, at most a page long.
    ///
    /// # Errors
    /// The fault that the access raises.
    pub fn read_bytes(&mut self, lin: u64, buf: &mut [u8]) -> R<()> {
        let len = buf.len();
        if let Some(p) = self.fast_ptr(lin, len as u64, false) {
            // SAFETY: `fast_ptr` matched a tag for all of the bytes.
            unsafe { raw::copy_out(p, buf) };
            return Ok(());
        }
        self.access(lin, len, false, |cpu, gpa, at, n| cpu.phys_read(gpa, &mut buf[at..at + n]))
    }

    /// Writes bytes at a linear address, at most a page long: all of them or none.
    ///
    /// # Errors
    /// The fault that the access raises.
    pub fn write_bytes(&mut self, lin: u64, buf: &[u8]) -> R<()> {
        if let Some(p) = self.fast_ptr(lin, buf.len() as u64, true) {
            // SAFETY: `fast_ptr` matched a tag for all of the bytes.
            unsafe { raw::copy_in(p.cast_mut(), buf) };
            return Ok(());
        }
        self.write_bytes_unchecked(lin, buf)
    }

    fn write_bytes_unchecked(&mut self, lin: u64, buf: &[u8]) -> R<()> {
        self.access(lin, buf.len(), true, |cpu, gpa, at, n| cpu.phys_write(gpa, &buf[at..at + n]))
    }

    /// Makes sure that `lin..+len` (at most a page) can be written.
    ///
    /// # Errors
    /// The fault that a write would raise.
    pub fn probe_write(&mut self, lin: u64, len: u64) -> R<()> {
        self.check_end(lin, len)?;
        self.translate(lin, Acc::Write)?;
        let room = PAGE_SIZE - lin % PAGE_SIZE;
        if len > room {
            let next = self.lin_add(lin, room);
            self.translate(next, Acc::Write)?;
        }
        Ok(())
    }

    /// Host address of `len` bytes at `lin` if the TLB in force has a fast entry for all of them.
    #[inline]
    pub(crate) fn fast_ptr(&self, lin: u64, len: u64, write: bool) -> Option<*const u8> {
        // SAFETY: as in `load`.
        let e = unsafe { &*self.mmu.cur.add(index_of(lin)) };
        let off = lin.wrapping_sub(if write { e.write } else { e.read });
        let ok = off < PAGE_SIZE && len <= PAGE_SIZE - off;
        ok.then(|| e.host.wrapping_add(off) as *const u8)
    }

    /// Host address for an atomic read-modify-write of `size` bytes, if all of it is RAM within a page. The caller
    /// tells [`Cpu::rmw_done`] after the write.
    ///
    /// # Errors
    /// The fault that a write would raise.
    pub fn rmw_ptr(&mut self, lin: u64, size: u64) -> R<Option<*mut u8>> {
        if let Some(p) = self.fast_ptr(lin, size, true) {
            return Ok(Some(p.cast_mut()));
        }
        self.check_alignment(lin, size)?;
        self.probe_write(lin, size)?;
        self.watch(lin, size, false);
        self.watch(lin, size, true);
        if lin % PAGE_SIZE + size > PAGE_SIZE {
            return Ok(None);
        }
        let gpa = self.translate(lin, Acc::Write)?;
        let ram = self.mmu.memory.contains(gpa, size);
        Ok(ram.then(|| self.mmu.memory.host_base().wrapping_add(gpa as usize)))
    }

    /// Tells that the bytes behind a pointer from [`Cpu::rmw_ptr`] were written.
    #[inline]
    pub fn rmw_done(&mut self, p: *mut u8, size: u64) {
        let gpa = (p as u64).wrapping_sub(self.mmu.base);
        if self.mmu.memory.page_flags(gpa).0 & (PageFlags::CODE | PageFlags::DIRTY) != PageFlags::DIRTY {
            self.mmu.memory.note_write(gpa, size);
            self.leave = true;
        }
    }

    /// Copies up to `len` bytes upwards from `src` to `dst` by elements of `size` bytes, as far as both lie in pages with
    /// fast entries; returns the bytes copied, a multiple of `size`, perhaps 0. Overlap has MOVS's effect.
    pub fn copy_run(&mut self, dst: u64, src: u64, len: u64, size: u32) -> u64 {
        let room = |lin: u64| PAGE_SIZE - lin % PAGE_SIZE;
        let n = len.min(room(dst)).min(room(src)) / u64::from(size) * u64::from(size);
        if n == 0 {
            return 0;
        }
        let (Some(d), Some(s)) = (self.fast_ptr(dst, n, true), self.fast_ptr(src, n, false)) else {
            return 0;
        };
        // SAFETY: `fast_ptr` matched tags for all of the bytes on both sides; `rep movs` with the guest's own element
        // size does to overlapping runs what the guest's instruction does.
        unsafe {
            match size {
                8 => {
                    core::arch::asm!("rep movsq", inout("rcx") n / 8 => _, inout("rsi") s => _, inout("rdi") d => _,
                    options(nostack, preserves_flags))
                }
                4 => {
                    core::arch::asm!("rep movsd", inout("rcx") n / 4 => _, inout("rsi") s => _, inout("rdi") d => _,
                    options(nostack, preserves_flags))
                }
                2 => {
                    core::arch::asm!("rep movsw", inout("rcx") n / 2 => _, inout("rsi") s => _, inout("rdi") d => _,
                    options(nostack, preserves_flags))
                }
                _ => {
                    core::arch::asm!("rep movsb", inout("rcx") n => _, inout("rsi") s => _, inout("rdi") d => _,
                    options(nostack, preserves_flags))
                }
            }
        }
        n
    }

    /// Stores `value` in elements of `size` bytes to up to `len` bytes upwards from `dst`, as far as the page has a fast
    /// entry; returns the bytes stored, a multiple of `size`, perhaps 0.
    pub fn fill_run(&mut self, dst: u64, len: u64, size: u32, value: u64) -> u64 {
        let n = len.min(PAGE_SIZE - dst % PAGE_SIZE) / u64::from(size) * u64::from(size);
        if n == 0 {
            return 0;
        }
        let Some(d) = self.fast_ptr(dst, n, true) else { return 0 };
        // SAFETY: `fast_ptr` matched a tag for all of the bytes.
        unsafe {
            match size {
                8 => {
                    core::arch::asm!("rep stosq", inout("rcx") n / 8 => _, inout("rdi") d => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
                4 => {
                    core::arch::asm!("rep stosd", inout("rcx") n / 4 => _, inout("rdi") d => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
                2 => {
                    core::arch::asm!("rep stosw", inout("rcx") n / 2 => _, inout("rdi") d => _, in("rax") value,
                    options(nostack, preserves_flags))
                }
                _ => core::arch::asm!("rep stosb", inout("rcx") n => _, inout("rdi") d => _, in("rax") value,
                    options(nostack, preserves_flags)),
            }
        }
        n
    }

    /// Reads guest-physical bytes: RAM or MMIO.
    pub fn phys_read(&mut self, gpa: u64, buf: &mut [u8]) {
        if self.mmu.memory.read(gpa, buf).is_err() {
            self.stats.mmio += 1;
            buf.fill(0xff);
            for (part, at) in buf.chunks_mut(MMIO_MOST).zip((gpa..).step_by(MMIO_MOST)) {
                self.io.mmio_read(at, part);
            }
        }
    }

    /// Writes guest-physical bytes: RAM or MMIO.
    pub fn phys_write(&mut self, gpa: u64, buf: &[u8]) {
        if self.mmu.memory.contains(gpa, buf.len() as u64) {
            let code = self.mmu.memory.page_flags(gpa).has(PageFlags::CODE);
            if self.mmu.memory.write(gpa, buf).is_ok() && code {
                self.leave = true;
            }
        } else {
            self.stats.mmio += 1;
            for (part, at) in buf.chunks(MMIO_MOST).zip((gpa..).step_by(MMIO_MOST)) {
                self.io.mmio_write(at, part);
            }
        }
    }

    /// Loads with supervisor rights whatever the CPL: descriptor tables, TSS, IDT.
    ///
    /// # Errors
    /// The fault that the access raises.
    pub fn load_sys<T: GuestInt>(&mut self, lin: u64) -> R<T> {
        self.as_supervisor(|cpu| cpu.load(lin))
    }

    /// Stores with supervisor rights whatever the CPL.
    ///
    /// # Errors
    /// The fault that the access raises.
    pub fn store_sys<T: GuestInt>(&mut self, lin: u64, v: T) -> R<()> {
        self.as_supervisor(|cpu| cpu.store(lin, v))
    }

    /// Runs `f` with the implicit supervisor accesses' rights (Intel SDM vol. 3A §4.6.1): CPL 0 and no AC.
    pub fn as_supervisor<T>(&mut self, f: impl FnOnce(&mut Cpu) -> T) -> T {
        let (cpl, ac) = (self.cpl, self.sysflags & rflags::AC);
        let cur = self.mmu.cur;
        let mode = self.mmu.mode;
        self.cpl = 0;
        self.sysflags &= !rflags::AC;
        let table = if self.cr4 & cr4::SMAP == 0 { KERNEL_AC } else { KERNEL };
        self.mmu.select(Some(table));
        let r = f(self);
        self.cpl = cpl;
        self.sysflags |= ac;
        self.mmu.mode = mode;
        self.mmu.cur = cur;
        r
    }

    /// Guest-physical address of the instruction byte at `lin`.
    ///
    /// # Errors
    /// The fault that the fetch raises.
    pub fn fetch_gpa(&mut self, lin: u64) -> R<u64> {
        let slot = self.mmu.slot;
        self.mmu.fetched.note((self.cpl == 3).then_some(slot), lin);
        let gpa = self.translate(lin, Acc::Fetch)?;
        let (table, i) = (&self.mmu.tables[slot * MODES + self.mmu.mode], index_of(lin));
        self.mmu.kernel_code_local |= self.cpl != 3 && !table.global[i];
        self.mmu.fetched.note_size(lin, table.shift[i]);
        Ok(gpa)
    }

    /// Whether `lin` is canonical (always, outside long mode).
    #[must_use]
    pub fn canonical(&self, lin: u64) -> bool {
        if !self.long_active() {
            return true;
        }
        let bits = if self.cr4 & cr4::LA57 != 0 { 57 } else { 48 };
        let shift = 64 - bits;
        ((lin << shift) as i64 >> shift) as u64 == lin
    }

    /// Translates a linear address: TLB, then walk and fill.
    ///
    /// # Errors
    /// #PF with CR2 set, or #GP(0) for a non-canonical address.
    pub fn translate(&mut self, lin: u64, acc: Acc) -> R<u64> {
        let table = self.mmu.slot * MODES + self.mmu.mode;
        let e = &self.mmu.tables[table].entries[index_of(lin)];
        let tag = match acc {
            Acc::Read => e.read,
            Acc::Write => e.write,
            Acc::Fetch => e.fetch,
        };
        if tag == lin & !0xfff {
            return Ok((e.host | lin & 0xfff).wrapping_sub(self.mmu.base));
        }
        if acc == Acc::Write && self.mmu.tables[table].careful[index_of(lin)] == lin & !0xfff {
            return Ok(self.careful_write(lin, table));
        }
        if !self.canonical(lin) {
            return Err(self.gp(0));
        }
        self.walk(lin, acc, table)
    }

    /// Guest-physical address of a page that holds code and may be written; back to fast writes if it holds code no more.
    fn careful_write(&mut self, lin: u64, table: usize) -> u64 {
        let i = index_of(lin);
        let gpa = (self.mmu.tables[table].entries[i].host | lin & 0xfff).wrapping_sub(self.mmu.base);
        if !self.mmu.memory.page_flags(gpa).has(PageFlags::CODE) && !self.mmu.keeps_changing(gpa) {
            let before = self.mmu.memory.set_page_flags(gpa, PageFlags::DIRTY | PageFlags::WCACHED);
            if !before.has(PageFlags::CODE) {
                let t = &mut self.mmu.tables[table];
                if t.entries[i].write == invalid(i) {
                    *self.mmu.writers.of(t.entries[i].host) += 1;
                }
                t.entries[i].write = lin & !0xfff;
                t.careful[i] = invalid(i);
            }
        }
        gpa
    }

    /// The paging configuration in force, for the page walker.
    #[must_use]
    pub fn paging(&self) -> paging::Mmu {
        let mut m = paging::Mmu {
            cr3: self.cr3,
            pdptes: self.pdptes,
            page_1g: self.mmu.page_1g,
            nonleaf_g_reserved: self.mmu.amd,
            phys_bits: self.mmu.phys_bits,
            ..paging::Mmu::default()
        };
        m.set_controls(self.cr0, self.cr4, self.efer);
        m
    }

    fn walk(&mut self, lin: u64, acc: Acc, table: usize) -> R<u64> {
        let kind = match acc {
            Acc::Read => Kind::Read,
            Acc::Write => Kind::Write,
            Acc::Fetch => Kind::Fetch,
        };
        let access = Access { kind, user: self.cpl == 3, ac: self.mmu.mode == KERNEL_AC };
        self.stats.tlb_fills += 1;
        let t = match self.paging().translate(&PhysView(&self.mmu.memory), lin, access) {
            Ok(t) => t,
            Err(fault) => return Err(self.page_fault(lin, fault.code)),
        };
        let page = t.gpa & !0xfff;
        if self.mmu.memory.contains(page, PAGE_SIZE) {
            let watched = self.watched_page(lin);
            let mut write = false;
            // A page that is written fast already is dirty: what only reads it so far may find it so.
            let may_write =
                t.write && !watched && (acc == Acc::Write || acc == Acc::Read && self.mmu.is_written(page));
            if may_write && self.mmu.keeps_changing(page) {
                self.mmu.memory.set_page_flags(page, PageFlags::DIRTY);
            } else if may_write {
                // The order matters to `GuestMemory::mark_code`: it sets CODE, then looks for WCACHED.
                let before = self.mmu.memory.set_page_flags(page, PageFlags::DIRTY | PageFlags::WCACHED);
                write = !before.has(PageFlags::CODE);
            }
            let rights = Rights {
                read: t.read && !watched,
                write,
                careful: may_write && !write,
                fetch: t.fetch,
                global: t.global,
                shift: t.shift,
            };
            self.mmu.fill(table, lin, page, rights);
        }
        Ok(t.gpa)
    }

    #[cold]
    fn page_fault(&mut self, lin: u64, code: u32) -> Fault {
        self.stats.page_faults += 1;
        self.cr2 = lin;
        debug_assert!(code & !(pf::P | pf::W | pf::U | pf::RSVD | pf::I) == 0);
        self.raise(Exception::coded(vector::PF, code))
    }

    /// Whether an enabled data breakpoint, or data that a debugger watches, lies in the page of `lin`: its accesses take the slow path.
    fn watched_page(&self, lin: u64) -> bool {
        let page = lin & !0xfff;
        if self
            .watched
            .points
            .iter()
            .any(|w| Watchpoint { kind: WatchKind::Access, ..*w }.touched(page, PAGE_SIZE, false))
        {
            return true;
        }
        if self.dr[7] & 0xff == 0 {
            return false;
        }
        (0..4).any(|i| self.dr[7] >> (2 * i) & 3 != 0 && (self.dr[i] ^ lin) & !0xfff == 0)
            || (0..4)
                .any(|i| self.dr[7] >> (2 * i) & 3 != 0 && (self.dr[i].wrapping_add(7) ^ lin) & !0xfff == 0)
    }

    /// Notes the data breakpoints that an access of `len` bytes at `lin` hits (Intel SDM vol. 3B §17.2.4-5).
    fn watch(&mut self, lin: u64, len: u64, write: bool) {
        if let Some(w) = self.watched.points.iter().find(|w| w.touched(lin, len, write)) {
            self.watched.hit.get_or_insert(*w);
            self.leave = true;
        }
        if self.dr[7] & 0xff == 0 {
            return;
        }
        for i in 0..4 {
            let rw = self.dr[7] >> (16 + 4 * i) & 3;
            let bytes = [1, 2, 8, 4][(self.dr[7] >> (18 + 4 * i) & 3) as usize];
            let hit = match rw {
                1 => write,
                3 => true,
                _ => false,
            };
            let at = self.dr[i] & !(bytes - 1);
            if hit && lin < at.wrapping_add(bytes) && at < lin.wrapping_add(len) {
                let enabled = self.dr[7] >> (2 * i) & 3 != 0;
                if enabled {
                    self.debug_trap |= 1 << i;
                    self.leave = true;
                }
            }
        }
    }
}

/// Held over a locked access that the host's own LOCK cannot do. One for all machines: it is rare.
static BUS: Mutex<()> = Mutex::new(());

impl Cpu {
    /// Reads, changes and writes back `size` (1, 2, 4, 8) bytes at `lin`, atomically if `lock`; returns what stood there.
    /// `f` may run more than once. A locked change that crosses pages, or is not of RAM, is two accesses: atomic to others
    /// of its kind, as with a bus lock, but not to plain accesses.
    ///
    /// # Errors
    /// The fault that a write would raise; nothing is written then.
    pub fn rmw(&mut self, lin: u64, size: u32, lock: bool, mut f: impl FnMut(u64) -> u64) -> R<u64> {
        let Some(p) = self.rmw_ptr(lin, u64::from(size))? else {
            let _bus = lock.then(|| BUS.lock().unwrap_or_else(PoisonError::into_inner));
            let old = self.load_n(lin, size)?;
            self.store_n(lin, size, f(old))?;
            return Ok(old);
        };
        // SAFETY: `rmw_ptr` gave `size` mapped bytes of guest RAM.
        let old = unsafe {
            if lock {
                let mut seen = crate::hostops::load(p, size);
                loop {
                    let now = crate::hostops::compare_exchange(p, size, seen, f(seen));
                    if now == seen {
                        break seen;
                    }
                    seen = now;
                }
            } else {
                let old = crate::hostops::load(p, size);
                crate::hostops::store(p, size, f(old));
                old
            }
        };
        self.rmw_done(p, u64::from(size));
        Ok(old)
    }

    /// CMPXCHG16B's memory side: if the 16 bytes at `lin` are `old`, replaces them by `new`, atomically; returns what
    /// stood there. The caller has checked alignment.
    ///
    /// # Errors
    /// The fault that a write would raise.
    pub fn compare_exchange_16(&mut self, lin: u64, old: u128, new: u128) -> R<u128> {
        let Some(p) = self.rmw_ptr(lin, 16)? else {
            let mut b = [0; 16];
            self.read_bytes(lin, &mut b)?;
            let seen = u128::from_le_bytes(b);
            self.write_bytes(lin, &if seen == old { new } else { seen }.to_le_bytes())?;
            return Ok(seen);
        };
        // SAFETY: 16 mapped bytes of guest RAM, 16-aligned as the caller checked.
        let seen = unsafe { crate::hostops::compare_exchange_16(p, old, new) };
        self.rmw_done(p, 16);
        Ok(seen)
    }
}
