//! Random differential test: generated instructions run natively, on the host's own processor, and in the interpreter; registers,
//! flags, memory and faults must be equal.
//!
//! [`generate`] makes cases out of [`forms`] (every instruction form that the model offers) and of random bytes; [`native`] runs them
//! in a guarded child process, [`interp`] in the interpreter, as 64-bit or 32-bit user code over the same addresses ([`layout`]);
//! [`compare`] compares, leaving out what the architecture does ([`undefined`]).

pub mod aim;
pub mod compare;
pub mod encode;
pub mod forms;
pub mod generate;
pub mod interp;
pub mod layout;
pub mod native;
pub mod record;
pub mod report;
pub mod rng;
pub mod undefined;
pub mod values;
pub mod worker;

use forms::Reach;
use generate::Case;
use iced_x86::{Code, EncodingKind};
use record::Output;
use ringer_arch::cpu::CpuModel;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Forms there are, as an array size.
const CODES: usize = 6000;
/// Mismatches of one instruction that are kept in full.
const KEEP: u64 = 3;

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of all cases.
    pub seed: u64,
    /// Compared cases to reach, at least.
    pub cases: u64,
    /// Worker threads, each with a child process.
    pub workers: usize,
    /// Only forms of this mnemonic.
    pub only: Option<String>,
    /// Only this batch.
    pub batch: Option<u64>,
    /// Percentage of cases made of random bytes.
    pub raw: u64,
    /// Stop at the first batch with a mismatch.
    pub stop_at_first: bool,
}

/// What all workers share.
pub struct Plan {
    seed: u64,
    model: Arc<CpuModel>,
    modes: Vec<ModePlan>,
    options: u32,
    raw: u64,
}

/// What is generated for code of one size.
struct ModePlan {
    bits: u32,
    forms: Vec<Code>,
    absent: Vec<Code>,
    reach: Vec<Reach>,
}

/// One difference.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Batch and case.
    pub at: (u64, usize),
    /// Instruction bytes.
    pub bytes: Vec<u8>,
    /// Disassembly.
    pub text: String,
    /// Form.
    pub code: Code,
    /// Which of the interpreter's ways.
    pub path: interp::Path,
    /// What differs.
    pub what: Vec<String>,
    /// The state before.
    pub input: String,
}

impl Mismatch {
    fn new(batch: u64, i: usize, case: &Case, what: Vec<String>, input: String) -> Mismatch {
        let mut text = String::new();
        iced_x86::FastFormatter::new().format(&case.insn, &mut text);
        if let Some((condition, at)) = case.branch {
            text += &format!(" and a branch on condition {condition:x} to {at}");
        }
        Mismatch {
            at: (batch, i),
            bytes: case.bytes.b[..case.bytes.len].to_vec(),
            text,
            code: case.insn.code(),
            path: case.path,
            what,
            input,
        }
    }
}

/// What came out.
pub struct Tally {
    /// Compared cases by form.
    pub ran: Vec<u64>,
    /// Of these, by vector that ended them (32: none).
    pub ends: [u64; 33],
    /// Cases of forms that the model lacks, checked to be #UD.
    pub absent: u64,
    /// Cases that differed once and not when they were repeated: disturbed by an interrupt.
    pub disturbed: u64,
    /// Cases that could not be compared (they reach into the child's own memory, or branch into other code).
    pub skipped: u64,
    /// Mismatches by form: how many, and the first few.
    pub mismatches: BTreeMap<Code, (u64, Vec<Mismatch>)>,
    /// Cases that were not generated, by reason ([`undefined::avoid`]).
    pub avoided: BTreeMap<&'static str, u64>,
    /// Mismatches that have not been told of yet.
    pub news: Vec<Mismatch>,
    /// Clean batches whose data windows differ nevertheless: batch, offset.
    pub stray: Vec<(u64, u64)>,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            ran: vec![0; CODES],
            ends: [0; 33],
            absent: 0,
            disturbed: 0,
            skipped: 0,
            mismatches: BTreeMap::new(),
            avoided: BTreeMap::new(),
            news: Vec::new(),
            stray: Vec::new(),
        }
    }
}

impl Tally {
    /// Compared cases.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.ran.iter().sum()
    }

    /// Whether nothing differed.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.mismatches.is_empty() && self.stray.is_empty()
    }

    fn count(&mut self, case: &Case, native: &Output) {
        self.ran[case.insn.code() as usize] += 1;
        let end = if native.signal == 0 { 32 } else { (native.vector as usize).min(31) };
        self.ends[end] += 1;
    }

    fn mismatch(&mut self, m: Mismatch) {
        let e = self.mismatches.entry(m.code).or_default();
        e.0 += 1;
        if e.0 <= KEEP {
            self.news.push(m.clone());
            e.1.push(m);
        }
    }

    fn merge(&mut self, other: Tally) {
        for (a, b) in self.ran.iter_mut().zip(other.ran) {
            *a += b;
        }
        for (a, b) in self.ends.iter_mut().zip(other.ends) {
            *a += b;
        }
        self.absent += other.absent;
        self.skipped += other.skipped;
        self.disturbed += other.disturbed;
        for (code, (n, list)) in other.mismatches {
            let e = self.mismatches.entry(code).or_default();
            e.0 += n;
            e.1.extend(list);
        }
        for (why, n) in other.avoided {
            *self.avoided.entry(why).or_default() += n;
        }
        self.stray.extend(other.stray);
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Copy)]
pub enum Progress<'a> {
    /// Cases compared so far, and mismatches.
    Cases(u64, u64),
    /// A mismatch.
    Found(&'a Mismatch),
}

