//! [`Translator`]: one processor under the translator. An unsafe room: it enters translated code.

use super::ctx::{CtxBox, Jump, X87_CALM, clear_jumps, exit, jump_index};
use super::derive;
use super::emit::{self, Source};
use super::exits::Exits;
use super::groups::{Early, Insn};
use super::store::{FEW_ROUNDS, NONE, Op, Second, Store, Versions};
use super::{area, key, places};
use crate::block::Decoded;
use crate::cache::{Cache, Map};
use crate::cpu::{Cpu, R, slot};
use crate::exec::generic;
use crate::host;
use crate::mmu::Acc;
use crate::run::{Awake, Interpreter};
use crate::sites::{EARLY, Site, Sites};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind};
use ringer_arch::VcpuState;
use ringer_arch::cpu::Vendor;
use ringer_arch::seg::sreg;
use ringer_engine::{DebugRequest, EXITS, EngineError, Exit, Stats, Step, StopToken, Until, Vcpu};
use ringer_memory::PAGE_SIZE;
use std::io;
use std::sync::atomic::AtomicU32;

/// One processor under the translator.
pub struct Translator {
    interp: Interpreter,
    store: Store,
    ctx: CtxBox,
    /// What the code that runs was translated under.
    key: u32,
    jump_epoch: u32,
    /// A jump to be linked once it is known where it leads.
    pending: Option<u32>,
    insns: Vec<Insn>,
    /// How often code of pages that keep changing has run at which version.
    young: Map<u64, (u32, u32)>,
    dropped: Vec<u64>,
    /// Guest instructions are counted.
    count: bool,
    /// What is to be added to the counts of blocks that were left early or of which a part was interpreted.
    adjust: i64,
    exits: Option<Box<Exits>>,
    /// How often translated code was left, by [`exit`].
    left: [u64; EXITS.len() + 1],
    /// The most bytes that code and tables took before they were dropped.
    peak: usize,
    /// Bytes that the context takes.
    ctx_len: usize,
    failure: Option<String>,
}

/// Stands for the operand of an x87 instruction that has none, or of none.
const NO_OPERAND: u64 = u64::MAX;

/// A stop word that is always raised.
static ALWAYS: AtomicU32 = AtomicU32::new(1);

/// The limit for a processor from which on what it has lies in large pages: with less, that would be more of it than it is worth, and there are many
/// processors, or little memory.
const LARGE_FROM: usize = 16 << 20;
/// Bytes of guest code that are looked at for a block.
const WINDOW: usize = 256;
/// How often code of a page that keeps changing runs before it is translated.
const RUNS: u32 = 8;
/// Places of such code that are remembered.
const MOST_YOUNG: usize = 4096;

/// An access of translated code.
#[derive(Clone, Copy)]
struct Access {
    lin: u64,
    size: u64,
    write: bool,
    early: Early,
}

/// What the soft TLB has for an access.
enum Entry {
    /// The host's address.
    Is(u64),
    None(Why),
}

/// Why there is no entry for an access.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It lies in two pages.
    Crossing,
    /// It raises an exception.
    Raises,
    /// Its page cannot be accessed fast, or what is written first must make it dirty.
    Slow,
}

/// How it goes on after translated code was left.
enum Next {
    /// At a place in translated code.
    Code(u64),
    /// At RIP.
    Dispatch,
}

impl Translator {
    /// A processor that has `limit` bytes for translated code and all tables that belong to it.
    ///
    /// # Errors
    /// The host's, when it gives no memory.
    pub fn new(mut interp: Interpreter, limit: usize) -> io::Result<Translator> {
        // The signal handler is the stubs' of the interpreter, which exist by now.
        let avx = std::arch::is_x86_feature_detected!("avx");
        // What the interpreter decodes for itself is little: code that keeps changing, and what is not translated.
        let decoded = Cache::JUMPS_LEN + limit / 16;
        interp = interp.with_code_limit(decoded);
        let large = limit >= LARGE_FROM;
        let ctx_len = if large { CtxBox::LEN_LARGE } else { CtxBox::LEN };
        let store = Store::new(limit.saturating_sub(ctx_len + decoded), avx, large)?;
        let mut ctx = CtxBox::new(large)?;
        if large {
            interp.cpu.mmu.enlarge();
        }
        let secret = host::random().unwrap_or(0x5bd1_e995_9e37_79b9);
        // Not canonical, whatever the number of levels: bits 62 and 63 differ.
        let nowhere = (secret & !0xfff | 1 << 62) & !(1 << 63);
        let c = ctx.ptr();
        // SAFETY: the area and the context live as long as this value, which owns the processor that uses the sites; the log is
        // as long as its type says.
        interp.cpu.mmu.sites = unsafe {
            let base = store.area.sites();
            let (log, len) = ((&raw mut (*c).log).cast(), (&raw mut (*c).log_len).cast());
            let stack = (&raw mut (*c).stack).cast();
            Sites::new(base, base as u32, log, len, stack, nowhere, store.area.nothing())
        };
        let c = ctx.get_mut();
        c.stop = std::ptr::from_ref(interp.cpu.stop.word()) as u64;
        c.xsave = interp.cpu.xsave.0.as_mut_ptr() as u64;
        c.host_mxcsr = 0x1f80;
        c.base = store.area.exec();
        Ok(Translator {
            interp,
            store,
            ctx,
            key: 0,
            jump_epoch: 0,
            pending: None,
            insns: Vec::new(),
            young: Map::default(),
            dropped: Vec::new(),
            count: false,
            adjust: 0,
            exits: Exits::wanted(),
            left: [0; EXITS.len() + 1],
            peak: 0,
            ctx_len,
            failure: None,
        })
    }

