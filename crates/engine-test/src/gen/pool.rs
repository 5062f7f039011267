//! [`Pool`]: what all programs are made of.

use crate::layout as l;
use crate::machine;
use iced_x86::{Code, EncodingKind, FlowControl, Instruction, Mnemonic as M};
use ringer_arch::VcpuState;
use ringer_arch::cpu::{CpuModel, Feature};
use ringer_difftest::forms::{self, Reach};
use ringer_difftest::interp::{Interp, decoder_options};
use ringer_difftest::record::XSAVE_LEN;
use ringer_difftest::rng::Rng;
use ringer_difftest::values;
use std::sync::Arc;

/// Vector states to choose from.
const VECTORS: usize = 512;
/// Pages of data to choose from.
const PAGES: usize = 64;

/// Instruction forms by kind.
#[derive(Default)]
pub struct Classes {
    /// What compilers emit.
    pub hot: Vec<Code>,
    /// Of these and the vector moves, what leaves flags alone.
    pub quiet: Vec<Code>,
    /// Of these, what reads flags.
    pub consumers: Vec<Code>,
    /// The other integer instructions.
    pub int: Vec<Code>,
    /// General registers with VEX.
    pub bmi: Vec<Code>,
    /// MMX and SSE.
    pub sse: Vec<Code>,
    /// AVX and AVX2, FMA and the like.
    pub avx: Vec<Code>,
    /// x87.
    pub x87: Vec<Code>,
    /// What the model lacks.
    pub absent: Vec<Code>,
}

/// What all programs are made of.
pub struct Pool {
    /// The processor model.
    pub model: Arc<CpuModel>,
    /// RAM before any program.
    pub image: Arc<Vec<u8>>,
    /// The processor before any program.
    pub base: VcpuState,
    /// Forms of 64-bit code.
    pub long: Classes,
    /// Forms of 32-bit code.
    pub legacy: Classes,
    /// Vector states.
    pub vectors: Vec<Box<[u8; XSAVE_LEN]>>,
    /// Pages of data.
    pub pages: Vec<Arc<[u8]>>,
    /// The exceptions' part of the IDT without and with a stack of their own.
    pub idts: [Vec<u8>; 2],
    /// Decoder options.
    pub options: u32,
}

impl Pool {
    /// For programs of `seed`.
    #[must_use]
    pub fn new(model: Arc<CpuModel>, seed: u64) -> Pool {
        let mut r = Rng::new(seed, u64::MAX);
        let mask = Interp::mxcsr_mask(&model);
        let vectors = (0..VECTORS).map(|_| {
            let mut x = Box::new([0; XSAVE_LEN]);
            values::vector_state(&mut r, &mut x, mask);
            x
        });
        let vectors = vectors.collect();
        let pages = (0..PAGES).map(|_| {
            let mut page = vec![0; l::PAGE as usize];
            for part in page.chunks_mut(256) {
                values::memory(&mut r, part);
            }
            Arc::from(page)
        });
        let pages = pages.collect();
        let idt = |ist| {
            (0..=255u8)
                .flat_map(|v| {
                    let (a, b) = machine::gate(v, ist);
                    [a, b].into_iter().flat_map(u64::to_le_bytes)
                })
                .collect()
        };
        Pool {
            image: Arc::new(machine::image()),
            base: machine::state(&model),
            long: classes(&model, 64),
            legacy: classes(&model, 32),
            vectors,
            pages,
            idts: [idt(0), idt(1)],
            options: decoder_options(&model),
            model,
        }
    }

    /// Whether the model has `f`.
    #[must_use]
    pub fn has(&self, f: Feature) -> bool {
        self.model.has(f)
    }
}

