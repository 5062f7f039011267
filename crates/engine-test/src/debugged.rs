//! [`Debugged`]: an engine whose processors are all the time stopped by a debugger, at random, and go on. Guests must not see it.

use ringer_arch::VcpuState;
use ringer_arch::regs::{efer, rflags};
use ringer_engine::{
    CpuIo, DebugRequest, Engine, EngineError, Exit, Needs, Probe, Stats, Step, StopToken, Until, Vcpu, Vm,
    VmParams, WatchKind, Watchpoint,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stops in a run after which the processor is left alone, so that long loops end.
const MOST_STOPS: u32 = 20_000;

/// Another engine under a debugger.
pub struct Debugged {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// Chooses where it stops.
    pub seed: u64,
}

/// Stops so far, of all processors of all such engines.
pub static STOPS: AtomicU64 = AtomicU64::new(0);

impl Engine for Debugged {
    fn name(&self) -> &'static str {
        self.engine.name()
    }
    fn probe(&self) -> Probe {
        self.engine.probe()
    }
    fn recognizes(&self, feature: &str) -> bool {
        self.engine.recognizes(feature)
    }
    fn needs(&self) -> Result<Needs, EngineError> {
        self.engine.needs()
    }
    fn create_vm(&self, params: VmParams) -> Result<Box<dyn Vm>, EngineError> {
        Ok(Box::new(DebuggedVm { vm: self.engine.create_vm(params)?, seed: self.seed }))
    }
}

struct DebuggedVm {
    vm: Box<dyn Vm>,
    seed: u64,
}

impl Vm for DebuggedVm {
    fn create_vcpu(
        &self,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let vcpu = self.vm.create_vcpu(index, io, stop)?;
        Ok(Box::new(DebuggedVcpu {
            vcpu,
            asked: DebugRequest::default(),
            random: (self.seed << 8 | u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }))
    }
    fn log_writes(&self, on: bool) -> Result<(), EngineError> {
        self.vm.log_writes(on)
    }
}

struct DebuggedVcpu {
    vcpu: Box<dyn Vcpu>,
    /// What somebody else asks for, who is not disturbed then.
    asked: DebugRequest,
    /// xorshift64.
    random: u64,
}

impl DebuggedVcpu {
    fn below(&mut self, n: u64) -> u64 {
        self.random |= u64::from(self.random == 0);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n
    }

    /// Steps (while no interrupt could come), breakpoints near RIP, and watched data near the stack and where registers point.
    fn draw(&mut self) -> DebugRequest {
        let s = self.vcpu.state();
        // Tiny guests end before their processors have drawn much: what they draw is to depend on where they are.
        self.random ^= s.rip.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1;
        let rip = s.rip.wrapping_add(if s.efer & efer::LMA == 0 { s.seg[1].base } else { 0 });
        // A step holds interrupts off, which the suite's guests may see.
        let step = s.rflags & rflags::IF == 0 && self.below(2) == 0;
        let mut r = DebugRequest { step, ..DebugRequest::default() };
        for _ in 0..=self.below(6) {
            r.breakpoints.push(rip.wrapping_add(self.below(32)).wrapping_sub(4));
        }
        r.breakpoints.sort_unstable();
        r.breakpoints.dedup();
        for _ in 0..self.below(3) {
            let base = if self.below(2) == 0 { s.gpr[4] } else { s.gpr[self.below(16) as usize] };
            let kind = [WatchKind::Write, WatchKind::Read, WatchKind::Access][self.below(3) as usize];
            let at = base.wrapping_add(self.below(64)).wrapping_sub(32);
            r.watchpoints.push(Watchpoint { at, len: 1 + self.below(8), kind });
        }
        r
    }
}

impl Vcpu for DebuggedVcpu {
    fn run(&mut self) -> Exit {
        if !self.asked.is_empty() {
            return self.vcpu.run();
        }
        for _ in 0..MOST_STOPS {
            let request = self.draw();
            if self.vcpu.set_debug(&request).is_err() {
                // More than this engine serves.
                continue;
            }
            match self.vcpu.run() {
                Exit::Debug(_) => {
                    STOPS.fetch_add(1, Ordering::Relaxed);
                }
                exit => return exit,
            }
        }
        let nothing = self.vcpu.set_debug(&DebugRequest::default());
        debug_assert!(nothing.is_ok());
        self.vcpu.run()
    }
    fn state(&self) -> VcpuState {
        self.vcpu.state()
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.vcpu.set_state(state)
    }
    fn step(&mut self, until: Until) -> Option<Step> {
        let nothing = self.vcpu.set_debug(&self.asked);
        debug_assert!(nothing.is_ok());
        self.vcpu.step(until)
    }
    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.asked.clone_from(request);
        self.vcpu.set_debug(request)
    }
    fn failure(&self) -> Option<&str> {
        self.vcpu.failure()
    }
    fn stats(&self) -> Stats {
        self.vcpu.stats()
    }
}
