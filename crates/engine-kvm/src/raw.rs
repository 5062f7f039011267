//! An unsafe room: the calls that the KVM crate does not have or leaves unsafe, and the parts of the run page that only its exit reason
//! gives a meaning.

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_MEM_LOG_DIRTY_PAGES, KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET, kvm_debug_exit_arch, kvm_device_attr, kvm_interrupt, kvm_sregs2,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Error, VcpuFd, VmFd};
use ringer_memory::GuestMemory;
use std::os::fd::AsRawFd;

/// `_IOW` and `_IOR` of KVM (Linux include/uapi/asm-generic/ioctl.h): direction, size of the argument, KVM's letter 0xAE, number.
const fn request(direction: u32, number: u32, size: usize) -> libc::c_ulong {
    (direction << 30 | (size as u32) << 16 | 0xae << 8 | number) as libc::c_ulong
}
const WRITE: u32 = 1;
const READ: u32 = 2;
const INTERRUPT: libc::c_ulong = request(WRITE, 0x86, size_of::<kvm_interrupt>());
const GET_SREGS2: libc::c_ulong = request(READ, 0xcc, size_of::<kvm_sregs2>());
const SET_SREGS2: libc::c_ulong = request(WRITE, 0xcd, size_of::<kvm_sregs2>());
const SET_DEVICE_ATTR: libc::c_ulong = request(WRITE, 0xe1, size_of::<kvm_device_attr>());
const GET_DEVICE_ATTR: libc::c_ulong = request(WRITE, 0xe2, size_of::<kvm_device_attr>());

fn done(result: libc::c_int) -> Result<(), Error> {
    if result < 0 { Err(Error::last()) } else { Ok(()) }
}

/// Gives the VM all of guest RAM, a slot for each region; `log`: with KVM's dirty log on.
///
/// The caller keeps `memory` for as long as the VM or one of its processors lives.
pub fn set_memory(vm: &VmFd, memory: &GuestMemory, log: bool) -> Result<(), Error> {
    for (slot, r) in (0..).zip(memory.regions()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: r.gpa,
            memory_size: r.size,
            userspace_addr: memory.host_base() as u64 + r.gpa,
        };
        // SAFETY: the whole region is mapped at host_base() + gpa, for as long as `memory` lives, which the caller sees to. Nobody holds
        // a Rust reference into it.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(())
}

/// Queues external interrupt `vector` for delivery.
pub fn interrupt(fd: &VcpuFd, vector: u8) -> Result<(), Error> {
    let arg = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: the kernel reads a kvm_interrupt, which lives through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), INTERRUPT, &raw const arg) })
}

/// Control registers and segments, with PDPTEs where paging keeps them in registers.
pub fn sregs2(fd: &VcpuFd) -> Result<kvm_sregs2, Error> {
    let mut s = kvm_sregs2::default();
    // SAFETY: the kernel writes a kvm_sregs2, which lives through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), GET_SREGS2, &raw mut s) })?;
    Ok(s)
}

/// Sets them.
pub fn set_sregs2(fd: &VcpuFd, s: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY: the kernel reads a kvm_sregs2, which lives through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), SET_SREGS2, s) })
}

/// In [`kvm_sregs2::flags`]: the PDPTEs are valid.
pub const PDPTES_VALID: u64 = KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;

/// Sets x87 and vector state.
pub fn set_xsave(fd: &VcpuFd, x: &kvm_xsave) -> Result<(), Error> {
    // SAFETY: a guest whose XCR0 has no more than x87, SSE and AVX, as ours, has an area of less than the 4096 bytes that a kvm_xsave
    // has, so the kernel reads no further: it asks for more only of processes that were granted AMX.
    unsafe { fd.set_xsave(x) }
}

/// What is added to the host's TSC to make the processor's.
pub fn tsc_offset(fd: &VcpuFd) -> Result<u64, Error> {
    let mut offset = 0u64;
    let attr = tsc_attr(&raw mut offset as u64);
    // SAFETY: the kernel reads a kvm_device_attr and writes the u64 that it points to; both live through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), GET_DEVICE_ATTR, &raw const attr) })?;
    Ok(offset)
}

/// Sets it.
pub fn set_tsc_offset(fd: &VcpuFd, offset: u64) -> Result<(), Error> {
    let attr = tsc_attr(&raw const offset as u64);
    // SAFETY: the kernel reads a kvm_device_attr and the u64 that it points to; both live through the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), SET_DEVICE_ATTR, &raw const attr) })
}

