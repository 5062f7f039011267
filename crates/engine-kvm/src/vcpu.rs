//! The loop around KVM_RUN.

mod serve;

use crate::debug::Debugger;
use crate::engine::unavailable;
use crate::kick::Kicker;
use crate::msrs::OwnMsrs;
use crate::state::{self, InKvm};
use crate::vm::Shared;
use crate::{check, cpuid, host_error, msrs, raw};
use kvm_bindings::KVM_VCPUEVENT_VALID_PAYLOAD;
use kvm_ioctls::VcpuFd;
use ringer_arch::cpu::{CpuModel, Feature};
use ringer_arch::exception::vector;
use ringer_arch::regs::{cr0, rflags};
use ringer_arch::seg::sreg;
use ringer_arch::state::VcpuState;
use ringer_arch::{MpState, msr};
use ringer_engine::{CpuIo, DebugRequest, DebugStop, EngineError, Exit, Stats, StopToken, Vcpu};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a processor that is to stop runs on if KVM is in the middle of delivering an event.
const MOMENT: Duration = Duration::from_micros(50);
/// Features of KVM's paravirtual interface that guests use by hypercalls: PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD.
const HYPERCALLS: u32 = 1 << 7 | 1 << 11 | 1 << 13;

/// One processor in KVM.
pub struct KvmVcpu {
    shared: Arc<Shared>,
    fd: VcpuFd,
    index: u32,
    io: Arc<dyn CpuIo>,
    stop: StopToken,
    kicker: Arc<Kicker>,
    has: InKvm,
    own: OwnMsrs,
    mp_state: MpState,
    /// An interrupt waits in the local APIC.
    intr: bool,
    /// Another processor has asked this one to leave HLT.
    unhalt: bool,
    /// An NMI has been sent to KVM, and may not have been delivered yet.
    nmi: bool,
    /// When it last left KVM: it takes an external interrupt now.
    ready: bool,
    /// When it last left KVM: RFLAGS.IF.
    if_flag: bool,
    /// KVM waits for the outcome of an access, and completes the instruction when next entered.
    unfinished: bool,
    /// The APIC base has changed since KVM was told.
    new_apic_base: bool,
    /// A debug trap that is due (bits of DR6), and of which KVM has not been told.
    pending_debug: u64,
    /// The MXCSR mask of the state that was loaded.
    mxcsr_mask: [u8; 4],
    debugger: Debugger,
    stats: Stats,
    failure: Option<String>,
}

type Done<T> = Result<T, EngineError>;

impl KvmVcpu {
    pub fn new(
        shared: Arc<Shared>,
        fd: VcpuFd,
        index: u32,
        io: Arc<dyn CpuIo>,
        stop: StopToken,
        kicker: Arc<Kicker>,
    ) -> Done<KvmVcpu> {
        let model = Arc::clone(&shared.params.cpu);
        let mut dynamic = io.cpuid();
        dynamic.apic_id = index;
        dynamic.vcpus = shared.params.vcpus;
        dynamic.apic_enabled = true;
        dynamic.xcr0 = 1;
        set_tsc_rate(&shared, &fd, dynamic.tsc_khz)?;
        if dynamic.kvm_features & HYPERCALLS != 0 {
            let why = "the guest was offered hypercalls, which KVM does not pass on: start the machine on this engine";
            return Err(unavailable(why.to_owned()));
        }
        let entries = cpuid::for_vcpu(&model, &dynamic).ok_or_else(|| {
            unavailable("the processor model has more CPUID leaves than KVM takes".to_owned())
        })?;
        fd.set_cpuid2(&entries).map_err(host_error("setting CPUID"))?;
        let has = InKvm { xsave: model.has(Feature::XSAVE), avx: model.has(Feature::AVX) };
        let reset = VcpuState::reset(model.signature(), index == 0);
        let mut vcpu = KvmVcpu {
            shared,
            fd,
            index,
            io,
            stop,
            kicker,
            has,
            own: OwnMsrs::default(),
            mp_state: reset.mp_state,
            intr: false,
            unhalt: false,
            nmi: false,
            ready: false,
            if_flag: false,
            unfinished: false,
            new_apic_base: false,
            pending_debug: 0,
            mxcsr_mask: [0; 4],
            debugger: Debugger::default(),
            stats: Stats::default(),
            failure: None,
        };
        vcpu.load(&reset)?;
        Ok(vcpu)
    }

