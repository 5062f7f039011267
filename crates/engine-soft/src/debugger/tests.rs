//! [`Vcpu::set_debug`]'s contract, under both engines.

use crate::cpu::Cpu;
use crate::run::Interpreter;
use crate::shoot::Shared;
use crate::sys::testing::{self, CODE, FakeIo, STACK0, gate_to, set_gate};
use crate::translator::Translator;
use crate::translator::ctx::CtxBox;
use ringer_arch::MpState;
use ringer_arch::cpu::Vendor;
use ringer_arch::regs::{cr4, rflags};
use ringer_engine::{DebugRequest, DebugStop, Exit, StopToken, Vcpu, WatchKind, Watchpoint};
use ringer_memory::GuestMemory;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const DATA: u64 = 0x4_0000;
const HANDLER: u64 = 0x800;
const BREAKPOINT: Exit = Exit::Debug(DebugStop::Breakpoint);
const STEP: Exit = Exit::Debug(DebugStop::Step);

/// A processor with code at [`CODE`].
struct Run {
    cpu: Box<dyn Vcpu>,
    memory: GuestMemory,
    stop: StopToken,
    io: Arc<FakeIo>,
}

impl Run {
    fn ask(&mut self, breakpoints: &[u64], watchpoints: &[Watchpoint], step: bool) {
        let breakpoints = breakpoints.iter().map(|b| CODE + b).collect();
        let r = DebugRequest { breakpoints, watchpoints: watchpoints.to_vec(), step };
        self.cpu.set_debug(&r).unwrap();
    }
    /// Where it stands, from [`CODE`].
    fn at(&self) -> u64 {
        let s = self.cpu.state();
        s.rip.wrapping_add(s.seg[1].base).wrapping_sub(CODE)
    }
    /// Runs to this exit; where that is.
    #[track_caller]
    fn to(&mut self, exit: Exit) -> u64 {
        assert_eq!(self.cpu.run(), exit, "at {:#x}", self.at());
        self.at()
    }
    /// Takes steps, which lead to these places.
    #[track_caller]
    fn steps(&mut self, to: &[u64]) {
        self.ask(&[], &[], true);
        for (n, at) in to.iter().enumerate() {
            assert_eq!(self.to(STEP), *at, "step {n}");
        }
    }
    #[track_caller]
    fn hit(&mut self, w: Watchpoint) -> u64 {
        self.to(Exit::Debug(DebugStop::Watchpoint(w)))
    }
    fn gpr(&self, n: usize) -> u64 {
        self.cpu.state().gpr[n]
    }
    /// Does something to the machine after a while.
    fn later(&self, f: impl FnOnce(&FakeIo) + Send + 'static, bits: u32) {
        let (io, stop) = (Arc::clone(&self.io), self.stop.clone());
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            f(&io);
            stop.raise(bits);
        });
    }
}

/// Calls `f` with `code` at [`CODE`] in 64-bit mode, under each engine. [`HANDLER`] is the handler of all events, if there is an IDT
/// entry.
fn each(code: &[u8], change: impl Fn(&mut Cpu), f: impl Fn(&mut Run)) {
    each_of(&|| testing::reset(Vendor::Intel).1, testing::long, code, change, f);
}

fn each_of(
    io: &dyn Fn() -> Arc<FakeIo>,
    make: impl Fn(Vendor) -> Cpu,
    code: &[u8],
    change: impl Fn(&mut Cpu),
    f: impl Fn(&mut Run),
) {
    for translator in [false, true] {
        let mut cpu = make(Vendor::Intel);
        let io = io();
        cpu.io = io.clone();
        change(&mut cpu);
        let (memory, stop) = (cpu.mmu.memory().clone(), cpu.stop.clone());
        memory.write(CODE, code).unwrap();
        let interp = Interpreter::new(cpu, Arc::new(Shared::new(1)), Instant::now());
        let cpu: Box<dyn Vcpu> = if translator {
            Box::new(Translator::new(interp, CtxBox::LEN + (2 << 20)).unwrap())
        } else {
            Box::new(interp)
        };
        f(&mut Run { cpu, memory, stop, io });
    }
}

/// inc eax; inc ebx; dec ecx; jnz 0; nop
const LOOP: [u8; 9] = [0xff, 0xc0, 0xff, 0xc3, 0xff, 0xc9, 0x75, 0xf8, 0x90];