fn tsc_attr(addr: u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr, flags: 0 }
}

/// The host's TSC.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets programs use it unless they ask it not to.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A port access, once or, by a string instruction, several times.
pub struct Pio<'a> {
    pub port: u16,
    /// Bytes of each access.
    pub size: usize,
    pub write: bool,
    /// The bytes of all.
    pub data: &'a mut [u8],
}

/// The port access that the processor waits for; `None` if it waits for none. `run_size` is the size of its run area.
pub fn pio(fd: &mut VcpuFd, run_size: usize) -> Option<Pio<'_>> {
    let run = fd.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: of this exit reason, the union holds `io`; all of its bits are integers.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (size, offset) = (usize::from(io.size), io.data_offset as usize);
    let len = size.checked_mul(io.count as usize)?;
    if size == 0 || offset.checked_add(len)? > run_size {
        return None;
    }
    let base = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: inside the run area, which is mapped as long as fd lives and is touched by the kernel only in KVM_RUN, for which fd is
    // borrowed until the slice is gone.
    let data = unsafe { std::slice::from_raw_parts_mut(base.add(offset), len) };
    Some(Pio { port: io.port, size, write: u32::from(io.direction) == KVM_EXIT_IO_OUT, data })
}

/// An access to what is not RAM.
pub struct Mmio<'a> {
    pub gpa: u64,
    pub write: bool,
    /// 1 to 8 bytes.
    pub data: &'a mut [u8],
}

/// The access that the processor waits for, after KVM_EXIT_MMIO.
pub fn mmio(fd: &mut VcpuFd) -> Mmio<'_> {
    // SAFETY: called after KVM_EXIT_MMIO, of which the union holds `mmio`; all of its bits are integers.
    let m = unsafe { &mut fd.get_kvm_run().__bindgen_anon_1.mmio };
    let len = m.data.len().min(m.len as usize);
    Mmio { gpa: m.phys_addr, write: m.is_write != 0, data: &mut m.data[..len] }
}

/// An MSR access.
pub struct Msr<'a> {
    pub index: u32,
    /// What is read or written.
    pub data: &'a mut u64,
    /// Set to 1 for #GP(0).
    pub error: &'a mut u8,
}

/// The access that the processor waits for, after KVM_EXIT_X86_RDMSR or WRMSR.
pub fn msr(fd: &mut VcpuFd) -> Msr<'_> {
    // SAFETY: called after one of these two, of which the union holds `msr`; all of its bits are integers.
    let m = unsafe { &mut fd.get_kvm_run().__bindgen_anon_1.msr };
    Msr { index: m.index, data: &mut m.data, error: &mut m.error }
}

/// What stopped it, after KVM_EXIT_DEBUG.
pub fn debug_exit(fd: &mut VcpuFd) -> kvm_debug_exit_arch {
    // SAFETY: called after KVM_EXIT_DEBUG, of which the union holds `debug`; all of its bits are integers.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.debug.arch }
}

/// The hardware's reason, after KVM_EXIT_FAIL_ENTRY.
pub fn entry_failure(fd: &mut VcpuFd) -> u64 {
    // SAFETY: called after KVM_EXIT_FAIL_ENTRY, of which the union holds `fail_entry`; all of its bits are integers.
    unsafe { fd.get_kvm_run().__bindgen_anon_1.fail_entry.hardware_entry_failure_reason }
}

/// Why KVM gave up: KVM_EXIT_INTERNAL_ERROR's kind and, of a failed emulation, the instruction's bytes.
pub fn internal_error(fd: &mut VcpuFd) -> (u32, Vec<u8>) {
    let run = fd.get_kvm_run();
    // SAFETY: called after KVM_EXIT_INTERNAL_ERROR, of which the union holds `internal` and, of an emulation, `emulation_failure` at the
    // same place; all bits of both are integers.
    unsafe {
        let kind = run.__bindgen_anon_1.internal.suberror;
        let e = run.__bindgen_anon_1.emulation_failure;
        let insn = e.__bindgen_anon_1.__bindgen_anon_1;
        let has_bytes = e.ndata >= 3 && e.flags & 1 != 0;
        let n = if has_bytes { usize::from(insn.insn_size).min(15) } else { 0 };
        (kind, insn.insn_bytes[..n].to_vec())
    }
}

/// Where KVM_RUN looks whether to return at once.
pub fn immediate_exit(fd: &mut VcpuFd) -> *mut u8 {
    &raw mut fd.get_kvm_run().immediate_exit
}