    fn model(&self) -> &CpuModel {
        &self.shared.params.cpu
    }

    /// Replaces the state, with nothing in between.
    fn load(&mut self, s: &VcpuState) -> Done<()> {
        check::state(self.model(), s).map_err(EngineError::BadState)?;
        let own = OwnMsrs::from_state(self.model(), &s.msrs).map_err(EngineError::BadState)?;
        let apic_base = self.io.msr_read(msr::APIC_BASE).unwrap_or(0xfee0_0800);
        let loaded = state::load(&self.fd, &self.has, s, self.io.cr8(), apic_base);
        loaded.map_err(|_| EngineError::BadState("KVM does not take it"))?;
        let now = raw::sregs2(&self.fd).map_err(host_error("reading the processor's state"))?;
        if (now.cr0, now.cr3, now.cr4, now.efer) != (s.cr0, s.cr3, s.cr4, s.efer) {
            let why = "this KVM does not run the guest's paging mode: it changes CR0, CR3, CR4 or EFER";
            return Err(unavailable(why.to_owned()));
        }
        match msrs::load(&self.fd, self.model(), &s.msrs) {
            Ok(true) => {}
            Ok(false) => return Err(EngineError::BadState("an MSR holds a value that it cannot take")),
            Err(e) => return Err(host_error("setting MSRs")(e)),
        }
        self.own = own;
        self.mp_state = s.mp_state;
        self.unhalt = s.unhalt;
        self.nmi = s.nmi_pending;
        self.debugger.new_state();
        self.pending_debug = s.pending_debug;
        self.mxcsr_mask.copy_from_slice(&s.xsave[28..32]);
        self.ready = !s.interrupt_shadow;
        self.if_flag = s.rflags & rflags::IF != 0;
        self.new_apic_base = false;
        Ok(())
    }

    fn save(&self) -> Done<VcpuState> {
        let failed = host_error("reading the processor's state");
        let mut s = state::save(&self.fd, &self.has, self.mxcsr_mask).map_err(&failed)?;
        msrs::save(&self.fd, self.model(), &mut s.msrs).map_err(&failed)?;
        self.own.save(self.model(), &mut s.msrs);
        s.mp_state = self.mp_state;
        s.unhalt = self.unhalt;
        s.pending_debug = self.pending_debug;
        s.tsc = self.io.tsc().wrapping_add(self.own.tsc_adjust);
        Ok(s)
    }

    fn set_tsc(&self) -> Done<()> {
        let khz = u64::from(self.io.cpuid().tsc_khz);
        let set = self.shared.tsc.set(&self.fd, self.io.as_ref(), self.own.tsc_adjust, khz);
        set.map_err(host_error("setting the TSC"))
    }

    /// Runs until there is a reason to stop, which may come in the middle of things.
    fn run_on(&mut self) -> Done<Exit> {
        loop {
            let word = self.stop.load();
            if word & StopToken::STOP != 0 {
                self.stop.take(StopToken::STOP);
                return Ok(Exit::Stopped);
            }
            if word & !StopToken::ATTENTION != 0 {
                self.stop.take(StopToken::ENGINE | StopToken::CODE);
            }
            if word & StopToken::ATTENTION != 0 {
                self.stop.take(StopToken::ATTENTION);
                self.poll()?;
            }
            if self.mp_state != MpState::Running {
                let halted = self.mp_state == MpState::Halted;
                self.sleep()?;
                if halted && self.mp_state == MpState::Running && self.debugger.steps() {
                    return Ok(Exit::Debug(DebugStop::Step));
                }
                continue;
            }
            if self.new_apic_base {
                self.tell_apic_base()?;
            }
            self.inject()?;
            if let Some(exit) = self.enter(Enter::Run)? {
                return Ok(exit);
            }
        }
    }

