//! Reports: what ran how often, what was not reached and why, what differed.

use crate::forms::Reach;
use crate::{Config, Report};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const VECTORS: [&str; 20] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF",
    "15", "#MF", "#AC", "#MC", "#XM",
];

impl Report {
    /// A few lines: cases, rate, ends.
    #[must_use]
    pub fn summary(&self) -> String {
        let t = &self.tally;
        let n = t.compared();
        let rate = n as f64 / self.time.as_secs_f64();
        let reached = self.forms.iter().filter(|f| t.ran[f.0 as usize] != 0).count();
        let both = self.forms.iter().filter(|f| f.1 == Reach::Both).count();
        let bad: u64 = t.mismatches.values().map(|m| m.0).sum();
        let mut s = format!(
            "{n} cases compared in {:.1} s ({rate:.0}/s), {bad} mismatches; {reached} forms reached of {both} that the model \
             offers; {} cases of absent forms checked for #UD, {} not comparable, {} disturbed by an \
             interrupt\nended:",
            self.time.as_secs_f64(),
            t.absent,
            t.skipped,
            t.disturbed,
        );
        let _infallible = write!(s, " completed {}", t.ends[32]);
        for (v, n) in t.ends[..32].iter().enumerate().filter(|(_, n)| **n != 0) {
            let name = VECTORS.get(v).copied().unwrap_or("other");
            let _infallible = write!(s, ", {name} {n}");
        }
        s
    }

    /// All mismatches that were kept, with the command that repeats each.
    #[must_use]
    pub fn mismatches(&self, config: &Config) -> String {
        let mut s = String::new();
        let only = config.only.as_ref().map(|m| format!(" --only {m}")).unwrap_or_default();
        for (code, (n, list)) in &self.tally.mismatches {
            let _infallible = writeln!(s, "\n== {code:?}: {n}");
            for m in list {
                let bytes: String = m.bytes.iter().map(|b| format!("{b:02x} ")).collect();
                let _infallible = writeln!(s, "  {bytes} {} ({:?})", m.text, m.path);
                for w in &m.what {
                    let _infallible = writeln!(s, "    {w}");
                }
                let _infallible = writeln!(s, "    from {}", m.input);
                let _infallible = writeln!(
                    s,
                    "    repeat: ringer-difftest --seed {} --raw {}{only} --batch {} (case {})",
                    config.seed, config.raw, m.at.0, m.at.1
                );
            }
        }
        for (batch, off) in &self.tally.stray {
            let _infallible = writeln!(
                s,
                "data windows differ at offset {off:#x} after batch {batch}, whose cases were all equal"
            );
        }
        s
    }

    /// Cases of each form, and the forms that were not reached with the reason.
    #[must_use]
    pub fn coverage(&self) -> String {
        let mut s = String::from("# Forms that ran, with the number of cases\n");
        let ran = |c: iced_x86::Code| self.tally.ran[c as usize];
        let mut why: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (code, reach) in &self.forms {
            let name = code.op_code().instruction_string().to_owned();
            if ran(*code) != 0 {
                let _infallible = writeln!(s, "{:>9} {name} [{code:?}]", ran(*code));
                continue;
            }
            let reason = match reach {
                Reach::Both => "offered by the model, but no case came up",
                Reach::Absent => "not in the model: checked to raise #UD where random bytes hit them",
                Reach::No(why) => why,
            };
            why.entry(reason).or_default().push(name);
        }
        s.push_str("\n# Flags that are not compared\n");
        for (list, bits, source) in crate::undefined::FLAGS {
            let _infallible = writeln!(s, "  {list:?}: {bits:#x} ({source})");
        }
        s.push_str("\n# Cases that were not made, by reason\n");
        for (why, n) in &self.tally.avoided {
            let _infallible = writeln!(s, "{n:>9} {why}");
        }
        s.push_str("\n# Forms that did not run, by reason\n");
        for (reason, forms) in why {
            let _infallible = writeln!(s, "\n## {reason} ({})", forms.len());
            for f in forms {
                let _infallible = writeln!(s, "  {f}");
            }
        }
        s
    }
}
