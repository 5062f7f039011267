//! What a debugger asks for, by KVM_SET_GUEST_DEBUG: the processor's four debug registers and its trap flag, which KVM hides from the guest.
//!
//! While any of it is on, the guest's own hardware breakpoints do not work, as there is one set of registers only. A step whose
//! instruction faults ends where the processor next takes its trap, which may be after the handler's first instructions.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_debug_exit_arch,
    kvm_guest_debug,
};
use kvm_ioctls::{Error, VcpuFd};
use ringer_arch::regs::dr;
use ringer_engine::{DebugRequest, DebugStop, EngineError, WatchKind, Watchpoint};

/// What a debug register is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Breakpoint,
    Watch(Watchpoint),
}

/// A request in debug registers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Plan(Vec<(u64, u64, Slot)>);

impl Plan {
    /// Gives each breakpoint a register and each watchpoint as many as it takes: a register watches 1, 2, 4 or 8 aligned bytes
    /// (Intel SDM vol. 3B §17.2.5).
    fn new(request: &DebugRequest) -> Result<Plan, EngineError> {
        let mut slots: Vec<_> = request.breakpoints.iter().map(|at| (*at, 1, Slot::Breakpoint)).collect();
        for w in &request.watchpoints {
            let (mut at, mut left) = (w.at, w.len.min(8));
            while left > 0 {
                let fits = |len: &&u64| **len <= left && at.is_multiple_of(**len);
                let len = *[8, 4, 2].iter().find(fits).unwrap_or(&1);
                slots.push((at, len, Slot::Watch(*w)));
                (at, left) = (at.wrapping_add(len), left - len);
            }
        }
        if slots.len() > 4 {
            let n = slots.len();
            return Err(EngineError::NoDebug(format!(
                "breakpoints and watchpoints would take {n} debug registers, and KVM has the processor's four: remove some"
            )));
        }
        Ok(Plan(slots))
    }

    /// DR0 to DR3 and DR7; `breakpoints`: with them.
    fn registers(&self, breakpoints: bool) -> [u64; 8] {
        let mut regs = [0; 8];
        regs[7] = dr::DR7_FIXED;
        for (n, (at, len, slot)) in self.0.iter().enumerate() {
            let rights = match slot {
                Slot::Breakpoint if !breakpoints => continue,
                Slot::Breakpoint => 0,
                Slot::Watch(Watchpoint { kind: WatchKind::Write, .. }) => 1,
                Slot::Watch(_) => 3,
            };
            let size = match len {
                2 => 1,
                4 => 3,
                8 => 2,
                _ => 0,
            };
            regs[n] = *at;
            regs[7] |= 2 << (2 * n) | (rights | size << 2) << (16 + 4 * n);
        }
        regs
    }

    fn hit(&self, dr6: u64) -> impl Iterator<Item = Slot> {
        self.0.iter().enumerate().filter(move |(n, _)| dr6 >> n & 1 != 0).map(|(_, (_, _, slot))| *slot)
    }
}

/// What a debug exit means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// The debugger gets the processor.
    Stop(DebugStop),
    /// It was wanted by this engine, and is done.
    GoOn,
    /// It is the guest's own: these bits of DR6.
    Guest(u64),
}

/// A processor's debugger.
#[derive(Debug, Default)]
pub struct Debugger {
    step: bool,
    plan: Plan,
    /// The last run ended before the instruction at a breakpoint: the next one goes over it.
    over: bool,
    /// The engine itself has the processor stepped.
    own_step: bool,
    /// What KVM was told last.
    told: (u32, [u64; 8]),
}

impl Debugger {
    /// Takes a request instead of the last one.
    pub fn set(&mut self, request: &DebugRequest) -> Result<(), EngineError> {
        self.plan = Plan::new(request)?;
        self.step = request.step;
        Ok(())
    }

    /// The processor stands elsewhere now.
    pub fn new_state(&mut self) {
        self.over = false;
    }

    /// Whether the debugger wants one step.
    pub fn steps(&self) -> bool {
        self.step
    }