fn classes(model: &CpuModel, bits: u32) -> Classes {
    let mut c = Classes::default();
    for (code, reach) in forms::all(model, bits) {
        let info = code.op_code();
        let mut i = Instruction::default();
        i.set_code(code);
        let plain =
            i.flow_control() == FlowControl::Next && !i.is_stack_instruction() && !banned(i.mnemonic());
        match reach {
            Reach::Absent if plain && info.encoding() != EncodingKind::EVEX => c.absent.push(code),
            Reach::Both if plain => {}
            _ => continue,
        }
        if reach == Reach::Absent {
            continue;
        }
        let name = format!("{code:?}");
        let vector = name.contains("mm");
        let vex = info.encoding() == EncodingKind::VEX;
        let list = match (vex, vector, info.mnemonic()) {
            (true, true, _) => &mut c.avx,
            (true, false, _) => &mut c.bmi,
            (false, true, _) => &mut c.sse,
            (_, _, m) if format!("{m:?}").starts_with('F') => &mut c.x87,
            (_, _, m) if hot(m) => &mut c.hot,
            _ => &mut c.int,
        };
        list.push(code);
        let moves = name.contains("Mov") && vector;
        if (hot(i.mnemonic()) || moves) && i.rflags_modified() == 0 {
            c.quiet.push(code);
        }
        if hot(i.mnemonic()) && i.rflags_read() != 0 {
            c.consumers.push(code);
        }
    }
    c
}

fn hot(m: M) -> bool {
    use M::{
        Adc, Add, And, Bt, Btc, Btr, Bts, Cmova, Cmovae, Cmovb, Cmovbe, Cmove, Cmovg, Cmovge, Cmovl, Cmovle,
        Cmovne, Cmovno, Cmovnp, Cmovns, Cmovo, Cmovp, Cmovs, Cmp, Cmpxchg, Dec, Imul, Inc, Lea, Mov, Movsx,
        Movsxd, Movzx, Neg, Not, Or, Rcl, Rcr, Rol, Ror, Sar, Sbb, Seta, Setae, Setb, Setbe, Sete, Setg,
        Setge, Setl, Setle, Setne, Setno, Setnp, Setns, Seto, Setp, Sets, Shl, Shld, Shr, Shrd, Sub, Test,
        Xadd, Xchg, Xor,
    };
    matches!(
        m,
        Adc | Add
            | And
            | Bt
            | Btc
            | Btr
            | Bts
            | Cmp
            | Cmpxchg
            | Dec
            | Imul
            | Inc
            | Lea
            | Mov
            | Movsx
            | Movsxd
            | Movzx
            | Neg
            | Not
            | Or
            | Rcl
            | Rcr
            | Rol
            | Ror
            | Sar
            | Sbb
            | Shl
            | Shld
            | Shr
            | Shrd
            | Sub
            | Test
            | Xadd
            | Xchg
            | Xor
    ) || matches!(
        m,
        Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
    )
}

/// What no straight code gets at random: it ends programs, changes the mode, or reads what runs on. What of it is wanted has its
/// own patterns.
#[must_use]
pub fn banned(m: M) -> bool {
    matches!(
        m,
        M::In
            | M::Out
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
            | M::Hlt
            | M::Cli
            | M::Sti
            | M::Lgdt
            | M::Lidt
            | M::Lldt
            | M::Ltr
            | M::Lmsw
            | M::Clts
            | M::Wrmsr
            | M::Rdmsr
            | M::Rdtsc
            | M::Rdtscp
            | M::Xsetbv
            | M::Swapgs
            | M::Invd
            | M::Wbinvd
            | M::Wbnoinvd
            | M::Invlpg
            | M::Invlpga
            | M::Invpcid
            | M::Clac
            | M::Stac
            | M::Lds
            | M::Les
            | M::Lfs
            | M::Lgs
            | M::Lss
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Enter
            | M::Leave
            | M::Skinit
            | M::Stgi
            | M::Clgi
    )
}

/// What golden cases leave out: it halts, loads descriptor tables, selectors or control registers, or answers for the machine.
#[must_use]
pub fn ends_or_leaves(m: M) -> bool {
    let fine = matches!(
        m,
        M::Cli
            | M::Sti
            | M::Clts
            | M::Swapgs
            | M::Invlpg
            | M::Wbinvd
            | M::Wbnoinvd
            | M::Invd
            | M::Stac
            | M::Clac
            | M::Enter
            | M::Leave
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Wrfsbase
            | M::Wrgsbase
            | M::In
            | M::Out
    );
    banned(m) && !fine
        || matches!(
            m,
            M::Iret
                | M::Iretd
                | M::Iretq
                | M::Retf
                | M::Syscall
                | M::Sysret
                | M::Sysretq
                | M::Sysenter
                | M::Sysexit
                | M::Sysexitq
                | M::Rsm
                | M::Int
        )
}
