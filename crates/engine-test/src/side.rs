//! [`Side`]: one engine with its machine, which runs programs one after the other.

use crate::helper::{Help, Helper};
use crate::io::{Log, TestIo};
use crate::layout as l;
use crate::program::{Ending, Program};
use anyhow::Context;
use ringer_arch::cpu::CpuModel;
use ringer_arch::{MpState, VcpuState};
use ringer_engine::{Engine, Exit, StopToken, Vcpu, Vm, VmParams};
use ringer_memory::GuestMemory;
use std::sync::Arc;

/// How often a program that halts is run on until it does.
const HALT_TRIES: usize = 200;

/// Where a program ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why.
    pub exit: Exit,
    /// The processor.
    pub state: VcpuState,
    /// Accesses to the machine.
    pub log: Log,
    /// Pages that were written: one bit each.
    pub dirty: Vec<u64>,
    /// It came to its end in time.
    pub ended: bool,
    /// Instructions that it took.
    pub instructions: u64,
}

/// What translated code may take: little, so that programs find it full now and then.
const CODE_LIMIT: u64 = 4 << 20;

/// One engine with its machine.
pub struct Side {
    memory: GuestMemory,
    image: Arc<Vec<u8>>,
    io: Arc<TestIo>,
    stop: StopToken,
    vcpu: Box<dyn Vcpu>,
    /// Pages that differ from the image.
    stale: Vec<u64>,
    /// Pages as the engine wants them to be written: through `memory`.
    _vm: Box<dyn Vm>,
}

impl Side {
    /// A machine on `engine`.
    ///
    /// # Errors
    /// The host's.
    pub fn new(engine: &dyn Engine, model: &Arc<CpuModel>, image: &Arc<Vec<u8>>) -> anyhow::Result<Side> {
        let memory = GuestMemory::new(l::RAM)?;
        memory.write(0, image)?;
        let _filled_just_now = memory.take_dirty();
        let stop = StopToken::new();
        let io = Arc::new(TestIo::new(stop.clone()));
        let params = VmParams {
            memory: memory.clone(),
            cpu: model.clone(),
            vcpus: 1,
            code_limit: CODE_LIMIT,
            started: std::time::Instant::now(),
        };
        let vm = engine.create_vm(params)?;
        let vcpu = vm.create_vcpu(0, io.clone(), stop.clone())?;
        let stale = vec![0; (l::RAM / l::PAGE / 64) as usize];
        Ok(Side { memory, image: image.clone(), io, stop, vcpu, stale, _vm: vm })
    }

    /// The first page of `page`'s contents.
    pub fn page(&self, page: u64, to: &mut [u8]) {
        let read = self.memory.read(page * l::PAGE, to);
        debug_assert!(read.is_ok());
    }

    /// Bytes of RAM.
    pub fn read(&self, gpa: u64, to: &mut [u8]) {
        let read = self.memory.read(gpa, to);
        debug_assert!(read.is_ok());
    }

    fn take_dirty(&self) -> Vec<u64> {
        self.memory.take_dirty().into_iter().next().unwrap_or_default()
    }

    /// Everything as before the first program, then `p` loaded.
    fn load(&mut self, p: &Program) -> anyhow::Result<()> {
        for page in pages(&self.stale) {
            let at = (page * l::PAGE) as usize;
            self.memory.write(page * l::PAGE, &self.image[at..at + l::PAGE as usize])?;
        }
        self.stale.fill(0);
        let (memory, stale) = (&self.memory, &mut self.stale);
        let mut done = Ok(());
        p.writes(|gpa, bytes| match memory.write(gpa, bytes) {
            Ok(()) => {
                for page in gpa / l::PAGE..(gpa + bytes.len() as u64).div_ceil(l::PAGE) {
                    stale[page as usize / 64] |= 1 << (page % 64);
                }
            }
            Err(e) => done = Err(e),
        });
        done?;
        let _loaded = self.take_dirty();
        self.io.reset();
        // What engines ask of themselves (to drop code that was written over just now) stays.
        self.stop.take(StopToken::STOP | StopToken::ATTENTION);
        self.vcpu.set_state(&p.state).context("the engine refuses a program's state")
    }

    /// Loads and runs `p`.
    ///
    /// # Errors
    /// The engine refuses its state.
    pub fn run(&mut self, p: &Program, helper: &Helper) -> anyhow::Result<Outcome> {
        self.load(p)?;
        let before = self.vcpu.stats().instructions;
        let (vcpu, io) = (&mut self.vcpu, &self.io);
        let help = match (p.ending, p.asynchronous) {
            (Ending::Halt, _) => Help::Halt,
            (_, true) => Help::Interrupt,
            _ => Help::Watch,
        };
        let mut ended = false;
        let exit = helper.during(help, &self.stop, io, || {
            for _ in 0..HALT_TRIES {
                let exit = vcpu.run();
                if help != Help::Halt || exit != Exit::Stopped {
                    return exit;
                }
                if vcpu.state().mp_state == MpState::Halted {
                    ended = true;
                    return exit;
                }
            }
            Exit::Stopped
        });
        if exit == Exit::Failed {
            anyhow::bail!("{}", self.vcpu.failure().unwrap_or("the engine gives up").to_owned());
        }
        let (log, by_port) = self.io.finish();
        let dirty = self.take_dirty();
        for (a, b) in self.stale.iter_mut().zip(&dirty) {
            *a |= b;
        }
        let mut state = self.vcpu.state();
        crate::compare::normalise(&mut state);
        if p.asynchronous {
            crate::compare::forget_reloads(&mut state);
        }
        ended |= by_port || exit == Exit::TripleFault;
        let instructions = self.vcpu.stats().instructions - before;
        Ok(Outcome { exit, state, log, dirty, ended, instructions })
    }
}

/// The numbers of the bits that are set.
pub fn pages(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    bits.iter().enumerate().flat_map(|(i, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            (left != 0).then(|| {
                let n = left.trailing_zeros();
                left &= left - 1;
                i as u64 * 64 + u64::from(n)
            })
        })
    })
}
