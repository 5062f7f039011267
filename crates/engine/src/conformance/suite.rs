//! Running checks: in a thread of their own, with a limit of time.

use super::fail::Fail;
use super::guest::Guest;
use super::io::Machine;
use super::setup::Mode;
use super::{Check, Test};
use crate::Engine;
use ringer_arch::cpu::CpuModel;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a processor may take to answer its stop word before the check is given up with its thread.
const GRACE: Duration = Duration::from_secs(5);

/// On what checks run.
#[derive(Clone)]
pub struct Target {
    /// One engine, or several that a check's processors are handed around at random instructions.
    pub engines: Vec<Arc<dyn Engine>>,
    /// Hand-overs happen, also with one engine: to fresh processors of the same.
    pub hand_over: bool,
    /// What the processors are. All engines must be able to be it.
    pub model: Arc<CpuModel>,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u64,
    /// Chooses the instructions of hand-overs.
    pub seed: u64,
    /// The longest that a check may take.
    pub limit: Duration,
}

/// How a check went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// It cannot be run here: why.
    Skipped(String),
    /// What was wrong.
    Failed(String),
}

/// A check's outcome and what it took.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
    /// How often processors were handed over.
    pub hand_overs: u64,
}

/// What the parts of one check share.
pub(super) struct Env {
    pub engines: Vec<Arc<dyn Engine>>,
    pub model: Arc<CpuModel>,
    pub tsc_khz: u64,
    pub limit: Duration,
    hand_over: bool,
    seed: AtomicU64,
    expired: AtomicBool,
    hops: AtomicU64,
    machines: Mutex<Vec<Weak<Machine>>>,
}

impl Env {
    /// A number below `n`.
    pub fn random(&self, n: u64) -> u64 {
        // SplitMix64.
        let mut z = self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    /// How many hand-overs the next run has at most.
    pub fn hops(&self) -> u64 {
        if self.hand_over { 1 + self.random(4) } else { 0 }
    }

    pub fn count_hop(&self) {
        self.hops.fetch_add(1, Ordering::Relaxed);
    }

    pub fn expired(&self) -> bool {
        self.expired.load(Ordering::SeqCst)
    }

    pub fn watch(&self, m: &Arc<Machine>) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(m));
    }

    fn expire(&self) {
        self.expired.store(true, Ordering::SeqCst);
        for m in &*self.machines.lock().unwrap_or_else(PoisonError::into_inner) {
            if let Some(m) = m.upgrade() {
                m.stop_run();
            }
        }
    }
}

impl Test {
    /// A machine of one processor.
    pub fn guest(&self, mode: Mode) -> Result<Guest, Fail> {
        Guest::new(&self.env, mode, 1)
    }

    /// Those of `modes` that the processor model and all engines have.
    ///
    /// # Errors
    /// [`Fail::Skip`]: none.
    pub fn modes(&self, modes: &[Mode]) -> Result<Vec<Mode>, Fail> {
        let (mut all, mut why) = (Vec::new(), None);
        for m in modes {
            match Guest::new(&self.env, *m, 1).and_then(|mut g| g.load_everywhere()) {
                Ok(()) => all.push(*m),
                Err(Fail::Skip(w)) => why = Some(w),
                Err(e) => return Err(e),
            }
        }
        why.filter(|_| all.is_empty()).map_or(Ok(all), |w| Err(Fail::Skip(w)))
    }

    /// A machine of `cpus` processors, all but the first waiting for a start-up IPI.
    pub fn guests(&self, mode: Mode, cpus: usize) -> Result<Guest, Fail> {
        Guest::new(&self.env, mode, cpus)
    }
}

/// Runs one check.
#[must_use]
pub fn run(check: &Check, target: &Target) -> Report {
    let started = Instant::now();
    let env = Arc::new(Env {
        engines: target.engines.clone(),
        model: target.model.clone(),
        tsc_khz: target.tsc_khz,
        limit: target.limit,
        hand_over: target.hand_over,
        seed: AtomicU64::new(target.seed),
        expired: AtomicBool::new(false),
        hops: AtomicU64::new(0),
        machines: Mutex::default(),
    });
    let (sender, receiver) = mpsc::channel();
    let test = Test { env: env.clone() };
    let f = check.run;
    let thread = std::thread::Builder::new().name(check.name.to_owned()).spawn(move || {
        // If it panics, the channel closes.
        let _received = sender.send(f(&test));
    });
    let result = match thread {
        Err(e) => Err(Fail::Skip(format!("no thread: {e}"))),
        Ok(t) => match wait(&receiver, &env, target.limit) {
            Some(r) => t.join().map_or_else(|e| Err(Fail::Wrong(panicked(e.as_ref()))), |()| r),
            None => Err(Fail::Wrong(format!(
                "its processor does not answer its stop word in {GRACE:?}: given up"
            ))),
        },
    };
    let outcome = match result {
        Ok(()) => Outcome::Passed,
        Err(Fail::Skip(why)) => Outcome::Skipped(why),
        Err(Fail::Wrong(what)) => Outcome::Failed(what),
    };
    Report { outcome, time: started.elapsed(), hand_overs: env.hops.load(Ordering::Relaxed) }
}

/// What a thread said that panicked.
fn panicked(e: &(dyn std::any::Any + Send)) -> String {
    let text = e.downcast_ref::<String>().map(String::as_str).or_else(|| e.downcast_ref::<&str>().copied());
    format!("the engine or the check panicked: {}", text.unwrap_or("without a text"))
}

/// The check's result; `None`: it is stuck.
fn wait(receiver: &mpsc::Receiver<Result<(), Fail>>, env: &Env, limit: Duration) -> Option<Result<(), Fail>> {
    // Its thread has the text.
    let panicked = || Some(Err(Fail::Wrong(String::new())));
    match receiver.recv_timeout(limit) {
        Ok(r) => return Some(r),
        Err(RecvTimeoutError::Disconnected) => return panicked(),
        Err(RecvTimeoutError::Timeout) => {}
    }
    let late = Instant::now();
    while late.elapsed() < GRACE {
        // Again and again: a check of several runs would go on with the next.
        env.expire();
        match receiver.recv_timeout(Duration::from_millis(10)) {
            Ok(r) => return Some(r),
            Err(RecvTimeoutError::Disconnected) => return panicked(),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    None
}
