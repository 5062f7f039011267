//! The native side: a forked child that runs each case on the processor itself. The unsafe room of this crate.
//!
//! Parent and child share one memfd (`Shared`). The child maps the data and code windows at their fixed addresses, each
//! page with its rights, closes its other files and allows itself four system calls. A case is entered by `enter` (XRSTOR,
//! segment bases, flags, general registers, a jump); the jump behind the instruction leads to `leave`, which saves
//! everything; a signal ends in `on_signal`, which takes the state from its frame. Neither returns to the kernel, so
//! that a case without a fault makes no system call at all.

use crate::layout::{
    ALT_STACK, ALT_STACK_LEN, BATCH, CODE, CODE_LEN, CTL, DATA, DATA_LEN, DATA_PAGES, DATA_RIGHTS, PAGE,
    RESERVED, Rights, SHARED, USER_CODE32, USER_DATA, WAY_OUT,
};
use crate::record::{Input, LOG_LEN, Output, PATCHES, SPANS};
use std::io::{self, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What the processes share. Every bit pattern is a value of every part.
#[repr(C, align(4096))]
struct Shared {
    data: [u8; DATA_LEN as usize],
    code: [[u8; CODE_LEN as usize]; 2],
    before: [[u8; DATA_LEN as usize]; 2],
    after: [[u8; DATA_LEN as usize]; 2],
    input: [[Input; BATCH]; 2],
    output: [[Output; BATCH]; 2],
    /// Case that the child is at.
    current: u64,
    /// Selectors that the child started with: ES CS SS DS FS GS.
    sel: [u16; 6],
}

/// The child's control page, at [`CTL`].
#[repr(C)]
struct Control {
    /// Stack pointer of [`enter`]'s caller.
    host_rsp: u64,
    input: *const Input,
    output: *mut Output,
    /// Address of [`leave`]; generated code jumps through it.
    exit: u64,
    mxcsr: u64,
    gpr: [u64; 16],
    rflags: u64,
    /// A case runs.
    running: u64,
    /// Where [`enter`] jumps: the instruction, or [`enter32`].
    start: u64,
    /// Offset and selector of the instruction, for [`enter32`].
    far: [u32; 2],
    scratch: [u64; 16],
}

/// Absolute address through which a case's closing jump goes.
pub const EXIT_POINTER: u32 = CTL as u32 + offset_of!(Control, exit) as u32;
const SCRATCH_TOP: u64 = CTL + offset_of!(Control, scratch) as u64 + 128;
const BATCH_RUN: u8 = 1;

/// The child has gone, or hangs.
#[derive(Clone, Copy, Debug)]
pub struct Died {
    /// The case it was at.
    pub case: usize,
    /// The signal that ended it, 0 if it hung and was killed.
    pub signal: i32,
}

/// A child process that runs cases.
pub struct Native {
    pid: libc::pid_t,
    pipe: UnixStream,
    shared: *mut Shared,
    running: Option<usize>,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for Native {}

impl Native {
    /// Starts a child.
    ///
    /// # Errors
    /// The host's; also when something of this process is mapped where the child needs room, or when the host lacks
    /// FSGSBASE or AVX.
    pub fn spawn() -> io::Result<Native> {
        // SAFETY: AT_HWCAP2 is always there; bit 1 says that FSGSBASE may be used.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        if !fsgsbase || !std::arch::is_x86_feature_detected!("avx") {
            return Err(io::Error::other("the host's processor or kernel has no FSGSBASE or no AVX"));
        }
        check_free()?;
        // SAFETY: a constant name; the result is checked.
        let fd = unsafe { libc::memfd_create(c"ringer-difftest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: our own file, a constant size.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size_of::<Shared>() as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh mapping of all of our own file.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let (pipe, childs) = UnixStream::pair()?;
        // SAFETY: the child calls nothing but system calls and its own code, which allocates nothing.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            // SAFETY: this is the child, alone in its process.
            unsafe { child(fd.as_raw_fd(), childs.as_raw_fd()) };
        }
        let mut n = Native { pid, pipe, shared: map.cast(), running: None };
        n.pipe.set_read_timeout(Some(Duration::from_secs(20)))?;
        drop(childs);
        let mut ready = [0];
        n.pipe.read_exact(&mut ready).map_err(|_| io::Error::other("the child could not set itself up"))?;
        Ok(n)
    }

    /// Selectors as the child has them: ES CS SS DS FS GS.
    #[must_use]
    pub fn selectors(&self) -> [u16; 6] {
        // SAFETY: the child wrote it before it said that it is ready, and never again.
        unsafe { (*self.shared).sel }
    }

    fn idle(&self, which: usize) {
        assert!(which < 2 && self.running != Some(which), "the child is at work on this batch");
    }

    /// Cases of batch `which` (0 or 1), which must not be running.
    pub fn input(&mut self, which: usize) -> &mut [Input; BATCH] {
        self.idle(which);
        // SAFETY: mapped for as long as self; the child leaves a batch alone that is not running.
        unsafe { &mut (*self.shared).input[which] }
    }

    /// Case `i` of batch `which`.
    #[must_use]
    pub fn input_ref(&self, which: usize, i: usize) -> &Input {
        self.idle(which);
        // SAFETY: as in `input`.
        unsafe { &(&(*self.shared).input)[which][i] }
    }

    /// Takes over what has been prepared for batch `which` of another child.
    pub fn copy_prepared(&mut self, from: &mut Native, which: usize) {
        self.input(which).clone_from(from.input(which));
        self.code(which).copy_from_slice(from.code(which));
        self.before(which).copy_from_slice(from.before(which));
    }

    /// Code window of batch `which`.
    pub fn code(&mut self, which: usize) -> &mut [u8; CODE_LEN as usize] {
        self.idle(which);
        // SAFETY: as in `input`.
        unsafe { &mut (*self.shared).code[which] }
    }

    /// Contents of the data window before batch `which`.
    pub fn before(&mut self, which: usize) -> &mut [u8; DATA_LEN as usize] {
        self.idle(which);
        // SAFETY: as in `input`.
        unsafe { &mut (*self.shared).before[which] }
    }

    /// Contents of the data window after batch `which`.
    #[must_use]
    pub fn after(&self, which: usize) -> &[u8; DATA_LEN as usize] {
        self.idle(which);
        // SAFETY: as in `input`.
        unsafe { &(*self.shared).after[which] }
    }

    /// What came of batch `which`.
    #[must_use]
    pub fn output(&self, which: usize) -> &[Output; BATCH] {
        self.idle(which);
        // SAFETY: as in `input`.
        unsafe { &(*self.shared).output[which] }
    }

    /// Lets the child run batch `which`.
    ///
    /// # Panics
    /// If one is running.
    ///
    /// # Errors
    /// The child is not there.
    pub fn start(&mut self, which: usize) -> io::Result<()> {
        assert!(self.running.is_none() && which < 2);
        self.pipe.write_all(&[BATCH_RUN + which as u8])?;
        self.running = Some(which);
        Ok(())
    }

    /// Waits for the running batch.
    ///
    /// # Errors
    /// [`Died`]: the child has ended, or was killed because it took too long.
    pub fn wait(&mut self) -> Result<(), Died> {
        self.running = None;
        let mut done = [0];
        if self.pipe.read_exact(&mut done).is_ok() {
            return Ok(());
        }
        // SAFETY: an aligned word of our own mapping.
        let case = unsafe { (&raw const (*self.shared).current).read_volatile() } as usize;
        Err(Died { case: case.min(BATCH - 1), signal: self.reap() })
    }

    /// Ends the child; the signal that had ended it already, or 0.
    fn reap(&mut self) -> i32 {
        if self.pid == 0 {
            return 0;
        }
        let mut status = 0;
        // SAFETY: pid is our child, not yet waited for.
        unsafe {
            // A child whose socket has closed is about to be there for waiting; one that hangs is not.
            let mut tries = 0;
            while libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) == 0 {
                tries += 1;
                if tries == 100 {
                    libc::kill(self.pid, libc::SIGKILL);
                    libc::waitpid(self.pid, &raw mut status, 0);
                    status = 0;
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.pid = 0;
        if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if self.pid != 0 {
            // SAFETY: pid is our child, not yet waited for.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
        // SAFETY: our own mapping, unmapped once; what borrowed from it borrowed self.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

/// Nothing may be mapped where the child must find emptiness.
fn check_free() -> io::Result<()> {
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let start = line.split('-').next().and_then(|a| u64::from_str_radix(a, 16).ok()).unwrap_or(0);
        if start < crate::layout::FREE_BELOW {
            return Err(io::Error::other(format!(
                "this process has memory at {start:#x}, where the windows need room"
            )));
        }
    }
    Ok(())
}

/// The child's life.
unsafe fn child(fd: libc::c_int, pipe: libc::c_int) -> ! {
    // SAFETY: alone in this process; addresses below FREE_BELOW were found free.
    unsafe {
        let ok = map_all(fd) && libc::dup2(pipe, 3) == 3;
        libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
        let shared = SHARED as *mut Shared;
        (*shared).sel = selectors();
        let c = CTL as *mut Control;
        (*c).exit = leave as *const () as u64;
        (*c).mxcsr = 0x1f80;
        if !ok || !handlers() || !guard() {
            libc::_exit(97);
        }
        let mut command = [0u8; 1];
        loop {
            if call(1, 3, command.as_ptr() as u64, 1) != 1 || call(0, 3, command.as_mut_ptr() as u64, 1) != 1
            {
                call(231, 0, 0, 0);
            }
            run_batch(shared, usize::from(command[0] - BATCH_RUN) & 1);
        }
    }
}

unsafe fn map_at(at: u64, len: u64, prot: libc::c_int, fd: libc::c_int, off: usize) -> bool {
    let flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    let at = at as *mut libc::c_void;
    // SAFETY: NOREPLACE: only what was free is mapped.
    unsafe { libc::mmap(at, len as usize, prot, flags | kind, fd, off as i64) == at }
}

unsafe fn map_all(fd: libc::c_int) -> bool {
    const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: see `map_at`.
    unsafe {
        let mut ok = map_at(CTL, PAGE, RW, -1, 0) && map_at(ALT_STACK, ALT_STACK_LEN, RW, -1, 0);
        ok &= map_at(SHARED, (size_of::<Shared>() as u64).next_multiple_of(PAGE), RW, fd, 0);
        for (i, r) in DATA_RIGHTS.iter().enumerate().take(DATA_PAGES as usize) {
            let at = i as u64 * PAGE;
            ok &= match r {
                Rights::None => true,
                Rights::Read => map_at(DATA + at, PAGE, libc::PROT_READ, fd, at as usize),
                Rights::Write => map_at(DATA + at, PAGE, RW, fd, at as usize),
            };
        }
        for (i, at) in CODE.iter().enumerate() {
            let off = offset_of!(Shared, code) + i * CODE_LEN as usize;
            ok &= map_at(*at, CODE_LEN, libc::PROT_READ | libc::PROT_EXEC, fd, off);
        }
        ok && SHARED + size_of::<Shared>() as u64 <= RESERVED.end
    }
}

const SIGNALS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

unsafe fn handlers() -> bool {
    // SAFETY: handlers of our own on a stack of our own.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: ALT_STACK as *mut libc::c_void,
            ss_flags: 0,
            ss_size: ALT_STACK_LEN as usize,
        };
        let mut ok = libc::sigaltstack(&raw const stack, std::ptr::null_mut()) == 0;
        for sig in SIGNALS {
            let mut a: libc::sigaction = std::mem::zeroed();
            a.sa_sigaction = signal_entry as *const () as usize;
            a.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            ok &= libc::sigaction(sig, &raw const a, std::ptr::null_mut()) == 0;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        ok && libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) == 0
    }
}

/// Allows read, write, rt_sigreturn and exit_group of the 64-bit system call interface; all else raises SIGSYS.
unsafe fn guard() -> bool {
    const ALLOW: u32 = 0x7fff_0000;
    const TRAP: u32 = 0x0003_0000;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    let load = |k| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k };
    let equal = |k, jt, jf| libc::sock_filter { code: 0x15, jt, jf, k };
    let ret = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let mut program = [
        load(4),
        equal(AUDIT_ARCH_X86_64, 0, 5),
        load(0),
        equal(libc::SYS_read as u32, 4, 0),
        equal(libc::SYS_write as u32, 3, 0),
        equal(libc::SYS_rt_sigreturn as u32, 2, 0),
        equal(libc::SYS_exit_group as u32, 1, 0),
        ret(TRAP),
        ret(ALLOW),
    ];
    let p = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call, which copies it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const p) == 0
    }
}

/// A system call without the C library, whose wrappers need the FS base that cases change.
unsafe fn call(nr: u64, a: u64, b: u64, c: u64) -> i64 {
    let r;
    // SAFETY: the caller vouches for the arguments.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr => r, in("rdi") a, in("rsi") b, in("rdx") c, out("rcx") _,
            out("r11") _, options(nostack));
    }
    r
}

