//! Why translated code was left: counted for those who tune it, when `RINGER_EXITS` is set, and told when the processor goes.

use iced_x86::Mnemonic;
use std::collections::HashMap;
use std::fmt;

/// The environment variable that asks for the counts.
const VARIABLE: &str = "RINGER_EXITS";
/// Instructions that are named.
const MOST: usize = 30;

/// The counts.
#[derive(Debug, Default)]
pub struct Exits {
    /// Instructions that the interpreter executed in the middle of blocks.
    pub interpreted: HashMap<Mnemonic, u64>,
    /// Sites filled by a page walk, or from an entry that the miss stub could not take.
    pub filled: u64,
    /// Why sites that missed were not filled: the access lies in two pages, it raises an exception, its page has no fast entry, or (the
    /// accesses of a group) one of these.
    pub unfilled: [u64; 4],
    /// Entries from outside, and those of them that neither the jump cache nor a link knew.
    pub dispatched: u64,
    #[allow(missing_docs)]
    pub found: u64,
}

impl Exits {
    /// Counts, if they are asked for.
    #[must_use]
    pub fn wanted() -> Option<Box<Exits>> {
        std::env::var_os(VARIABLE).map(|_| Box::default())
    }
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "dispatched {} (looked up {}), filled {}", self.dispatched, self.found, self.filled)?;
        let [crossing, raised, slow, group] = self.unfilled;
        writeln!(f, "not filled: crossing {crossing}, exception {raised}, slow {slow}, group {group}")?;
        let mut all: Vec<_> = self.interpreted.iter().collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        for (m, n) in all.iter().take(MOST) {
            writeln!(f, "  {m:?} {n}")?;
        }
        Ok(())
    }
}
