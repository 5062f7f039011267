//! The conformance suite under every engine of this build: columns, the table, and the exceptions.

use crate::debugged::Debugged;
use crate::exceptions::{EMULATED, EXCEPTIONS, Exception};
use crate::handed::both;
use anyhow::Context;
use ringer_engine::conformance::{self, Outcome, Report, Row, Target};
use ringer_engine::{Engine, Needs, Probe};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// One column: an engine, or several that processors are handed around.
pub struct Column {
    /// Its name: of the engines, with `>` between them if processors are handed over.
    pub name: String,
    /// What checks run on; or why they do not.
    pub target: Result<Target, String>,
}

/// What columns have in common.
#[derive(Clone, Debug)]
pub struct Config {
    /// The processor model, as `--cpu` takes it.
    pub cpu: String,
    /// Chooses the instructions of hand-overs.
    pub seed: u64,
    /// The longest that a check may take.
    pub limit: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config { cpu: "host".to_owned(), seed: 1, limit: Duration::from_secs(30) }
    }
}

/// The columns that are run when none are named.
#[must_use]
pub fn columns() -> Vec<String> {
    let all = ["interpreter", "translator", "lockstep", "kvm", "debugged-interpreter", "debugged-translator"];
    let pairs = [
        "interpreter>interpreter",
        "translator>translator",
        "interpreter>translator",
        "kvm>kvm",
        "interpreter>kvm",
        "translator>kvm",
    ];
    all.into_iter().chain(pairs).map(str::to_owned).collect()
}

/// Makes the column called `name`.
///
/// # Errors
/// There is no such processor model.
pub fn column(name: &str, config: &Config) -> anyhow::Result<Column> {
    let mut needs = Needs::default();
    let mut engines: Vec<Arc<dyn Engine>> = Vec::new();
    let absent = |why: String| Ok(Column { name: name.to_owned(), target: Err(why) });
    for part in name.split('>') {
        let (bare, debugged) = part.strip_prefix(DEBUGGED).map_or((part, false), |bare| (bare, true));
        let engine = match ringer_vmm::choose(bare) {
            Ok(choice) if debugged => Box::new(Debugged { engine: choice.engine, seed: config.seed }),
            Ok(choice) => choice.engine,
            Err(e) => return absent(e.to_string()),
        };
        if let Probe::Missing(why) = engine.probe() {
            return absent(why);
        }
        match engine.needs() {
            Ok(n) => needs = both(needs, n),
            Err(e) => return absent(e.to_string()),
        }
        engines.push(engine.into());
    }
    // No host's model need have it, but engines may.
    let all = config.cpu.clone() + if needs.features.is_none() { ",+la57" } else { "" };
    let model = Arc::new(ringer_vmm::cpu_model(&all, &needs)?);
    let target = Target {
        engines,
        hand_over: name.contains('>'),
        model,
        tsc_khz: needs.tsc_khz.unwrap_or(TSC_KHZ),
        seed: config.seed,
        limit: config.limit,
    };
    Ok(Column { name: name.to_owned(), target: Ok(target) })
}

/// Before an engine's name: its processors are stopped by a debugger all the time.
const DEBUGGED: &str = "debugged-";

/// Frequency of the guests' TSC, if no engine minds.
const TSC_KHZ: u64 = 2_000_000;

/// The longest that a check may take that is an exception.
const EXCEPTED_LIMIT: Duration = Duration::from_secs(1);

/// What a cell of the table says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cell {
    /// The check passed.
    Passed,
    /// It was not run: why.
    Skipped(String),
    /// It failed, as the table of exceptions says.
    Excepted(&'static str),
    /// It failed.
    Failed(String),
}

/// The exception for a check in a column.
#[must_use]
pub fn exception(column: &str, check: &str) -> Option<&'static Exception> {
    let mut on: Vec<&str> = column.split('>').collect();
    if on.len() > 1 {
        on.push("hand-over");
    }
    if on.contains(&"kvm") && kvm_is_emulated() {
        on.push(EMULATED);
    }
    EXCEPTIONS.iter().find(|e| e.check == check && on.contains(&e.on))
}

fn kvm_is_emulated() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let probe = || ringer_vmm::choose("kvm").map(|c| c.engine.probe());
    *FOUND.get_or_init(|| matches!(probe(), Ok(Probe::Slow(_))))
}

fn cell(column: &str, check: &str, report: Report) -> Cell {
    match (report.outcome, exception(column, check)) {
        (Outcome::Passed, _) => Cell::Passed,
        (Outcome::Skipped(why), _) => Cell::Skipped(why),
        (Outcome::Failed(_), Some(e)) => Cell::Excepted(e.why),
        (Outcome::Failed(what), None) => Cell::Failed(what),
    }
}