fn selectors() -> [u16; 6] {
    let (es, cs, ss, ds, fs, gs): (u16, u16, u16, u16, u16, u16);
    // SAFETY: reads of registers.
    unsafe {
        core::arch::asm!("mov {0:x}, es", "mov {1:x}, cs", "mov {2:x}, ss", "mov {3:x}, ds", "mov {4:x}, fs", "mov {5:x}, gs",
            out(reg) es, out(reg) cs, out(reg) ss, out(reg) ds, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags));
    }
    [es, cs, ss, ds, fs, gs]
}

unsafe fn run_batch(s: *mut Shared, which: usize) {
    let c = CTL as *mut Control;
    // SAFETY: s is the whole shared mapping, of which the parent leaves this batch's parts alone; which is 0 or 1; the parent
    // keeps offsets inside the data window, and they are bounded here again.
    unsafe {
        // Code was written by another processor: serialize before it is run (Intel SDM vol. 3A §8.1.3).
        core::arch::x86_64::__cpuid(0);
        let data = (&raw mut (*s).data).cast::<u8>();
        let before = (&raw const (*s).before).cast::<[u8; DATA_LEN as usize]>().add(which).cast::<u8>();
        std::ptr::copy_nonoverlapping(before, data, DATA_LEN as usize);
        let inputs = (&raw const (*s).input).cast::<[Input; BATCH]>().add(which).cast::<Input>();
        let outputs = (&raw mut (*s).output).cast::<[Output; BATCH]>().add(which).cast::<Output>();
        let mut normal = (*s).sel;
        if (*inputs).bits == 32 {
            (normal[0], normal[3]) = (USER_DATA, USER_DATA);
        }
        restore_selectors(&normal);
        for i in 0..BATCH {
            let (input, output) = (inputs.add(i), outputs.add(i));
            (&raw mut (*s).current).write_volatile(i as u64);
            for n in 0..PATCHES {
                let p = (&raw const (*input).patch).cast::<crate::record::Patch>().add(n);
                let off = ((*p).off as usize).min(DATA_LEN as usize);
                let len = ((*p).len as usize).min(DATA_LEN as usize - off).min(crate::record::PATCH_LEN);
                std::ptr::copy_nonoverlapping((&raw const (*p).data).cast::<u8>(), data.add(off), len);
            }
            if (*input).run != 1 {
                continue;
            }
            (*c).input = input;
            (*c).output = output;
            (*c).start = if (*input).bits == 32 { enter32 as *const () as u64 } else { (*input).rip };
            (*c).far = [(*input).rip as u32, u32::from(USER_CODE32)];
            (*c).running = 1;
            let signalled = enter();
            (*c).running = 0;
            if signalled == 0 {
                (*output).gpr = (*c).gpr;
                (*output).rflags = (*c).rflags;
                (*output).signal = 0;
                (*output).sel = selectors();
            }
            // The way out of 32-bit code leads through 64-bit code; both ends of it are code of this one's own making.
            if (*output).signal == 0 && (*input).bits == 32 {
                (*output).sel[1] = USER_CODE32;
            }
            let mut sel = (*output).sel;
            sel[1] = normal[1];
            if sel != normal {
                restore_selectors(&normal);
            }
            let mut at = 0;
            for n in 0..SPANS {
                let p = (&raw const (*input).log).cast::<crate::record::Span>().add(n);
                let off = ((*p).off as usize).min(DATA_LEN as usize);
                let len = ((*p).len as usize).min(DATA_LEN as usize - off).min(LOG_LEN - at);
                std::ptr::copy_nonoverlapping(
                    data.add(off),
                    (&raw mut (*output).log).cast::<u8>().add(at),
                    len,
                );
                at += len;
            }
        }
        restore_selectors(&(*s).sel);
        let after = (&raw mut (*s).after).cast::<[u8; DATA_LEN as usize]>().add(which).cast::<u8>();
        std::ptr::copy_nonoverlapping(data, after, DATA_LEN as usize);
    }
}