    /// Drops what was translated from code that has been written over.
    fn drop_stale(&mut self) {
        // The request first: a page that is told of after the look at the list raises it again.
        self.interp.cpu.stop.take(StopToken::CODE);
        self.interp.code_dropped = false;
        self.interp.shared.take_dropped(self.interp.index(), &mut self.dropped);
        for page in std::mem::take(&mut self.dropped) {
            self.interp.cpu.stats.blocks_dropped += 1;
            if page == u64::MAX {
                self.store.drop_pages();
            } else {
                self.store.drop_page(page);
            }
        }
    }

    fn clear(&mut self) {
        self.forget(Store::clear);
    }

    /// Lets `drop` drop blocks, and with them what names any.
    fn forget(&mut self, drop: impl FnOnce(&mut Store)) {
        // Its pointers are those of an instruction that is about to be forgotten.
        self.unload_x87();
        self.peak = self.peak.max(self.store.in_memory(false));
        self.interp.cpu.mmu.sites.drop_all();
        drop(&mut self.store);
        clear_jumps(self.ctx.get_mut());
        self.pending = None;
    }

    /// Generation of code addresses and mode in one word.
    fn gen_key(&self) -> u64 {
        self.interp.cpu.mmu.code_generation(self.key & key::USER != 0) << 8 | u64::from(self.key)
    }

    /// The jump cache keeps half of that word: it is emptied before the other half changes.
    fn check_epoch(&mut self, gen_key: u64) {
        let epoch = (gen_key >> 32) as u32;
        if epoch != self.jump_epoch {
            self.jump_epoch = epoch;
            clear_jumps(self.ctx.get_mut());
        }
    }

    /// Runs from RIP on, until something must be looked at between two instructions.
    fn dispatch(&mut self) -> Result<(), Exit> {
        if self.interp.code_dropped {
            self.drop_stale();
        }
        self.interp.stop_at_breakpoint()?;
        let Some(k) = key::of(&self.interp.cpu) else {
            self.unload_x87();
            return self.interp.debugged_block();
        };
        self.key = k;
        if let Some(e) = &mut self.exits {
            e.dispatched += 1;
        }
        let gen_key = self.gen_key();
        self.check_epoch(gen_key);
        let lin = self.interp.code_lin();
        let j = self.ctx.get().jumps[jump_index(lin)];
        let code = if j.lin == lin && j.gen_key == gen_key as u32 && self.pending.is_none() {
            self.ctx.get_mut().vpage = lin & !0xfff;
            self.store.area.exec() + u64::from(j.code)
        } else {
            match self.find(lin) {
                Ok(Some(block)) => self.store.code_of(block),
                Ok(None) => {
                    self.pending = None;
                    self.unload_x87();
                    return self.interp.debugged_block();
                }
                Err(_) => {
                    self.pending = None;
                    self.unload_x87();
                    return self.interp.finish();
                }
            }
        };
        self.enter(code)
    }

