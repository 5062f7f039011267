//! Instructions from random bytes: nothing panics, faults change nothing, memory operands mean what register operands mean.

use super::*;
use iced_x86::{Code, OpKind, Register};

/// A small generator (xorshift64*), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// A vector or x87 instruction with ModRM byte `modrm`, perhaps an invalid one.
    fn instruction(&mut self, modrm: u8, tail: &[u8]) -> Vec<u8> {
        let mut b = Vec::new();
        match self.below(4) {
            0 => b.extend([0xc5, self.byte(), self.byte()]),
            1 => b.extend([0xc4, 0xe1 + self.below(3) as u8, self.byte(), self.byte()]),
            2 => b.push(0xd8 | (self.byte() & 7)),
            _ => {
                b.extend([&[][..], &[0x66], &[0xf2], &[0xf3]][self.below(4) as usize]);
                b.extend([&[][..], &[0x48], &[0x44]][self.below(3) as usize]);
                b.extend([&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]][self.below(3) as usize]);
                b.push(self.byte());
            }
        }
        b.push(modrm);
        b.extend(tail);
        b.push(self.byte() & 0x7f);
        b
    }
}

fn fill(c: &mut Cpu, r: &mut Random) {
    for n in 0..16 {
        c.regs[n] = r.next();
    }
    for n in 160..416 {
        c.xsave.0[n] = r.byte();
    }
    for n in 576..832 {
        c.xsave.0[n] = r.byte();
    }
}

fn step(c: &mut Cpu, code: &[u8]) -> Option<(Instruction, R<()>)> {
    let i = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE).decode();
    if i.is_invalid() {
        return None;
    }
    c.rip = CODE;
    c.next_rip = CODE + i.len() as u64;
    execute(c, &i).map(|r| (i, r))
}

#[test]
fn faults_change_nothing() {
    let mut c = cpu();
    let mut r = Random(1);
    let clean = c.xsave.clone();
    let mut faults = 0;
    for _ in 0..60_000 {
        fill(&mut c, &mut r);
        // [rbx+disp8], which is anywhere, or a register.
        let modrm = if r.below(2) == 0 { 0x43 | (r.byte() & 0x38) } else { 0xc0 | r.byte() };
        let code = r.instruction(modrm, &[8]);
        c.regs[3] = [0x2ff0, RAM - 16, 1 << 60, 0x2001][r.below(4) as usize];
        let (regs, xsave, fl) = (c.regs, c.xsave.clone(), c.fl);
        match step(&mut c, &code) {
            Some((i, Err(_))) => {
                faults += 1;
                // VSIB: gathers make progress. MASKMOVQ goes over to MMX registers before it stores.
                let maskmovq = i.code() == iced_x86::Code::Maskmovq_rDI_mm_mm;
                if i.memory_index().is_vector_register() || maskmovq {
                    continue;
                }
                assert_eq!((c.regs, c.fl), (regs, fl), "{i:?}");
                // It enters MMX mode before it stores.
                if i.code() == Code::Maskmovq_rDI_mm_mm {
                    c.xsave = xsave;
                    continue;
                }
                assert_eq!(c.xsave.0[..24], xsave.0[..24], "{i:?}");
                assert_eq!(c.xsave.0[32..], xsave.0[32..], "{i:?}");
            }
            // Control words that the program has changed are put back.
            Some((_, Ok(()))) => {
                c.xsave = clean.clone();
            }
            None => {}
        }
    }
    assert!(faults > 1000);
    host_is_clean();
}

