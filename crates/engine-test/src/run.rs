//! The driver: batches of programs on worker threads.

use crate::r#gen::{self, Pool};
use crate::handed;
use crate::helper::Helper;
use crate::minimise::minimise;
use crate::pair::{Engines, Pair, Verdict};
use crate::program::Program;
use crate::report;
use anyhow::Context;
use ringer_engine::Needs;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Programs that one pair of machines runs before it is made anew.
pub const BATCH: u64 = 4096;

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of all programs.
    pub seed: u64,
    /// Programs to run.
    pub programs: u64,
    /// Number of the first.
    pub first: u64,
    /// Worker threads.
    pub workers: usize,
    /// Differences after which to stop.
    pub most: u64,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Programs that ended the same on both.
    pub same: u64,
    /// Programs that did not end in time.
    pub dropped: u64,
    /// Instructions of those that did.
    pub instructions: u64,
    /// Differences, told in full.
    pub found: Vec<String>,
}

/// What all workers share.
struct Shared<'a> {
    config: &'a Config,
    engines: Engines<'a>,
    pool: &'a Pool,
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    total: Mutex<Tally>,
    tell: &'a (dyn Fn(&str) + Sync),
}

/// Runs programs on two engines.
///
/// # Errors
/// The host lacks something, or an engine refuses a program's state.
pub fn run(config: &Config, engines: Engines, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<Tally> {
    // Two engines would draw different numbers, where random bytes happen to ask for them.
    let name = "host,-rdrand,-rdseed";
    let model = if engines.tested.name().contains('>') {
        handed::model(name)?
    } else {
        ringer_vmm::cpu_model(name, &Needs::default())?
    };
    let pool = Pool::new(Arc::new(model), config.seed);
    let shared = Shared {
        config,
        engines,
        pool: &pool,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        total: Mutex::default(),
        tell,
    };
    std::thread::scope(|s| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..config.workers.max(1))
            .map(|n| {
                s.spawn({
                    let shared = &shared;
                    move || worker(shared, n)
                })
            })
            .collect();
        for w in workers {
            w.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(())
    })?;
    Ok(shared.total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn worker(s: &Shared, n: usize) -> anyhow::Result<()> {
    let helper = Helper::new()?;
    let started = Instant::now();
    let mut shown = Instant::now();
    while !s.stop.load(Ordering::SeqCst) {
        let from = s.next.fetch_add(BATCH, Ordering::SeqCst);
        if from >= s.config.programs {
            break;
        }
        let to = (from + BATCH).min(s.config.programs);
        batch(s, s.config.first + from, s.config.first + to, &helper)?;
        if n == 0 && shown.elapsed() > Duration::from_secs(5) {
            shown = Instant::now();
            let done = s.done.load(Ordering::SeqCst);
            let t = s.total.lock().unwrap_or_else(PoisonError::into_inner);
            let rate = done as f64 / started.elapsed().as_secs_f64();
            (s.tell)(&format!(
                "{done} of {} programs, {rate:.0}/s, {} dropped, {} differences",
                s.config.programs,
                t.dropped,
                t.found.len()
            ));
        }
    }
    Ok(())
}

/// Runs of an asynchronous program after which it is taken for one that ends the same whenever its interrupts come.
const TRIES_FOR_TIME: usize = 300;

/// Runs programs `from..to` on one pair of machines.
fn batch(s: &Shared, from: u64, to: u64, helper: &Helper) -> anyhow::Result<()> {
    let mut pair = Pair::new(s.engines, s.pool)?;
    let mut t = Tally::default();
    for number in from..to {
        let p = r#gen::program(s.pool, s.config.seed, number);
        let verdict = pair.run(&p, helper);
        match verdict.with_context(|| format!("program {number} of seed {}", s.config.seed))? {
            Verdict::Same(n) => {
                t.same += 1;
                t.instructions += n;
            }
            Verdict::Dropped => t.dropped += 1,
            Verdict::Differs(_) if p.asynchronous && depends_on_time(s, &p, helper)? => {
                t.dropped += 1;
                pair = Pair::new(s.engines, s.pool)?;
            }
            Verdict::Differs(what) => {
                let told = explain(s, from, number, &what, helper)?;
                (s.tell)(&told);
                t.found.push(told);
                if t.found.len() as u64 >= s.config.most {
                    break;
                }
                pair = Pair::new(s.engines, s.pool)?;
            }
        }
    }
    s.done.fetch_add(to - from, Ordering::SeqCst);
    let mut total = s.total.lock().unwrap_or_else(PoisonError::into_inner);
    total.same += t.same;
    total.dropped += t.dropped;
    total.instructions += t.instructions;
    total.found.extend(t.found);
    if total.found.len() as u64 >= s.config.most {
        s.stop.store(true, Ordering::SeqCst);
    }
    Ok(())
}

/// Whether where an asynchronous program ends depends on when its interrupts come: whether the reference engine differs from itself.
fn depends_on_time(s: &Shared, p: &Program, helper: &Helper) -> anyhow::Result<bool> {
    let twice = Engines { reference: s.engines.reference, tested: s.engines.reference };
    let mut pair = Pair::new(twice, s.pool)?;
    for _ in 0..TRIES_FOR_TIME {
        if pair.run(p, helper)?.differs() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Everything about a difference: what it is, the smallest program that shows it, how to see it again.
fn explain(s: &Shared, first: u64, number: u64, what: &[String], helper: &Helper) -> anyhow::Result<String> {
    let p = r#gen::program(s.pool, s.config.seed, number);
    let names = format!("--engines {},{}", s.engines.reference.name(), s.engines.tested.name());
    let again = format!("--seed {} --first {number} --programs 1 {names}", s.config.seed);
    let mut out = format!("program {number} of seed {} differs; again with: {again}\n", s.config.seed);
    let mut alone = false;
    for _ in 0..if p.asynchronous { 50 } else { 1 } {
        alone |= Pair::new(s.engines, s.pool)?.run(&p, helper)?.differs();
    }
    if !alone {
        let _infallible = writeln!(
            out,
            "not by itself: only after others, with --seed {} --first {first} --programs {} {names} --workers 1",
            s.config.seed,
            number - first + 1
        );
        for line in what {
            let _infallible = writeln!(out, "  {line}");
        }
        let all: Vec<usize> = (0..p.insns.len()).collect();
        out.push_str(&report::text(&p, &all, s.pool.options));
        return Ok(out);
    }
    let m = minimise(&p, s.engines, s.pool, helper)?;
    let _infallible = writeln!(
        out,
        "{}-bit code of {} instructions, of which these matter{}:",
        p.bits,
        p.insns.len(),
        if m.program.asynchronous { " (asynchronous interrupts)" } else { "" }
    );
    out.push_str(&report::text(&m.program, &m.kept, s.pool.options));
    let _infallible = writeln!(out, "  from {}", report::state(&m.program.state, &s.pool.base));
    out.push_str(&report::patches(&m.program));
    let mut last = what.to_vec();
    for _ in 0..if p.asynchronous { 50 } else { 1 } {
        if let Verdict::Differs(w) = Pair::new(s.engines, s.pool)?.run(&m.program, helper)? {
            last = w;
            break;
        }
    }
    for line in last {
        let _infallible = writeln!(out, "  {line}");
    }
    Ok(out)
}