    /// The block at linear address `lin`, translated if need be. None: the interpreter must run what is there.
    fn find(&mut self, lin: u64) -> crate::cpu::R<Option<u32>> {
        let gpa = self.interp.cpu.fetch_gpa(lin)?;
        let vpage = lin & !0xfff;
        if let Some(e) = &mut self.exits {
            e.found += 1;
        }
        if !self.interp.cpu.mmu.memory().contains(gpa & !0xfff, PAGE_SIZE) {
            return Ok(None);
        }
        let version = self.interp.cpu.mmu.memory().code_version(gpa);
        let found = self.store.find(gpa, self.key, version).filter(|b| self.second_page_holds(*b, vpage));
        if found.is_none() && self.interp.cpu.mmu.keeps_changing(gpa) && self.is_young(gpa, version) {
            return Ok(None);
        }
        if let (Some(b), Some(l)) = (found, self.pending) {
            self.store.note_found(l, b);
        }
        let Some(block) = found.or_else(|| self.translate(lin, gpa)) else { return Ok(None) };
        let user = self.key & key::USER != 0;
        let generation = self.interp.cpu.mmu.code_generation(user);
        if !self.store.enter(generation, gpa, vpage) {
            self.interp.cpu.mmu.renew_code_generation();
            // What would be linked was entered under the old one, perhaps at the same page.
            self.pending = None;
            let generation = self.interp.cpu.mmu.code_generation(user);
            let _first = self.store.enter(generation, gpa, vpage);
        }
        let gen_key = self.gen_key();
        if let Some(second) = self.store.second(block) {
            self.store.set_gen(second.gen_site, gen_key);
        }
        let code = self.store.blocks[block as usize].code;
        let c = self.ctx.get_mut();
        c.vpage = vpage;
        places::note_page(c, vpage, gpa, gen_key);
        let direct = !self.store.cuts.contains(&(lin as u16 & 0xfff));
        // What links lead to needs no place in the jump cache.
        if direct && self.pending.is_none() {
            c.jumps[jump_index(lin)] = Jump { lin, code, gen_key: gen_key as u32 };
        }
        if let Some(l) = self.pending.take()
            && direct
        {
            let link = self.store.links[l as usize];
            let from = &self.store.blocks[link.block as usize];
            let fits = from.alive && (link.gen_site != NONE || from.gpa >> 12 == gpa >> 12);
            if fits && from.key == self.key as u8 {
                self.store.link(l, block, gen_key);
            }
        }
        Ok(Some(block))
    }

    /// Whether code at `gpa`, in a page that keeps changing, has run too seldom since the last change to be worth a translation: it may
    /// be written over again before that pays.
    fn is_young(&mut self, gpa: u64, version: u32) -> bool {
        if self.young.len() >= MOST_YOUNG {
            self.young.clear();
        }
        let runs = self.young.entry(gpa).or_insert((version, 0));
        if runs.0 != version {
            *runs = (version, 0);
        }
        runs.1 += 1;
        runs.1 < RUNS
    }

    /// Whether block `n`, entered at `vpage`, still goes on where it did, if it goes on in the next page; drops it if not.
    fn second_page_holds(&mut self, n: u32, vpage: u64) -> bool {
        let Some(second) = self.store.second(n) else { return true };
        let next = self.interp.cpu.lin_add(vpage, PAGE_SIZE);
        let holds = match self.interp.cpu.fetch_gpa(next) {
            Ok(gpa) => gpa == second.gpa && self.interp.cpu.mmu.memory().code_version(gpa) == second.version,
            Err(_) => {
                // The interpreter is going to raise it, if it is still so then.
                self.interp.cpu.exc = None;
                false
            }
        };
        if !holds {
            self.store.drop_block(n);
        }
        holds
    }

    /// Declares code about to be translated; its version, or none if it may still be written behind our back.
    fn mark_code(&mut self, gpa: u64, len: usize) -> Option<u32> {
        let cpu = &mut self.interp.cpu;
        let (version, cached) = self.interp.shared.mark_code(cpu.mmu.memory(), gpa, len as u64, cpu.index);
        if cached {
            cpu.mmu.flush_writes_to(gpa);
        }
        self.interp.shared.settled(cpu.index, self.interp.shared.epoch()).then_some(version)
    }

    fn translate(&mut self, lin: u64, gpa: u64) -> Option<u32> {
        if !self.store.has_room() {
            self.forget(Store::make_room);
        }
        // Most blocks are far shorter; a longer one ends there.
        let window = (PAGE_SIZE - gpa % PAGE_SIZE).min(WINDOW as u64) as usize;
        let (mut bytes, mut again) = ([0; WINDOW], [0; WINDOW]);
        self.interp.cpu.mmu.memory().read(gpa, &mut bytes[..window]).ok()?;
        let s = Source { gpa, bytes: &bytes[..window], key: self.key, straddles: false };
        let len = emit::decode(&self.interp.cpu, &mut self.store, &s, &mut self.insns) as usize;
        if len == 0 {
            return if window < 15 { self.translate_straddling(lin, gpa) } else { None };
        }
        let version = self.mark_code(gpa, len)?;
        self.interp.cpu.mmu.memory().read(gpa, &mut again[..len]).ok()?;
        if again[..len] != bytes[..len] {
            return None;
        }
        self.interp.cpu.stats.blocks_decoded += 1;
        emit::translate(
            &mut self.store,
            &mut self.interp.cpu,
            &s,
            &self.insns,
            Versions { first: version, second: None },
            self.count,
        )
    }