unsafe fn restore_selectors(s: &[u16; 6]) {
    // SAFETY: selectors that this process started with.
    unsafe {
        core::arch::asm!("mov es, {0:x}", "mov ds, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}", "mov ss, {4:x}",
            in(reg) s[0], in(reg) s[3], in(reg) s[4], in(reg) s[5], in(reg) s[2],
            options(nostack, preserves_flags));
    }
}

/// Loads the case's state and jumps to it. Returns 0 if it came out through [`leave`], 1 if by a signal.
#[unsafe(naked)]
unsafe extern "C" fn enter() -> u64 {
    core::arch::naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov rdi, {ctl}",
        "mov [rdi + {host_rsp}], rsp",
        "mov rdi, [rdi + {input}]",
        "mov eax, 7",
        "xor edx, edx",
        "xrstor64 [rdi + {xsave}]",
        "mov rax, [rdi + {fs_base}]",
        "wrfsbase rax",
        "mov rax, [rdi + {gs_base}]",
        "wrgsbase rax",
        "mov rsp, {scratch}",
        "push qword ptr [rdi + {rflags}]",
        // From here on alignment may be checked: all operands are aligned.
        "popfq",
        "mov rax, [rdi + {gpr}]",
        "mov rcx, [rdi + {gpr} + 8]",
        "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]",
        "mov rsp, [rdi + {gpr} + 32]",
        "mov rbp, [rdi + {gpr} + 40]",
        "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]",
        "mov r9, [rdi + {gpr} + 72]",
        "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]",
        "mov r12, [rdi + {gpr} + 96]",
        "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]",
        "mov r15, [rdi + {gpr} + 120]",
        "mov rdi, [rdi + {gpr} + 56]",
        "jmp qword ptr [{ctl} + {start}]",
        ctl = const CTL,
        host_rsp = const offset_of!(Control, host_rsp),
        input = const offset_of!(Control, input),
        start = const offset_of!(Control, start),
        scratch = const SCRATCH_TOP,
        xsave = const offset_of!(Input, xsave),
        fs_base = const offset_of!(Input, fs_base),
        gs_base = const offset_of!(Input, gs_base),
        rflags = const offset_of!(Input, rflags),
        gpr = const offset_of!(Input, gpr),
    )
}

