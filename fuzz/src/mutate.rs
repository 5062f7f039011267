//! A plain mutator: what drives the targets where libFuzzer is not.

use crate::corpus;
use crate::input::Rng;
use crate::targets::Body;
use std::time::{Duration, Instant};

/// The longest input that is made.
const MAX_LEN: usize = 16 << 10;

/// What the mutator starts from for the target of that name.
#[must_use]
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    corpus::seeds(name)
}

/// Runs a target for a while on its seeds, then on mutations of them. `before` sees each input first, so that it is
/// known if the target does not return. Returns how many inputs were run.
pub fn run(name: &str, body: Body, seed: u64, time: Duration, before: impl FnMut(&[u8])) -> u64 {
    let start = Instant::now();
    run_until(name, body, seed, || start.elapsed() >= time, before)
}

/// The same until `done` says so.
pub fn run_until(
    name: &str,
    body: Body,
    seed: u64,
    mut done: impl FnMut() -> bool,
    mut before: impl FnMut(&[u8]),
) -> u64 {
    let seeds = seeds(name);
    let mut rng = Rng::new(seed);
    let mut count = 0;
    let mut one = |input: &[u8]| {
        before(input);
        body(input);
        count += 1;
    };
    seeds.iter().for_each(|s| one(s));
    while !done() {
        let mut input = rng_pick(&mut rng, &seeds);
        for _ in 0..=rng.below(6) {
            mutate(&mut rng, &mut input, &seeds);
        }
        input.truncate(MAX_LEN);
        one(&input);
    }
    count
}

fn rng_pick(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    if seeds.is_empty() || rng.one_in(16) {
        let n = rng.index(1024);
        let mut v = vec![0; n];
        rng.fill(&mut v);
        return v;
    }
    seeds[rng.index(seeds.len())].clone()
}

fn mutate(rng: &mut Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let len = input.len();
    let at = rng.index(len.max(1));
    match rng.below(9) {
        0 if len > 0 => input[at] ^= 1 << rng.below(8),
        1 if len > 0 => input[at] = rng.u64() as u8,
        2 => {
            // An integer of any size, in place.
            let n = 1 << rng.below(4);
            let v = rng.value().to_le_bytes();
            for (to, from) in input[at.min(len)..].iter_mut().zip(&v[..n]) {
                *to = *from;
            }
        }
        3 => {
            let mut add = vec![0; 1 + rng.index(16)];
            rng.fill(&mut add);
            input.splice(at..at, add);
        }
        4 if len > 0 => {
            let n = 1 + rng.index((len - at).min(32));
            input.drain(at..(at + n).min(len));
        }
        5 if rng.one_in(4) => input.truncate(at),
        6 if len > 0 => {
            // A piece, copied elsewhere.
            let n = 1 + rng.index((len - at).min(64));
            let piece = input[at..at + n].to_vec();
            let to = rng.index(len);
            input.splice(to..to, piece);
        }
        7 if !seeds.is_empty() => {
            // The tail of another seed.
            let other = &seeds[rng.index(seeds.len())];
            let from = rng.index(other.len().max(1));
            input.truncate(at);
            input.extend(&other[from..]);
        }
        _ if len > 0 => {
            for _ in 0..8 {
                let i = rng.index(len);
                input[i] = rng.u64() as u8;
            }
        }
        _ => input.push(rng.u64() as u8),
    }
}
