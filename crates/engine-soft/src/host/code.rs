//! Executable code of one processor's stubs: an unsafe room.
//!
//! The area is one memfd mapped twice, once writable and once executable (W^X). Signals that a stub's instruction
//! raises on the host (SIGFPE for an unmasked SIMD exception, SIGILL) are recognised by the program counter and
//! diverted to the area's exit code, so that [`CodeArea::call`] returns with [`StubCtx::fault`] set.

use crate::cpu::XsaveArea;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of code a processor keeps; when they are used up all of it is dropped.
pub const AREA_LEN: usize = 1 << 20;
/// Code areas that one process can have.
const MAX_AREAS: usize = 8192;
/// MXCSR as Rust code expects it: all exceptions masked, round to nearest.
pub const HOST_MXCSR: u32 = 0x1f80;

/// Executable base addresses of the live areas, for the signal handler.
static AREAS: [AtomicUsize; MAX_AREAS] = [const { AtomicUsize::new(0) }; MAX_AREAS];

/// What a stub works on. Stubs are entered with RDI = this, RSI = the memory operand, RDX = the XSAVE area, RCX = the
/// general registers; R11 holds this value until they return.
#[repr(C, align(64))]
pub struct StubCtx {
    /// The general registers.
    pub regs: *mut u64,
    /// The XSAVE area.
    pub xsave: *mut u8,
    /// Where the signal handler continues: after SIGFPE, after SIGILL.
    exit: [usize; 2],
    /// The arithmetic flags, in and out (see [`crate::hostops`]).
    pub fl: u32,
    /// The signal that ended the stub, or 0.
    pub fault: u32,
    /// MXCSR of the host.
    host_mxcsr: u32,
    /// Stands in for guest memory that has no host address or not the right alignment.
    pub bounce: Bounce,
}

/// 64 bytes, aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Bounce(pub [u8; 64]);

/// Offsets in [`StubCtx`] that stubs use.
pub mod ctx {
    use super::StubCtx;
    use std::mem::offset_of;
    /// Of `regs`.
    pub const REGS: u8 = offset_of!(StubCtx, regs) as u8;
    /// Of `xsave`.
    pub const XSAVE: u8 = offset_of!(StubCtx, xsave) as u8;
    /// Of `fl`.
    pub const FL: u8 = offset_of!(StubCtx, fl) as u8;
    /// Of `host_mxcsr`.
    pub const MXCSR: u8 = offset_of!(StubCtx, host_mxcsr) as u8;
}

/// The entry of a stub in a [`CodeArea`]; valid until the area is cleared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StubAddr(u32);

/// One processor's stubs and their context.
pub struct CodeArea {
    write: *mut u8,
    exec: *mut u8,
    used: usize,
    start: usize,
    slot: usize,
    /// The context that the stubs run on.
    pub ctx: Box<StubCtx>,
}

// SAFETY: the mappings and the context belong to this value alone and have no thread affinity.
unsafe impl Send for CodeArea {}