    /// Translates an instruction that goes on in the next page: a block of its own.
    fn translate_straddling(&mut self, lin: u64, gpa: u64) -> Option<u32> {
        let head = (PAGE_SIZE - gpa % PAGE_SIZE) as usize;
        let next = self.interp.cpu.lin_add(lin & !0xfff, PAGE_SIZE);
        let Ok(gpa2) = self.interp.cpu.fetch_gpa(next) else {
            self.interp.cpu.exc = None;
            return None;
        };
        if !self.interp.cpu.mmu.memory().contains(gpa2, PAGE_SIZE) {
            return None;
        }
        let (mut bytes, mut again) = ([0; 15], [0; 15]);
        let memory = self.interp.cpu.mmu.memory().clone();
        let read = |b: &mut [u8; 15]| {
            let (a, z) = b.split_at_mut(head);
            memory.read(gpa, a).is_ok() && memory.read(gpa2, z).is_ok()
        };
        if !read(&mut bytes) {
            return None;
        }
        let s = Source { gpa, bytes: &bytes, key: self.key, straddles: true };
        let len = emit::decode(&self.interp.cpu, &mut self.store, &s, &mut self.insns) as usize;
        if len <= head {
            return None;
        }
        let first = self.mark_code(gpa, head)?;
        let second = self.mark_code(gpa2, len - head)?;
        if !read(&mut again) || again[..len] != bytes[..len] {
            return None;
        }
        self.interp.cpu.stats.blocks_decoded += 1;
        let second = Second { gpa: gpa2, version: second, gen_site: NONE };
        let versions = Versions { first, second: Some(second) };
        emit::translate(&mut self.store, &mut self.interp.cpu, &s, &self.insns, versions, self.count)
    }

    /// Runs translated code from `code` on, and what it leaves to be done, until that is not in translated code any more.
    fn enter(&mut self, code: u64) -> Result<(), Exit> {
        let mut at = code;
        loop {
            {
                let cpu = &mut self.interp.cpu;
                let c = self.ctx.get_mut();
                c.table = cpu.mmu.table() as u64;
                c.fl = u32::from(cpu.fl);
                c.regs = cpu.regs.as_mut_ptr() as u64;
                c.fs = cpu.regs[usize::from(slot::SEG_BASE) + 4];
                c.gs = cpu.regs[usize::from(slot::SEG_BASE) + 5];
                c.sysflags = (&raw mut cpu.sysflags) as u64;
                c.gs_base = (&raw mut cpu.seg[sreg::GS].base) as u64;
                c.kernel_gs_base = (&raw mut cpu.fast.kernel_gs_base) as u64;
                c.cr2 = (&raw mut cpu.cr2) as u64;
                c.segments = cpu.seg.as_ptr() as u64;
                c.irq = u32::from(self.interp.intr);
                self.store.show(c);
            }
            let gen_key = self.gen_key();
            self.check_epoch(gen_key);
            self.ctx.get_mut().gen_key = gen_key;
            // SAFETY: `at` is a block's start or the end of an op's code, as `dispatch` and `serve` found them; all pointers of
            // the context were set, here and in `new`, to parts of this value.
            unsafe { self.store.area.run(self.store.stubs.enter, self.ctx.ptr(), at) };
            let cpu = &mut self.interp.cpu;
            cpu.fl = self.ctx.get().fl as u16;
            match self.serve()? {
                Next::Code(to) => at = to,
                Next::Dispatch => return Ok(()),
            }
        }
    }

    fn ip_mask(&self) -> u64 {
        if self.key & key::BITS64 != 0 { u64::MAX } else { 0xffff_ffff }
    }

