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
    all_named(&["decode_exec", "translate_exec", "smp_exec"]);
}

#[test]
fn files() {
    all_named(&["kernel_load", "unpack", "deb", "module", "cpio"]);
}

#[test]
fn everything_else() {
    const ABOVE: [&str; 8] =
        ["decode_exec", "translate_exec", "smp_exec", "kernel_load", "unpack", "deb", "module", "cpio"];
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

const FOUND: &[(&str, &[u8])] = &[
    // CMPXCHG16B took the guest's RBX for the address.
    ("decode_exec", b"\x0c\x01\x01\x74\x0d\x01\x01\x20\x09\x07\x03\x04\x05\x06\x07\x08\xf0\x48\x0f\xc7\x08\xf0\x48\x0f\xb1\x08\xf0\x0f\xc1\x00\x87\x00"),
    // PDPTEs outside RAM, which are others at each look.
    ("decode_exec", b"\x05\x03\xff\x0f\x7f\x03\x04\x05\x4f\x07\xdb\x63\xab\x0f\x02\xc1\x0f\x03\x4d\x0f\x00\x24\x0f\x0f\x01\xe0\x0f\x01\xdb\x0f\x01\xca"),
    // A task switch read a TSS of 104 bytes from a device at once.
    ("decode_exec", b"\x03\x00\x10\x0c\x6c\x03\x04\x3e\x9d\x0f\xaf\x8a\x10\x1f\xc9\x40\xfe\xe3\x00\xe9\x62"),
];
