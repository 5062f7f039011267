//! Random code under the interpreter: in every mode and ring, with descriptor tables, page tables and control state that
//! are mostly sound and partly not, and with interrupts at any time.
//!
//! Input: a header of [`Plan`] bytes, then the code.

mod io;
mod memory;
mod state;

use crate::input::{Input, Rng};
use crate::watchdog::Watchdog;
use io::GarbageIo;
use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuModel;
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_engine::{Engine, Exit, StopToken, Vcpu, VmParams};
use ringer_engine_soft::InterpreterEngine;
use ringer_memory::GuestMemory;
use std::cell::RefCell;
use std::sync::Arc;

/// Guest RAM: more than the tables need, and no more than one large page.
const RAM: u64 = 2 << 20;

/// The processor's mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Real,
    V86,
    Prot16,
    Prot32,
    Long,
    Compat16,
    Compat32,
}

/// How linear addresses are translated, where the mode leaves a choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tables {
    Off,
    Bits32,
    Pae,
    Level4,
    Level5,
}

/// What the header says.
#[derive(Clone, Debug)]
struct Plan {
    shape: Shape,
    tables: Tables,
    cpl: u8,
    /// Bits: 0 no random page tables, 1 no random descriptors, 2 no random registers, 3 no interrupts, 4 INIT and SIPI
    /// too, 5 the code is at the end of a page, 6 odd segments, 7 odd control registers.
    flags: u8,
    rng: Rng,
}

impl Plan {
    fn parse(input: &mut Input) -> Plan {
        let shapes = [
            (Shape::Long, Tables::Level4),
            (Shape::Long, Tables::Level5),
            (Shape::Real, Tables::Off),
            (Shape::V86, Tables::Off),
            (Shape::V86, Tables::Bits32),
            (Shape::V86, Tables::Pae),
            (Shape::Prot16, Tables::Off),
            (Shape::Prot16, Tables::Bits32),
            (Shape::Prot32, Tables::Off),
            (Shape::Prot32, Tables::Bits32),
            (Shape::Prot32, Tables::Pae),
            (Shape::Compat16, Tables::Level4),
            (Shape::Compat32, Tables::Level4),
            (Shape::Compat32, Tables::Level5),
        ];
        let (shape, tables) = shapes[input.below(shapes.len())];
        let ring = input.u8() & 3;
        let cpl = match shape {
            Shape::Real => 0,
            Shape::V86 => 3,
            // Rings 1 and 2 now and then.
            _ if ring & 2 != 0 => 3,
            _ => ring & input.u8() & 1,
        };
        Plan { shape, tables, cpl, flags: input.u8(), rng: Rng::new(input.u64()) }
    }

    fn flag(&self, n: u8) -> bool {
        self.flags >> n & 1 != 0
    }
}

struct Bench {
    memory: GuestMemory,
    model: Arc<CpuModel>,
    io: Arc<GarbageIo>,
    stop: StopToken,
    vcpu: Box<dyn Vcpu>,
    watchdog: Watchdog,
}

impl Bench {
    fn new() -> Bench {
        let memory = GuestMemory::new(RAM).expect("the host has 2 MiB");
        let model = Arc::new(ringer_engine_soft::host_model().expect("the host is a processor"));
        let stop = StopToken::new();
        let io = Arc::new(GarbageIo::new(stop.clone()));
        let started = std::time::Instant::now();
        let params = VmParams { memory: memory.clone(), cpu: model.clone(), vcpus: 1, started };
        let vm = InterpreterEngine.create_vm(params).expect("the interpreter runs everywhere");
        let vcpu = vm.create_vcpu(0, io.clone(), stop.clone()).expect("the host gives executable memory");
        Bench { memory, model, io, stop, vcpu, watchdog: Watchdog::new() }
    }

    fn run(&mut self, data: &[u8]) {
        let mut input = Input(data);
        let mut plan = Plan::parse(&mut input);
        let code = input.0;
        memory::fill(&self.memory, &mut plan, code, &self.model);
        let state = state::make(&mut plan, &self.model);
        if self.vcpu.set_state(&state).is_err() {
            return;
        }
        self.io.begin(&plan);
        for _ in 0..3 {
            self.stop.raise(StopToken::ATTENTION);
            let exit = self.watchdog.limit(&self.stop, || self.vcpu.run());
            self.check();
            if exit == Exit::TripleFault {
                break;
            }
        }
        self.stop.take(u32::MAX);
    }

    /// Whatever the guest did, its state is one that a snapshot can hold. (But for the PDPTEs of PAE paging, which the
    /// state leaves in memory, where they may have changed since CR3 was loaded.)
    fn check(&mut self) {
        let state = self.vcpu.state();
        if let Err(e) = self.vcpu.set_state(&state) {
            let pae = state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0 && state.efer & efer::LMA == 0;
            assert!(
                pae && e.to_string().contains("PDPTE"),
                "a state that was reached is refused: {e}\n{state:x?}"
            );
            return;
        }
        let again = VcpuState { tsc: state.tsc, ..self.vcpu.state() };
        assert_eq!(state, again, "setting a state changes it");
    }
}

/// Runs random code.
pub fn decode_exec(data: &[u8]) {
    thread_local!(static BENCH: RefCell<Bench> = RefCell::new(Bench::new()));
    BENCH.with_borrow_mut(|b| b.run(data));
}
