//! [`Guest`]: the machine as gdbstub knows it. Processor `n` is thread `n + 1`.

use super::{Ask, Go, Halted, Plan, Why, registers};
use crate::machine::Message;
use gdbstub::arch::{Arch, RegId, Registers};
use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use ringer_arch::{MpState, VcpuState};
use ringer_engine::{DebugRequest, DebugStop, Watchpoint};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Sender, channel};

/// Errors that gdb is told, by Linux's numbers.
const EFAULT: TargetError<Ended> = TargetError::Errno(14);
const EINVAL: TargetError<Ended> = TargetError::Errno(22);

/// Bytes that one watchpoint of an engine covers at most, and parts that one of gdb's may have: enough for a page.
const WATCH_MOST: u64 = 8;
const PARTS_MOST: u64 = 512;

/// The machine has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended;

/// What gdbstub must know of the architecture.
pub enum X86 {}

/// The number of a register.
#[derive(Clone, Copy, Debug)]
pub struct Number(usize);

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Number, Option<NonZeroUsize>)> {
        Some((Number(id), Some(NonZeroUsize::new(registers::len(id)?)?)))
    }
    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// The values of all registers, one after the other.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Values(Vec<u8>);

impl Registers for Values {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        // Sixteen registers of eight bytes come before it.
        self.0.get(128..136).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|b| write_byte(Some(*b)));
    }
    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() != *registers::LEN {
            return Err(());
        }
        self.0 = bytes.to_vec();
        Ok(())
    }
}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Values;
    type BreakpointKind = usize;
    type RegId = Number;
}

/// The machine, seen from the debugger's thread.
pub struct Guest {
    machine: Sender<Message>,
    vcpus: u32,
    /// How often each breakpoint is set: gdb has software and hardware ones, which are the same here.
    breakpoints: BTreeMap<u64, u32>,
    watchpoints: Vec<(u64, u64, ringer_engine::WatchKind)>,
    /// What each processor is to do, where that was said, and whether the others stay.
    actions: BTreeMap<u32, Go>,
    locked: bool,
    orders: u64,
}

