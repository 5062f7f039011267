//! Random code under an engine: in every mode and ring, with descriptor tables, page tables and control state that
//! are mostly sound and partly not, and with interrupts at any time.
//!
//! Input: a header of [`Plan`] bytes, then the code. For the translator, one byte in front says where the code is ([`Place`]).

mod bait;
mod io;
mod memory;
mod smp;
mod state;

pub use smp::smp_exec;

use crate::input::{Input, Rng};
use crate::watchdog::Watchdog;
use bait::Bait;
use io::GarbageIo;
use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuModel;
use ringer_arch::regs::{cr0, cr4, efer};
use ringer_engine::{Engine, Exit, StopToken, Vcpu, Vm, VmParams};
use ringer_engine_soft::{InterpreterEngine, TranslatorEngine};
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

/// Where the code starts, in 64-bit and 32-bit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Where the code is.
    Usual,
    /// Just below the end of RAM, where the mapping goes on beyond it.
    EndOfRam,
    /// In a page that is no RAM.
    Device,
    /// Just below the end of the lower half of the canonical addresses.
    EndOfLowerHalf,
    /// Just below the end of all addresses.
    EndOfAll,
}

/// What the header says.
#[derive(Clone, Debug)]
struct Plan {
    place: Place,
    /// The code is random bytes, whatever the input's are.
    random: bool,
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
        let (place, random) = (Place::Usual, false);
        Plan { place, random, shape, tables, cpl, flags: input.u8(), rng: Rng::new(input.u64()) }
    }

    /// With the byte that says where the code is.
    fn parse_placed(input: &mut Input) -> Plan {
        let places = [
            Place::Usual,
            Place::EndOfRam,
            Place::Device,
            Place::EndOfLowerHalf,
            Place::EndOfAll,
            Place::Usual,
        ];
        let byte = usize::from(input.u8());
        let place = places[byte % 8 % places.len()];
        Plan { place, random: byte & 0x80 != 0, ..Plan::parse(input) }
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
    bait: Bait,
}

/// A machine of `vcpus` processors on `engine`, which has little room for translated code: it is full now and then.
fn machine(engine: &dyn Engine, vcpus: u32) -> (GuestMemory, Arc<CpuModel>, Box<dyn Vm>) {
    let memory = GuestMemory::new(RAM).expect("the host has 2 MiB");
    let model = Arc::new(ringer_engine_soft::host_model().expect("the host is a processor"));
    let params = VmParams {
        memory: memory.clone(),
        cpu: model.clone(),
        vcpus,
        code_limit: 1,
        started: std::time::Instant::now(),
    };
    let vm = engine.create_vm(params).expect("the software engines run everywhere");
    (memory, model, vm)
}

impl Bench {
    fn new(engine: &dyn Engine) -> Bench {
        let (memory, model, vm) = machine(engine, 1);
        let stop = StopToken::new();
        let io = Arc::new(GarbageIo::new(stop.clone()));
        let vcpu = vm.create_vcpu(0, io.clone(), stop.clone()).expect("the host gives executable memory");
        Bench { memory, model, io, stop, vcpu, watchdog: Watchdog::new(), bait: Bait::new() }
    }

    fn run(&mut self, plan: &mut Plan, code: &[u8]) {
        memory::fill(&self.memory, plan, code, &self.model);
        let mut state = state::make(plan, &self.model);
        self.bait.lay(&mut state, plan);
        if self.vcpu.set_state(&state).is_err() {
            return;
        }
        self.io.begin(plan);
        for _ in 0..3 {
            self.stop.raise(StopToken::ATTENTION);
            let exit = self.watchdog.limit(&self.stop, || self.vcpu.run());
            self.check();
            if exit == Exit::TripleFault {
                break;
            }
        }
        // What the engine asks of itself stays.
        self.stop.take(StopToken::STOP | StopToken::ATTENTION);
    }

    fn check(&mut self) {
        let state = self.vcpu.state();
        self.bait.check(&state);
        check(self.vcpu.as_mut(), &state);
    }
}

/// Whatever the guest did, its state is one that a snapshot can hold. (But for the PDPTEs of PAE paging, which the
/// state leaves in memory, where they may have changed since CR3 was loaded.)
fn check(vcpu: &mut dyn Vcpu, state: &VcpuState) {
    if let Err(e) = vcpu.set_state(state) {
        let pae = state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0 && state.efer & efer::LMA == 0;
        assert!(
            pae && e.to_string().contains("PDPTE"),
            "a state that was reached is refused: {e}\n{state:x?}"
        );
        return;
    }
    let again = VcpuState { tsc: state.tsc, ..vcpu.state() };
    assert_eq!(*state, again, "setting a state changes it");
}

/// Runs random code under the interpreter.
pub fn decode_exec(data: &[u8]) {
    thread_local!(static BENCH: RefCell<Bench> = RefCell::new(Bench::new(&InterpreterEngine)));
    let mut input = Input(data);
    let mut plan = Plan::parse(&mut input);
    BENCH.with_borrow_mut(|b| b.run(&mut plan, input.0));
}

/// Runs random code under the translator.
pub fn translate_exec(data: &[u8]) {
    thread_local!(static BENCH: RefCell<Bench> = RefCell::new(Bench::new(&TranslatorEngine)));
    let mut input = Input(data);
    let mut plan = Plan::parse_placed(&mut input);
    BENCH.with_borrow_mut(|b| b.run(&mut plan, input.0));
}