/// A finished run.
pub struct Report {
    /// What came out.
    pub tally: Tally,
    /// Every form and what was done with it.
    pub forms: Vec<(Code, Reach)>,
    /// How long it took.
    pub time: Duration,
}

/// What to generate, and every form with what is done with it in 64-bit code or, if it is not run there, in 32-bit code.
fn plan(config: &Config) -> anyhow::Result<(Plan, Vec<(Code, Reach)>)> {
    let model = Arc::new(ringer_engine_soft::host_model()?);
    let only = config.only.as_deref();
    let modes: Vec<ModePlan> =
        [64, 32].map(|bits| mode(&model, bits, only)).into_iter().filter(|m| !m.forms.is_empty()).collect();
    anyhow::ensure!(!modes.is_empty(), "no instruction form of the model is called {:?}", config.only);
    let mut every: BTreeMap<Code, Reach> = forms::all(&model, 32).into_iter().collect();
    for (code, reach) in forms::all(&model, 64) {
        let e = every.entry(code).or_insert(reach);
        if *e != Reach::Both {
            *e = reach;
        }
    }
    let options = interp::decoder_options(&model);
    let raw = if only.is_some() { 0 } else { config.raw };
    Ok((Plan { seed: config.seed, model, modes, options, raw }, every.into_iter().collect()))
}

fn mode(model: &CpuModel, bits: u32, only: Option<&str>) -> ModePlan {
    let all = forms::all(model, bits);
    let mut reach = vec![Reach::Both; CODES];
    for c in Code::values() {
        reach[c as usize] = forms::reach(c, model, bits);
    }
    let wanted = |c: &Code| only.is_none_or(|m| format!("{:?}", c.mnemonic()).eq_ignore_ascii_case(m));
    let of = |r| all.iter().filter(move |f| f.1 == r).map(|f| f.0);
    let encodable = |c: &Code| matches!(c.op_code().encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    let absent = if only.is_some() { Vec::new() } else { of(Reach::Absent).filter(encodable).collect() };
    ModePlan { bits, forms: of(Reach::Both).filter(wanted).collect(), absent, reach }
}

/// Runs cases. `progress` is called every few seconds, and for the first mismatches of each form.
///
/// # Errors
/// The host lacks what the child or the interpreter needs.
pub fn run(config: &Config, progress: &(dyn Fn(Progress) + Sync)) -> anyhow::Result<Report> {
    let started = Instant::now();
    let (plan, forms) = plan(config)?;
    let next = AtomicU64::new(config.batch.unwrap_or(0));
    let (done, bad) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Tally::default());
    let work = |first: bool| -> anyhow::Result<()> {
        let mut worker = worker::Worker::new(&plan)?;
        let mut tally = Tally::default();
        let mut shown = Instant::now();
        let mut more = true;
        let mut counted = 0;
        while more && !stop.load(Ordering::SeqCst) {
            // A stretch of batches, then a look around.
            let mut left = if config.batch.is_some() { 1 } else { 64 };
            let take = || {
                if left == 0 || done.load(Ordering::SeqCst) >= config.cases {
                    return None;
                }
                left -= 1;
                Some(next.fetch_add(1, Ordering::SeqCst))
            };
            let before = tally.compared();
            worker.run(take, &mut tally)?;
            done.fetch_add(tally.compared() - before, Ordering::SeqCst);
            more = config.batch.is_none() && done.load(Ordering::SeqCst) < config.cases;
            let found: u64 = tally.mismatches.values().map(|m| m.0).sum();
            bad.fetch_add(found - counted, Ordering::SeqCst);
            counted = found;
            for m in tally.news.drain(..) {
                progress(Progress::Found(&m));
            }
            if config.stop_at_first && !tally.clean() {
                stop.store(true, Ordering::SeqCst);
            }
            if first && shown.elapsed() > Duration::from_secs(5) {
                shown = Instant::now();
                progress(Progress::Cases(done.load(Ordering::SeqCst), bad.load(Ordering::SeqCst)));
            }
        }
        total.lock().unwrap_or_else(PoisonError::into_inner).merge(tally);
        Ok(())
    };
    let workers = if config.batch.is_some() { 1 } else { config.workers.max(1) };
    std::thread::scope(|s| -> anyhow::Result<()> {
        let work = &work;
        let threads: Vec<_> = (0..workers).map(|i| s.spawn(move || work(i == 0))).collect();
        for t in threads {
            t.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(())
    })?;
    let tally = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Report { tally, forms, time: started.elapsed() })
}