#[test]
fn breakpoints_stop_before_the_instruction_each_time_round() {
    each(
        &LOOP,
        |c| c.regs[1] = 5,
        |r| {
            r.ask(&[2, 8], &[], false);
            for n in 1..=2 {
                assert_eq!(r.to(BREAKPOINT), 2);
                assert_eq!((r.gpr(0), r.gpr(3)), (n, n - 1));
            }
            // More in code that is known, and one taken away.
            r.ask(&[0, 4, 8], &[], false);
            assert_eq!((r.to(BREAKPOINT), r.gpr(0)), (4, 2));
            assert_eq!((r.to(BREAKPOINT), r.gpr(0)), (0, 2));
            r.ask(&[8], &[], false);
            assert_eq!((r.to(BREAKPOINT), r.gpr(0), r.gpr(3)), (8, 5, 5));
            // Whoever sets the state has gone on: it is met again.
            let state = r.cpu.state();
            r.cpu.set_state(&state).unwrap();
            assert_eq!(r.to(BREAKPOINT), 8);
        },
    );
}

#[test]
fn code_that_has_run_stops_too() {
    each(
        &LOOP,
        |c| c.regs[1] = 1 << 31,
        |r| {
            for _ in 0..3 {
                r.ask(&[], &[], false);
                r.later(|_| (), StopToken::STOP);
                r.to(Exit::Stopped);
                r.ask(&[4], &[], false);
                assert_eq!(r.to(BREAKPOINT), 4);
                let n = r.gpr(0);
                assert_eq!((r.to(BREAKPOINT), r.gpr(0)), (4, n + 1));
            }
        },
    );
}

/// Also what is called, returned to and jumped to by a register.
#[test]
fn breakpoints_behind_every_kind_of_branch() {
    // 0: call 10; 5: jmp rbx; 10: nop; ret; 12: jmp 0
    let code = [0xe8, 5, 0, 0, 0, 0xff, 0xe3, 0x90, 0x90, 0x90, 0x90, 0xc3, 0xeb, 0xf2];
    each(
        &code,
        |c| c.regs[3] = CODE + 12,
        |r| {
            for _ in 0..3 {
                for at in [0, 5, 10, 11, 12] {
                    r.ask(&[at], &[], false);
                    for _ in 0..20 {
                        assert_eq!(r.to(BREAKPOINT), at);
                    }
                }
            }
        },
    );
}

/// The low twelve bits of an address do not make a breakpoint.
#[test]
fn breakpoints_are_of_linear_addresses() {
    each(
        &LOOP,
        |c| c.regs[1] = 3,
        |r| {
            r.memory.write(CODE + 0x1000, &LOOP).unwrap();
            r.ask(&[0x1002, 8], &[], false);
            assert_eq!((r.to(BREAKPOINT), r.gpr(3)), (8, 3));
            // The same bytes at another address of the same page.
            let mut s = r.cpu.state();
            s.rip += 0xffff_8000_0000_0000;
            r.cpu.set_state(&s).unwrap();
            r.ask(&[8], &[], true);
            r.to(STEP);
        },
    );
}

#[test]
fn in_real_mode_the_segment_counts() {
    each_of(
        &|| testing::reset(Vendor::Intel).1,
        |_| testing::real(),
        // inc ax; inc bx; jmp 0
        &[0x40, 0x43, 0xeb, 0xfc],
        |c| assert_eq!(c.rip, 0),
        |r| {
            r.ask(&[1], &[], false);
            assert_eq!((r.to(BREAKPOINT), r.cpu.state().rip), (1, 1));
            assert_eq!((r.to(BREAKPOINT), r.gpr(0), r.gpr(3)), (1, 2, 1));
            r.steps(&[2, 0, 1]);
        },
    );
}

#[test]
fn the_guest_sees_nothing() {
    // pushfq; pop rax; mov rdx, dr6; mov rsi, dr7; mov rdi, [rip - 14 + 1 ...]: its own first bytes; nop
    let code = [
        &[0x9c, 0x58, 0x0f, 0x21, 0xf2, 0x0f, 0x21, 0xfe][..],
        &[0x48, 0x8b, 0x3d, 0xf1, 0xff, 0xff, 0xff, 0x90],
    ]
    .concat();
    let own = u64::from_le_bytes(code[..8].try_into().unwrap());
    let w = Watchpoint { at: DATA, len: 8, kind: WatchKind::Access };
    each(
        &code,
        |_| (),
        |r| {
            let fresh = r.cpu.state();
            for step in [false, true] {
                r.cpu.set_state(&fresh).unwrap();
                r.ask(&[0, 1, 2, 5, 8, 15], &[w], step);
                while r.at() != 15 {
                    assert!(matches!(r.cpu.run(), BREAKPOINT | STEP));
                }
                let s = r.cpu.state();
                assert_eq!(s.gpr[0], fresh.rflags);
                assert_eq!((s.gpr[2], s.gpr[6]), (fresh.dr[6], fresh.dr[7]));
                assert_eq!(s.gpr[7], own);
                assert_eq!((s.rflags, s.dr), (fresh.rflags, fresh.dr));
            }
        },
    );
}