    /// Does what translated code was left for.
    fn serve(&mut self) -> Result<Next, Exit> {
        let c = self.ctx.get();
        let (mut kind, mut arg, vpage) = (c.kind, c.arg, c.vpage);
        if kind == exit::BRIDGE {
            kind = exit::LINK;
            arg = u64::from(self.store.site_op[self.store.area.site_index(arg) as usize]);
        }
        if let Some(n) = self.left.get_mut(kind as usize) {
            *n += 1;
        }
        match kind {
            exit::LINK => {
                let link = self.store.links[arg as usize];
                self.interp.cpu.rip = vpage.wrapping_add(link.target as u64) & self.ip_mask();
                self.pending = Some(arg as u32);
                Ok(Next::Dispatch)
            }
            exit::INDIRECT => {
                let op = c.lin as u32;
                if !self.interp.cpu.canonical(arg) {
                    let o = self.store.ops[op as usize];
                    let r = &mut self.interp.cpu.regs[4];
                    *r = r.wrapping_add(o.undo as u64);
                    self.adjust -= i64::from(o.before) + 1;
                    return self.execute(op);
                }
                self.interp.cpu.rip = arg & self.ip_mask();
                Ok(Next::Dispatch)
            }
            exit::INTERP => self.execute(arg as u32),
            exit::MEM => self.miss(arg, c.lin),
            exit::STALE => {
                let b = &self.store.blocks[arg as usize];
                let rip = vpage | b.gpa & 0xfff;
                self.interp.cpu.rip = rip;
                self.ctx.get_mut().jumps[jump_index(rip)].gen_key = 0;
                Ok(Next::Dispatch)
            }
            exit::X87 => {
                self.load_x87();
                Ok(Next::Code(self.store.code_of(arg as u32)))
            }
            exit::LOOK => self.look(arg, c.lin, c.look),
            exit::HOT => {
                let link = self.store.links[arg as usize];
                self.interp.cpu.rip = vpage.wrapping_add(link.target as u64) & self.ip_mask();
                self.store.set_hot(link.block, link.target as u64 & 0xfff);
                Ok(Next::Dispatch)
            }
            exit::OFTEN => {
                let o = self.store.ops[arg as usize];
                self.interp.cpu.rip = (vpage + u64::from(o.offset)) & self.ip_mask();
                self.adjust += i64::from(o.before);
                self.store.set_often(o.block);
                Ok(Next::Dispatch)
            }
            _ => self.fault(),
        }
    }

    /// A signal in translated code: the interpreter finds out what the instruction raises.
    fn fault(&mut self) -> Result<Next, Exit> {
        let pc = self.ctx.get().fault_pc;
        match self.store.op_at(pc) {
            Some(op) => self.execute(op),
            None => {
                // Nothing that guests execute as itself can fault but what has an op.
                let (sig, at) = (self.ctx.get().fault_sig, pc.wrapping_sub(self.store.area.exec()));
                self.failure =
                    Some(format!("signal {sig} out of place, {at:#x} bytes into the translated code"));
                Err(Exit::Failed)
            }
        }
    }

    /// The soft TLB has no entry for `lin`, for the access that is told of at host address `at`.
    fn look(&mut self, at: u64, lin: u64, look: u32) -> Result<Next, Exit> {
        let (write, checked) = (look & 1 != 0, look >> 8);
        if checked != 0 {
            // By a stub, behind whose call it goes on.
            let Some(op) = self.store.op_at(at) else { return Ok(Next::Dispatch) };
            let early = self.store.ops[op as usize].early();
            return match self.entry(Access { lin, size: u64::from(checked), write, early }) {
                Entry::Is(host) => Ok(self.go_on(op, host, at)),
                Entry::None(why) => self.without_entry(op, why),
            };
        }
        let told = self.store.told(at);
        let to = at.wrapping_sub(u64::from(told.back));
        let access = Access { lin, size: u64::from(told.size), write, early: told.early };
        match self.entry(access) {
            Entry::Is(host) if !told.x87 => {
                self.filled(host);
                self.ctx.get_mut().want_vec = u32::from(told.vec);
                Ok(Next::Code(to))
            }
            found => {
                let Some(op) = self.store.op_at(to) else { return Ok(Next::Dispatch) };
                match found {
                    Entry::Is(host) => Ok(self.go_on(op, host, to)),
                    Entry::None(why) => self.without_entry(op, why),
                }
            }
        }
    }

    /// The site at host address `p` has no entry for `lin`.
    fn miss(&mut self, p: u64, lin: u64) -> Result<Next, Exit> {
        let n = self.store.area.site_index(p);
        let Some(site) = self.store.area.read_site(n) else { return Ok(Next::Dispatch) };
        let op = self.store.site_op[n as usize];
        let o = self.store.ops[op as usize];
        if site.refills < 0 {
            self.store.set_scattered(self.place_of(o));
            let rested = Site { refills: i8::MAX, ..site };
            self.store.area.write_site(n, rested);
            // The block goes on to its end, and is made anew when it is next entered.
            self.store.drop_block(o.block);
        }
        let size = u64::from(4096 - site.limit);
        let early = Early::of(site.flags >> EARLY);
        let access = Access { lin, size, write: site.writes(), early };
        match self.entry(access) {
            Entry::Is(host) => {
                self.interp.cpu.mmu.sites.fill(n, lin & !0xfff, host & !0xfff);
                let to = self.store.area.exec() + u64::from(site.resume);
                Ok(self.go_on(op, host, to))
            }
            Entry::None(why) => self.without_entry(op, why),
        }
    }

    /// Goes on at `to`, behind the check of op's access, with the host's address.
    fn go_on(&mut self, op: u32, host: u64, to: u64) -> Next {
        self.filled(host);
        self.resume(op, to)
    }

