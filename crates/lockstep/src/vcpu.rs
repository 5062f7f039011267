//! [`LockStep`]: one processor on two engines.

use crate::io::Tape;
use crate::{code, states};
use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuModel;
use ringer_engine::{EngineError, Exit, Stats, Step, StopToken, Until, Vcpu};
use ringer_memory::{GuestMemory, PAGE_SIZE, PageFlags};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// Least instructions of a step, and steps after which everything is compared, unless the environment says otherwise.
const USUAL: (u64, u64) = (1, 4096);

/// RAM of at most this many bytes is copied as a whole.
const SMALL: u64 = 16 << 20;

/// One engine's side.
pub(crate) struct Side {
    pub(crate) vcpu: Box<dyn Vcpu>,
    pub(crate) stop: StopToken,
    pub(crate) memory: GuestMemory,
    pub(crate) name: &'static str,
}

/// One processor on two engines.
pub(crate) struct LockStep {
    sides: [Side; 2],
    tape: Arc<Tape>,
    /// What the machine raises.
    stop: StopToken,
    model: Arc<CpuModel>,
    /// Instructions of a step, at least.
    least: u64,
    /// Steps after which everything is compared.
    often: u64,
    steps: u64,
    instructions: u64,
    /// Where the last steps began, and instructions that they took.
    trail: [(u64, u64); 8],
    /// Pages of the first that were found written.
    written: BTreeSet<u64>,
}

impl LockStep {
    pub(crate) fn new(sides: [Side; 2], tape: Arc<Tape>, stop: StopToken, model: Arc<CpuModel>) -> LockStep {
        let said = std::env::var("RINGER_LOCKSTEP").unwrap_or_default();
        let mut numbers = said.split(',').map(|n| n.parse::<u64>().ok());
        let mut number = |usual| numbers.next().flatten().unwrap_or(usual).max(1);
        let (least, often) = (number(USUAL.0), number(USUAL.1));
        LockStep {
            sides,
            tape,
            stop,
            model,
            least,
            often,
            steps: 0,
            instructions: 0,
            trail: [(0, 0); 8],
            written: BTreeSet::new(),
        }
    }

    /// Brings the second's RAM to what the first's is: what has been written since both were the same. All of it if that is little,
    /// because others may take the dirty log, too.
    fn copy_ram(&mut self) {
        let [a, b] = &self.sides;
        let mut pages = dirty(&a.memory);
        self.written.extend(&pages);
        if a.memory.size() <= SMALL {
            pages = a
                .memory
                .regions()
                .iter()
                .flat_map(|r| (r.gpa..r.gpa + r.size).step_by(PAGE_SIZE as usize))
                .collect();
        }
        let (mut page, mut old) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        for gpa in pages {
            let read = a.memory.read(gpa, &mut page).and_then(|()| b.memory.read(gpa, &mut old));
            let copied = if page == old { read } else { read.and_then(|()| b.memory.write(gpa, &page)) };
            assert!(copied.is_ok(), "both RAMs are of one size");
        }
        let _copied = dirty(&b.memory);
    }

    /// Leaves the dirty log as the first engine alone would have.
    fn restore_log(&mut self) {
        for gpa in std::mem::take(&mut self.written) {
            let _before = self.sides[0].memory.set_page_flags(gpa, PageFlags::DIRTY);
        }
    }

    /// One step of both; what differs.
    fn step(&mut self) -> Result<Step, String> {
        let [a, b] = &mut self.sides;
        self.tape.turn(true);
        a.stop.take(StopToken::STOP);
        let first = a.vcpu.step(Until::Block(self.least));
        let Some(mut x) = first else { return Err(format!("{} cannot be stepped", a.name)) };
        // The machine wants the processor's attention: the recorder has ended the step.
        x.exit = x.exit.filter(|e| *e != Exit::Stopped);
        let second = b.vcpu.step(Until::Instruction(x.begun.max(1)));
        self.tape.turn(false);
        let Some(y) = second else { return Err(format!("{} cannot be stepped", b.name)) };
        self.steps += 1;
        self.instructions += x.begun;
        let astray = self.tape.finish();
        if x == y && astray.is_none() {
            return Ok(x);
        }
        let mut what = astray.unwrap_or_default();
        let mut line = |name: &str, u: u64, v: u64| {
            if u != v {
                let _infallible = write!(what, "\n{name}: {} {u:#x}, {} {v:#x}", a.name, b.name);
            }
        };
        line("instructions", x.begun, y.begun);
        for (name, (u, v)) in states::NAMES.iter().zip(x.gpr.iter().zip(&y.gpr)) {
            line(name, *u, *v);
        }
        line("rip", x.rip, y.rip);
        line("rflags", x.rflags, y.rflags);
        if x.exit != y.exit {
            let _infallible = write!(what, "\nend: {} {:?}, {} {:?}", a.name, x.exit, b.name, y.exit);
        }
        Err(what)
    }