#[test]
fn memory_operands_equal_register_operands() {
    let mut r = Random(2);
    let mut same = 0;
    let (mut a, mut b) = (cpu(), cpu());
    for _ in 0..60_000 {
        fill(&mut a, &mut r);
        a.fl = 0x200;
        a.xsave.0[..32].copy_from_slice(&b.xsave.0[..32]);
        let data: [u8; 32] = std::array::from_fn(|_| r.byte());
        // Operand rm: xmm6/ymm6, or [rsi].
        a.xsave.0[160 + 96..][..16].copy_from_slice(&data[..16]);
        a.xsave.0[576 + 96..][..16].copy_from_slice(&data[16..]);
        a.regs[6] = 0x2000;
        poke(&a, 0x2000, &data);
        poke(&b, 0x2000, &data);
        (b.regs, b.fl, b.xsave) = (a.regs, a.fl, a.xsave.clone());
        let modrm = (r.byte() & 0x38) | 6;
        let at_memory = r.instruction(modrm, &[]);
        let Some(at) = at_memory.iter().rposition(|x| *x == modrm) else { continue };
        let mut at_register = at_memory.clone();
        at_register[at] |= 0xc0;
        let decoded = |code: &[u8]| Decoder::with_ip(64, code, CODE, DecoderOptions::NONE).decode();
        let (m, g) = (decoded(&at_memory), decoded(&at_register));
        if m.code() != g.code() || m.is_invalid() {
            continue;
        }
        // The same operand is memory here and vector register 6 there, and is only read.
        let Some(op) = (0..m.op_count()).find(|o| m.op_kind(*o) == OpKind::Memory) else { continue };
        if !g.op_register(op).is_vector_register() || op == 0 || g.op_register(0) == g.op_register(op) {
            continue;
        }
        // These leave other parts of the register than their memory forms do.
        let merging = ["Movss", "Movsd", "Vpermil2", "Insertps", "Vinsertps"];
        let name = format!("{:?}", m.mnemonic());
        if merging.iter().any(|x| name.starts_with(x)) || m.op_register(1) == Register::XMM6 {
            continue;
        }
        let (Some((_, x)), Some((_, y))) = (step(&mut a, &at_memory), step(&mut b, &at_register)) else {
            continue;
        };
        assert_eq!(x, y, "{m:?}");
        assert_eq!(a.regs, b.regs, "{m:?}");
        assert_eq!(a.fl, b.fl, "{m:?}");
        assert_eq!(a.xsave.0[24..], b.xsave.0[24..], "{m:?}");
        same += 1;
    }
    assert!(same > 1000, "{same}");
}

#[test]
fn handlers_equal_the_common_way() {
    let (mut a, mut b) = (cpu(), cpu());
    let clean = a.xsave.clone();
    let mut r = Random(3);
    let how = crate::decode::How { bits: 64, amd: true, limit: 1 };
    let mut completed = 0;
    for n in 0..60_000 {
        fill(&mut a, &mut r);
        a.regs[3] = [0x2ff0, 0x2ff8, 0x2fe0, RAM - 16, 1 << 60, 0x2001][r.below(6) as usize];
        a.regs[6] = a.regs[3] - 8;
        a.cr0 = cr0::PE | cr0::ET | cr0::NE | if n % 16 == 0 { cr0::TS } else { 0 };
        a.fl = 0x200;
        let data: [u8; 128] = std::array::from_fn(|_| r.byte());
        // [rbx+8], [rsi+2*rax+8], registers.
        a.regs[0] = 4;
        let modrm = [0x43, 0x44, 0xc0][r.below(3) as usize] | (r.byte() & 0x38);
        let code = r.instruction(modrm, if modrm & 0xc7 == 0x44 { &[0x46, 8] } else { &[8] });
        let i = Decoder::with_ip(64, &code, CODE, DecoderOptions::AMD).decode();
        // Random numbers differ.
        if i.is_invalid()
            || super::super::prepare(&i).is_none()
            || format!("{:?}", i.code()).starts_with("Rd")
        {
            continue;
        }
        for c in [&a, &b] {
            poke(c, 0x2fc0, &data);
            poke(c, CODE, &code);
        }
        // Most often the TLB has the page.
        for c in [&mut a, &mut b] {
            if n % 4 == 0 {
                c.mmu.flush_all();
            } else {
                c.store(0x2e00, 0u8).unwrap();
            }
            c.exc = None;
            c.leave = false;
        }
        (b.regs, b.fl, b.xsave, b.cr0) = (a.regs, a.fl, a.xsave.clone(), a.cr0);
        b.rip = CODE;
        b.next_rip = CODE + i.len() as u64;
        let done = execute(&mut b, &i).unwrap().is_ok();
        completed += u32::from(done);
        a.rip = CODE;
        let ops = crate::decode::decode(&code[..i.len()], how).ops;
        assert_eq!(ops.run(&mut a), u32::from(done), "{i:?}");
        assert_eq!(a.regs[..16], b.regs[..16], "{i:?}");
        assert_eq!((a.fl, a.exc), (b.fl, b.exc), "{i:?}");
        assert_eq!(a.xsave.0, b.xsave.0, "{i:?}");
        assert_eq!(peek::<128>(&a, 0x2fc0), peek::<128>(&b, 0x2fc0), "{i:?}");
        if a.xsave.0[..32] != clean.0[..32] {
            a.xsave = clean.clone();
        }
    }
    assert!(completed > 5000, "{completed}");
}
