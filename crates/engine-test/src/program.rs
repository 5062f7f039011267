//! [`Program`]: what is loaded into the test machine and run.

use crate::layout as l;
use ringer_arch::VcpuState;
use std::sync::Arc;

/// An instruction of a program, which can be dropped: replaced by NOPs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    /// Offset in the code window.
    pub off: u16,
    /// Bytes.
    pub len: u8,
}

/// How a program is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ending {
    /// It ends itself by the port.
    #[default]
    Port,
    /// It may halt with interrupts off: it is stopped then.
    Halt,
}

/// A program and the state it starts from.
#[derive(Clone, Debug)]
pub struct Program {
    /// The processor.
    pub state: VcpuState,
    /// The code window.
    pub code: Vec<u8>,
    /// Ranges of it that are in use.
    pub used: Vec<(u16, u16)>,
    /// Instructions, in the order in which they were made.
    pub insns: Vec<Insn>,
    /// What else is written to RAM first: guest-physical address and bytes.
    pub patches: Vec<(u64, Arc<[u8]>)>,
    /// Linear address of the code window.
    pub base: u64,
    /// Bits of the code.
    pub bits: u32,
    /// How it ends.
    pub ending: Ending,
    /// Another thread interrupts it at any time.
    pub asynchronous: bool,
    /// Events until it is ended.
    pub limit: u32,
}

impl Program {
    /// An empty program that starts from `state`.
    #[must_use]
    pub fn new(state: VcpuState) -> Program {
        Program {
            state,
            code: vec![0xcc; l::CODE_LEN as usize],
            used: Vec::new(),
            insns: Vec::new(),
            patches: Vec::new(),
            base: l::CODE,
            bits: 64,
            ending: Ending::Port,
            asynchronous: false,
            limit: 40,
        }
    }

    /// Takes instruction `n` out.
    pub fn drop_insn(&mut self, n: usize) {
        const NOPS: [&[u8]; 9] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0],
            &[0x0f, 0x1f, 0x44, 0, 0],
            &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
            &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        ];
        let i = self.insns[n];
        let mut at = usize::from(i.off);
        let mut left = usize::from(i.len);
        while left > 0 {
            let n = left.min(NOPS.len());
            self.code[at..at + n].copy_from_slice(NOPS[n - 1]);
            at += n;
            left -= n;
        }
    }

    /// What is to be written to RAM: guest-physical address and bytes. The code first.
    pub fn writes(&self, mut write: impl FnMut(u64, &[u8])) {
        for &(from, to) in &self.used {
            write(l::CODE_GPA + u64::from(from), &self.code[usize::from(from)..usize::from(to)]);
        }
        let mut skip = [0u8; l::CODE_LEN as usize];
        for i in &self.insns {
            skip[usize::from(i.off)] = i.len;
        }
        for &(from, to) in &self.used {
            write(l::SKIP + u64::from(from), &skip[usize::from(from)..usize::from(to)]);
        }
        let mut log = [0; 16];
        log[l::LOG_LIMIT as usize..][..4].copy_from_slice(&self.limit.to_le_bytes());
        log[l::LOG_WINDOW as usize..][..8].copy_from_slice(&self.base.to_le_bytes());
        write(l::LOG, &log);
        for (gpa, bytes) in &self.patches {
            write(*gpa, bytes);
        }
    }
}
