//! What a KVM says it does and does not: found once a process, by a guest of a few instructions.
//!
//! KVM on paging-only virtualization (PVM) emulates ring 0 a thousand instructions at a time, and looks for an open interrupt window only
//! between two such batches; and it runs guests on the host's own TSC, whatever offset is set.

use crate::engine::{create_vcpu, create_vm};
use crate::vm::{IDENTITY_MAP, TSS};
use crate::{host_error, raw};
use kvm_bindings::KVM_EXIT_IRQ_WINDOW_OPEN;
use kvm_ioctls::{Kvm, VcpuFd};
use ringer_engine::EngineError;
use ringer_memory::GuestMemory;
use std::sync::OnceLock;

/// What a KVM does otherwise than it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quirks {
    /// The guest's TSC is the host's: it can be neither set nor stopped.
    pub fixed_tsc: bool,
    /// The interrupt window is missed where it is open for a few instructions only.
    pub coarse_window: bool,
}

/// How often a window is to be found open: one that is mostly missed is found where the host's scheduler happens to look in between.
const TRIES: u32 = 6;
/// How many NOPs the window is open for.
const OPEN: usize = 64;
/// The guest's TSC, if its offset counts, is this when it is read, and a moment more.
const MARK: u64 = 1 << 60;
/// What is a moment: some minutes.
const MOMENT: u64 = 1 << 40;

/// What a guest saw.
fn judge(tsc: u64, reason: u32) -> Quirks {
    Quirks { fixed_tsc: tsc.wrapping_sub(MARK) > MOMENT, coarse_window: reason != KVM_EXIT_IRQ_WINDOW_OPEN }
}

/// The quirks of this host's KVM.
pub fn quirks(kvm: &Kvm) -> Result<Quirks, EngineError> {
    static FOUND: OnceLock<Quirks> = OnceLock::new();
    if let Some(q) = FOUND.get() {
        return Ok(*q);
    }
    let q = find(kvm)?;
    Ok(*FOUND.get_or_init(|| q))
}

fn find(kvm: &Kvm) -> Result<Quirks, EngineError> {
    let mut found = try_once(kvm)?;
    for _ in 1..TRIES {
        if found.coarse_window {
            break;
        }
        found.coarse_window = try_once(kvm)?.coarse_window;
    }
    Ok(found)
}

fn try_once(kvm: &Kvm) -> Result<Quirks, EngineError> {
    let failed = || host_error("running a guest that looks for what this KVM cannot do");
    // In real mode: rdtsc; sti; nops; hlt.
    let mut code = b"\x0f\x31\xfb".to_vec();
    code.extend([0x90; OPEN]);
    code.push(0xf4);
    let memory = GuestMemory::new(1 << 20).and_then(|m| m.write(0, &code).map(|()| m));
    let memory = memory.map_err(|e| crate::engine::unavailable(e.to_string()))?;
    let vm = create_vm(kvm)?;
    vm.set_tss_address(TSS).map_err(failed())?;
    vm.set_identity_map_address(IDENTITY_MAP).map_err(failed())?;
    raw::set_memory(&vm, &memory, false).map_err(failed())?;
    let mut fd = create_vcpu(&vm, 0)?;
    let (tsc, reason) = run(&mut fd).map_err(failed())?;
    Ok(judge(tsc, reason))
}

/// Runs it; the TSC that it read, and why KVM came out.
fn run(fd: &mut VcpuFd) -> Result<(u64, u32), kvm_ioctls::Error> {
    let mut s = fd.get_sregs()?;
    (s.cs.base, s.cs.selector) = (0, 0);
    fd.set_sregs(&s)?;
    fd.set_regs(&kvm_bindings::kvm_regs { rflags: 2, ..Default::default() })?;
    let offset = raw::tsc_offset(fd)?;
    let now = crate::msrs::tsc(fd)?;
    raw::set_tsc_offset(fd, offset.wrapping_add(MARK.wrapping_sub(now)))?;
    fd.get_kvm_run().request_interrupt_window = 1;
    loop {
        match fd.run().map(|_| ()) {
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e),
            Ok(()) => break,
        }
    }
    let r = fd.get_regs()?;
    Ok((r.rdx << 32 | r.rax & 0xffff_ffff, fd.get_kvm_run().exit_reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::KVM_EXIT_HLT;

    #[test]
    fn what_the_guest_saw_is_judged() {
        let good = judge(MARK + 5000, KVM_EXIT_IRQ_WINDOW_OPEN);
        assert_eq!(good, Quirks::default());
        let bad = judge(12345, KVM_EXIT_HLT);
        assert_eq!(bad, Quirks { fixed_tsc: true, coarse_window: true });
    }
}
