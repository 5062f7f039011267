//! The machine's side of a debugger ([`crate::gdb`] is the other): while it holds the machine, processors and time stand still.

use super::{Machine, Outcome};
use crate::VmmError;
use crate::gdb::{Ask, Event, GdbServer, Go, Halted, Plan, SocketPath, Why};
use ringer_engine::{DebugRequest, DebugStop, EngineError, Vcpu};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// How long the end of a machine waits for the debugger to be told.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a machine knows of its debugger.
#[derive(Default)]
pub(super) struct Debugger {
    /// Whom to tell, and who hangs up when the session has ended.
    session: Option<(Sender<Event>, Receiver<()>)>,
    /// It has the machine stand still, or has yet to come.
    held: bool,
    /// How it last had the machine go on.
    plan: Option<Plan>,
    /// The socket's, removed with this.
    path: Option<SocketPath>,
}

impl Debugger {
    fn tell(&self, why: Why) {
        if let Some((events, _)) = &self.session {
            let _gone = events.send(Event::Machine(self.plan.as_ref().map_or(0, |p| p.number), why));
        }
    }

    /// Tells that the machine has ended, and gives the session time to pass that on.
    pub(super) fn end(&mut self, outcome: Outcome) {
        self.tell(Why::Ended(outcome));
        if let Some((_, left)) = self.session.take() {
            let _hangs_up = left.recv_timeout(FAREWELL);
        }
    }

    pub(super) fn holds(&self) -> bool {
        self.held
    }
}

/// Where the processor is, as breakpoints have it.
fn linear(vcpu: &dyn Vcpu) -> u64 {
    let s = vcpu.state();
    let cs = s.seg[ringer_arch::seg::sreg::CS];
    let long = s.efer & ringer_arch::regs::efer::LMA != 0 && cs.attr.long();
    if long { s.rip } else { s.rip.wrapping_add(cs.base) & 0xffff_ffff }
}

impl Machine {
    /// Serves gdb at this socket, on a thread of its own. `wait`: the machine does not start before a debugger has come.
    ///
    /// # Errors
    /// [`VmmError::Host`].
    pub fn serve_gdb(&mut self, mut server: GdbServer, wait: bool) -> Result<(), VmmError> {
        let path = server.take_path();
        let (sender, vcpus) = (self.sender.clone(), self.spec.cpus);
        std::thread::Builder::new()
            .name("gdb".into())
            .spawn(move || server.serve(&sender, vcpus))
            .map_err(|source| VmmError::Host { what: "a thread for gdb".to_owned(), source })?;
        (self.debugger.held, self.debugger.path) = (wait, path);
        Ok(())
    }

    /// Does what the debugger asks for; the outcome, if that is the end.
    pub(super) fn serve_debugger(&mut self, ask: Ask) -> Result<Option<Outcome>, VmmError> {
        match ask {
            Ask::Attach(events, left) => {
                self.hold()?;
                self.debugger.session = Some((events, left));
            }
            Ask::Look(f) => {
                // Nothing holds the machine if the session has just lost it: then nobody waits for the answer.
                if self.debugger.held {
                    self.vcpus.stop()?;
                    let about = self.about();
                    let io = self.platform.processors().into_iter().map(|(io, _)| io).collect();
                    f(&mut Halted {
                        vcpus: &mut self.vcpus,
                        memory: &self.memory,
                        model: &self.cpu,
                        io,
                        about,
                    });
                }
            }
            Ask::Go(plan) => {
                self.debugger.plan = Some(plan);
                self.debugger.held = false;
                if !self.paused {
                    self.resume()?;
                }
            }
            Ask::Interrupt => {
                self.hold()?;
                self.debugger.tell(Why::Interrupt);
            }
            Ask::Detach => {
                self.pause()?;
                self.debugger.session = None;
                self.debugger.plan = None;
                self.debugger.held = false;
                self.vcpus.forget(|_, _| false);
                self.vcpus.each(|_, v| v.set_debug(&DebugRequest::default()))?;
                if !self.paused {
                    self.resume()?;
                }
            }
            Ask::Kill => return Ok(Some(Outcome::Stopped)),
        }
        Ok(None)
    }

    /// A processor has stopped for the debugger: all do.
    pub(super) fn debug_stop(&mut self, index: u32, stop: DebugStop) -> Result<(), VmmError> {
        self.hold()?;
        self.debugger.tell(Why::Vcpu(index, stop));
        Ok(())
    }

    fn hold(&mut self) -> Result<(), VmmError> {
        self.debugger.held = true;
        self.pause()
    }

    /// Starts the processors, as the debugger wants it if there is one.
    pub(super) fn start(&mut self) -> Result<(), VmmError> {
        let Some(plan) = self.debugger.plan.clone() else { return self.vcpus.start(|_| true) };
        let go = |i: u32| plan.vcpus.get(i as usize).copied().unwrap_or(Go::Stay);
        // Stops that nobody has been told of yet: some do not matter any more.
        self.vcpus.forget(|vcpu, stop| match stop {
            DebugStop::Breakpoint => plan.request.breakpoints.binary_search(&linear(vcpu)).is_ok(),
            DebugStop::Watchpoint(w) => plan.request.watchpoints.contains(&w),
            DebugStop::Step => false,
        });
        let served = self.vcpus.each(|i, vcpu| {
            vcpu.set_debug(&DebugRequest { step: go(i) == Go::Step, ..plan.request.clone() })
        });
        match served {
            Ok(()) => self.vcpus.start(|i| go(i) != Go::Stay),
            Err(VmmError::Engine(e @ EngineError::NoDebug(_))) => {
                self.hold()?;
                self.debugger.tell(Why::Refused(e.to_string()));
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// What the machine is, in a line.
    fn about(&self) -> String {
        let (cpus, ms) = (self.spec.cpus, self.platform.machine_ns() / 1_000_000);
        format!("engine {}, {cpus} processor(s), has run for {ms} ms of its time", self.engine)
    }
}
