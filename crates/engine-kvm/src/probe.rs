//! What the node is worth: a short guest loop in ring 0 and one in ring 3, paging on, timed.

use crate::engine::KvmEngine;
use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuidDynamic;
use ringer_arch::cpu::{CpuModel, FeatureSet};
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_arch::seg::{Attr, Segment, sreg};
use ringer_engine::{
    CODE_LIMIT, CpuIo, Engine, EngineError, Exit, Needs, Pending, Probe, StopToken, Vcpu, VmParams,
};
use ringer_memory::GuestMemory;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long each loop runs.
const TIME: Duration = Duration::from_millis(40);
/// Instructions a second below which a ring does not run on the processor: even the oldest ones that have virtualization run loops some
/// ten times as fast.
const NATIVE: f64 = 1e8;
/// What of a node runs in how many instructions a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    pub ring0: f64,
    pub ring3: f64,
}

/// What the figures mean.
pub fn verdict(rates: Rates) -> Probe {
    let Rates { ring0, ring3 } = rates;
    let m = |rate: f64| if rate < 1e7 { format!("{:.2}", rate / 1e6) } else { format!("{:.0}", rate / 1e6) };
    let slow = match (ring0 < NATIVE, ring3 < NATIVE) {
        (false, false) => return Probe::Works { rate: ring0.min(ring3) },
        (true, false) => "ring 0 does not run on the processor",
        (false, true) => "ring 3 does not run on the processor",
        (true, true) => "neither ring 0 nor ring 3 runs on the processor",
    };
    Probe::Slow(format!(
        "{slow}: {} million instructions a second in ring 0, {} in ring 3",
        m(ring0),
        m(ring3)
    ))
}

/// Runs the loops and judges.
pub fn probe() -> Probe {
    match measure() {
        Ok(rates) => verdict(rates),
        Err(Failure::Engine(EngineError::Unavailable { why, .. })) => Probe::Missing(why),
        Err(Failure::Engine(e)) => Probe::Missing(crate::vcpu::whole(&e)),
        Err(Failure::Other(why)) => Probe::Missing(why),
    }
}

enum Failure {
    Engine(EngineError),
    Other(String),
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Failure {
        Failure::Engine(e)
    }
}

fn other(e: impl std::fmt::Display) -> Failure {
    Failure::Other(e.to_string())
}

fn measure() -> Result<Rates, Failure> {
    let needs = KvmEngine.needs()?;
    Ok(Rates { ring0: rate(&needs, 0)?, ring3: rate(&needs, 3)? })
}

/// Instructions a second of a loop in `ring`.
fn rate(needs: &Needs, ring: u8) -> Result<f64, Failure> {
    let memory = GuestMemory::new(1 << 20).map_err(other)?;
    let put = |gpa: u64, v: u64| memory.store(gpa, v).map_err(other);
    put(0x1000, 0x2007)?;
    put(0x2000, 0x3007)?;
    // 2 MiB, user's.
    put(0x3000, 0x87)?;
    // l: mov rax,[rsi]; add rax,rcx; mov [rsi],rax; xor rdx,rax; inc rcx; jmp l
    memory
        .write(0x8000, b"\x48\x8b\x06\x48\x01\xc8\x48\x89\x06\x48\x31\xc2\x48\xff\xc1\xeb\xef")
        .map_err(other)?;
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    };
    let cpu = CpuModel::named("host", &host, &needs.features.unwrap_or(FeatureSet::EMPTY)).map_err(other)?;
    let cpu = Arc::new(cpu);
    let stop = StopToken::new();
    let io = Arc::new(Bare { tsc_khz: needs.tsc_khz.unwrap_or(1_000_000) as u32 });
    let params =
        VmParams { memory, cpu: cpu.clone(), vcpus: 1, code_limit: CODE_LIMIT, started: Instant::now() };
    let vm = KvmEngine.create_vm(params)?;
    let mut vcpu = vm.create_vcpu(0, io, stop.clone())?;
    vcpu.set_state(&in_ring(&cpu, ring))?;
    let (exit, took) = run_for(vcpu.as_mut(), &stop, TIME);
    match exit {
        Exit::Stopped => Ok(vcpu.state().gpr[1] as f64 * 6.0 / took.as_secs_f64()),
        exit => {
            let why = vcpu.failure().map_or_else(|| format!("{exit:?}"), str::to_owned);
            Err(Failure::Other(format!(
                "its probe guest in ring {ring} ended otherwise than it should: {why}"
            )))
        }
    }
}

