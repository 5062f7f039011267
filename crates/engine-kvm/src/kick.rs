//! An unsafe room: getting a processor's thread out of KVM_RUN.
//!
//! A signal interrupts KVM_RUN; one that comes just before it would be lost, so its handler also sets the run page's `immediate_exit`, with
//! which KVM_RUN returns at once (Linux Documentation/virt/kvm/api.rst, "immediate_exit").

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Once};

thread_local! {
    /// `immediate_exit` of the processor that this thread runs. It has no destructor, so a handler may touch it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

extern "C" fn on_kick(_signal: libc::c_int) {
    IMMEDIATE_EXIT.with(|p| {
        let p = p.get();
        if !p.is_null() {
            // SAFETY: not null only while `Entered` lives, which keeps the run page mapped, and on the thread that runs the processor.
            unsafe { p.write_volatile(1) };
        }
    });
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one; the handler does nothing but a store to memory, which is safe in any thread. With
        // SA_RESTART no other system call notices; KVM_RUN is never restarted.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), &raw const action, ptr::null_mut());
        }
    });
}

/// Kicks one processor's thread.
#[derive(Debug, Default)]
pub struct Kicker {
    /// The processor is in KVM_RUN, or on its way.
    inside: AtomicBool,
    /// The thread that runs it.
    thread: AtomicU64,
}

impl Kicker {
    pub fn new() -> Arc<Kicker> {
        install();
        Arc::default()
    }

    /// The calling thread runs the processor from now on, until the answer is dropped. `immediate_exit` is its run page's.
    pub fn enter(self: &Arc<Self>, immediate_exit: *mut u8) -> Entered {
        // SAFETY: takes no argument, cannot fail.
        self.thread.store(unsafe { libc::pthread_self() } as u64, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(immediate_exit);
        Entered(Arc::clone(self))
    }

    /// Announces KVM_RUN. A request that is made before can be seen after.
    pub fn inside(&self) {
        self.inside.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// After KVM_RUN.
    pub fn outside(&self) {
        self.inside.store(false, Ordering::SeqCst);
    }

    /// Makes KVM_RUN return, or do so as soon as it is called, if it was announced; else whoever announces it sees the request. Only
    /// while an [`Entered`] lives.
    pub fn kick(&self) {
        fence(Ordering::SeqCst);
        if self.inside.load(Ordering::SeqCst) {
            let thread = self.thread.load(Ordering::SeqCst) as libc::pthread_t;
            // SAFETY: the thread lives: it holds an `Entered`, before whose end nobody can call this any more.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}

/// This thread runs a processor.
#[must_use]
pub struct Entered(Arc<Kicker>);

impl Drop for Entered {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
        self.0.outside();
    }
}
