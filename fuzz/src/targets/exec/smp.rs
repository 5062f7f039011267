//! Two processors of one machine, at once, over the same code, tables and stacks.

use super::bait::Bait;
use super::io::GarbageIo;
use super::{Plan, check, machine, memory, state};
use crate::input::{Input, Rng};
use crate::watchdog::Watchdog;
use ringer_arch::cpu::CpuModel;
use ringer_engine::{Exit, StopToken, Vcpu};
use ringer_engine_soft::TranslatorEngine;
use ringer_memory::GuestMemory;
use std::cell::RefCell;
use std::sync::Arc;

struct Processor {
    io: Arc<GarbageIo>,
    stop: StopToken,
    vcpu: Box<dyn Vcpu>,
    watchdog: Watchdog,
}

struct Bench {
    memory: GuestMemory,
    model: Arc<CpuModel>,
    processors: Vec<Processor>,
    bait: Bait,
}

impl Bench {
    fn new() -> Bench {
        let (memory, model, vm) = machine(&TranslatorEngine, 2);
        let one = |n| {
            let stop = StopToken::new();
            let io = Arc::new(GarbageIo::new(stop.clone()));
            let vcpu = vm.create_vcpu(n, io.clone(), stop.clone()).expect("the host gives executable memory");
            Processor { io, stop, vcpu, watchdog: Watchdog::new() }
        };
        Bench { memory, model, processors: (0..2).map(one).collect(), bait: Bait::new() }
    }

    fn run(&mut self, plan: &mut Plan, code: &[u8]) {
        memory::fill(&self.memory, plan, code, &self.model);
        for p in &mut self.processors {
            // The same mode and tables, but other registers and another ring.
            plan.rng = Rng::new(plan.rng.u64());
            let mut s = state::make(plan, &self.model);
            self.bait.lay(&mut s, plan);
            if p.vcpu.set_state(&s).is_err() {
                return;
            }
            p.io.begin(plan);
        }
        std::thread::scope(|scope| {
            for p in &mut self.processors {
                scope.spawn(|| {
                    for _ in 0..3 {
                        p.stop.raise(StopToken::ATTENTION);
                        let exit = p.watchdog.limit(&p.stop, || p.vcpu.run());
                        if exit == Exit::TripleFault {
                            break;
                        }
                    }
                });
            }
        });
        for p in &mut self.processors {
            p.stop.take(StopToken::STOP | StopToken::ATTENTION);
            let state = p.vcpu.state();
            self.bait.check(&state);
            check(p.vcpu.as_mut(), &state);
        }
    }
}

/// Runs random code under the translator on two processors.
pub fn smp_exec(data: &[u8]) {
    thread_local!(static BENCH: RefCell<Bench> = RefCell::new(Bench::new()));
    let mut input = Input(data);
    let mut plan = Plan::parse_placed(&mut input);
    BENCH.with_borrow_mut(|b| b.run(&mut plan, input.0));
}
