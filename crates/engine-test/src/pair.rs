//! [`Pair`]: two engines that run the same programs.

use crate::compare;
use crate::r#gen::Pool;
use crate::helper::Helper;
use crate::program::Program;
use crate::side::{Outcome, Side};
use ringer_engine::Engine;

/// How a program went.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The same on both; instructions that it took.
    Same(u64),
    /// It did not come to its end on one side or the other.
    Dropped,
    /// It differs: what.
    Differs(Vec<String>),
}

impl Verdict {
    /// Whether it differs.
    #[must_use]
    pub fn differs(&self) -> bool {
        matches!(self, Verdict::Differs(_))
    }
}

/// Two engines.
#[derive(Clone, Copy)]
pub struct Engines<'a> {
    /// The one that is trusted.
    pub reference: &'a dyn Engine,
    /// The one under test.
    pub tested: &'a dyn Engine,
}

/// Two machines.
pub struct Pair {
    sides: [Side; 2],
    names: [&'static str; 2],
}

impl Pair {
    /// Fresh machines.
    ///
    /// # Errors
    /// The host's.
    pub fn new(e: Engines, pool: &Pool) -> anyhow::Result<Pair> {
        let side = |engine: &dyn Engine| Side::new(engine, &pool.model, &pool.image);
        let mut names = [e.reference.name(), e.tested.name()];
        if names[0] == names[1] {
            names = ["first", "second"];
        }
        Ok(Pair { sides: [side(e.reference)?, side(e.tested)?], names })
    }

    /// Runs `p` on both.
    ///
    /// # Errors
    /// An engine refuses its state.
    pub fn run(&mut self, p: &Program, helper: &Helper) -> anyhow::Result<Verdict> {
        let [a, b] = self.outcomes(p, helper)?;
        let sides = [&self.sides[0], &self.sides[1]];
        if !a.ended || !b.ended {
            return Ok(Verdict::Dropped);
        }
        if compare::same(p, &a, &b, sides) {
            return Ok(Verdict::Same(a.instructions));
        }
        Ok(Verdict::Differs(compare::differences(p, &a, &b, sides, self.names)))
    }

    /// Runs `p` on both.
    ///
    /// # Errors
    /// An engine refuses its state.
    pub fn outcomes(&mut self, p: &Program, helper: &Helper) -> anyhow::Result<[Outcome; 2]> {
        let [a, b] = &mut self.sides;
        Ok([a.run(p, helper)?, b.run(p, helper)?])
    }
}