    /// An access has the host's address.
    fn filled(&mut self, host: u64) {
        if let Some(e) = &mut self.exits {
            e.filled += 1;
        }
        self.ctx.get_mut().lin = host;
    }

    fn without_entry(&mut self, op: u32, why: Why) -> Result<Next, Exit> {
        let o = self.store.ops[op as usize];
        if why == Why::Crossing && o.insns > 1 && self.store.crossed(self.place_of(o)) {
            self.store.drop_block(o.block);
        }
        if let Some(e) = &mut self.exits {
            let group = o.insns > 1 && why != Why::Crossing;
            e.unfilled[if group { 3 } else { why as usize }] += 1;
        }
        self.execute(op)
    }

    /// The host's address for an access, by way of an entry of the soft TLB, which is filled if it can be.
    fn entry(&mut self, a: Access) -> Entry {
        if self.ctx.get().x87 != 0 {
            // An access that will find an x87 exception pending must not make the page accessed or dirty.
            self.unload_x87();
            if self.interp.cpu.xsave.0[2] & 0x80 != 0 {
                return Entry::None(Why::Slow);
            }
        }
        if a.lin % PAGE_SIZE > PAGE_SIZE - a.size {
            return Entry::None(Why::Crossing);
        }
        let cpu = &mut self.interp.cpu;
        // Where less is looked up, there may be an entry for writes nonetheless: the page is dirty already.
        let acc = match a.early {
            Early::All if a.write => Some(Acc::Write),
            Early::All | Early::Read => Some(Acc::Read),
            Early::Nothing => None,
        };
        let saved = (cpu.cr2, cpu.stats.page_faults);
        if acc.is_some_and(|acc| cpu.translate(a.lin, acc).is_err()) {
            cpu.exc = None;
            (cpu.cr2, cpu.stats.page_faults) = saved;
            return Entry::None(Why::Raises);
        }
        match cpu.fast_ptr(a.lin, a.size, a.write) {
            Some(host) => Entry::Is(host as u64),
            None => Entry::None(Why::Slow),
        }
    }

    /// Guest-physical address of an op's instruction.
    fn place_of(&self, o: Op) -> u64 {
        self.store.blocks[o.block as usize].gpa & !0xfff | u64::from(o.offset)
    }

    /// Goes on in the middle of op's block, at `to`.
    fn resume(&mut self, op: u32, to: u64) -> Next {
        let block = self.store.ops[op as usize].block;
        let (vec, x87) = {
            let b = &self.store.blocks[block as usize];
            (b.vec, b.x87)
        };
        if x87 {
            // The code that notes the page may not be run.
            let last = self.ctx.get().x87_op & !X87_CALM;
            if last != 0 && self.store.ops[last as usize - 1].block != block {
                self.unload_x87();
            }
            if self.ctx.get().x87 == 0 {
                self.load_x87();
            }
            let c = self.ctx.get_mut();
            c.x87_page = c.vpage;
        }
        if vec {
            self.ctx.get_mut().want_vec = 1;
        }
        Next::Code(to)
    }

    /// Lets the interpreter execute op, and goes on behind it if nothing speaks against it.
    fn execute(&mut self, op: u32) -> Result<Next, Exit> {
        let o: Op = self.store.ops[op as usize];
        let mask = self.ip_mask();
        let mut rip = (self.ctx.get().vpage + u64::from(o.offset)) & mask;
        let make = self.decoder();
        // The last of a block may change CS, whose selector is among the x87 pointers, as is that of the operand's segment.
        if self.ctx.get().x87 != 0 {
            let d = self.store.decoded(op, make);
            if o.gap == 0 || o.insns > 1 || d.is_host || loads_segment(&d.insn) {
                self.unload_x87();
            }
        }
        if o.derives() {
            self.derive_flags(op);
        }
        let mut done = 0;
        for n in 0..o.insns {
            let following;
            let ok = if n == 0 {
                let d = self.store.decoded(op, make);
                following = rip.wrapping_add(d.insn.len() as u64) & mask;
                let e = self.exits.as_mut();
                execute_one(&mut self.interp.cpu, d, rip, following, e)
            } else {
                let d = make(self.store.bytes_from(op, (rip & 0xfff) as u16));
                following = rip.wrapping_add(d.insn.len() as u64) & mask;
                execute_one(&mut self.interp.cpu, &d, rip, following, None)
            };
            if ok.is_err() {
                self.adjust += i64::from(o.before);
                self.unload_x87();
                self.interp.cpu.leave = true;
                self.interp.finish()?;
                return Ok(Next::Dispatch);
            }
            done += 1;
            self.interp.cpu.stats.instructions += 1;
            let last = n + 1 == o.insns;
            let next = if last { o.next() } else { u32::MAX };
            if !self.after_op(next, following)? {
                // A block that is left counts none of its instructions.
                self.adjust += i64::from(o.before);
                return Ok(Next::Dispatch);
            }
            rip = following;
        }
        // One that is gone on with counts all of them at its end.
        self.adjust -= done;
        let to = self.store.area.exec() + u64::from(o.next());
        Ok(self.resume(op, to))
    }

