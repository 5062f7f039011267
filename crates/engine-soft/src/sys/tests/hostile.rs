//! Programs that mean harm: whatever system instruction meets whatever tables and registers, the engine neither panics nor hangs.

use crate::cpu::Cpu;
use crate::sys::testing::*;
use crate::sys::{debug, interrupt, state};
use iced_x86::{Decoder, DecoderOptions};
use ringer_arch::cpu::Vendor;
use ringer_arch::regs::rflags;

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// A number of the sort that breaks things.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX - self.below(16),
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.below(0x100),
            5 => self.below(0x4_0000),
            6 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }
}

/// Opcodes of system instructions; ModRM and what follows is random.
const OPCODES: &[&[u8]] = &[
    b"\x8e",
    b"\x8c",
    b"\x06",
    b"\x07",
    b"\x16",
    b"\x17",
    b"\x1e",
    b"\x1f",
    b"\x0f\xa0",
    b"\x0f\xa1",
    b"\x0f\xa8",
    b"\x0f\xa9",
    b"\xc4",
    b"\xc5",
    b"\x0f\xb2",
    b"\x0f\xb4",
    b"\x0f\xb5",
    b"\x9a",
    b"\xea",
    b"\xff\x18",
    b"\xff\x28",
    b"\xff\x1d",
    b"\xff\x2d",
    b"\xca",
    b"\xcb",
    b"\xcc",
    b"\xcd",
    b"\xce",
    b"\xcf",
    b"\x48\xcf",
    b"\x48\xcb",
    b"\xf1",
    b"\x62",
    b"\x9c",
    b"\x9d",
    b"\xfa",
    b"\xfb",
    b"\xf4",
    b"\x0f\x05",
    b"\x0f\x07",
    b"\x48\x0f\x07",
    b"\x0f\x34",
    b"\x0f\x35",
    b"\x48\x0f\x35",
    b"\x0f\x01",
    b"\x0f\x00",
    b"\x0f\x02",
    b"\x0f\x03",
    b"\x63",
    b"\x0f\x06",
    b"\x0f\x08",
    b"\x0f\x09",
    b"\x0f\x20",
    b"\x0f\x21",
    b"\x0f\x22",
    b"\x0f\x23",
    b"\x0f\x30",
    b"\x0f\x31",
    b"\x0f\x32",
    b"\x0f\x33",
    b"\x0f\xa2",
    b"\x0f\xae",
    b"\xf3\x0f\xae",
    b"\xf3\x48\x0f\xae",
    b"\x66\x0f\x38\x82",
    b"\xf3\x0f\xc7",
    b"\xe4",
    b"\xe5",
    b"\xe6",
    b"\xe7",
    b"\xec",
    b"\xed",
    b"\xee",
    b"\xef",
    b"\x6c",
    b"\x6d",
    b"\x6e",
    b"\x6f",
    b"\xf3\x6c",
    b"\xf3\x6f",
];

fn instruction(r: &mut Random, cpu: &mut Cpu) {
    let mut code = [0u8; 15];
    let mut n = 0;
    for p in [0x66, 0x67] {
        if r.below(8) == 0 {
            code[n] = p;
            n += 1;
        }
    }
    let op = OPCODES[r.below(OPCODES.len() as u64) as usize];
    code[n..n + op.len()].copy_from_slice(op);
    for b in &mut code[n + op.len()..] {
        *b = r.next() as u8;
    }
    let mut d = Decoder::with_ip(cpu.bits(), &code, 0, DecoderOptions::NONE);
    let i = d.decode();
    if i.is_invalid() {
        return;
    }
    // REP with a count of millions ends, but not soon.
    if op.starts_with(b"\xf3") {
        cpu.regs[1] &= 0xff;
    }
    cpu.next_rip = cpu.rip.wrapping_add(i.len() as u64) & Cpu::width_mask(cpu.bits());
    match crate::sys::execute(cpu, &i) {
        Some(Ok(())) => cpu.rip = cpu.next_rip,
        Some(Err(_)) => {
            assert!(cpu.exc.is_some(), "{i:?} fails without an exception");
            interrupt::raise_pending(cpu);
        }
        None => {}
    }
}

fn scramble(r: &mut Random, cpu: &mut Cpu) {
    if r.below(2) == 0 {
        to_ring3(cpu);
        let f = rflags::FIXED | r.next() & (rflags::ALL & !rflags::VM);
        cpu.set_rflags(f);
    }
    for n in 0..16 {
        cpu.regs[n] = r.value();
    }
    for at in (GDT..TSS + 0x70).step_by(8) {
        if r.below(3) == 0 {
            let v = r.value();
            put(cpu, at, v);
        } else if r.below(4) == 0 {
            // Something with a type, present, at a plausible place.
            let v = r.below(0x2_0000) << 16 | 0xffff | (r.below(256) | 0x80) << 40 | r.below(16) << 52;
            put(cpu, at, v);
        }
    }
    cpu.tr.limit = r.value() as u32;
    cpu.gdtr.limit = r.value() as u16;
    cpu.fast.star = r.next();
    cpu.fast.sysenter_cs = r.next() & 0xffff;
    cpu.regs[4] = if r.below(2) == 0 { STACK0 - 0x100 } else { r.value() };
    if r.below(4) == 0 {
        let n = r.below(4) as usize;
        debug::set_dr(cpu, n, r.value());
        debug::set_dr(cpu, 7, r.next() & 0xffff_ffff);
    }
}

#[test]
fn no_panic_whatever_the_guest_does() {
    let mut r = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..1500 {
        let vendor = if round & 4 == 0 { Vendor::Intel } else { Vendor::Amd };
        let mut cpu = match round & 3 {
            0 => real(),
            1 => protected(vendor),
            _ => long(vendor),
        };
        if round & 3 != 0 {
            scramble(&mut r, &mut cpu);
        }
        for _ in 0..60 {
            instruction(&mut r, &mut cpu);
            if r.below(10) == 0 {
                interrupt::external(&mut cpu, r.next() as u8);
            }
            debug::code_breakpoint(&mut cpu);
            cpu.exc = None;
            if std::mem::take(&mut cpu.triple_fault) {
                break;
            }
        }
        // Whatever state that led to is one that can be saved and loaded.
        let s = state::save(&cpu);
        if let Err(e) = state::load(&mut cpu, &s) {
            panic!("round {round}: {e}");
        }
    }
}
