//! [`Machine`]: a virtual machine from power-up to its end.

mod debug;
#[cfg(test)]
mod tests;

use crate::acpi;
use crate::control::{Ask, Control, ControlError, MachineHandle, Request, Status};
use crate::peak::Peak;
use crate::platform::{MachinePlatform, SerialInput, SerialSides};
use crate::vcpus::Vcpus;
use crate::{MachineState, OnReset, VmSpec, VmmError, engines, gdb, state};
use ringer_arch::VcpuState;
use ringer_arch::cpu::CpuModel;
use ringer_devices::{MachineEvent, MachineEvents};
use ringer_engine::{Engine, Exit, Stats, VmParams};
use ringer_image::boot::{self, BootConfig, Initrd};
use ringer_image::kernel::KernelFile;
use ringer_memory::GuestMemory;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How a machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest powered it off.
    PowerOff,
    /// The guest reset it, and the spec says that this ends it.
    Reset,
    /// The guest wrote to the debug-exit port: this status.
    DebugExit(u8),
    /// A processor met a triple fault, and the spec says that this ends it.
    TripleFault,
    /// Its owner stopped it.
    Stopped,
}

/// What a running machine is told, by its devices, its processors' threads and its owner.
#[derive(Debug)]
pub(crate) enum Message {
    Device(MachineEvent),
    /// The thread of a processor is about to end; `run` says of which start.
    Vcpu {
        index: u32,
        run: u64,
    },
    Control(Control),
    Ask(Ask),
    Debugger(gdb::Ask),
}

/// Devices' events, onto the machine's channel.
struct Events(Mutex<Sender<Message>>);

impl MachineEvents for Events {
    fn event(&self, event: MachineEvent) {
        let _ended = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(Message::Device(event));
    }
}

/// A machine, made but not yet started.
pub struct Machine {
    spec: VmSpec,
    cpu: Arc<CpuModel>,
    memory: GuestMemory,
    kernel: KernelFile,
    initrd: Option<Initrd>,
    platform: MachinePlatform,
    vcpus: Vcpus,
    messages: Receiver<Message>,
    sender: Sender<Message>,
    engine: &'static str,
    started: Instant,
    /// Its owner paused it.
    paused: bool,
    peak: Option<Peak>,
    debugger: debug::Debugger,
}

