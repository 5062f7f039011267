//! [`Guest`]: the machine of one check, and how it is run.

use super::fail::{Fail, fail};
use super::io::{Io, Machine};
use super::layout as l;
use super::setup::{self, Mode};
use super::suite::Env;
use crate::{DebugStop, Exit, Until, Vcpu, Vm, VmParams, states};
use ringer_arch::regs::{gpr, rflags};
use ringer_arch::seg::sreg;
use ringer_arch::{MpState, VcpuState};
use ringer_memory::GuestMemory;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The guest wrote to [`END`](l::END).
    End,
    /// It came to a handler.
    Vector(Frame),
    /// A fault while a double fault was delivered.
    TripleFault,
    /// The host stopped it ([`Guest::run_beside`]).
    Stopped,
    /// What the check has asked for by [`Vcpu::set_debug`].
    Debug(DebugStop),
}

/// What the processor has pushed for an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Frame {
    pub vector: u8,
    pub code: Option<u64>,
    pub rip: u64,
    pub cs: u16,
    pub rflags: u64,
    /// Those of the interrupted program, if they were pushed.
    pub rsp: Option<u64>,
    pub ss: Option<u16>,
    /// Where it is.
    at: u64,
}

/// How a part of a run ended.
enum Part {
    Done(Option<Exit>),
    /// At an instruction boundary somewhere.
    Middle,
}

/// The machine of a check.
pub struct Guest {
    env: Arc<Env>,
    /// What it started in.
    pub mode: Mode,
    /// RAM.
    pub mem: GuestMemory,
    /// What is around the processors.
    pub io: Arc<Machine>,
    /// The boot processor's state: as it is to be before the next run, and as it is after the last one.
    pub s: VcpuState,
    /// The other processors' states. They wait for a start-up IPI.
    pub others: Vec<VcpuState>,
    vcpus: Vec<Box<dyn Vcpu>>,
    vm: Option<Box<dyn Vm>>,
    /// Index of the engine that has the processors.
    at: usize,
    /// What was loaded or saved last.
    known: Vec<VcpuState>,
    hops: bool,
    /// The dirty log must be exact.
    log: bool,
}

impl Guest {
    pub(super) fn new(env: &Arc<Env>, mode: Mode, cpus: usize) -> Result<Guest, Fail> {
        if !setup::has_mode(mode, &env.model) {
            return Err(Fail::Skip(format!("the processor model {} has no {mode:?}", env.model.name())));
        }
        let mem = GuestMemory::new(l::RAM)?;
        setup::tables(mode, &mem)?;
        let io = Machine::new(cpus, env.tsc_khz);
        env.watch(&io);
        let other = VcpuState::reset(env.model.signature(), false);
        let mut g = Guest {
            env: env.clone(),
            mode,
            mem,
            io,
            s: setup::state(mode, &env.model),
            others: vec![other; cpus - 1],
            vcpus: Vec::new(),
            vm: None,
            at: 0,
            known: Vec::new(),
            hops: true,
            log: false,
        };
        g.make(0)?;
        g.io.clock.start();
        Ok(g)
    }

    /// The processors are not handed over in the middle of this check's runs; `why` is for the reader.
    pub fn stay(&mut self, why: &str) {
        debug_assert!(!why.is_empty());
        self.hops = false;
    }

    /// Makes processors on engine `at`, in their reset state.
    fn make(&mut self, at: usize) -> Result<(), Fail> {
        // The old ones first: two engines on one memory are no machine.
        self.vcpus.clear();
        self.vm = None;
        self.at = at;
        let count = self.others.len() + 1;
        let vm = self.env.engines[at].create_vm(VmParams {
            memory: self.mem.clone(),
            cpu: self.env.model.clone(),
            vcpus: count as u32,
            started: Instant::now(),
            code_limit: 16 << 20,
        })?;
        for n in 0..count {
            let io = Arc::new(Io { machine: self.io.clone(), cpu: n });
            self.vcpus.push(vm.create_vcpu(n as u32, io, self.io.stop(n).clone())?);
            self.io.stop(n).raise(crate::StopToken::ATTENTION);
        }
        vm.log_writes(self.log)?;
        self.vm = Some(vm);
        self.known = self.vcpus.iter().map(|v| v.state()).collect();
        Ok(())
    }

    /// Asks for an exact dirty log, of this engine and of those that the processors are handed to.
    pub fn log_writes(&mut self) -> Result<(), Fail> {
        self.log = true;
        self.vm.as_ref().map_or(Ok(()), |vm| vm.log_writes(true))?;
        Ok(())
    }