    /// Asks the local APIC what waits.
    fn poll(&mut self) -> Done<()> {
        let p = self.io.pending();
        self.intr = p.intr;
        self.unhalt |= p.unhalt;
        if p.nmi {
            self.fd.nmi().map_err(host_error("sending an NMI"))?;
            self.nmi = true;
        }
        if p.init {
            self.init()?;
        }
        if let Some(vector) = p.sipi
            && self.mp_state == MpState::WaitForSipi
        {
            self.start_up(vector)?;
        }
        Ok(())
    }

    /// INIT (Intel SDM vol. 3A table 10-1): as reset, but x87 and vector state, CR0.CD and NW, XCR0, MSRs and the TSC stay. The boot
    /// processor runs on at the reset vector.
    fn init(&mut self) -> Done<()> {
        self.settle()?;
        let now = self.save()?;
        let mut s = VcpuState::reset(self.model().signature(), self.index == 0);
        let cache = cr0::CD | cr0::NW;
        s.cr0 = s.cr0 & !cache | now.cr0 & cache;
        s.xcr0 = now.xcr0;
        s.xsave = now.xsave;
        s.msrs = now.msrs;
        self.io.reset_apic();
        self.intr = false;
        self.load(&s)
    }

    /// A start-up IPI: real mode at page `vector`.
    fn start_up(&mut self, vector: u8) -> Done<()> {
        let mut s = self.save()?;
        s.seg[sreg::CS].selector = u16::from(vector) << 8;
        s.seg[sreg::CS].base = u64::from(vector) << 12;
        s.rip = 0;
        s.mp_state = MpState::Running;
        self.load(&s)
    }

    fn sleep(&mut self) -> Done<()> {
        if self.mp_state == MpState::Halted && self.wakes()? {
            self.unhalt = false;
            self.mp_state = MpState::Running;
            return Ok(());
        }
        self.stats.halts += 1;
        self.stop.wait(None);
        Ok(())
    }

    /// Whether something ends the processor's HLT.
    fn wakes(&self) -> Done<bool> {
        if self.unhalt || self.intr && self.if_flag || self.pending_debug != 0 {
            return Ok(true);
        }
        let e = self.fd.get_vcpu_events().map_err(host_error("asking for pending events"))?;
        Ok(e.nmi.masked == 0 && (e.nmi.pending != 0 || e.nmi.injected != 0))
    }

    /// CPUID's APIC bit follows the base.
    fn tell_apic_base(&mut self) -> Done<()> {
        self.complete()?;
        let failed = host_error("setting the APIC base");
        let mut s = raw::sregs2(&self.fd).map_err(&failed)?;
        s.apic_base = self.io.msr_read(msr::APIC_BASE).unwrap_or(s.apic_base);
        s.flags = 0;
        raw::set_sregs2(&self.fd, &s).map_err(&failed)?;
        self.new_apic_base = false;
        Ok(())
    }

    /// Gives KVM the interrupt that waits, if the processor takes one, or has it say when it does.
    fn inject(&mut self) -> Done<()> {
        // A debugger's step is one instruction.
        if self.intr && self.ready && self.if_flag && !self.debugger.steps() && !self.nmi_first()? {
            if let Some(vector) = self.io.acknowledge() {
                raw::interrupt(&self.fd, vector).map_err(host_error("sending an interrupt"))?;
                self.stats.interrupts += 1;
                self.ready = false;
            }
            self.poll()?;
        }
        self.fd.get_kvm_run().request_interrupt_window = u8::from(self.intr && !self.debugger.steps());
        Ok(())
    }