/// The cells of one column.
pub struct Done {
    /// Its name.
    pub name: String,
    /// One for each row.
    pub cells: Vec<Cell>,
    /// How long it took.
    pub time: Duration,
    /// How often processors were handed over.
    pub hand_overs: u64,
    /// The longest check.
    pub longest: (Duration, &'static str),
}

/// Runs all rows of a column, on `workers` threads.
#[must_use]
pub fn run(rows: &[Row], column: &Column, workers: usize) -> Done {
    let started = Instant::now();
    let mut done = Done {
        name: column.name.clone(),
        cells: Vec::new(),
        time: Duration::ZERO,
        hand_overs: 0,
        longest: (Duration::ZERO, ""),
    };
    let target = match &column.target {
        Ok(t) => t,
        Err(why) => {
            done.cells = vec![Cell::Skipped(why.clone()); rows.len()];
            return done;
        }
    };
    let next = AtomicUsize::new(0);
    let reports: Mutex<Vec<Option<Report>>> = Mutex::new(vec![None; rows.len()]);
    std::thread::scope(|s| {
        for _ in 0..workers.max(1) {
            s.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    let Some(row) = rows.get(n) else { break };
                    let mut target = target.clone();
                    if exception(&column.name, row.check.name).is_some() {
                        // Many of them hang.
                        target.limit = target.limit.min(EXCEPTED_LIMIT);
                    }
                    target.seed = target.seed.wrapping_mul(0x1_0000_01b3).wrapping_add(n as u64);
                    let report = conformance::run(&row.check, &target);
                    reports.lock().unwrap_or_else(PoisonError::into_inner)[n] = Some(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (row, report) in rows.iter().zip(reports.into_iter().flatten()) {
        done.hand_overs += report.hand_overs;
        if report.time > done.longest.0 {
            done.longest = (report.time, row.check.name);
        }
        done.cells.push(cell(&column.name, row.check.name, report));
    }
    done.time = started.elapsed();
    done
}

/// The table: a row a check, a column an engine; below it what did not pass.
#[must_use]
pub fn table(rows: &[Row], columns: &[Done]) -> String {
    let mut out = String::new();
    let width = rows.iter().map(|r| r.area.len() + r.check.name.len() + 2).max().unwrap_or(0);
    for (n, c) in columns.iter().enumerate() {
        let _infallible = writeln!(out, "{:width$}  {}{}", "", "| ".repeat(n), c.name);
    }
    let sign = |c: &Cell| match c {
        Cell::Passed => "+",
        Cell::Skipped(_) => "-",
        Cell::Excepted(_) => "e",
        Cell::Failed(_) => "F",
    };
    for (n, row) in rows.iter().enumerate() {
        let name = format!("{}: {}", row.area, row.check.name);
        let cells: Vec<&str> = columns.iter().map(|c| c.cells.get(n).map_or("?", sign)).collect();
        let _infallible = writeln!(out, "{name:width$}  {}", cells.join(" "));
    }
    out.push_str("\n+ passed, - skipped, e exception, F failed\n\n");
    for c in columns {
        let _infallible = writeln!(out, "{}", summary(c));
    }
    for c in columns {
        let all_skipped = c.cells.iter().all(|x| matches!(x, Cell::Skipped(_)));
        for (row, cell) in rows.iter().zip(&c.cells) {
            let told = match cell {
                Cell::Passed => continue,
                Cell::Skipped(_) if all_skipped => continue,
                Cell::Skipped(why) => format!("skipped: {why}"),
                Cell::Excepted(why) => format!("exception: {why}"),
                Cell::Failed(what) => format!("FAILED: {what}"),
            };
            let _infallible = writeln!(out, "{}: {}: {told}", c.name, row.check.name);
        }
    }
    out
}

fn summary(c: &Done) -> String {
    if let Some(Cell::Skipped(why)) = c.cells.first()
        && c.cells.iter().all(|x| matches!(x, Cell::Skipped(w) if w == why))
    {
        return format!("{}: skipped: {why}", c.name);
    }
    let count = |f: fn(&Cell) -> bool| c.cells.iter().filter(|x| f(x)).count();
    format!(
        "{}: {} passed, {} failed, {} exceptions, {} skipped in {:.1} s; {} hand-overs; the longest check took {:.0} ms ({})",
        c.name,
        count(|x| *x == Cell::Passed),
        count(|x| matches!(x, Cell::Failed(_))),
        count(|x| matches!(x, Cell::Excepted(_))),
        count(|x| matches!(x, Cell::Skipped(_))),
        c.time.as_secs_f64(),
        c.hand_overs,
        c.longest.0.as_secs_f64() * 1000.0,
        c.longest.1,
    )
}

/// The rows whose area or name contains `only`.
///
/// # Errors
/// There are none.
pub fn rows(only: &str) -> anyhow::Result<Vec<Row>> {
    let rows: Vec<Row> = conformance::all()
        .into_iter()
        .filter(|r| r.area.contains(only) || r.check.name.contains(only))
        .collect();
    rows.first().with_context(|| format!("no check has {only:?} in its name or area"))?;
    Ok(rows)
}