    /// The flags as they are before op, from the instruction of its block that changed them last.
    fn derive_flags(&mut self, op: u32) {
        let bits = if self.key & key::BITS64 != 0 { 64 } else { 32 };
        let (bytes, before) = self.store.before(op);
        let mut d = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
        let mut last = None;
        while d.position() < before && d.can_decode() {
            let i = d.decode();
            if i.rflags_modified() & emit::ARITH != 0 {
                last = Some(i);
            }
        }
        if let Some(i) = last {
            let done = derive::derive(&mut self.interp.cpu, &i);
            debug_assert!(done.is_ok());
        }
    }

    /// Decodes one instruction of the code that runs.
    fn decoder(&self) -> impl Fn(&[u8]) -> Decoded + Copy + use<> {
        let amd = self.interp.cpu.model.vendor() == Vendor::Amd;
        let bits = if self.key & key::BITS64 != 0 { 64 } else { 32 };
        move |bytes: &[u8]| {
            let options = if amd { DecoderOptions::AMD } else { DecoderOptions::NONE };
            let insn = Decoder::with_ip(bits, bytes, 0, options).decode();
            let host = host::prepare(&insn);
            Decoded { insn, is_host: host.is_some(), host: host.unwrap_or_default() }
        }
    }

    /// Whether the block can be gone on with after the interpreter has executed an instruction of it, behind which its code is at
    /// `next`.
    fn after_op(&mut self, next: u32, following: u64) -> Result<bool, Exit> {
        if self.interp.cpu.leave {
            self.interp.finish()?;
            if self.interp.attention {
                return Ok(false);
            }
        }
        // The rest of the block may be elsewhere by now (INVLPG of the page that it is in).
        if self.gen_key() != self.ctx.get().gen_key {
            return Ok(false);
        }
        let cpu = &self.interp.cpu;
        Ok(next != 0 && cpu.rip == following && cpu.stop.load() == 0 && key::of(cpu) == Some(self.key))
    }

    /// Instructions begun since creation.
    fn begun(&self) -> u64 {
        self.interp.begun().wrapping_add(self.ctx.get().instret).wrapping_add(self.adjust as u64)
    }

    /// [`Vcpu::step`] of whole blocks.
    fn steps(&mut self, least: u64) -> Option<Exit> {
        let first = self.begun();
        loop {
            if self.begun().wrapping_sub(first) >= least {
                return None;
            }
            let done = if self.interp.cpu.stop.load() != 0 || self.interp.attention {
                self.pending = None;
                self.unload_x87();
                self.drop_stale();
                match self.interp.between_awake() {
                    Awake::Asleep => return None,
                    Awake::Done(done) => done,
                }
            } else if self.interp.cpu.leave {
                self.interp.finish()
            } else {
                self.dispatch()
            };
            if let Err(exit) = done {
                return Some(exit);
            }
        }
    }

    fn load_x87(&mut self) {
        let mut image = [0; 160];
        image.copy_from_slice(&self.interp.cpu.xsave.0[..160]);
        // SAFETY: nothing else on this thread uses x87 registers: compiled code does not, and the interpreter's stubs run only
        // after `unload_x87`.
        unsafe { area::load_x87(&image) };
        let c = self.ctx.get_mut();
        c.x87 = 1;
        c.x87_op = 0;
        c.x87_operand = NO_OPERAND;
    }

    /// Takes the x87 state back from the host's registers.
    fn unload_x87(&mut self) {
        let c = self.ctx.get_mut();
        if std::mem::take(&mut c.x87) == 0 {
            return;
        }
        let image = area::unload_x87();
        let (op, page, operand) = (c.x87_op, c.x87_page, c.x87_operand);
        let cpu = &mut self.interp.cpu;
        let calm = op & X87_CALM != 0;
        let Some(op) = (op & !X87_CALM).checked_sub(1) else { return host::store_x87(cpu, &image, None) };
        let bytes = self.store.bytes(op);
        let bits = if cpu.is64() { 64 } else { 32 };
        let insn = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode();
        let ip = page + u64::from(self.store.ops[op as usize].offset);
        let operand = (operand != NO_OPERAND).then_some(operand);
        let last = host::LastX87 { insn: &insn, bytes, ip, operand, calm };
        host::store_x87(cpu, &image, Some(last));
    }
}