#[test]
fn steps_go_by_iterations_and_breakpoints_over_the_whole() {
    // rep stosb; nop
    each(
        &[0xf3, 0xaa, 0x90],
        |c| (c.regs[1], c.regs[7]) = (3, DATA),
        |r| {
            r.steps(&[0, 0, 2, 3]);
            let mut s = r.cpu.state();
            (s.rip, s.gpr[1], s.gpr[7]) = (CODE, 1 << 18, DATA);
            r.cpu.set_state(&s).unwrap();
            r.ask(&[0, 2], &[], false);
            assert_eq!((r.to(BREAKPOINT), r.gpr(1)), (0, 1 << 18));
            assert_eq!((r.to(BREAKPOINT), r.gpr(1)), (2, 0));
        },
    );
}

#[test]
fn steps_end_before_the_handler_of_a_fault() {
    // ud2; int 0x80; handler: iretq
    each(
        &[0x0f, 0x0b, 0xcd, 0x80],
        |c| {
            for v in [6, 0x80] {
                set_gate(c, v, gate_to(c, CODE + HANDLER));
            }
            c.mmu.memory().write(CODE + HANDLER, &[0x48, 0xcf]).unwrap();
        },
        |r| {
            r.steps(&[HANDLER, 0, HANDLER]);
            let mut s = r.cpu.state();
            s.rip = CODE + 2;
            r.cpu.set_state(&s).unwrap();
            r.steps(&[HANDLER, 4]);
        },
    );
}

/// Single steps of the guest's own.
#[test]
fn the_guests_trap_flag_works_beside_it() {
    // push 0x102; popfq; nop; nop; handler: mov rbx, dr6; and [rsp+16], -0x101; iretq
    each(
        &[0x68, 2, 1, 0, 0, 0x9d, 0x90, 0x90],
        |c| {
            set_gate(c, 1, gate_to(c, CODE + HANDLER));
            let handler =
                [0x0f, 0x21, 0xf3, 0x48, 0x81, 0x64, 0x24, 0x10, 0xff, 0xfe, 0xff, 0xff, 0x48, 0xcf];
            c.mmu.memory().write(CODE + HANDLER, &handler).unwrap();
        },
        |r| {
            r.steps(&[5, 6, HANDLER, HANDLER + 3, HANDLER + 12, 7, 8]);
            assert_eq!(r.gpr(3) & 0xf000, 0x4000);
            let mut s = r.cpu.state();
            s.rip = CODE;
            r.cpu.set_state(&s).unwrap();
            r.ask(&[6, 7, 8, HANDLER], &[], false);
            for at in [6, HANDLER, 7, 8] {
                assert_eq!(r.to(BREAKPOINT), at);
            }
        },
    );
}

#[test]
fn interrupts_wait_for_a_step_but_end_halts() {
    // sti; nop; nop; hlt; nop
    each(
        &[0xfb, 0x90, 0x90, 0xf4, 0x90],
        |c| {
            set_gate(c, 0x40, gate_to(c, CODE + HANDLER));
            c.mmu.memory().write(CODE + HANDLER, &[0x48, 0xcf]).unwrap();
        },
        |r| {
            let interrupt = |io: &FakeIo| *io.intr.lock().unwrap() = Some(0x40);
            interrupt(&r.io);
            r.stop.raise(StopToken::ATTENTION);
            r.steps(&[1, 2, 3, 4]);
            assert_eq!(r.cpu.state().mp_state, MpState::Halted);
            // The step of a halted processor is the interrupt.
            r.steps(&[HANDLER, 4, 5]);
            // Nothing there yet: it waits.
            let mut s = r.cpu.state();
            s.rip = CODE + 3;
            r.cpu.set_state(&s).unwrap();
            r.steps(&[4]);
            r.later(interrupt, StopToken::ATTENTION);
            r.steps(&[HANDLER]);
            // A stop ends the wait.
            let mut s = r.cpu.state();
            s.rip = CODE + 3;
            r.cpu.set_state(&s).unwrap();
            r.steps(&[4]);
            r.later(|_| (), StopToken::STOP);
            assert_eq!(r.to(Exit::Stopped), 4);
            // Over a breakpoint with one waiting: first the instruction.
            s.rip = CODE + 1;
            s.rflags |= rflags::IF;
            r.cpu.set_state(&s).unwrap();
            r.ask(&[1, 2, HANDLER], &[], false);
            assert_eq!(r.to(BREAKPOINT), 1);
            interrupt(&r.io);
            r.stop.raise(StopToken::ATTENTION);
            assert_eq!(r.to(BREAKPOINT), HANDLER);
            assert_eq!(r.cpu.state().gpr[4] % 16, 8, "five words on an aligned stack");
            assert_eq!(r.to(BREAKPOINT), 2);
        },
    );
}