impl Machine {
    /// Makes the machine that `spec` asks for on `engine`, with its serial lines connected to `serial`. `started` is
    /// when the user asked for it.
    ///
    /// # Errors
    /// [`VmmError`].
    pub fn new(
        spec: VmSpec,
        engine: &dyn Engine,
        serial: SerialSides,
        started: Instant,
    ) -> Result<Machine, VmmError> {
        spec.check()?;
        let needs = engines::needs(engine, &spec.also)?;
        let cpu = Arc::new(engines::cpu_model(&spec.cpu, &needs)?);
        let kernel = KernelFile::open(&spec.kernel)?;
        let initrd = open_initrd(&spec)?;
        let memory = GuestMemory::new(spec.memory)?;
        let peak = if spec.count { Peak::watch(memory.clone()) } else { None };
        let params = VmParams {
            memory: memory.clone(),
            cpu: Arc::clone(&cpu),
            vcpus: spec.cpus,
            code_limit: spec.code_limit(),
            started,
        };
        let vm = engine.create_vm(params)?;
        let (sender, messages) = channel();
        let events = Arc::new(Events(Mutex::new(sender.clone())));
        let platform = MachinePlatform::new(&spec, &needs, &memory, events, serial)?;
        let vcpus = Vcpus::new(vm.as_ref(), platform.processors(), sender.clone(), spec.count)?;
        let mut machine = Machine {
            spec,
            cpu,
            memory,
            kernel,
            initrd,
            platform,
            vcpus,
            messages,
            sender,
            engine: engine.name(),
            started,
            paused: false,
            peak,
            debugger: debug::Debugger::default(),
        };
        machine.power_up()?;
        Ok(machine)
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> MachineHandle {
        MachineHandle::new(self.sender.clone())
    }

    /// The serial line `index` (0 is COM1), for feeding input.
    #[must_use]
    pub fn serial(&self, index: usize) -> Option<SerialInput> {
        self.platform.serial(index)
    }

    /// What the kernel file is, in a few words.
    #[must_use]
    pub fn kernel(&self) -> String {
        self.kernel.description().to_owned()
    }

    /// Name of the engine that runs it.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// The most memory that this process has held beside guest RAM since the machine was made, in bytes, if the spec has it count.
    #[must_use]
    pub fn memory_peak(&self) -> Option<u64> {
        self.peak.as_ref().map(Peak::most)
    }

    /// What each processor has done, under all engines.
    #[must_use]
    pub fn stats(&self) -> Vec<Stats> {
        self.vcpus.stats()
    }

    /// Guest RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// All of its state but RAM. While it does not run: before [`run`](Machine::run), or after that has ended with
    /// [`Outcome::Stopped`].
    ///
    /// # Errors
    /// [`VmmError::Panicked`].
    pub fn save(&mut self) -> Result<MachineState, VmmError> {
        let mut vcpus = Vec::new();
        self.vcpus.each(|i, vcpu| {
            vcpus.push(state::save_vcpu(i, &vcpu.state()));
            Ok(())
        })?;
        let (cpu, features) = (self.cpu.name().to_owned(), self.cpu.features().to_string());
        Ok(MachineState { cpu, features, vcpus, components: self.platform.save() })
    }

    /// Takes on a saved state, before [`run`](Machine::run), which then goes on from there. RAM, that of the saved machine, is put into
    /// [`memory`](Machine::memory) before this is called.
    ///
    /// # Errors
    /// [`VmmError::OtherMachine`], [`VmmError::State`] or [`VmmError::Engine`] if it is of another machine, or of none that can be: then the machine is
    /// good for nothing but to be dropped.
    pub fn load(&mut self, state: &MachineState) -> Result<(), VmmError> {
        let has = (self.cpu.name(), self.cpu.features().to_string(), self.spec.cpus as usize);
        if (&*state.cpu, &state.features, state.vcpus.len()) != (has.0, &has.1, has.2) {
            let say = |cpu: &str, n: usize, f: &str| format!("{n} processors of model {cpu} ({f})");
            let found = say(&state.cpu, state.vcpus.len(), &state.features);
            return Err(VmmError::OtherMachine { found, has: say(has.0, has.2, &has.1) });
        }
        self.platform.restore(&state.components)?;
        let states: Result<Vec<_>, _> =
            (0..).zip(&state.vcpus).map(|(i, s)| state::load_vcpu(i, s)).collect();
        let states = states?;
        self.vcpus.each(|i, vcpu| vcpu.set_state(&states[i as usize]))
    }

    /// Loads the kernel and the firmware's tables and puts all processors into the state that they start in.
    fn power_up(&mut self) -> Result<(), VmmError> {
        let config = BootConfig {
            protocol: self.spec.protocol,
            cmdline: &self.spec.cmdline,
            initrd: self.initrd.as_ref(),
            rsdp: Some(acpi::RSDP),
            signature: self.cpu.signature(),
        };
        let loaded = self.kernel.with(|k| boot::load(k, &self.memory, &config))??;
        self.platform.write_tables(&self.memory, &self.cpu, self.spec.cpus)?;
        self.vcpus.set_states(|i| {
            if i == 0 { loaded.vcpu.clone() } else { VcpuState::reset(self.cpu.signature(), false) }
        })
    }

    /// Runs the machine until it ends, on this thread and one for each processor. A machine runs once: after its end nothing that
    /// is asked of it comes to anything.
    ///
    /// # Errors
    /// [`VmmError::Panicked`], [`VmmError::Host`], or what a restart met.
    pub fn run(&mut self) -> Result<Outcome, VmmError> {
        self.resume()?;
        let mut ended = self.serve();
        let stopped = self.pause();
        if matches!((&ended, &stopped), (Ok(Outcome::Stopped), Ok(()))) {
            ended = self.settle();
        }
        // Whoever waits for an answer hears that there is none.
        self.messages = channel().1;
        let outcome = ended?;
        stopped?;
        self.debugger.end(outcome);
        Ok(outcome)
    }

    fn serve(&mut self) -> Result<Outcome, VmmError> {
        loop {
            // The sender in self keeps the channel open.
            let Ok(message) = self.messages.recv() else { return Ok(Outcome::Stopped) };
            if let Some(outcome) = self.handle_message(message)? {
                return Ok(outcome);
            }
        }
    }

    /// After the owner has stopped the machine: what its devices and processors had said before they stood still is dealt with, so that
    /// none of it is missing from its state. The machine stays stopped.
    fn settle(&mut self) -> Result<Outcome, VmmError> {
        self.paused = true;
        while let Ok(message) = self.messages.try_recv() {
            if matches!(message, Message::Device(_) | Message::Vcpu { .. })
                && let Some(outcome) = self.handle_message(message)?
            {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Stopped)
    }

    /// Deals with a message; the outcome, if that is the end.
    fn handle_message(&mut self, message: Message) -> Result<Option<Outcome>, VmmError> {
        match message {
            Message::Device(MachineEvent::PowerOff) => Ok(Some(Outcome::PowerOff)),
            Message::Device(MachineEvent::DebugExit(status)) => Ok(Some(Outcome::DebugExit(status))),
            Message::Device(MachineEvent::Reset) if self.spec.on_reset == OnReset::Exit => {
                Ok(Some(Outcome::Reset))
            }
            Message::Device(MachineEvent::Reset) => self.reset().map(|()| None),
            Message::Control(c) => self.control(c),
            Message::Ask(ask) => self.serve_ask(ask),
            Message::Debugger(ask) => self.serve_debugger(ask),
            Message::Vcpu { index, run } => match self.vcpus.reap(index, run)? {
                Some(Exit::TripleFault) if self.spec.on_triple_fault == OnReset::Exit => {
                    Ok(Some(Outcome::TripleFault))
                }
                Some(Exit::TripleFault) => self.reset().map(|()| None),
                Some(Exit::Failed) => {
                    let why = self.vcpus.failure(index);
                    Err(VmmError::Failed { engine: self.engine, index, why })
                }
                Some(Exit::Debug(stop)) => self.debug_stop(index, stop).map(|()| None),
                Some(Exit::Stopped) | None => Ok(None),
            },
        }
    }

    /// Does what the owner asks for; the outcome, if that is the end.
    fn control(&mut self, c: Control) -> Result<Option<Outcome>, VmmError> {
        match c {
            Control::Stop => return Ok(Some(Outcome::Stopped)),
            Control::PowerButton => self.platform.power_button(),
            Control::Pause => {
                self.paused = true;
                self.pause()?;
            }
            Control::Resume => {
                self.paused = false;
                self.resume()?;
            }
            Control::Reset => {
                self.paused = false;
                self.reset()?;
            }
        }
        Ok(None)
    }

    /// As [`control`](Self::control), with an answer.
    fn serve_ask(&mut self, ask: Ask) -> Result<Option<Outcome>, VmmError> {
        let mut outcome = None;
        let done = match ask.request {
            Request::Status => Ok(()),
            Request::Do(c) => {
                outcome = self.control(c)?;
                Ok(())
            }
            Request::Engine(engine) => self.change_engine(engine.as_ref())?,
        };
        let answer = match done {
            Ok(()) => Ok(self.status()?),
            Err(refused) => Err(refused),
        };
        let _nobody_waits = ask.answer.send(answer);
        Ok(outcome)
    }

    /// What the machine is now. The processors stop for a moment.
    fn status(&mut self) -> Result<Status, VmmError> {
        let running = self.vcpus.running();
        self.vcpus.stop()?;
        let stats = self.stats();
        let counted = stats.iter().all(|s| !s.partial);
        let instructions = counted.then(|| stats.iter().map(|s| s.instructions).sum());
        if running {
            self.start()?;
        }
        Ok(Status {
            paused: self.paused || self.debugger.holds(),
            engine: self.engine,
            vcpus: self.spec.cpus,
            memory: self.memory.size(),
            resident: self.memory.resident(),
            machine_ns: self.platform.machine_ns(),
            instructions,
        })
    }

    /// Hands the processors over to another engine. Devices and machine time go on meanwhile: to the guest, its processors are
    /// held up for a moment.
    fn change_engine(&mut self, engine: &dyn Engine) -> Result<Result<(), ControlError>, VmmError> {
        let old = self.engine;
        let params = VmParams {
            memory: self.memory.clone(),
            cpu: Arc::clone(&self.cpu),
            vcpus: self.spec.cpus,
            code_limit: self.spec.code_limit(),
            started: self.started,
        };
        // All that can be refused without holding up the guest is.
        let fits = engines::fits(engine, &self.cpu, self.platform.tsc_khz(), self.platform.hypercalls());
        let vm = match fits.and_then(|()| Ok(engine.create_vm(params)?)) {
            Ok(vm) => vm,
            Err(e) => return Ok(Err(ControlError::refused(old, &e))),
        };
        let running = self.vcpus.running();
        self.vcpus.stop()?;
        let changed = self.vcpus.hand_over(vm.as_ref(), self.platform.processors());
        if changed.is_ok() {
            self.engine = engine.name();
        }
        if running {
            self.start()?;
        }
        Ok(changed.map_err(|e| ControlError::refused(old, &e)))
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        let stopped = self.vcpus.stop();
        self.platform.pause();
        stopped
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        if self.vcpus.running() || self.debugger.holds() {
            return Ok(());
        }
        self.platform.resume();
        self.start()
    }

    /// Everything as at power-up, then on.
    fn reset(&mut self) -> Result<(), VmmError> {
        self.pause()?;
        // What processors and devices said before the reset has been overtaken by it; what the owner said has not.
        let kept: Vec<_> = self
            .messages
            .try_iter()
            .filter(|m| !matches!(m, Message::Vcpu { .. } | Message::Device(_)))
            .collect();
        for m in kept {
            let _open = self.sender.send(m);
        }
        self.platform.reset();
        self.power_up()?;
        if self.paused { Ok(()) } else { self.resume() }
    }
}

fn open_initrd(spec: &VmSpec) -> Result<Option<Initrd>, VmmError> {
    let file = spec.initrd.as_deref().map(Initrd::open).transpose()?;
    Ok(match (file, &spec.extra_initrd) {
        (Some(f), Some(extra)) => Some(f.with(extra.clone())),
        (None, Some(extra)) => Some(Initrd::from_bytes("the session's initramfs", extra.clone())),
        (file, None) => file,
    })
}