    /// Compares everything. Both drop their fast paths to RAM first.
    fn compare_all(&mut self) -> Result<(), String> {
        // They also ask what is pending.
        self.tape.turn(true);
        for s in &mut self.sides {
            s.stop.raise(StopToken::STOP);
            s.vcpu.run();
        }
        self.tape.turn(false);
        self.tape.finish();
        let [a, b] = &self.sides;
        let mut out = Vec::new();
        let (mut x, mut y) = (a.vcpu.state(), b.vcpu.state());
        states::normalise(&mut x);
        states::normalise(&mut y);
        states::differences(&x, &y, [a.name, b.name], &mut out);
        let written = dirty(&a.memory);
        self.written.extend(&written);
        let pages: BTreeSet<u64> = written.into_iter().chain(dirty(&b.memory)).collect();
        let (mut p, mut q) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        for gpa in pages {
            let read = a.memory.read(gpa, &mut p).and_then(|()| b.memory.read(gpa, &mut q));
            if read.is_err() || p == q {
                continue;
            }
            for (i, (u, v)) in p.chunks(8).zip(q.chunks(8)).enumerate() {
                let at = gpa + i as u64 * 8;
                if u == v {
                } else if only_accessed(u, v) {
                    // From now on both have it.
                    out.extend(b.memory.write(at, u).err().map(|e| e.to_string()));
                } else if out.len() < 64 {
                    out.push(format!("RAM at {at:#x}: {} {u:02x?}, {} {v:02x?}", a.name, b.name));
                }
            }
        }
        if out.is_empty() { Ok(()) } else { Err(out.join("\n")) }
    }

    /// Everything about a difference.
    fn report(&mut self, what: &str) -> String {
        let rest = self.compare_all().err().unwrap_or_default();
        let mut out = format!(
            "the engines differ after {} steps, {} instructions\n{what}\n{rest}\nthe last steps:\n",
            self.steps, self.instructions
        );
        let state = self.sides[1].vcpu.state();
        for n in 1..=self.trail.len() as u64 {
            let (rip, begun) = self.trail[((self.steps + n) % self.trail.len() as u64) as usize];
            let _infallible = writeln!(out, " {begun} instructions from {rip:x}");
            out += &code::text(&state, &self.model, &self.sides[1].memory, rip, begun + 1);
        }
        out
    }

    fn go(&mut self) -> Result<Exit, String> {
        let mut rip = self.sides[1].vcpu.state().rip;
        loop {
            let word = self.stop.load();
            if word & StopToken::STOP != 0 {
                self.stop.take(StopToken::STOP);
                self.compare_all()?;
                return Ok(Exit::Stopped);
            }
            if word & StopToken::ATTENTION != 0 {
                self.stop.take(StopToken::ATTENTION);
                for s in &self.sides {
                    s.stop.raise(StopToken::ATTENTION);
                }
            }
            let done = self.step()?;
            let slot = self.steps as usize % self.trail.len();
            self.trail[slot] = (rip, done.begun);
            rip = done.rip;
            if self.steps.is_multiple_of(self.often) {
                self.compare_all()?;
            }
            if let Some(exit) = done.exit {
                self.compare_all()?;
                return Ok(exit);
            }
            if done.begun == 0 {
                self.compare_all()?;
                self.stop.wait(None);
            }
        }
    }
}

/// Whether `first` may be the page-table entry `second` with its accessed bit set, which processors may do early (Intel SDM vol. 3A
/// §4.10.2.3).
fn only_accessed(first: &[u8], second: &[u8]) -> bool {
    first[0] == second[0] | 0x20 && second[0] & 1 != 0 && first[1..] == second[1..]
}

/// Addresses of the pages that were written since this was last asked.
fn dirty(memory: &GuestMemory) -> Vec<u64> {
    let mut out = Vec::new();
    for (region, log) in memory.regions().iter().zip(memory.take_dirty()) {
        for (i, word) in log.iter().enumerate().filter(|(_, w)| **w != 0) {
            let set = (0..64).filter(|b| word >> b & 1 != 0);
            out.extend(set.map(|b| region.gpa + (i as u64 * 64 + b) * PAGE_SIZE));
        }
    }
    out
}

impl Vcpu for LockStep {
    /// # Panics
    /// The engines differ.
    fn run(&mut self) -> Exit {
        self.copy_ram();
        let done = self.go();
        self.restore_log();
        match done {
            Ok(exit) => exit,
            Err(what) => panic!("{}", self.report(&what)),
        }
    }

    fn state(&self) -> VcpuState {
        self.sides[0].vcpu.state()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        // Loading a state reads PDPTEs from RAM.
        self.copy_ram();
        self.restore_log();
        self.sides[1].vcpu.set_state(state)?;
        self.sides[0].vcpu.set_state(state)
    }

    fn stats(&self) -> Stats {
        self.sides[0].vcpu.stats()
    }
}
