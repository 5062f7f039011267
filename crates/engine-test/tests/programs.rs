//! A short run of the random programs, and proof that what differs is found and told.

use ringer_arch::VcpuState;
use ringer_engine_test::engines::{Broken, Fault, engine};
use ringer_engine_test::pair::Engines;
use ringer_engine_test::run::{Config, Tally, run};

fn config(seed: u64, programs: u64) -> Config {
    Config { seed, programs, first: 0, workers: 2, most: 3 }
}

fn short(reference: &str, tested: &str, programs: u64) -> Tally {
    let (reference, tested) = (engine(reference).unwrap(), engine(tested).unwrap());
    let e = Engines { reference: reference.as_ref(), tested: tested.as_ref() };
    run(&config(3, programs), e, &|line| eprintln!("{line}")).unwrap()
}

/// The share of programs that may fail to end in time: each is two looks of the watchdog of a loaded machine.
fn check(t: &Tally, programs: u64) {
    assert!(t.found.is_empty(), "{}", t.found.join("\n"));
    assert!(t.same > programs * 8 / 10, "{t:?}");
    assert!(t.instructions / t.same > 100, "programs run hardly anything: {t:?}");
}

#[test]
fn the_translator_does_as_the_interpreter_does() {
    check(&short("interpreter", "translator", 20_000), 20_000);
}

#[test]
fn the_interpreter_does_the_same_twice() {
    check(&short("interpreter", "interpreter", 3_000), 3_000);
}

#[test]
fn a_lock_step_run_is_like_any_other() {
    check(&short("interpreter", "lockstep", 2_000), 2_000);
}

fn broken(wrong: fn(&mut VcpuState, u64)) -> Vec<String> {
    let (reference, inner) = (engine("interpreter").unwrap(), engine("interpreter").unwrap());
    let tested = Broken::new(inner, Fault { run: wrong, step: |_| {} });
    let e = Engines { reference: reference.as_ref(), tested: &tested };
    run(&config(5, 200), e, &|_| {}).unwrap().found
}

#[test]
fn a_wrong_flag_is_found() {
    // The auxiliary carry, after programs of some length.
    let found = broken(|s, n| s.rflags ^= u64::from(n > 200) << 4);
    assert!(!found.is_empty());
    assert!(found[0].contains("rflags: interpreter"), "{}", found[0]);
    assert!(found[0].contains("--engines interpreter,broken"), "{}", found[0]);
}

#[test]
fn a_wrong_vector_register_is_found_and_what_matters_is_told() {
    // Whenever XMM3 ends up odd.
    let found = broken(|s, _| s.xsave[160 + 48 + 1] ^= s.xsave[160 + 48] & 1);
    assert!(!found.is_empty());
    assert!(found[0].contains("xmm3: interpreter"), "{}", found[0]);
    let total: usize = between(&found[0], "code of ", " instructions");
    // Lines of number, address, bytes and text.
    let listed = |l: &&str| {
        let mut words = l.split_whitespace();
        let number = words.next().is_some_and(|w| w.parse::<usize>().is_ok());
        number && words.next().is_some_and(|w| u64::from_str_radix(w, 16).is_ok())
    };
    let left = found[0].lines().filter(listed).count();
    assert!(left * 2 < total.max(8), "of {total} instructions {left} are left:\n{}", found[0]);
}

fn between(text: &str, a: &str, b: &str) -> usize {
    text.split(a).nth(1).and_then(|t| t.split(b).next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