fn index(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

fn tid(index: u32) -> Tid {
    Tid::new(index as usize + 1).unwrap_or(Tid::MIN)
}

fn kind(k: WatchKind) -> ringer_engine::WatchKind {
    match k {
        WatchKind::Write => ringer_engine::WatchKind::Write,
        WatchKind::Read => ringer_engine::WatchKind::Read,
        WatchKind::ReadWrite => ringer_engine::WatchKind::Access,
    }
}

/// What gdb is told of a stop.
pub fn stop_reason(why: &Why) -> MultiThreadStopReason<u64> {
    match *why {
        // Not by a trap instruction: gdb is not to correct the address.
        Why::Vcpu(v, DebugStop::Breakpoint) => MultiThreadStopReason::HwBreak(tid(v)),
        Why::Vcpu(v, DebugStop::Watchpoint(w)) => {
            let kind = match w.kind {
                ringer_engine::WatchKind::Write => WatchKind::Write,
                ringer_engine::WatchKind::Read => WatchKind::Read,
                ringer_engine::WatchKind::Access => WatchKind::ReadWrite,
            };
            MultiThreadStopReason::Watch { tid: tid(v), kind, addr: w.at }
        }
        Why::Vcpu(v, DebugStop::Step) => {
            MultiThreadStopReason::SignalWithThread { tid: tid(v), signal: Signal::SIGTRAP }
        }
        Why::Interrupt => MultiThreadStopReason::Signal(Signal::SIGINT),
        Why::Refused(_) => MultiThreadStopReason::Signal(Signal::SIGABRT),
        Why::Ended(_) => MultiThreadStopReason::Exited(0),
    }
}

impl Guest {
    pub fn new(machine: Sender<Message>, vcpus: u32) -> Guest {
        Guest {
            machine,
            vcpus,
            breakpoints: BTreeMap::new(),
            watchpoints: Vec::new(),
            actions: BTreeMap::new(),
            locked: false,
            orders: 0,
        }
    }

    /// The number of the last order to go on.
    pub fn order(&self) -> u64 {
        self.orders
    }

    pub fn interrupt(&self) {
        let _ended = self.send(Ask::Interrupt);
    }

    pub fn kill(&self) {
        let _ended = self.send(Ask::Kill);
    }

    fn send(&self, ask: Ask) -> Result<(), Ended> {
        self.machine.send(Message::Debugger(ask)).map_err(|_| Ended)
    }

    /// Has `f` done on the machine's thread.
    fn look<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Halted<'_>) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (answer, wait) = channel();
        self.send(Ask::Look(Box::new(move |h| {
            let _waits = answer.send(f(h));
        })))?;
        wait.recv().map_err(|_| Ended)
    }

    fn state(&self, tid: Tid) -> TargetResult<(VcpuState, u64), Self> {
        let n = index(tid);
        let look = move |h: &mut Halted<'_>| Some((h.state(n)?, h.io.get(n as usize)?.cr8()));
        self.look(look).map_err(TargetError::Fatal)?.ok_or(EINVAL)
    }

    /// Writes registers; all or, with an error, none.
    fn write(&self, tid: Tid, values: Vec<(usize, Vec<u8>)>) -> TargetResult<(), Self> {
        let n = index(tid);
        let done = self.look(move |h| {
            let mut state = h.state(n)?;
            let mut cr8 = None;
            for (reg, value) in values {
                match registers::write(&mut state, reg, &value) {
                    registers::Written::State => {}
                    registers::Written::Cr8(v) => cr8 = Some(v),
                    registers::Written::Refused => return None,
                }
            }
            h.vcpus.parked(n)?.set_state(&state).ok()?;
            if let Some(v) = cr8 {
                h.io.get(n as usize)?.set_cr8(v);
            }
            Some(())
        });
        done.map_err(TargetError::Fatal)?.ok_or(EINVAL)
    }

    /// What the engine is asked for.
    fn request(&self) -> DebugRequest {
        let watchpoints = self.watchpoints.iter().flat_map(|&(at, len, kind)| {
            (0..len.div_ceil(WATCH_MOST)).map(move |n| {
                let done = n * WATCH_MOST;
                Watchpoint { at: at.wrapping_add(done), len: (len - done).min(WATCH_MOST), kind }
            })
        });
        DebugRequest {
            breakpoints: self.breakpoints.keys().copied().collect(),
            watchpoints: watchpoints.collect(),
            step: false,
        }
    }

    /// Whether the engine takes what is asked for now.
    fn is_served(&self) -> TargetResult<bool, Self> {
        let request = self.request();
        self.look(move |h| h.vcpus.parked(0).is_some_and(|v| v.set_debug(&request).is_ok()))
            .map_err(TargetError::Fatal)
    }

    fn add_breakpoint(&mut self, at: u64) -> TargetResult<bool, Self> {
        *self.breakpoints.entry(at).or_default() += 1;
        let served = self.is_served()?;
        if !served {
            self.remove_breakpoint(at);
        }
        Ok(served)
    }

    fn remove_breakpoint(&mut self, at: u64) -> bool {
        let Some(n) = self.breakpoints.get_mut(&at) else { return false };
        *n -= 1;
        if *n == 0 {
            self.breakpoints.remove(&at);
        }
        true
    }
}