    /// A processor, between runs.
    pub fn vcpu(&mut self, n: usize) -> &mut dyn Vcpu {
        self.vcpus[n].as_mut()
    }

    fn wanted(&self, n: usize) -> &VcpuState {
        if n == 0 { &self.s } else { &self.others[n - 1] }
    }

    /// Loads the states that the check has changed.
    pub fn load(&mut self) -> Result<(), Fail> {
        for n in 0..self.vcpus.len() {
            if self.known[n] != *self.wanted(n) {
                let s = self.wanted(n).clone();
                self.vcpus[n].set_state(&s)?;
                self.known[n] = s;
            }
        }
        Ok(())
    }

    /// Loads the states into processors of each engine in turn.
    pub(super) fn load_everywhere(&mut self) -> Result<(), Fail> {
        for at in (0..self.env.engines.len()).rev() {
            if at != self.at {
                self.make(at)?;
            }
            self.load()?;
        }
        Ok(())
    }

    /// Reads the states.
    pub fn save(&mut self) {
        self.known = self.vcpus.iter().map(|v| v.state()).collect();
        self.s = self.known[0].clone();
        self.others = self.known[1..].to_vec();
    }

    /// Saves the states and loads them into fresh processors of the next engine, where they must read the same.
    pub fn hand_over(&mut self) -> Result<(), Fail> {
        self.save();
        let from = self.env.engines[self.at].name();
        self.make((self.at + 1) % self.env.engines.len())?;
        self.load()?;
        let to = self.env.engines[self.at].name();
        for n in 0..self.vcpus.len() {
            let (mut old, mut new) = (self.wanted(n).clone(), self.vcpus[n].state());
            states::normalise(&mut old);
            states::normalise(&mut new);
            if old != new {
                let mut told = Vec::new();
                states::differences(&old, &new, ["saved", "loaded"], &mut told);
                return fail(format!("handed from {from} to {to} at {:#x}: {}", old.rip, told.join("; ")));
            }
        }
        self.env.count_hop();
        Ok(())
    }

    /// Runs until the guest ends it, an event comes, or the machine would reset.
    pub fn run(&mut self) -> Result<Event, Fail> {
        let exit = self.go()?;
        self.outcome(exit)
    }

    /// As [`run`](Self::run), while `host` runs on another thread. If `host` ends the run by
    /// [`Machine::stop_run`], it is [`Event::Stopped`]. It must return soon after [`Machine::has_ended`] does.
    pub fn run_beside(&mut self, host: impl FnOnce(&Machine) + Send) -> Result<Event, Fail> {
        let io = self.io.clone();
        let exit = std::thread::scope(|s| {
            let beside = s.spawn(|| host(&io));
            let exit = self.go();
            io.end();
            if let Err(panic) = beside.join() {
                resume_unwind(panic);
            }
            exit
        })?;
        self.outcome(exit)
    }

    /// Runs to an end, with hand-overs on the way.
    fn go(&mut self) -> Result<Option<Exit>, Fail> {
        self.load()?;
        let mut left = if self.hops { self.env.hops() } else { 0 };
        loop {
            let hop = left > 0;
            // A step is exact, but nothing happens beside it; and not every engine has it.
            let step = hop && self.vcpus.len() == 1 && self.env.random(4) != 0;
            let part = if step { self.step() } else { None };
            match part.unwrap_or_else(|| self.threads(hop)) {
                Part::Done(exit) => return Ok(exit),
                Part::Middle => self.hand_over()?,
            }
            left = left.saturating_sub(1);
        }
    }

    /// What a run was that ended by `exit`.
    fn outcome(&mut self, exit: Option<Exit>) -> Result<Event, Fail> {
        self.save();
        for n in 0..self.vcpus.len() {
            self.io.stop(n).take(crate::StopToken::STOP);
        }
        if self.env.expired() {
            let at: Vec<String> = self.known.iter().map(place).collect();
            return fail(format!("came to no end in {:?}; stands at {}", self.env.limit, at.join(" and ")));
        }
        let ended = self.io.take_ended();
        match exit {
            Some(Exit::TripleFault) => return Ok(Event::TripleFault),
            Some(Exit::Failed) => {
                let why: Vec<&str> = self.vcpus.iter().filter_map(|v| v.failure()).collect();
                return fail(format!(
                    "the engine gives up: {}; stands at {}",
                    why.join("; "),
                    place(&self.s)
                ));
            }
            Some(Exit::Debug(why)) => return Ok(Event::Debug(why)),
            Some(Exit::Stopped) | None => {}
        }
        if !ended {
            return Ok(Event::Stopped);
        }
        Ok(self.frame().map_or(Event::End, Event::Vector))
    }

