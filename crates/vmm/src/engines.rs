//! Which engines there are, and which one a machine gets.

use crate::VmmError;
use ringer_arch::cpu::{CpuModel, FeatureSet};
use ringer_engine::{Engine, Needs, Probe};
use ringer_lockstep::LockStepEngine;

/// An engine and why it was taken.
pub struct Choice {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// One clause.
    pub why: String,
}

/// All engines of this build, best first.
#[must_use]
pub fn engines() -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(ringer_engine_kvm::KvmEngine),
        Box::new(ringer_engine_soft::TranslatorEngine),
        Box::new(ringer_engine_soft::InterpreterEngine),
    ]
}

/// The engine called `name`, or, for `auto`, the first that works here.
///
/// # Errors
/// [`VmmError::UnknownEngine`], [`VmmError::NoEngine`].
pub fn choose(name: &str) -> Result<Choice, VmmError> {
    if let Some(engine) = lock_step(name) {
        return Ok(Choice { engine: Box::new(engine), why: "it was asked for".to_owned() });
    }
    choose_from(engines(), name)
}

/// For those who work on Ringer: two engines side by side, compared after each block. `lockstep` is the translator checked by the
/// interpreter, `lockstep-interpreter` the interpreter by itself.
fn lock_step(name: &str) -> Option<LockStepEngine> {
    let first: Box<dyn Engine> = match name {
        "lockstep" => Box::new(ringer_engine_soft::TranslatorEngine),
        "lockstep-interpreter" => Box::new(ringer_engine_soft::InterpreterEngine),
        _ => return None,
    };
    Some(LockStepEngine::new(first, Box::new(ringer_engine_soft::InterpreterEngine)))
}

fn choose_from(engines: Vec<Box<dyn Engine>>, name: &str) -> Result<Choice, VmmError> {
    let names = || engines.iter().map(|e| e.name()).collect::<Vec<_>>().join(", ");
    if name != "auto" {
        let names = names();
        let engine = engines.into_iter().find(|e| e.name() == name);
        let engine = engine.ok_or_else(|| VmmError::UnknownEngine { name: name.to_owned(), names })?;
        return Ok(Choice { engine, why: "it was asked for".to_owned() });
    }
    let mut passed = Vec::new();
    for engine in engines {
        match engine.probe() {
            Probe::Works { rate } => {
                let speed = format!("{:.0} million instructions a second", rate / 1e6);
                let why = if passed.is_empty() {
                    format!("the fastest that this build has, at {speed}")
                } else {
                    format!("{speed}; {}", passed.join("; "))
                };
                return Ok(Choice { engine, why });
            }
            Probe::Slow(why) | Probe::Missing(why) => passed.push(format!("not {}: {why}", engine.name())),
        }
    }
    Err(VmmError::NoEngine(passed.join("; ")))
}

/// Makes the processor model called `name` for an engine with these needs.
///
/// # Errors
/// [`VmmError::Cpu`].
pub fn cpu_model(name: &str, needs: &Needs) -> Result<CpuModel, VmmError> {
    Ok(CpuModel::named(name, &host_cpuid, &offered(needs))?)
}

fn host_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// What an engine with these needs can offer.
fn offered(needs: &Needs) -> FeatureSet {
    needs.features.unwrap_or_else(|| FeatureSet::software(&host_cpuid))
}

/// What a machine must be like to run on `engine` and to be handed over to the engines called `also` later.
///
/// # Errors
/// [`VmmError::UnknownEngine`]; [`VmmError::Engine`] if one of them cannot run here; [`VmmError::Unfit`] if they need different machines.
pub fn needs(engine: &dyn Engine, also: &[String]) -> Result<Needs, VmmError> {
    let mut all = engine.needs()?;
    for name in also {
        let other = choose(name)?.engine;
        let n = other.needs()?;
        if n.features.is_some() {
            all.features = Some(offered(&all).intersection(offered(&n)));
        }
        all.no_hypercalls |= n.no_hypercalls;
        match (all.tsc_khz, n.tsc_khz) {
            (Some(a), Some(b)) if a != b => {
                let why = format!("runs a TSC of {b} kHz alone, and {} one of {a}", engine.name());
                return Err(VmmError::Unfit { engine: other.name(), why });
            }
            (a, b) => all.tsc_khz = a.or(b),
        }
    }
    Ok(all)
}

/// Whether `engine` can run a machine that was made for another: processors of `cpu`, a TSC of `tsc_khz`, and hypercalls if the guest
/// was offered them.
pub(crate) fn fits(
    engine: &dyn Engine,
    cpu: &CpuModel,
    tsc_khz: u64,
    hypercalls: bool,
) -> Result<(), VmmError> {
    let (needs, name) = (engine.needs()?, engine.name());
    let missing = cpu.features().difference(offered(&needs));
    if !missing.is_empty() {
        return Err(VmmError::Lacks { engine: name, model: cpu.name().to_owned(), missing });
    }
    let unfit = |why| Err(VmmError::Unfit { engine: name, why });
    match needs.tsc_khz {
        Some(khz) if khz != tsc_khz => {
            unfit(format!("runs a TSC of {khz} kHz alone, and this machine's has {tsc_khz}"))
        }
        _ if needs.no_hypercalls && hypercalls => {
            unfit("passes no hypercalls on, and this guest was offered them".into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringer_engine::{EngineError, Vm, VmParams};

    struct Fake(&'static str, Probe);

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            self.0
        }
        fn probe(&self) -> Probe {
            self.1.clone()
        }
        fn create_vm(&self, _: VmParams) -> Result<Box<dyn Vm>, EngineError> {
            Err(EngineError::BadState("fake"))
        }
    }

    fn fakes() -> Vec<Box<dyn Engine>> {
        vec![
            Box::new(Fake("kvm", Probe::Missing("/dev/kvm is missing".into()))),
            Box::new(Fake("interpreter", Probe::Works { rate: 5e7 })),
        ]
    }

    #[test]
    fn auto_says_what_it_passed_over() {
        let c = choose_from(fakes(), "auto").unwrap();
        assert_eq!(c.engine.name(), "interpreter");
        assert_eq!(c.why, "50 million instructions a second; not kvm: /dev/kvm is missing");
    }

    #[test]
    fn names_are_exact() {
        assert_eq!(choose_from(fakes(), "kvm").unwrap().engine.name(), "kvm");
        let e = choose_from(fakes(), "warp").map(|_| ()).unwrap_err().to_string();
        assert_eq!(e, "no engine is called \"warp\": choose auto, kvm, interpreter");
    }

    #[test]
    fn models() {
        assert!(cpu_model("x86-64-v2", &Needs::default()).is_ok());
        assert!(cpu_model("z80", &Needs::default()).unwrap_err().to_string().contains("z80"));
    }
}