    /// Tells KVM, before it is entered. `own_step`: this engine wants to have the processor back after one instruction;
    /// `may_step`: KVM is to be asked for steps at all.
    pub fn arm(&mut self, fd: &VcpuFd, own_step: bool, may_step: bool) -> Result<(), Error> {
        self.own_step = own_step;
        let mut control = 0;
        if may_step && (self.step || self.over || own_step) {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        let mut regs = [0; 8];
        if !self.plan.0.is_empty() {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            regs = self.plan.registers(!self.over);
        }
        if self.told == (control, regs) {
            return Ok(());
        }
        let mut debug = kvm_guest_debug { control, ..Default::default() };
        debug.arch.debugreg = regs;
        fd.set_guest_debug(&debug)?;
        self.told = (control, regs);
        Ok(())
    }

    /// What a debug exit means.
    pub fn meaning(&mut self, exit: &kvm_debug_exit_arch) -> Meaning {
        let stepped = exit.dr6 & dr::DR6_BS != 0 && self.told.0 & KVM_GUESTDBG_SINGLESTEP != 0;
        let over = std::mem::take(&mut self.over);
        let hits = || self.plan.hit(exit.dr6);
        if let Some(Slot::Watch(w)) = hits().find(|s| matches!(s, Slot::Watch(_))) {
            return Meaning::Stop(DebugStop::Watchpoint(w));
        }
        if stepped && self.step {
            return Meaning::Stop(DebugStop::Step);
        }
        if !over && hits().any(|s| s == Slot::Breakpoint) {
            self.over = true;
            return Meaning::Stop(DebugStop::Breakpoint);
        }
        if stepped && (over || self.own_step) {
            return Meaning::GoOn;
        }
        Meaning::Guest(exit.dr6 & dr::DR6_TRAPS)
    }

    /// The processor has begun something else than an instruction that would end in a trap: what it was to go over is behind it.
    pub fn passed(&mut self) {
        self.over = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(at: u64, len: u64, kind: WatchKind) -> Watchpoint {
        Watchpoint { at, len, kind }
    }

    fn exit(dr6: u64) -> kvm_debug_exit_arch {
        kvm_debug_exit_arch { exception: 1, dr6, ..Default::default() }
    }

    #[test]
    fn a_request_is_laid_out_in_debug_registers() {
        let request = DebugRequest {
            breakpoints: vec![0x1000],
            watchpoints: vec![watch(0x2002, 6, WatchKind::Write), watch(0x3000, 1, WatchKind::Read)],
            step: false,
        };
        let plan = Plan::new(&request).unwrap();
        let r = plan.registers(true);
        assert_eq!(r[..4], [0x1000, 0x2002, 0x2004, 0x3000]);
        // By register: enabled; execute; write 2 bytes; write 4; access 1.
        assert_eq!(r[7], 0x400 | 0xaa | 0x5 << 20 | 0xd << 24 | 0x3 << 28);
        assert_eq!(plan.registers(false)[7] & 3, 0, "the breakpoint is off");
        let many = DebugRequest { breakpoints: vec![1, 2, 3, 4, 5], ..DebugRequest::default() };
        let e = Plan::new(&many).unwrap_err().to_string();
        assert!(e.contains("5 debug registers"), "{e}");
    }

    #[test]
    fn exits_are_told_apart() {
        let mut d = Debugger::default();
        let w = watch(0x2000, 4, WatchKind::Write);
        d.set(&DebugRequest { breakpoints: vec![0x1000], watchpoints: vec![w], step: false }).unwrap();
        assert_eq!(d.meaning(&exit(1)), Meaning::Stop(DebugStop::Breakpoint));
        // Going on over it.
        d.told.0 = KVM_GUESTDBG_SINGLESTEP;
        assert_eq!(d.meaning(&exit(dr::DR6_BS)), Meaning::GoOn);
        d.told.0 = 0;
        assert_eq!(d.meaning(&exit(1)), Meaning::Stop(DebugStop::Breakpoint), "the next time it counts");
        d.passed();
        assert_eq!(d.meaning(&exit(2)), Meaning::Stop(DebugStop::Watchpoint(w)));
        assert_eq!(d.meaning(&exit(dr::DR6_BS)), Meaning::Guest(dr::DR6_BS), "the guest steps itself");
        d.set(&DebugRequest { step: true, ..DebugRequest::default() }).unwrap();
        d.told.0 = KVM_GUESTDBG_SINGLESTEP;
        assert_eq!(d.meaning(&exit(dr::DR6_BS)), Meaning::Stop(DebugStop::Step));
    }
}