/// Whether an instruction that does not end a block may load a segment register.
fn loads_segment(i: &Instruction) -> bool {
    let far = matches!(i.mnemonic(), M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss);
    far || i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register()
}

/// Lets the interpreter execute `d` at `rip`.
fn execute_one(
    cpu: &mut Cpu,
    d: &Decoded,
    rip: u64,
    following: u64,
    exits: Option<&mut Box<Exits>>,
) -> R<()> {
    cpu.rip = rip;
    cpu.next_rip = following;
    cpu.last_mnemonic = d.insn.mnemonic();
    if let Some(e) = exits {
        *e.interpreted.entry(cpu.last_mnemonic).or_default() += 1;
    }
    if d.is_host {
        host::run(cpu, &d.host, &d.insn)?;
    } else {
        generic::execute(cpu, &d.insn)?;
    }
    cpu.rip = cpu.next_rip;
    Ok(())
}

impl Drop for Translator {
    fn drop(&mut self) {
        if let Some(e) = &self.exits {
            let (code, sites) = self.store.in_use();
            for (name, n) in EXITS.iter().zip(&self.left[1..]) {
                eprint!("{name} {n}, ");
            }
            eprint!("{e}translated code: {code} bytes, {sites} sites, {} blocks, ", self.store.blocks.len());
            eprint!(
                "{} scattered, {} split, {} bytes in all; ",
                self.store.scattered.len(),
                self.store.split.len(),
                self.store.in_memory(false)
            );
            eprintln!(
                "cleared {} times, {} translations",
                self.store.clearings, self.interp.cpu.stats.blocks_decoded
            );
        }
    }
}

impl Vcpu for Translator {
    fn run(&mut self) -> Exit {
        self.interp.shared.acknowledge(self.interp.index());
        self.interp.poll();
        let exit = loop {
            if self.interp.cpu.stop.load() != 0 || self.interp.attention {
                self.pending = None;
                self.unload_x87();
                self.drop_stale();
                match self.interp.between() {
                    Some(exit) => break exit,
                    None => continue,
                }
            }
            let done = if self.interp.cpu.leave { self.interp.finish() } else { self.dispatch() };
            if let Err(exit) = done {
                break exit;
            }
        };
        self.unload_x87();
        self.interp.cpu.mmu.flush_writes();
        self.interp.shared.idle(self.interp.index());
        exit
    }

    fn state(&self) -> VcpuState {
        self.interp.state()
    }

    fn set_state(&mut self, s: &VcpuState) -> Result<(), EngineError> {
        self.interp.set_state(s)?;
        // What is translated stays: it is found by what memory holds, and by generations that have not passed.
        self.pending = None;
        self.young.clear();
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.interp.debug(request);
        let before = self.store.cuts.len();
        if request.is_empty() {
            self.store.cuts.clear();
        }
        // Those of breakpoints that have gone stay: a debugger takes them all away for each step, and puts them back.
        for offset in self.interp.debug.offsets() {
            if !self.store.cuts.contains(&offset) {
                self.store.cuts.push(offset);
            }
        }
        if self.store.cuts.len() != before {
            self.clear();
        }
        Ok(())
    }

    fn step(&mut self, until: Until) -> Option<Step> {
        let Until::Block(least) = until else {
            self.pending = None;
            self.unload_x87();
            return self.interp.step(until);
        };
        if self.store.rounds != FEW_ROUNDS {
            self.store.rounds = FEW_ROUNDS;
            self.count_instructions();
            self.clear();
        }
        self.interp.shared.acknowledge(self.interp.index());
        // Every place that looks at the stop word leaves.
        let stop = std::mem::replace(&mut self.ctx.get_mut().stop, std::ptr::from_ref(&ALWAYS) as u64);
        let first = self.begun();
        let exit = self.steps(least);
        self.ctx.get_mut().stop = stop;
        self.unload_x87();
        let step = self.interp.stepped(self.begun() - first, exit);
        Some(step)
    }

    fn count_instructions(&mut self) {
        if !std::mem::replace(&mut self.count, true) {
            self.adjust = 0;
            self.clear();
        }
    }

    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn stats(&self) -> Stats {
        let mut s = self.interp.stats();
        s.partial = !self.count;
        if self.count {
            s.instructions =
                s.instructions.wrapping_add(self.ctx.get().instret).wrapping_add(self.adjust as u64);
        }
        s.exits.copy_from_slice(&self.left[1..]);
        let code = self.peak.max(self.store.in_memory(false)) + self.ctx_len;
        s.code_memory += code as u64;
        s
    }
}