    /// Whether an NMI comes before the interrupt. KVM would put what it is given by KVM_INTERRUPT first.
    fn nmi_first(&mut self) -> Done<bool> {
        if !self.nmi {
            return Ok(false);
        }
        let e = self.fd.get_vcpu_events().map_err(host_error("asking for pending events"))?;
        self.nmi = e.nmi.pending != 0;
        Ok(state::nmi_next(&e))
    }

    /// Enters KVM and does what it comes out for.
    fn enter(&mut self, how: Enter) -> Done<Option<Exit>> {
        let own_step = how == Enter::Run && self.must_step()?;
        let may_step = !self.shared.quirks.coarse_window
            || !own_step && !self.debugger.steps()
            || self.unfinished
            || !self.at_hlt()?;
        self.debugger
            .arm(&self.fd, own_step, may_step)
            .map_err(host_error("setting what a debugger wants"))?;
        let cr8 = self.io.cr8();
        let run = self.fd.get_kvm_run();
        run.cr8 = cr8;
        run.immediate_exit = u8::from(how == Enter::Finish);
        self.kicker.inside();
        if how == Enter::Run && self.stop.load() != 0 {
            self.kicker.outside();
            return Ok(None);
        }
        let result = self.fd.run().map(|_| ());
        self.kicker.outside();
        let run = self.fd.get_kvm_run();
        self.ready = run.ready_for_interrupt_injection != 0;
        self.if_flag = run.if_flag != 0;
        if run.cr8 != cr8 {
            self.io.set_cr8(run.cr8 & 15);
        }
        match result {
            Ok(()) => {
                self.unfinished = false;
                self.serve()
            }
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                self.unfinished = false;
                Ok(None)
            }
            Err(e) => Err(host_error("running the processor")(e)),
        }
    }

    /// Whether KVM, which misses short windows, must come out after each instruction to deliver what waits in time. Not while it
    /// delivers something: the trap flag would be in what it pushes.
    fn must_step(&mut self) -> Done<bool> {
        if !self.shared.quirks.coarse_window || !self.intr && !self.nmi || self.debugger.steps() {
            return Ok(false);
        }
        let e = self.fd.get_vcpu_events().map_err(host_error("asking for pending events"))?;
        self.nmi = e.nmi.pending != 0;
        Ok(!state::in_flight(&e) && (self.intr || self.nmi) && !state::nmi_next(&e))
    }

    /// Whether the next instruction is HLT: a KVM that emulates forgets it when it steps, and halts one instruction later. It comes
    /// out behind HLT anyway.
    fn at_hlt(&self) -> Done<bool> {
        const HLT: u8 = 0xf4;
        let failed = host_error("reading the processor's state");
        let rip = self.fd.get_regs().map_err(&failed)?.rip;
        let cs = raw::sregs2(&self.fd).map_err(&failed)?.cs;
        let lin = if cs.l != 0 { rip } else { rip.wrapping_add(cs.base) & 0xffff_ffff };
        let t = self.fd.translate_gva(lin).map_err(&failed)?;
        let at = t.physical_address;
        Ok(t.valid != 0 && self.shared.params.memory.load::<u8>(at).is_ok_and(|b| b == HLT))
    }

    fn fail(&mut self, why: String) -> Exit {
        self.failure = Some(why);
        Exit::Failed
    }

    /// Finishes the instruction whose access was served.
    fn complete(&mut self) -> Done<Option<Exit>> {
        while self.unfinished {
            if let Some(exit) = self.enter(Enter::Finish)? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }

    /// Finishes what KVM was doing when it came out: the instruction at hand, and the delivery of events, which the state cannot hold in
    /// the middle.
    fn settle(&mut self) -> Done<Option<Exit>> {
        loop {
            if let Some(exit) = self.complete()? {
                return Ok(Some(exit));
            }
            let e = self.fd.get_vcpu_events().map_err(host_error("asking for pending events"))?;
            if !state::in_flight(&e) || self.mp_state != MpState::Running {
                return Ok(None);
            }
            // KVM has no way to say "deliver, then come out": it runs on for a moment.
            self.fd.get_kvm_run().request_interrupt_window = 0;
            if let Some(exit) = self.enter_for_a_moment()? {
                return Ok(Some(exit));
            }
        }
    }

    fn enter_for_a_moment(&mut self) -> Done<Option<Exit>> {
        let (kicker, out) = (Arc::clone(&self.kicker), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| {
                while !out.load(Ordering::SeqCst) {
                    std::thread::sleep(MOMENT);
                    kicker.kick();
                }
            });
            let exit = self.enter(Enter::Deliver);
            out.store(true, Ordering::SeqCst);
            exit
        })
    }

    /// A run, from the outside in.
    fn run_all(&mut self) -> Done<Exit> {
        self.unfinished = false;
        self.set_tsc()?;
        self.deliver_debug_trap()?;
        self.poll()?;
        let exit = self.run_on()?;
        if exit != Exit::Stopped {
            return Ok(exit);
        }
        let Some(exit) = self.settle()? else { return Ok(Exit::Stopped) };
        // What came in the meantime is told first; the request stays raised.
        self.stop.raise(StopToken::STOP);
        Ok(exit)
    }

    /// Tells KVM of the debug trap that the state came with.
    fn deliver_debug_trap(&mut self) -> Done<()> {
        let trap = std::mem::take(&mut self.pending_debug);
        if trap == 0 {
            return Ok(());
        }
        if self.mp_state == MpState::Halted {
            self.mp_state = MpState::Running;
        }
        let failed = host_error("sending a debug trap");
        let mut d = self.fd.get_debug_regs().map_err(&failed)?;
        d.dr6 |= trap;
        self.fd.set_debug_regs(&d).map_err(&failed)?;
        let mut e = self.fd.get_vcpu_events().map_err(&failed)?;
        e.exception.injected = 1;
        e.exception.nr = vector::DB;
        e.flags &= !KVM_VCPUEVENT_VALID_PAYLOAD;
        self.ready = false;
        self.fd.set_vcpu_events(&e).map_err(&failed)
    }
}

