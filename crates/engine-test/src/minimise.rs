//! Makes a program that differs small.

use crate::r#gen::Pool;
use crate::helper::Helper;
use crate::pair::{Engines, Pair};
use crate::program::Program;

/// What was left of a program.
pub struct Minimal {
    /// The program.
    pub program: Program,
    /// Numbers of the instructions that it still has.
    pub kept: Vec<usize>,
}

struct Search<'a> {
    engines: Engines<'a>,
    pool: &'a Pool,
    helper: &'a Helper,
    pair: Pair,
    /// Asynchronous programs need several tries.
    tries: usize,
}

impl Search<'_> {
    fn differs(&mut self, p: &Program) -> anyhow::Result<bool> {
        for _ in 0..self.tries {
            if self.pair.run(p, self.helper)?.differs() {
                // What is left in an engine's caches by the programs before must not be the cause.
                let mut fresh = Pair::new(self.engines, self.pool)?;
                if fresh.run(p, self.helper)?.differs() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Takes instructions out of `whole`, then state, while what is left still differs.
///
/// # Errors
/// The host's.
pub fn minimise(whole: &Program, engines: Engines, pool: &Pool, helper: &Helper) -> anyhow::Result<Minimal> {
    let tries = if whole.asynchronous { 20 } else { 1 };
    let mut s = Search { engines, pool, helper, pair: Pair::new(engines, pool)?, tries };
    let mut best = whole.clone();
    let mut kept: Vec<usize> = (0..whole.insns.len()).collect();
    let mut chunk = kept.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        let mut progress = false;
        while at < kept.len() {
            let part = &kept[at..(at + chunk).min(kept.len())];
            let mut p = best.clone();
            for n in part {
                p.drop_insn(*n);
            }
            if s.differs(&p)? {
                best = p;
                kept.drain(at..(at + chunk).min(kept.len()));
                progress = true;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 && !progress {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
    plain_state(&mut best, &mut s)?;
    Ok(Minimal { program: best, kept })
}

/// Makes registers, flags, vector state and memory plain, as far as the difference stays.
fn plain_state(best: &mut Program, s: &mut Search) -> anyhow::Result<()> {
    let plain = s.pool.base.clone();
    let attempt = |best: &mut Program, s: &mut Search, f: &dyn Fn(&mut Program)| -> anyhow::Result<()> {
        let mut p = best.clone();
        f(&mut p);
        if s.differs(&p)? {
            *best = p;
        }
        Ok(())
    };
    attempt(best, s, &|p| p.state.xsave.clone_from(&plain.xsave))?;
    for n in (0..16).filter(|n| *n != 4) {
        attempt(best, s, &|p| p.state.gpr[n] = 0)?;
    }
    attempt(best, s, &|p| p.state.rflags &= 0x3200 | 2)?;
    attempt(best, s, &|p| p.state.rflags &= !0x200)?;
    attempt(best, s, &|p| p.state.cr0 = plain.cr0)?;
    attempt(best, s, &|p| p.state.cr4 = plain.cr4)?;
    attempt(best, s, &|p| p.asynchronous = false)?;
    for n in (0..best.patches.len()).rev() {
        attempt(best, s, &|p| drop(p.patches.remove(n)))?;
    }
    Ok(())
}