#[test]
fn system_calls_and_their_returns_are_steps() {
    // syscall; handler: sysretq
    each(
        &[0x0f, 0x05, 0x90],
        |c| {
            testing::to_ring3(c);
            c.fast.star = 0x13 << 48 | 8 << 32;
            c.fast.lstar = CODE + HANDLER;
            c.mmu.memory().write(CODE + HANDLER, &[0x48, 0x0f, 0x07]).unwrap();
        },
        |r| {
            r.steps(&[HANDLER, 2, 3]);
            assert_eq!(r.cpu.state().cpl, 3);
        },
    );
}

#[test]
fn watched_data() {
    // mov [rdi], al; mov [rdi-2], rax; mov cx, [rdi+1]; xadd [rdi], eax; movups [rdi-8], xmm0; movups xmm1, [rdi-12];
    // push rax; jmp 0
    let code = [
        &[0x88, 0x07, 0x48, 0x89, 0x47, 0xfe, 0x66, 0x8b, 0x4f, 0x01, 0x0f, 0xc1, 0x07][..],
        &[0x0f, 0x11, 0x47, 0xf8, 0x0f, 0x10, 0x4f, 0xf4, 0x50, 0xeb, 0xe8],
    ]
    .concat();
    // Within a page, and across two.
    for at in [DATA + 0x10, DATA + 0xfff] {
        each(
            &code,
            |c| {
                (c.regs[7], c.regs[4]) = (at, at + 9);
                c.cr4 |= cr4::OSFXSR;
            },
            |r| {
                let w = |at, len, kind| Watchpoint { at, len, kind };
                let fresh = r.cpu.state();
                for (watch, stops) in [
                    (w(at, 1, WatchKind::Write), &[2, 6, 13, 17][..]),
                    (w(at, 2, WatchKind::Read), &[10, 13, 21]),
                    (w(at + 1, 1, WatchKind::Access), &[6, 10, 13, 17, 21, 22]),
                    (w(at + 1, 8, WatchKind::Write), &[6, 13, 17, 22]),
                    (w(at + 6, 1, WatchKind::Write), &[17, 22]),
                ] {
                    for _ in 0..2 {
                        r.cpu.set_state(&fresh).unwrap();
                        // Code that runs often, so that the translator has it.
                        r.ask(&[22], &[], false);
                        for _ in 0..20 {
                            r.cpu.set_state(&fresh).unwrap();
                            r.to(BREAKPOINT);
                        }
                        r.cpu.set_state(&fresh).unwrap();
                        r.ask(&[22], &[watch], false);
                        for s in stops {
                            assert_eq!(r.hit(watch), *s, "{watch:x?}");
                        }
                        r.to(BREAKPOINT);
                    }
                }
            },
        );
    }
}

#[test]
fn watched_strings_stop_between_iterations() {
    // rep movsb; nop
    each(
        &[0xf3, 0xa4, 0x90],
        |c| (c.regs[1], c.regs[6], c.regs[7]) = (8, DATA, DATA + 0x2000),
        |r| {
            let w = Watchpoint { at: DATA + 0x2002, len: 2, kind: WatchKind::Write };
            r.ask(&[2], &[w], false);
            assert_eq!((r.hit(w), r.gpr(1)), (0, 5));
            assert_eq!((r.hit(w), r.gpr(1)), (0, 4));
            assert_eq!((r.to(BREAKPOINT), r.gpr(1)), (2, 0));
        },
    );
}

/// What an instruction that faults has accessed does not count; what the delivery writes does.
#[test]
fn watched_stacks_of_events() {
    let watch = Watchpoint { at: STACK0 - 0x808, len: 8, kind: WatchKind::Write };
    // push [rdi]: reads what is not mapped
    each(
        &[0xff, 0x37],
        |c| {
            c.regs[7] = 1 << 30;
            set_gate(c, 14, gate_to(c, CODE + HANDLER));
        },
        |r| {
            r.ask(&[], &[watch], false);
            assert_eq!(r.hit(watch), HANDLER);
        },
    );
}

#[test]
fn watching_again_changes_what_is_watched() {
    // l: mov [rdi], al; jmp l
    each(
        &[0x88, 0x07, 0xeb, 0xfc],
        |c| c.regs[7] = DATA,
        |r| {
            let w = |at| Watchpoint { at, len: 4, kind: WatchKind::Write };
            for _ in 0..3 {
                r.ask(&[], &[w(DATA - 2)], false);
                assert_eq!(r.hit(w(DATA - 2)), 2);
                r.ask(&[], &[w(DATA + 4)], false);
                r.later(|_| (), StopToken::STOP);
                r.to(Exit::Stopped);
            }
        },
    );
}