    /// A few instructions; `None`: the engine cannot.
    fn step(&mut self) -> Option<Part> {
        let n = 1 + self.env.random(10);
        let s = self.vcpus[0].step(Until::Instruction(n))?;
        Some(if s.exit.is_some() || self.io.has_ended() && s.begun < n {
            Part::Done(s.exit)
        } else {
            Part::Middle
        })
    }

    /// Runs each processor on a thread of its own; `hop`: for a random time at most.
    fn threads(&mut self, hop: bool) -> Part {
        let io = &self.io;
        let kick = hop.then(|| Duration::from_micros(1 << self.env.random(9)));
        let started = Instant::now();
        std::thread::scope(|s| {
            let (sender, ends) = mpsc::channel();
            let count = self.vcpus.len();
            let mut threads = Vec::new();
            for v in &mut self.vcpus {
                let sender = sender.clone();
                threads.push(s.spawn(move || {
                    let exit = catch_unwind(AssertUnwindSafe(|| v.run()));
                    let _received = sender.send(exit.as_ref().ok().copied());
                    exit
                }));
            }
            let (mut done, mut first, mut kicked) = (0, None, false);
            while done < count {
                let timer = io.timers().map_or(Duration::from_millis(1), Duration::from_nanos);
                let mut wait = timer.clamp(Duration::from_micros(1), Duration::from_millis(1));
                if let Some(kick) = kick.filter(|_| !kicked) {
                    let left = kick.saturating_sub(started.elapsed());
                    if left.is_zero() {
                        kicked = true;
                        io.stop_all();
                        continue;
                    }
                    wait = wait.min(left);
                }
                match ends.recv_timeout(wait) {
                    Ok(exit) => {
                        done += 1;
                        if first.is_none() || exit != Some(Exit::Stopped) {
                            first = exit;
                        }
                        // One that stops for whatever reason stops all.
                        io.stop_all();
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            for t in threads {
                if let Ok(Err(panic)) = t.join() {
                    resume_unwind(panic);
                }
            }
            if kicked && !io.has_ended() && first == Some(Exit::Stopped) && !self.env.expired() {
                for n in 0..count {
                    io.stop(n).take(crate::StopToken::STOP);
                }
                return Part::Middle;
            }
            Part::Done(first)
        })
    }

    /// The frame of the event whose handler has just ended the run.
    fn frame(&self) -> Option<Frame> {
        let s = &self.s;
        let lin = s.seg[sreg::CS].base.wrapping_add(s.rip).wrapping_sub(l::HANDLERS);
        if lin >= 0x1000 || lin % 16 != 2 {
            return None;
        }
        let vector = (lin / 16) as u8;
        let long = s.efer & ringer_arch::regs::efer::LMA != 0;
        let size = match self.mode {
            Mode::Real => 2,
            _ if long => 8,
            _ => 4,
        };
        let wide = s.seg[sreg::SS].attr.big() || long;
        let sp = s.gpr[gpr::RSP] & if wide { u64::MAX } else { 0xffff };
        let at = if long { sp } else { sp.wrapping_add(s.seg[sreg::SS].base) };
        let word = |n: u64| {
            let gpa = at.wrapping_add(n * size);
            match size {
                2 => u64::from(self.mem.load::<u16>(gpa).unwrap_or(0)),
                4 => u64::from(self.mem.load::<u32>(gpa).unwrap_or(0)),
                _ => self.mem.load::<u64>(gpa).unwrap_or(0),
            }
        };
        let code = (size != 2 && setup::has_code(vector)).then(|| word(0));
        let n = u64::from(code.is_some());
        let cs = word(n + 1) as u16;
        let flags = word(n + 2);
        let more = long || size == 4 && (cs & 3 != u16::from(s.cpl) || flags & rflags::VM != 0);
        Some(Frame {
            vector,
            code,
            rip: word(n),
            cs,
            rflags: flags,
            rsp: more.then(|| word(n + 3)),
            ss: more.then(|| word(n + 4) as u16),
            at: at + n * size,
        })
    }

    /// Lets the handler that ended the last run return to `rip`.
    pub fn return_to(&mut self, f: &Frame, rip: u64) -> Result<(), Fail> {
        match self.mode {
            Mode::Real => self.mem.store(f.at, rip as u16)?,
            _ if self.mode.long() => self.mem.store(f.at, rip)?,
            _ => self.mem.store(f.at, rip as u32)?,
        }
        Ok(())
    }

    /// Runs to [`END`](l::END).
    pub fn end(&mut self) -> Result<(), Fail> {
        match self.run()? {
            Event::End => Ok(()),
            e => fail(format!("{e:x?} instead of the end; stands at {}", place(&self.s))),
        }
    }

    /// Runs to the event `vector`.
    pub fn event(&mut self, vector: u8) -> Result<Frame, Fail> {
        match self.run()? {
            Event::Vector(f) if f.vector == vector => Ok(f),
            e => fail(format!("{e:x?} instead of vector {vector}; stands at {}", place(&self.s))),
        }
    }

    /// Runs to the exception `vector`, which must have this error code and return address.
    pub fn fault(&mut self, vector: u8, code: impl Into<Option<u64>>, rip: u64) -> Result<Frame, Fail> {
        let f = self.event(vector)?;
        let code = code.into();
        if (f.code, f.rip) != (code, rip) {
            return fail(format!(
                "vector {vector} with code {:x?} at {:#x}, not {code:x?} at {rip:#x}",
                f.code, f.rip
            ));
        }
        Ok(f)
    }

    /// Runs to a page fault with this error code, address and return address.
    pub fn page_fault(&mut self, code: u32, cr2: u64, rip: u64) -> Result<Frame, Fail> {
        let f = self.fault(14, u64::from(code), rip)?;
        if self.s.cr2 != cr2 {
            return fail(format!("CR2 is {:#x}, not {cr2:#x}", self.s.cr2));
        }
        Ok(f)
    }

    /// Runs to a triple fault.
    pub fn triple_fault(&mut self) -> Result<(), Fail> {
        match self.run()? {
            Event::TripleFault => Ok(()),
            e => fail(format!("{e:x?} instead of a triple fault; stands at {}", place(&self.s))),
        }
    }

    /// Puts the boot processor in ring 3, at [`UCODE`](l::UCODE).
    pub fn ring3(&mut self) {
        setup::ring3(self.mode, &mut self.s);
    }

    /// Gives vector `v` a gate of other rights: type, DPL and P in bits 7:0 and the IST in 10:8. Not in real mode.
    pub fn gate(&mut self, v: u8, rights: u32) -> Result<(), Fail> {
        Ok(setup::set_gate(self.mode, &self.mem, v, rights)?)
    }

    /// Stores a descriptor in the GDT.
    pub fn descriptor(&mut self, selector: u16, d: u64) -> Result<(), Fail> {
        Ok(self.mem.store(l::GDT + u64::from(selector & !7), d)?)
    }

    /// Guest-physical address of the page-table entry of a linear address below 2 MiB.
    #[must_use]
    pub fn pte_at(&self, lin: u64) -> u64 {
        let (table, size) = match self.mode {
            Mode::Paged32 => (1, 4),
            Mode::Pae => (2, 8),
            Mode::La57 => (4, 8),
            _ => (3, 8),
        };
        l::TABLES + 0x1000 * table + size * (lin >> 12)
    }

    /// That entry.
    pub fn pte(&self, lin: u64) -> Result<u64, Fail> {
        let at = self.pte_at(lin);
        Ok(if self.mode == Mode::Paged32 { self.mem.load::<u32>(at)?.into() } else { self.mem.load(at)? })
    }

    /// Changes that entry.
    pub fn set_pte(&mut self, lin: u64, v: u64) -> Result<(), Fail> {
        let at = self.pte_at(lin);
        if self.mode == Mode::Paged32 {
            self.mem.store(at, v as u32)?;
        } else {
            self.mem.store(at, v)?;
        }
        Ok(())
    }

    /// The model of the processors.
    #[must_use]
    pub fn model(&self) -> &ringer_arch::cpu::CpuModel {
        &self.env.model
    }

    /// What the engine that has the processors needs of the machine.
    pub fn engine_needs(&self) -> Result<crate::Needs, Fail> {
        Ok(self.env.engines[self.at].needs()?)
    }

    /// What the engine is called that has the processors.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.env.engines[self.at].name()
    }

    /// Skips the check if the model lacks a feature.
    pub fn needs(&self, f: ringer_arch::cpu::Feature) -> Result<(), Fail> {
        if self.env.model.has(f) {
            return Ok(());
        }
        Err(Fail::Skip(format!("the processor model {} has no {}", self.env.model.name(), f.name())))
    }
}

/// Where a processor is.
fn place(s: &VcpuState) -> String {
    let activity =
        if s.mp_state == MpState::Running { String::new() } else { format!(" ({:?})", s.mp_state) };
    format!("{:#x}:{:#x}{activity}", s.seg[sreg::CS].selector, s.rip)
}