/// Jumps to a case in 32-bit code.
#[unsafe(naked)]
unsafe extern "C" fn enter32() {
    // jmp far m16:32, absolute.
    core::arch::naked_asm!(".byte 0xff, 0x2c, 0x25", ".long {far}", far = const CTL + offset_of!(Control, far) as u64)
}

/// Where a completed case comes out.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    core::arch::naked_asm!(
        "mov [{gpr}], rax",
        "mov [{gpr} + 8], rcx",
        "mov [{gpr} + 16], rdx",
        "mov [{gpr} + 24], rbx",
        "mov [{gpr} + 32], rsp",
        "mov [{gpr} + 40], rbp",
        "mov [{gpr} + 48], rsi",
        "mov [{gpr} + 56], rdi",
        "mov [{gpr} + 64], r8",
        "mov [{gpr} + 72], r9",
        "mov [{gpr} + 80], r10",
        "mov [{gpr} + 88], r11",
        "mov [{gpr} + 96], r12",
        "mov [{gpr} + 104], r13",
        "mov [{gpr} + 112], r14",
        "mov [{gpr} + 120], r15",
        "mov rsp, {scratch}",
        "pushfq",
        "pop qword ptr [{rflags}]",
        "push 2",
        "popfq",
        "mov rdi, [{output}]",
        "mov eax, 7",
        "xor edx, edx",
        "xsave64 [rdi + {xsave}]",
        "rdfsbase rax",
        "mov [rdi + {fs_base}], rax",
        "rdgsbase rax",
        "mov [rdi + {gs_base}], rax",
        "ldmxcsr [{mxcsr}]",
        "vzeroupper",
        "mov rsp, [{host_rsp}]",
        "xor eax, eax",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        gpr = const CTL + offset_of!(Control, gpr) as u64,
        rflags = const CTL + offset_of!(Control, rflags) as u64,
        host_rsp = const CTL + offset_of!(Control, host_rsp) as u64,
        output = const CTL + offset_of!(Control, output) as u64,
        mxcsr = const CTL + offset_of!(Control, mxcsr) as u64,
        scratch = const SCRATCH_TOP,
        xsave = const offset_of!(Output, xsave),
        fs_base = const offset_of!(Output, fs_base),
        gs_base = const offset_of!(Output, gs_base),
    )
}

