//! All that was measured.

use super::catalog::Side;
use super::line::Outcome;
use super::stats::median;
use std::collections::BTreeMap;
use std::time::Duration;

/// What was run where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// The side.
    pub side: Side,
    /// Processors.
    pub cpus: u32,
    /// The program's name.
    pub program: String,
}

/// One measured cell.
#[derive(Debug, Default)]
struct Cell {
    /// Seconds an iteration, one a round.
    times: Vec<f64>,
    skipped: Option<String>,
}

/// The results of a run.
#[derive(Debug)]
pub struct Results {
    /// Sides, in order.
    pub sides: Vec<Side>,
    /// Numbers of processors, in order.
    pub cpus: Vec<u32>,
    cells: Vec<(Key, Cell)>,
    boots: Vec<(Side, f64)>,
    peaks: Vec<(Side, u64)>,
    /// The result that each program gave first.
    checks: BTreeMap<String, (Side, String)>,
    failures: Vec<String>,
    /// Sides whose machines do not come up.
    dead: Vec<Side>,
}

/// What tables call a side.
pub fn title(side: &Side) -> String {
    match side {
        Side::Native => "native".to_owned(),
        Side::Ringer(engine) => engine.clone(),
        Side::Qemu => "QEMU".to_owned(),
    }
}

impl Results {
    /// Nothing yet.
    pub fn new(sides: Vec<Side>, cpus: Vec<u32>) -> Results {
        Results {
            sides,
            cpus,
            cells: Vec::new(),
            boots: Vec::new(),
            peaks: Vec::new(),
            checks: BTreeMap::new(),
            failures: Vec::new(),
            dead: Vec::new(),
        }
    }

    fn fail(&mut self, words: String) {
        eprintln!("xtask: {words}");
        self.failures.push(words);
    }

    /// Adds how a program ended. Its check must be that of all other sides.
    pub fn add(&mut self, key: Key, outcome: Outcome) {
        let at = match self.cells.iter().position(|(k, _)| *k == key) {
            Some(at) => at,
            None => {
                self.cells.push((key.clone(), Cell::default()));
                self.cells.len() - 1
            }
        };
        match outcome {
            Outcome::Done { seconds, iterations, check, .. } => {
                self.cells[at].1.times.push(seconds / iterations as f64);
                let first =
                    self.checks.entry(key.program.clone()).or_insert((key.side.clone(), check.clone()));
                if first.1 != check {
                    let words = format!(
                        "{} gave {check} on {} but {} on {}",
                        key.program,
                        title(&key.side),
                        first.1,
                        title(&first.0)
                    );
                    self.fail(words);
                }
            }
            Outcome::Skipped(why) => self.cells[at].1.skipped = Some(why),
            Outcome::Failed(why) => {
                let words =
                    format!("{} on {} with {} processor(s): {why}", key.program, title(&key.side), key.cpus);
                self.fail(words);
            }
        }
    }

    /// Adds a boot.
    pub fn boot(&mut self, side: &Side, took: Result<Duration, String>) {
        match took {
            Ok(t) => self.boots.push((side.clone(), t.as_secs_f64())),
            Err(why) => self.fail(format!("boot on {}: {why}", title(side))),
        }
    }

    /// Adds a peak of memory.
    pub fn memory(&mut self, side: &Side, peak: Option<u64>) {
        if let Some(p) = peak.filter(|_| *side != Side::Native) {
            self.peaks.push((side.clone(), p));
        }
    }

    /// Median seconds an iteration.
    pub fn time(&self, side: &Side, cpus: u32, program: &str) -> Option<f64> {
        let cell = self.cells.iter().find(|(k, _)| k.side == *side && k.cpus == cpus && k.program == program);
        cell.and_then(|(_, c)| median(&c.times))
    }

    /// Whether a side's machines do not come up.
    pub fn is_dead(&self, side: &Side) -> bool {
        self.dead.contains(side)
    }

    /// Notes that a side's machines do not come up.
    pub fn dead(&mut self, side: &Side, why: &str) {
        self.fail(format!("{} does not come up: {why}", title(side)));
        self.dead.push(side.clone());
    }

    /// Why a program was not run there.
    pub fn skipped(&self, side: &Side, cpus: u32, program: &str) -> Option<&str> {
        let cell = self.cells.iter().find(|(k, _)| k.side == *side && k.cpus == cpus && k.program == program);
        cell.and_then(|(_, c)| c.skipped.as_deref())
    }

    /// Median seconds to the first line of userspace.
    pub fn boot_time(&self, side: &Side) -> Option<f64> {
        let times: Vec<_> = self.boots.iter().filter(|(s, _)| s == side).map(|(_, t)| *t).collect();
        median(&times)
    }

    /// Most bytes beside guest RAM.
    pub fn peak(&self, side: &Side) -> Option<u64> {
        self.peaks.iter().filter(|(s, _)| s == side).map(|(_, p)| *p).max()
    }

    /// What went wrong.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(side: Side) -> Key {
        Key { side, cpus: 1, program: "x".to_owned() }
    }

    fn done(seconds: f64, check: &str) -> Outcome {
        Outcome::Done { seconds, cpu: 0.0, iterations: 10, check: check.to_owned() }
    }

    #[test]
    fn medians_an_iteration() {
        let mut r = Results::new(vec![Side::Native], vec![1]);
        for t in [5.0, 1.0, 2.0] {
            r.add(key(Side::Native), done(t, "a"));
        }
        assert_eq!(r.time(&Side::Native, 1, "x"), Some(0.2));
        assert_eq!(r.time(&Side::Native, 2, "x"), None);
        assert!(r.failures().is_empty());
    }

    #[test]
    fn another_result_is_a_failure() {
        let mut r = Results::new(vec![Side::Native, Side::Qemu], vec![1]);
        r.add(key(Side::Native), done(1.0, "a"));
        r.add(key(Side::Qemu), done(1.0, "b"));
        assert!(r.failures()[0].contains("x gave b on QEMU but a on native"));
    }
}
