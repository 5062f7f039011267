//! [`HandedEngine`]: several engines as one, whose processors are handed from one to the next at random instructions.
//!
//! A state that is loaded must read as the one that was saved, bit for bit; and the reference engine, which runs the same program in
//! one piece, tells whether anything is lost that a state does not tell. An engine that cannot be stepped holds the state for a moment.

use ringer_arch::VcpuState;
use ringer_arch::cpu::{CpuModel, CpuModelError, Feature};
use ringer_difftest::rng::{Rng, mix};
use ringer_engine::{
    CpuIo, Engine, EngineError, Exit, Needs, Probe, Stats, StopToken, Until, Vcpu, Vm, VmParams, states,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most hand-overs of a run, and instructions between two.
const HOPS: u64 = 3;
/// See [`HOPS`].
const APART: u64 = 120;

/// Hand-overs of all processors of this process.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// How often processors were handed over in this process.
#[must_use]
pub fn hand_overs() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// The processor model of programs that are handed over: `name`, without the segment selectors of the last x87 instruction. A state
/// has no room for them, as the 64-bit form of the XSAVE area has none (Intel SDM vol. 1 §10.5.1): they are lost with it, as they are when
/// any 64-bit kernel switches tasks.
///
/// # Errors
/// The host lacks what every model needs.
pub fn model(name: &str) -> Result<CpuModel, CpuModelError> {
    let mut offered = ringer_engine_soft::offered();
    offered.insert(Feature::ZERO_FCS_FDS);
    CpuModel::named(&format!("{name},+zero_fcs_fds"), &ringer_engine_soft::host::cpuid, &offered)
}

/// Engines that take turns.
pub struct HandedEngine {
    engines: Arc<[Box<dyn Engine>]>,
    name: &'static str,
}

impl HandedEngine {
    /// Processors start on the first of `engines`, of which there must be one.
    #[must_use]
    pub fn new(engines: Vec<Box<dyn Engine>>) -> HandedEngine {
        let names: Vec<_> = engines.iter().map(|e| e.name()).collect();
        // Engines' names live for ever, and a process makes few.
        HandedEngine { name: names.join(">").leak(), engines: engines.into() }
    }
}

/// What a machine must be like to run on either of two engines.
#[must_use]
pub fn both(a: Needs, b: Needs) -> Needs {
    let features = match (a.features, b.features) {
        (Some(x), Some(y)) => Some(x.intersection(y)),
        (x, y) => x.or(y),
    };
    Needs { tsc_khz: a.tsc_khz.or(b.tsc_khz), features, no_hypercalls: a.no_hypercalls || b.no_hypercalls }
}

impl Engine for HandedEngine {
    fn name(&self) -> &'static str {
        self.name
    }
    fn probe(&self) -> Probe {
        let probes = self.engines.iter().map(|e| e.probe());
        probes
            .reduce(|a, b| if matches!(a, Probe::Missing(_)) { a } else { b })
            .unwrap_or(Probe::Missing(String::new()))
    }
    fn needs(&self) -> Result<Needs, EngineError> {
        self.engines.iter().try_fold(Needs::default(), |n, e| Ok(both(n, e.needs()?)))
    }
    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        // Whether any refuses is to be known now.
        for e in self.engines.iter() {
            e.create_vm(params.clone())?;
        }
        Ok(Box::new(HandedVm { engines: self.engines.clone(), params }))
    }
}

struct HandedVm {
    engines: Arc<[Box<dyn Engine>]>,
    params: VmParams,
}

impl Vm for HandedVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let maker = Maker { engines: self.engines.clone(), params: self.params.clone(), index, io, stop };
        let (vm, vcpu) = maker.make(0)?;
        let before = Stats::default();
        Ok(Box::new(HandedVcpu { maker, at: 0, vcpu: Some(vcpu), vm: Some(vm), before, failure: None }))
    }
}

/// What a processor is made from.
struct Maker {
    engines: Arc<[Box<dyn Engine>]>,
    params: VmParams,
    index: u32,
    io: Arc<dyn CpuIo>,
    stop: StopToken,
}

/// A machine on one engine, and its processor.
type Made = (Box<dyn Vm>, Box<dyn Vcpu>);

impl Maker {
    fn make(&self, at: usize) -> Result<Made, EngineError> {
        let vm = self.engines[at].create_vm(self.params.clone())?;
        let vcpu = vm.create_vcpu(self.index, self.io.clone(), self.stop.clone())?;
        // It must ask anew what waits.
        self.stop.raise(StopToken::ATTENTION);
        Ok((vm, vcpu))
    }
}

struct HandedVcpu {
    maker: Maker,
    at: usize,
    /// There is always one, but for the moment of a hand-over.
    vcpu: Option<Box<dyn Vcpu>>,
    vm: Option<Box<dyn Vm>>,
    /// Counters of the processors that are gone.
    before: Stats,
    failure: Option<String>,
}

/// What chooses the instructions of a run that starts in this state: the same, whatever has run before.
fn rng_of(s: &VcpuState) -> Rng {
    Rng::new(s.gpr.iter().fold(s.rip, |a, b| mix(a ^ b)), 1)
}

impl HandedVcpu {
    fn vcpu(&mut self) -> &mut dyn Vcpu {
        self.vcpu.as_mut().expect("a processor is only missing while it is handed over").as_mut()
    }

    /// Hands the processor to the next engine.
    fn hand_over(&mut self) -> Result<(), String> {
        let old = self.vcpu().state();
        let stats = self.vcpu().stats();
        self.before += stats;
        let from = self.maker.engines[self.at].name();
        self.at = (self.at + 1) % self.maker.engines.len();
        let to = self.maker.engines[self.at].name();
        // The old one first: two engines on one memory are no machine.
        (self.vcpu, self.vm) = (None, None);
        let (vm, mut vcpu) = self.maker.make(self.at).map_err(|e| format!("{to} makes no processor: {e}"))?;
        let set = vcpu.set_state(&old);
        let new = vcpu.state();
        (self.vcpu, self.vm) = (Some(vcpu), Some(vm));
        set.map_err(|e| format!("{to} refuses the state of {from} at {:#x}: {e}", old.rip))?;
        COUNT.fetch_add(1, Ordering::Relaxed);
        let (mut x, mut y) = (old, new);
        states::normalise(&mut x);
        states::normalise(&mut y);
        if x == y {
            return Ok(());
        }
        let mut told = Vec::new();
        states::differences(&x, &y, [from, to], &mut told);
        Err(format!("the state is another after it was handed over at {:#x}:\n{}", x.rip, told.join("\n")))
    }
}

impl Vcpu for HandedVcpu {
    fn run(&mut self) -> Exit {
        let mut rng = rng_of(&self.state());
        let mut left = rng.below(HOPS + 1);
        loop {
            let n = if left == 0 { 1 } else { 1 + rng.below(APART) };
            let step = self.vcpu().step(Until::Instruction(n));
            if let Some(exit) = step.and_then(|s| s.exit) {
                return exit;
            }
            // The end is not on one that cannot be stepped: it only holds states.
            if left == 0 && step.is_some() {
                return self.vcpu().run();
            }
            if let Err(what) = self.hand_over() {
                self.failure = Some(what);
                return Exit::Failed;
            }
            left = left.saturating_sub(1);
        }
    }
    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
    fn state(&self) -> VcpuState {
        self.vcpu.as_ref().map(|v| v.state()).expect("as in `vcpu`")
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.vcpu().set_state(state)
    }
    fn stats(&self) -> Stats {
        let mut s = self.before;
        if let Some(v) = &self.vcpu {
            s += v.stats();
        }
        s
    }
}