impl Target for Guest {
    type Arch = X86;
    type Error = Ended;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Ended> {
        BaseOps::MultiThread(self)
    }
    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl TargetDescriptionXmlOverride for Guest {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(EINVAL);
        }
        let xml = registers::description().as_bytes();
        let rest = usize::try_from(offset).ok().and_then(|o| xml.get(o..)).unwrap_or_default();
        let n = rest.len().min(length).min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, regs: &mut Values, tid: Tid) -> TargetResult<(), Self> {
        let (state, cr8) = self.state(tid)?;
        regs.0 = (0..registers::count()).filter_map(|n| registers::read(&state, cr8, n)).flatten().collect();
        Ok(())
    }

    fn write_registers(&mut self, regs: &Values, tid: Tid) -> TargetResult<(), Self> {
        let (state, cr8) = self.state(tid)?;
        let mut rest = regs.0.as_slice();
        let mut changed = Vec::new();
        for n in 0..registers::count() {
            let Some(old) = registers::read(&state, cr8, n) else { break };
            let Some((new, after)) = rest.split_at_checked(old.len()) else { return Err(EINVAL) };
            rest = after;
            if new != old {
                changed.push((n, new.to_vec()));
            }
        }
        self.write(tid, changed)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let (n, len) = (index(tid), data.len());
        let bytes = self.look(move |h| {
            let mut buf = vec![0; len];
            let got = h.view(n).map_or(0, |v| v.read(start, &mut buf));
            buf.truncate(got);
            buf
        });
        let bytes = bytes.map_err(TargetError::Fatal)?;
        if bytes.is_empty() && len != 0 {
            return Err(EFAULT);
        }
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let (n, bytes) = (index(tid), data.to_vec());
        let done = self.look(move |h| h.view(n).is_some_and(|v| v.write(start, &bytes) == bytes.len()));
        if done.map_err(TargetError::Fatal)? { Ok(()) } else { Err(EFAULT) }
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), Ended> {
        (0..self.vcpus).for_each(|n| each(tid(n)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Guest {
    fn read_register(&mut self, tid: Tid, reg: Number, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let (state, cr8) = self.state(tid)?;
        let value = registers::read(&state, cr8, reg.0).ok_or(EINVAL)?;
        buf.get_mut(..value.len()).ok_or(EINVAL)?.copy_from_slice(&value);
        Ok(value.len())
    }

    fn write_register(&mut self, tid: Tid, reg: Number, val: &[u8]) -> TargetResult<(), Self> {
        self.write(tid, vec![(reg.0, val.to_vec())])
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Ended> {
        let n = index(tid);
        let what = match self.look(move |h| h.state(n).map(|s| s.mp_state))? {
            Some(MpState::Running) => "runs",
            Some(MpState::Halted) => "halted",
            Some(MpState::WaitForSipi) => "not started",
            None => "unknown",
        };
        let text = format!("processor {n}: {what}");
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Ended> {
        self.orders += 1;
        let rest = if self.locked { Go::Stay } else { Go::Run };
        let vcpus = (0..self.vcpus).map(|n| self.actions.get(&n).copied().unwrap_or(rest)).collect();
        self.send(Ask::Go(Plan { request: self.request(), vcpus, number: self.orders }))
    }

    fn clear_resume_actions(&mut self) -> Result<(), Ended> {
        self.actions.clear();
        self.locked = false;
        Ok(())
    }

    // Signals mean nothing to a machine.
    fn set_resume_action_continue(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), Ended> {
        self.actions.insert(index(tid), Go::Run);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), Ended> {
        self.actions.insert(index(tid), Go::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Ended> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.add_breakpoint(addr)
    }
    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(addr))
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.add_breakpoint(addr)
    }
    fn remove_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(addr))
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, k: WatchKind) -> TargetResult<bool, Self> {
        if len == 0 || len.div_ceil(WATCH_MOST) + self.request().watchpoints.len() as u64 > PARTS_MOST {
            return Ok(false);
        }
        self.watchpoints.push((addr, len, kind(k)));
        let served = self.is_served()?;
        if !served {
            self.watchpoints.pop();
        }
        Ok(served)
    }
    fn remove_hw_watchpoint(&mut self, addr: u64, len: u64, k: WatchKind) -> TargetResult<bool, Self> {
        let Some(n) = self.watchpoints.iter().position(|w| *w == (addr, len, kind(k))) else {
            return Ok(false);
        };
        self.watchpoints.remove(n);
        Ok(true)
    }
}

const HELP: &str = "\
info            what the machine is
translate ADDR  the guest-physical address behind a linear one (hexadecimal), as processor 0 sees it";

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(&mut self, cmd: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Ended> {
        let text = String::from_utf8_lossy(cmd);
        let mut words = text.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("info"), None, None) => outputln!(out, "{}", self.look(|h| h.about.clone())?),
            (Some("translate"), Some(at), None) => {
                let digits = at.strip_prefix("0x").unwrap_or(at);
                let Ok(lin) = u64::from_str_radix(digits, 16) else {
                    outputln!(out, "{at} is not a hexadecimal number");
                    return Ok(());
                };
                match self.look(move |h| h.view(0).and_then(|v| v.translate(lin)))? {
                    Some(gpa) => outputln!(out, "{gpa:#x}"),
                    None => outputln!(out, "nothing is mapped at {lin:#x}"),
                }
            }
            _ => outputln!(out, "{HELP}"),
        }
        Ok(())
    }
}