impl CodeArea {
    /// An empty area.
    ///
    /// # Errors
    /// The host's, when it gives no memory or the process has too many areas.
    pub fn new() -> io::Result<CodeArea> {
        install_handlers()?;
        // SAFETY: a constant C string and flags; the result is checked.
        let fd = unsafe { libc::memfd_create(c"ringer-stubs".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a descriptor of our own and a constant size.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), AREA_LEN as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let write = map(&fd, libc::PROT_READ | libc::PROT_WRITE)?;
        let exec = map(&fd, libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| unmap(write))?;
        let ctx = Box::new(StubCtx {
            regs: std::ptr::null_mut(),
            xsave: std::ptr::null_mut(),
            exit: [0; 2],
            fl: 0,
            fault: 0,
            host_mxcsr: HOST_MXCSR,
            bounce: Bounce([0; 64]),
        });
        let mut area = CodeArea { write, exec, used: 0, start: 0, slot: usize::MAX, ctx };
        area.slot = (0..MAX_AREAS)
            .find(|&i| {
                AREAS[i].compare_exchange(0, exec as usize, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            })
            .ok_or_else(|| io::Error::other("too many processors in one process"))?;
        area.put_exits();
        Ok(area)
    }

    /// The code that ends a stub whose instruction the host refused. The stack is as at the stub's entry.
    fn put_exits(&mut self) {
        let simd = [
            &[0x49, 0x8b, 0x53, ctx::XSAVE][..], // mov rdx, [r11+xsave]
            &[0x0f, 0xae, 0x5a, 24],             // stmxcsr [rdx+24]
        ];
        let mut common = vec![0xdb, 0xe3]; // fninit
        common.extend([0x41, 0x0f, 0xae, 0x53, ctx::MXCSR]); // ldmxcsr [r11+mxcsr]
        if has_avx() {
            common.extend([0xc5, 0xf8, 0x77]); // vzeroupper
        }
        common.push(0xc3);
        let first = [simd.concat(), common.clone()].concat();
        for (n, code) in [first, common].iter().enumerate() {
            if let Some(a) = self.put(code) {
                self.ctx.exit[n] = self.exec as usize + a.0 as usize;
            }
        }
        self.start = self.used;
    }

    /// Adds code. `None` when the area is full.
    pub fn put(&mut self, code: &[u8]) -> Option<StubAddr> {
        let at = self.used;
        let end = at.checked_add(code.len())?.checked_next_multiple_of(16)?;
        if end > AREA_LEN {
            return None;
        }
        // SAFETY: at..at+len is inside the writable mapping, which nobody else refers to.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = end;
        Some(StubAddr(at as u32))
    }

    /// Drops all code: every [`StubAddr`] given out is void.
    pub fn clear(&mut self) {
        self.used = self.start;
    }
}

/// Runs a stub that `area` holds since its last clearing. `mem` is the host address of its memory operand: at least as many
/// bytes as the instruction reads or writes, aligned as it demands. Returns the signal that ended it, or 0.
///
/// # Safety
/// `addr` was given out by this area since its last clearing for code made by [`super::stub`]; `mem` is valid for the
/// instruction's access.
#[inline]
pub unsafe fn call(
    area: &mut CodeArea,
    addr: StubAddr,
    mem: *mut u8,
    xsave: &mut XsaveArea,
    regs: &mut [u64; 256],
) -> u32 {
    let (xsave, regs) = (xsave.0.as_mut_ptr(), regs.as_mut_ptr());
    let c = &mut *area.ctx;
    c.regs = regs;
    c.xsave = xsave;
    c.fault = 0;
    let c: *mut StubCtx = c;
    // SAFETY: the caller vouches for the address and the operand; stubs keep to the System V ABI.
    unsafe {
        let f: extern "sysv64" fn(*mut StubCtx, *mut u8, *mut u8, *mut u64) =
            std::mem::transmute(area.exec.add(addr.0 as usize));
        f(c, mem, xsave, regs);
        (&raw const (*c).fault).read_volatile()
    }
}

impl Drop for CodeArea {
    fn drop(&mut self) {
        if let Some(a) = AREAS.get(self.slot) {
            a.store(0, Ordering::SeqCst);
        }
        unmap(self.write);
        unmap(self.exec);
    }
}

fn map(fd: &OwnedFd, prot: libc::c_int) -> io::Result<*mut u8> {
    // SAFETY: a fresh shared mapping of our own file at an address of the kernel's choice.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), AREA_LEN, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if p == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(p.cast()) }
}

fn unmap(p: *mut u8) {
    // SAFETY: p is a mapping of AREA_LEN bytes made by `map`, unmapped once.
    unsafe {
        libc::munmap(p.cast(), AREA_LEN);
    }
}

/// Whether the host has AVX switched on: stubs must then leave the upper halves clean.
#[must_use]
pub fn has_avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// What was installed before our handlers: SIGFPE, SIGILL. Written once, before our handlers can run.
static mut OLD: [std::mem::MaybeUninit<libc::sigaction>; 2] = [const { std::mem::MaybeUninit::zeroed() }; 2];
const SIGNALS: [libc::c_int; 2] = [libc::SIGFPE, libc::SIGILL];

fn install_handlers() -> io::Result<()> {
    static ONCE: Once = Once::new();
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    ONCE.call_once(|| {
        for (n, sig) in SIGNALS.into_iter().enumerate() {
            // SAFETY: OLD is written here only, under the Once, and before a handler that reads it exists for this signal.
            let bad = unsafe {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = handler as *const () as usize;
                new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                let old = (&raw mut OLD).cast::<libc::sigaction>().add(n);
                libc::sigaction(sig, std::ptr::null(), old) != 0
                    || libc::sigaction(sig, &raw const new, std::ptr::null_mut()) != 0
            };
            if bad {
                let e = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
                FAILED.store(e as usize, Ordering::SeqCst);
            }
        }
    });
    match FAILED.load(Ordering::SeqCst) {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e as i32)),
    }
}

