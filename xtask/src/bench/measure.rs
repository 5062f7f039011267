//! The order of a measurement: in each round every side has a machine, and each program runs on one side after the other
//! while the other machines idle. So what else the host does hits all sides of a program alike.

use super::catalog::{Program, Side};
use super::cpu_time::{Snapshot, in_cpu_time};
use super::kit::Kit;
use super::line::Outcome;
use super::results::{Key, Results, title};
use super::side::{Session, command};
use super::table::seconds;
use super::{Options, chosen};
use anyhow::Result;
use std::path::Path;

/// What is measured, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Measurement<'a> {
    /// What was asked for.
    pub options: &'a Options,
    /// What runs.
    pub kit: &'a Kit,
    /// Ringer's command.
    pub ringer: &'a Path,
}

/// One side's machine, if it is up.
struct Place<'a> {
    side: &'a Side,
    session: Option<Session>,
}

impl Measurement<'_> {
    /// Measures all.
    ///
    /// # Errors
    /// If a side's program cannot be started.
    pub fn all(&self, sides: &[Side]) -> Result<Results> {
        let mut results = Results::new(sides.to_vec(), self.options.cpus.clone());
        let boots = self.options.only.is_empty() || self.options.only.iter().any(|o| o == "boot");
        for round in 1..=self.options.rounds {
            if boots {
                for side in sides.iter().filter(|s| **s != Side::Native) {
                    let mut s = Session::start(command(
                        side,
                        self.kit,
                        self.ringer,
                        &self.kit.boot_initrd,
                        1,
                        Some("-"),
                    ))?;
                    let before = Snapshot::of(s.pid());
                    let took = s.boot().map(|t| {
                        let share = before.share_until(&Snapshot::of(s.pid()));
                        if self.options.cpu_time { t.mul_f64(share) } else { t }
                    });
                    let took = took.and_then(|t| s.ready().map(|()| t));
                    if let Ok(t) = &took {
                        eprintln!("xtask: round {round}: boot, {} {}", title(side), seconds(t.as_secs_f64()));
                    }
                    results.boot(side, took);
                    s.end();
                }
            }
            for &cpus in &self.options.cpus {
                self.round(round, cpus, sides, &mut results)?;
            }
        }
        Ok(results)
    }

    fn round(&self, round: u32, cpus: u32, sides: &[Side], results: &mut Results) -> Result<()> {
        let mut places: Vec<_> = sides.iter().map(|side| Place { side, session: None }).collect();
        for program in chosen(self.options, cpus) {
            let mut said = Vec::new();
            // No side is always the first.
            places.rotate_left(1);
            for place in &mut places {
                if results.is_dead(place.side) {
                    continue;
                }
                let outcome = self.one(place, program, cpus, results)?;
                if let Some(Outcome::Done { seconds: t, iterations, .. }) = &outcome {
                    said.push(format!("{} {}", title(place.side), seconds(t / *iterations as f64)));
                }
                if let Some(outcome) = outcome {
                    let key = Key { side: place.side.clone(), cpus, program: program.name.to_owned() };
                    results.add(key, outcome);
                }
            }
            said.sort();
            eprintln!("xtask: round {round}, {cpus} processor(s): {}, {}", program.name, said.join(", "));
        }
        for place in places {
            if let Some(s) = place.session {
                results.memory(place.side, s.end());
            }
        }
        Ok(())
    }

    /// Runs one program at a place, whose machine is started if need be; nothing if it does not come up.
    fn one(
        &self,
        place: &mut Place,
        program: &Program,
        cpus: u32,
        results: &mut Results,
    ) -> Result<Option<Outcome>> {
        let session = match &mut place.session {
            Some(s) => s,
            none => {
                let mut s = Session::start(command(
                    place.side,
                    self.kit,
                    self.ringer,
                    &self.kit.initrd,
                    cpus,
                    Some("-"),
                ))?;
                if let Err(why) = s.ready() {
                    results.dead(place.side, &why);
                    return Ok(None);
                }
                none.insert(s)
            }
        };
        let iterations = program.iterations(place.side, self.options.quick);
        let before = Snapshot::of(session.pid());
        Ok(Some(match session.run(program.name, iterations) {
            Ok(outcome) if self.options.cpu_time && cpus == 1 => {
                in_cpu_time(place.side, outcome, before.share_until(&Snapshot::of(session.pid())))
            }
            Ok(outcome) => outcome,
            Err(why) => {
                // It took the machine with it; the next program gets another.
                place.session = None;
                Outcome::Failed(why)
            }
        }))
    }
}