/// How KVM is entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Enter {
    /// To run, if nobody asks for something.
    Run,
    /// To finish the instruction at hand.
    Finish,
    /// To deliver an event, whoever asks.
    Deliver,
}

/// Sets the rate of the processor's TSC, if it is not that already.
fn set_tsc_rate(shared: &Shared, fd: &VcpuFd, khz: u32) -> Done<()> {
    let native = fd.get_tsc_khz().unwrap_or(0);
    if native == khz {
        return Ok(());
    }
    if !shared.scales_tsc {
        return Err(unavailable(format!(
            "the guest's TSC runs at {khz} kHz, but here only {native} kHz can be had: start the machine on this engine"
        )));
    }
    fd.set_tsc_khz(khz).map_err(host_error("setting the TSC's rate"))
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Exit {
        self.failure = None;
        let _entered = self.kicker.enter(raw::immediate_exit(&mut self.fd));
        let kicker = Arc::clone(&self.kicker);
        let _kicked = self.stop.kick_by(move || kicker.kick());
        self.shared.starts();
        let exit = self.run_all();
        let noted = self.shared.stopped();
        match exit.and_then(|exit| noted.map(|()| exit)) {
            Ok(exit) => exit,
            Err(e) => self.fail(whole(&e)),
        }
    }

    fn state(&self) -> VcpuState {
        // The calls that read a state fail only on a file that is no processor.
        self.save().unwrap_or_else(|e| unreachable!("{}", whole(&e)))
    }

    fn set_state(&mut self, s: &VcpuState) -> Result<(), EngineError> {
        let before = self.save()?;
        self.load(s).inspect_err(|_| {
            let _was_accepted = self.load(&before);
        })
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.debugger.set(request)
    }

    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    fn stats(&self) -> Stats {
        // What runs on the processor itself is not counted.
        Stats { partial: true, ..self.stats }
    }
}

/// An error and its causes.
pub fn whole(e: &EngineError) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