/// Clears RFLAGS.AC, which the kernel leaves as it was, before compiled code runs.
#[unsafe(naked)]
unsafe extern "C" fn signal_entry() {
    core::arch::naked_asm!("push 2", "popfq", "jmp {handler}", handler = sym on_signal)
}

/// Takes the state of a case that a signal ended, and goes on as if [`enter`] returned 1.
unsafe extern "C" fn on_signal(sig: libc::c_int, _: *mut libc::siginfo_t, uc: *mut libc::ucontext_t) -> ! {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: the control page is mapped; while a case runs its output is too; the frame is the kernel's.
    unsafe {
        let c = CTL as *mut Control;
        if (*c).running != 1 {
            call(231, 98, 0, 0);
        }
        let o = (*c).output;
        let m = &(*uc).uc_mcontext;
        for (i, r) in ORDER.iter().enumerate() {
            (&raw mut (*o).gpr).cast::<u64>().add(i).write(*m.gregs.as_ptr().add(*r as usize) as u64);
        }
        let reg = |r: libc::c_int| *m.gregs.as_ptr().add(r as usize) as u64;
        (*o).rflags = reg(libc::REG_EFL);
        (*o).rip = reg(libc::REG_RIP);
        (*o).cr2 = reg(libc::REG_CR2);
        (*o).vector = reg(libc::REG_TRAPNO) as u32;
        (*o).code = reg(libc::REG_ERR) as u32;
        (*o).signal = sig as u32;
        // A trap flag that the case has set fires behind its closing jump: it has completed.
        let out = |at: &u64| (*o).rip == at + WAY_OUT;
        if sig == libc::SIGTRAP && (*o).vector == 1 && ((*o).rip == (*c).exit || CODE.iter().any(out)) {
            (*o).signal = 0;
        }
        std::ptr::copy_nonoverlapping(
            m.fpregs.cast::<u8>(),
            (&raw mut (*o).xsave).cast::<u8>(),
            size_of_val(&(*o).xsave),
        );
        let (fs, gs): (u64, u64);
        core::arch::asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack));
        (*o).fs_base = fs;
        (*o).gs_base = gs;
        let mut sel = selectors();
        let packed = reg(libc::REG_CSGSFS);
        sel[1] = packed as u16;
        sel[2] = (packed >> 48) as u16;
        (*o).sel = sel;
        core::arch::asm!(
            "mov rsp, [{ctl} + {host_rsp}]",
            "mov eax, 1",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
            "ret",
            ctl = const CTL,
            host_rsp = const offset_of!(Control, host_rsp),
            options(noreturn),
        );
    }
}