/// Runs a processor until `time` is over, or it stops by itself.
fn run_for(vcpu: &mut dyn Vcpu, stop: &StopToken, time: Duration) -> (Exit, Duration) {
    let began = Instant::now();
    let (done, over) = std::sync::mpsc::channel::<()>();
    let exit = std::thread::scope(|s| {
        s.spawn(move || {
            let _timeout = over.recv_timeout(time);
            stop.raise(StopToken::STOP);
        });
        let exit = vcpu.run();
        drop(done);
        exit
    });
    stop.take(StopToken::STOP);
    (exit, began.elapsed())
}

/// 64-bit mode at 0x8000 with the page tables that `rate` made.
fn in_ring(cpu: &CpuModel, ring: u8) -> VcpuState {
    let mut s = VcpuState::reset(cpu.signature(), true);
    s.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    s.cr3 = 0x1000;
    s.cr4 = cr4::PAE;
    s.efer = efer::LME | efer::LMA;
    let (dpl, rpl) = (u32::from(ring) << 5, u16::from(ring));
    s.seg = [Segment { selector: 16 | rpl, base: 0, limit: u32::MAX, attr: Attr(0xc093 | dpl) }; 6];
    s.seg[sreg::CS] = Segment { selector: 8 | rpl, base: 0, limit: u32::MAX, attr: Attr(0xa09b | dpl) };
    s.cpl = ring;
    s.gpr[1] = 0;
    s.gpr[6] = 0x9000;
    s.rip = 0x8000;
    s
}

/// A machine with nothing in it.
struct Bare {
    tsc_khz: u32,
}

impl CpuIo for Bare {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn pending(&self) -> Pending {
        Pending::default()
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _value: u64) {}
    fn msr_read(&self, _msr: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _msr: u32, _value: u64) -> Option<()> {
        None
    }
    fn cpuid(&self) -> CpuidDynamic {
        CpuidDynamic { tsc_khz: self.tsc_khz, ..CpuidDynamic::default() }
    }
    fn hypercall(&self, _nr: u64, _args: [u64; 4]) -> u64 {
        u64::MAX
    }
    fn tsc(&self) -> u64 {
        0
    }
    fn reset_apic(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_runs_both_rings_works() {
        let rates = Rates { ring0: 3.1e9, ring3: 2.9e9 };
        assert_eq!(verdict(rates), Probe::Works { rate: 2.9e9 });
    }

    #[test]
    fn a_node_that_emulates_is_told_with_its_figures() {
        let says = |ring0, ring3| match verdict(Rates { ring0, ring3 }) {
            Probe::Slow(why) => why,
            p => panic!("{p:?}"),
        };
        let why = says(0.65e6, 1.5e9);
        assert_eq!(
            why,
            "ring 0 does not run on the processor: 0.65 million instructions a second in ring 0, 1500 in ring 3"
        );
        assert!(says(2e9, 1e7).starts_with("ring 3 does not"));
        assert!(says(1e6, 1e6).starts_with("neither"));
        assert!(matches!(verdict(Rates { ring0: NATIVE, ring3: NATIVE }), Probe::Works { .. }));
    }

    #[test]
    fn the_node_here_is_judged_in_a_fraction_of_a_second() {
        let began = Instant::now();
        let p = probe();
        println!("{p:?} after {:?}", began.elapsed());
        match p {
            Probe::Works { rate } => assert!(rate >= NATIVE),
            Probe::Slow(why) => assert!(why.contains("million instructions a second in ring 0")),
            Probe::Missing(why) => assert!(!why.is_empty()),
        }
        // Generous, for a loaded host.
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
