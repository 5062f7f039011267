//! Random programs whose processors are handed from engine to engine, and proof that a state that changes on the way is found.

use ringer_arch::VcpuState;
use ringer_engine::{
    CpuIo, Engine, EngineError, Exit, Probe, Stats, Step, StopToken, Until, Vcpu, Vm, VmParams,
};
use ringer_engine_test::engines::engine;
use ringer_engine_test::handed::{HandedEngine, hand_overs};
use ringer_engine_test::pair::Engines;
use ringer_engine_test::run::{Config, Tally, run};
use std::sync::Arc;

fn programs(tested: &dyn Engine, programs: u64) -> anyhow::Result<Tally> {
    let reference = engine("interpreter")?;
    let e = Engines { reference: reference.as_ref(), tested };
    run(&Config { seed: 11, programs, first: 0, workers: 2, most: 3 }, e, &|line| eprintln!("{line}"))
}

fn check(names: &str, count: u64) {
    let tested = engine(names).unwrap();
    let before = hand_overs();
    let t = programs(tested.as_ref(), count).unwrap();
    assert!(t.found.is_empty(), "{}", t.found.join("\n"));
    assert!(t.same > count * 8 / 10, "{t:?}");
    assert!(hand_overs() - before > count / 2, "hardly any hand-over");
}

#[test]
fn programs_end_the_same_when_they_are_handed_over() {
    for pair in ["interpreter>interpreter", "translator>translator", "interpreter>translator"] {
        check(pair, 500);
    }
}

/// An interpreter whose processors forget something when a state is set.
struct Forgetful(Box<dyn Engine>, Forget);
struct ForgetfulVm(Box<dyn Vm>, Forget);
struct ForgetfulVcpu(Box<dyn Vcpu>, Forget);
type Forget = fn(&mut VcpuState);

impl Engine for Forgetful {
    fn name(&self) -> &'static str {
        "forgetful"
    }
    fn probe(&self) -> Probe {
        self.0.probe()
    }
    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(ForgetfulVm(self.0.create_vm(params)?, self.1)))
    }
}

impl Vm for ForgetfulVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(ForgetfulVcpu(self.0.create_vcpu(index, io, stop)?, self.1)))
    }
}

impl Vcpu for ForgetfulVcpu {
    fn run(&mut self) -> Exit {
        self.0.run()
    }
    fn state(&self) -> VcpuState {
        self.0.state()
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        let mut s = state.clone();
        (self.1)(&mut s);
        self.0.set_state(&s)
    }
    fn step(&mut self, until: Until) -> Option<Step> {
        self.0.step(until)
    }
    fn stats(&self) -> Stats {
        self.0.stats()
    }
}

#[test]
fn a_state_that_changes_is_found() {
    let forgets: [(Forget, &str); 2] =
        [(|s| s.cr2 = 0, "cr2: interpreter"), (|s| s.xsave[600] = 0, "ymm1 high: interpreter")];
    for (forget, told) in forgets {
        let plain = || engine("interpreter").unwrap();
        let tested = HandedEngine::new(vec![plain(), Box::new(Forgetful(plain(), forget))]);
        let e = programs(&tested, 500).map(|t| t.found).unwrap_err();
        // The chain's links, not a backtrace of it.
        let text = e.chain().map(|e| e.to_string()).collect::<Vec<_>>().join(": ");
        assert!(text.contains("after it was handed over") && text.contains(told), "{text}");
    }
}
