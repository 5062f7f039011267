//! The lock-step engine finds a difference and tells where.

use ringer_engine_test::engines::{Broken, Fault, engine};
use ringer_engine_test::r#gen::{Pool, program};
use ringer_engine_test::helper::Helper;
use ringer_engine_test::side::Side;
use ringer_lockstep::LockStepEngine;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What the lock-step run of program `number` with a broken first engine says as it panics.
fn panics(fault: Fault, number: u64) -> Option<String> {
    let pool = Pool::new(Arc::new(ringer_engine_soft::host_model().unwrap()), 9);
    let broken = Broken::new(engine("interpreter").unwrap(), fault);
    let both = LockStepEngine::new(Box::new(broken), engine("interpreter").unwrap());
    let mut side = Side::new(&both, &pool.model, &pool.image).unwrap();
    let helper = Helper::new().unwrap();
    let p = program(&pool, 9, number);
    let result = catch_unwind(AssertUnwindSafe(|| side.run(&p, &helper).map(|_| ())));
    result.err().map(|e| e.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn a_wrong_register_ends_the_run_at_its_block() {
    // Whenever a step leaves an odd RBX.
    let fault = Fault { run: |_, _| {}, step: |s| s.gpr[3] ^= (s.gpr[3] & 1) << 1 };
    let told = (0..20).find_map(|n| panics(fault, n)).expect("some RBX is odd");
    assert!(told.contains("the engines differ after"), "{told}");
    assert!(told.contains("rbx: broken"), "{told}");
    assert!(told.contains("instructions from"), "{told}");
}

#[test]
fn a_wrong_vector_register_is_found_by_the_time_the_run_ends() {
    let fault = Fault { run: |s, _| s.xsave[300] |= 1, step: |_| {} };
    let told = (0..20).find_map(|n| panics(fault, n)).expect("some register is even there");
    assert!(told.contains("xmm8"), "{told}");
}

#[test]
fn what_is_right_passes() {
    let fault = Fault { run: |_, _| {}, step: |_| {} };
    assert_eq!((0..20).find_map(|n| panics(fault, n)), None);
}