/// Diverts a fault in a stub to the stub's exit; passes every other one to what was installed before.
extern "C" fn handler(sig: libc::c_int, info: *mut libc::siginfo_t, uc: *mut libc::c_void) {
    let n = usize::from(sig == libc::SIGILL);
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let regs = unsafe { &mut (*uc.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = regs[libc::REG_RIP as usize] as usize;
    let ours = AREAS.iter().any(|a| {
        let base = a.load(Ordering::SeqCst);
        base != 0 && pc.wrapping_sub(base) < AREA_LEN
    });
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let by_instruction = unsafe { (*info).si_code } > 0;
    if ours && by_instruction {
        let c = regs[libc::REG_R11 as usize] as *mut StubCtx;
        // SAFETY: in stub code R11 is the context of the running stub from its first instruction on, which does not
        // fault; a signal that another process sent, at any instruction, has a code of 0 or below.
        unsafe {
            (&raw mut (*c).fault).write_volatile(sig as u32);
            regs[libc::REG_RIP as usize] = (*c).exit[n] as i64;
        }
        return;
    }
    // SAFETY: an instruction raised it.
    if by_instruction && unsafe { crate::translator::area::divert(regs, sig) } {
        return;
    }
    // SAFETY: OLD was written before this handler was installed; its handler is called as it was registered.
    unsafe {
        let old = (&raw const OLD).cast::<libc::sigaction>().add(n);
        match (*old).sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::signal(sig, libc::SIG_DFL);
            }
            f if (*old).sa_flags & libc::SA_SIGINFO != 0 => {
                let f: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(f);
                f(sig, info, uc);
            }
            f => {
                let f: extern "C" fn(libc::c_int) = std::mem::transmute(f);
                f(sig);
            }
        }
    }
}

/// A random number of the host kernel's, or `None` when it has none yet.
#[must_use]
pub fn random_u64() -> Option<u64> {
    let mut v = 0u64;
    // SAFETY: 8 bytes into a local.
    let n = unsafe { libc::getrandom((&raw mut v).cast(), 8, libc::GRND_NONBLOCK) };
    (n == 8).then_some(v)
}

/// Copies 16 bytes with one move each way, as a guest's vector move does.
///
/// # Safety
/// Both are valid for 16 bytes.
#[inline(always)]
pub unsafe fn copy16(to: *mut u8, from: *const u8) {
    // SAFETY: the caller vouches for both.
    unsafe {
        core::arch::asm!("movups {x}, [{f}]", "movups [{t}], {x}", x = out(xmm_reg) _, f = in(reg) from, t = in(reg) to,
            options(nostack, preserves_flags));
    }
}

/// Copies 32 bytes with one move each way. The host has AVX: guests have it only then.
///
/// # Safety
/// Both are valid for 32 bytes; the host has AVX.
#[inline(always)]
pub unsafe fn copy32(to: *mut u8, from: *const u8) {
    // SAFETY: the caller vouches for both; all vector registers are declared lost, for vzeroupper.
    unsafe {
        core::arch::asm!("vmovups ymm0, [rsi]", "vmovups [rdi], ymm0", "vzeroupper", in("rsi") from, in("rdi") to,
            clobber_abi("sysv64"), options(nostack));
    }
}

/// The host's answer to CPUID.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}
