//! What the translator once did wrong.

use super::Translator;
use super::ctx::CtxBox;
use crate::cache::Cache;
use crate::cpu::Cpu;
use crate::run::Interpreter;
use crate::shoot::Shared;
use crate::sys::testing::{self, CODE};
use ringer_arch::cpu::Vendor;
use ringer_arch::regs::cr4;
use ringer_arch::seg::sreg;
use ringer_engine::{StopToken, Until, Vcpu};
use std::sync::Arc;
use std::time::Instant;

/// Puts `code` at [`CODE`] and executes about `insns` instructions there, with `room` bytes for what is translated.
fn run(cpu: Cpu, code: &[u8], insns: u64, room: usize) -> Translator {
    cpu.mmu.memory().write(CODE, code).unwrap();
    let interp = Interpreter::new(cpu, Arc::new(Shared::new(1)), Instant::now());
    // The interpreter's share is a sixteenth.
    let limit = (CtxBox::LEN + Cache::JUMPS_LEN + 2 * room) * 16 / 15;
    let mut t = Translator::new(interp, limit).unwrap();
    let state = t.state();
    t.set_state(&state).unwrap();
    t.step(Until::Block(insns));
    t
}

/// Puts `code` at [`CODE`] and runs 64-bit code there until it halts, counting instructions.
fn run_freely(code: &[u8]) -> Translator {
    let mut cpu = testing::long(Vendor::Intel);
    cpu.mmu.memory().write(CODE, code).unwrap();
    cpu.mp_state = ringer_arch::MpState::Running;
    let stop = cpu.stop.clone();
    let interp = Interpreter::new(cpu, Arc::new(Shared::new(1)), Instant::now());
    let mut t = Translator::new(interp, 4 << 20).unwrap();
    t.count_instructions();
    let thread = std::thread::spawn(move || {
        t.run();
        t
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    stop.raise(StopToken::STOP);
    let t = thread.join().unwrap();
    assert_eq!(t.state().mp_state, ringer_arch::MpState::Halted);
    t
}

/// A PUSH that the interpreter must execute leaves the flags of the instruction before it.
#[test]
fn flags_outlive_a_push_that_is_interpreted() {
    let mut cpu = testing::protected(Vendor::Intel);
    cpu.regs[1] = 0;
    // cmp eax, eax; push dword ptr fs:[0x8000]; jne 1f; mov ecx, 5; 1: hlt
    let code =
        [&[0x39, 0xc0, 0x64, 0xff, 0x35, 0, 0x80, 0, 0, 0x75, 5][..], &[0xb9, 5, 0, 0, 0, 0xf4]].concat();
    let t = run(cpu, &code, 5, 1 << 20);
    assert_eq!(t.state().gpr[1], 5);
}

/// An instruction of 15 bytes that needs one more where it is translated goes out without the prefixes that it has twice.
#[test]
fn the_longest_instructions_run() {
    let mut cpu = testing::long(Vendor::Intel);
    (cpu.regs[0], cpu.regs[2]) = (5, 0x9800);
    let memory = cpu.mmu.memory().clone();
    memory.store(0x9800, 2u8).unwrap();
    // lock add [rdx], al; hlt
    let code = [&[0xf0; 13][..], &[0x00, 0x02, 0xf4]].concat();
    run(cpu, &code, 2, 1 << 20);
    assert_eq!(memory.load::<u8>(0x9800).unwrap(), 7);
}

/// A code segment cannot be written through.
#[test]
fn writes_through_cs_fault() {
    let mut cpu = testing::protected(Vendor::Intel);
    cpu.regs[0] = 5;
    let memory = cpu.mmu.memory().clone();
    // mov cs:[0x9000], eax
    run(cpu, &[0x2e, 0xa3, 0, 0x90, 0, 0], 1, 1 << 20);
    assert_eq!(memory.load::<u32>(0x9000).unwrap(), 0);
}

/// INVLPG is for all of a large page, also when the address space that it was looked up in has had to make room for others.
#[test]
fn large_pages_are_forgotten_as_a_whole() {
    let mut cpu = testing::long(Vendor::Intel);
    // The 1 GiB page is global.
    cpu.mmu.memory().store(0x9000, 0x187u64).unwrap();
    cpu.cr4 |= cr4::PGE | cr4::PCIDE;
    let (root, lin) = (cpu.cr3, 0xffff_8000_0001_0000);
    for pcid in 1..12 {
        cpu.cr3 = root | pcid;
        cpu.select_tlb();
        if pcid == 1 {
            cpu.fetch_gpa(lin).unwrap();
        }
    }
    let before = cpu.mmu.code_generation(false);
    cpu.mmu.flush_page(lin + 0x1000);
    assert_ne!(cpu.mmu.code_generation(false), before);
}

/// INVLPG of a page that no code was fetched from leaves what is kept of code; of one that was, it does not.
#[test]
fn pages_without_code_are_dropped_alone() {
    let mut cpu = testing::long(Vendor::Intel);
    cpu.cr4 |= cr4::PGE;
    let generations = |cpu: &Cpu| [true, false].map(|user| cpu.mmu.code_generation(user));
    let (code, data) = (0xffff_8000_0001_0000, 0x1_0000);
    cpu.fetch_gpa(code).unwrap();
    cpu.load::<u64>(data).unwrap();
    let before = generations(&cpu);
    cpu.mmu.flush_page(data);
    assert_eq!(generations(&cpu), before);
    assert!(cpu.fast_ptr(data, 8, false).is_none());
    cpu.mmu.flush_page(code);
    let after = generations(&cpu);
    assert!(after[0] != before[0] && after[1] != before[1]);
}

/// A page that is written fast already is found so by the first read: a group that writes then need not wait.
#[test]
fn a_read_finds_what_is_written_already() {
    let mut cpu = testing::long(Vendor::Intel);
    let lin = 0x1_8000;
    cpu.load::<u64>(lin).unwrap();
    assert!(cpu.fast_ptr(lin, 8, true).is_none(), "clean");
    cpu.store(lin, 1u64).unwrap();
    cpu.mmu.flush_all();
    cpu.load::<u64>(lin).unwrap();
    assert!(cpu.fast_ptr(lin, 8, true).is_some());
    // As code, it may not be written fast.
    let memory = cpu.mmu.memory().clone();
    let _version = memory.mark_code(lin, 8);
    cpu.mmu.flush_all();
    cpu.load::<u64>(lin).unwrap();
    assert!(cpu.fast_ptr(lin, 8, true).is_none());
}

/// Making room for code while x87 state is in the host's registers: its pointers name an instruction that is dropped.
#[test]
fn x87_pointers_outlive_the_code() {
    let cpu = testing::long(Vendor::Intel);
    // fld1; jmp to the next, often enough to fill the area; hlt
    let mut code = vec![0xd9, 0xe8];
    for _ in 0..1500 {
        code.extend([0xeb, 0]);
    }
    code.push(0xf4);
    let t = run(cpu, &code, 1400, 64 << 10);
    // FXSAVE's FIP.
    assert_eq!(u64::from_le_bytes(t.state().xsave[8..16].try_into().unwrap()), CODE);
}

/// The selector among the x87 pointers is that of the last instruction's operand, whatever is loaded after it.
#[test]
fn x87_selectors_outlive_the_segment() {
    let mut cpu = testing::long(Vendor::Intel);
    cpu.seg[sreg::DS].selector = 0x1230;
    let memory = cpu.mmu.memory().clone();
    // fld dword [0x8000]; xor eax, eax; mov ds, eax; fnstenv [0x8100]; hlt
    let code = [
        &[0xd9, 0x04, 0x25, 0, 0x80, 0, 0][..],
        &[0x31, 0xc0, 0x8e, 0xd8, 0xd9, 0x34, 0x25, 0, 0x81, 0, 0, 0xf4],
    ];
    let t = run(cpu, &code.concat(), 5, 1 << 20);
    assert_eq!(t.state().seg[sreg::DS].selector, 0);
    assert_eq!(memory.load::<u16>(0x8100 + 24).unwrap(), 0x1230);
}

/// Instructions are counted one and all if that is asked for.
#[test]
fn instructions_are_counted_when_asked_for() {
    // mov ecx, 1000; 1: dec ecx; jnz 1b; rdtsc; hlt
    let t = run_freely(&[0xb9, 0xe8, 3, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x0f, 0x31, 0xf4]);
    let s = t.stats();
    assert_eq!((s.instructions, s.partial), (1 + 2 * 1000 + 2, false));
    assert!(s.exits.iter().sum::<u64>() > 0 && s.code_memory > 1 << 20 && s.code_memory <= 4 << 20, "{s:?}");
}

/// An indirect jump that lies in two pages and is come to often is made anew as hot code, and goes on.
#[test]
fn hot_indirect_jumps_in_two_pages_go_on() {
    let cpu = testing::long(Vendor::Intel);
    let mut code = vec![0x90; 0x1010];
    // mov ecx, 20; mov eax, CODE + 0x1001; 1: jmp to the end of the page
    code[..15].copy_from_slice(&[0xb9, 20, 0, 0, 0, 0xb8, 0x01, 0x10, 0x01, 0, 0xe9, 0xf0, 0x0f, 0, 0]);
    // jmp rax; dec ecx; jnz 1b; hlt
    code[0xfff..0x100a].copy_from_slice(&[0xff, 0xe0, 0xff, 0xc9, 0x0f, 0x85, 0x01, 0xf0, 0xff, 0xff, 0xf4]);
    let t = run(cpu, &code, 1000, 1 << 20);
    assert_eq!((t.state().gpr[1], t.state().rip), (0, CODE + 0x100a));
}

/// In a new generation of code addresses, a page is looked up once; what was known of it before leads on without leaving translated code.
#[test]
fn old_links_and_jumps_hold_in_a_new_generation() {
    const ROUNDS: u64 = 500;
    let mut code = vec![0xcc; 0x1100];
    let mut put = |at: usize, bytes: &[u8]| code[at..at + bytes.len()].copy_from_slice(bytes);
    // mov ecx, 500; 1: mov rax, cr3; mov cr3, rax; jmp to the next page
    put(0, &[0xb9, 0xf4, 0x01, 0, 0, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xe9, 0xf0, 0x0f, 0, 0]);
    // There and back by links, then by indirect jumps.
    put(0x1000, &[0xe9, 0x3b, 0xf0, 0xff, 0xff]);
    put(0x40, &[0xe9, 0xdb, 0x0f, 0, 0]);
    put(0x1020, &[0xe9, 0x3b, 0xf0, 0xff, 0xff]);
    put(0x60, &[0xb8, 0x40, 0x10, 0x01, 0, 0xff, 0xe0]);
    put(0x1040, &[0xb8, 0x80, 0x00, 0x01, 0, 0xff, 0xe0]);
    // loop 1b; hlt
    put(0x80, &[0xff, 0xc9, 0x75, 0x81, 0xf4]);
    let t = run_freely(&code);
    let exits = t.stats().exits;
    assert_eq!(t.stats().instructions, 1 + ROUNDS * 12 + 1);
    assert!((ROUNDS..ROUNDS + 30).contains(&exits[0]) && exits[1] < 10, "{exits:?}");
}

/// A page of code that is mapped at the next page too goes on there, and then at what comes behind that.
#[test]
fn code_mapped_at_successive_pages_ends_behind_the_last() {
    let cpu = testing::long(Vendor::Intel);
    let (directory, table, end) = (0xa000, 0xb000, CODE + 0x3000);
    // What lies below 2 MiB is where it was, by small pages.
    testing::put(&cpu, 0x9000, directory | 7);
    testing::put(&cpu, directory, table | 7);
    for n in 0..512 {
        let gpa = if (0x11..0x13).contains(&n) { CODE } else { n << 12 };
        testing::put(&cpu, table + n * 8, gpa | 7);
    }
    cpu.mmu.memory().store(end, 0xf4u8).unwrap();
    let t = run(cpu, &[0x90; 4096], 3 * 4096 + 1, 1 << 20);
    assert_eq!((t.state().rip, t.state().mp_state), (end + 1, ringer_arch::MpState::Halted));
}

/// A program that goes round in more code than there is room for finds some of it when it comes back.
#[test]
fn some_code_outlives_a_want_of_room() {
    const BLOCKS: usize = 8000;
    const ROUNDS: u64 = 20;
    let cpu = testing::long(Vendor::Intel);
    // mov ecx, 20; jmp 1f; a few times ret; 1: call one of them, and so on; dec ecx; jnz 1b; hlt
    let mut code = vec![0xb9, ROUNDS as u8, 0, 0, 0, 0xeb, 8];
    code.extend([0xc3; 8]);
    for n in 0..BLOCKS {
        let to = 7 + (n % 8) as i32;
        code.push(0xe8);
        code.extend((to - (code.len() as i32 + 4)).to_le_bytes());
    }
    code.extend([0xff, 0xc9, 0x0f, 0x85]);
    code.extend((15 - (code.len() as i32 + 4)).to_le_bytes());
    code.push(0xf4);
    let t = run(cpu, &code, ROUNDS * (2 * BLOCKS as u64 + 2) + 3, 1 << 20);
    assert_eq!((t.state().gpr[1], t.state().rip), (0, CODE + code.len() as u64));
    let (translated, all) = (t.stats().blocks_decoded, ROUNDS * BLOCKS as u64);
    // Or the program fits, and this shows nothing.
    assert!(translated > 2 * BLOCKS as u64 && translated < all * 4 / 5, "{translated} of {all}");
}
