//! Every fuzz target, for a moment.

use ringer_fuzz::mutate;
use ringer_fuzz::targets::{ALL, Body};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long each target gets beyond its seeds.
const MOMENT_MS: u64 = 500;

fn run(name: &str, body: Body) {
    let mut last = Vec::new();
    let keep = |input: &[u8]| {
        last.clear();
        last.extend_from_slice(input);
    };
    let r =
        catch_unwind(AssertUnwindSafe(|| mutate::run(name, body, 1, Duration::from_millis(MOMENT_MS), keep)));
    assert!(r.is_ok(), "{name} fails on {}", hex(&last));
}

fn hex(input: &[u8]) -> String {
    input.iter().take(4096).map(|b| format!("{b:02x}")).collect()
}

fn all_named(prefix: &[&str]) {
    let mut some = false;
    for (name, body) in ALL.iter().filter(|t| prefix.contains(&t.0)) {
        run(name, *body);
        some = true;
    }
    assert!(some);
}

#[test]
fn code() {
    all_named(&["decode_exec"]);
}

#[test]
fn files() {
    all_named(&["kernel_load", "unpack", "deb", "module", "cpio"]);
}

#[test]
fn everything_else() {
    const ABOVE: [&str; 6] = ["decode_exec", "kernel_load", "unpack", "deb", "module", "cpio"];
    for (name, body) in ALL.iter().filter(|t| !ABOVE.contains(&t.0)) {
        run(name, *body);
    }
}

/// Inputs that once failed, by target.
#[test]
fn found_once() {
    for (name, input) in FOUND {
        let (_, body) = ALL.iter().find(|t| t.0 == *name).expect("a target");
        body(input);
    }
}

const FOUND: &[(&str, &[u8])] = &[];
