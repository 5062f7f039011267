//! [`VcpuState`]: all of one processor's architectural state, independent of the engine that runs it.

use crate::regs::{cr0, dr, rflags};
use crate::seg::{Attr, Segment, TableReg, sreg};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

/// Whether a processor executes (Intel SDM vol. 3A §8.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Running,
    /// In HLT until an interrupt.
    Halted,
    /// After INIT or, on application processors, reset: waits for a SIPI.
    WaitForSipi,
}

/// Bytes of the XSAVE area in standard form for x87, SSE and AVX: 512 legacy, 64 header, 256 upper halves of YMM.
pub const XSAVE_LEN: usize = 832;
/// Offset of the upper halves of YMM in [`VcpuState::xsave`].
pub const XSAVE_YMM_HI: usize = 576;

/// One processor's architectural state. At-reset values: [`VcpuState::reset`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// General registers in encoding order (RAX RCX RDX RBX RSP RBP RSI RDI R8..R15).
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES CS SS DS FS GS.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableReg,
    /// Interrupt descriptor table.
    pub idtr: TableReg,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3, DR6 at 6, DR7 at 7 (4 and 5 unused).
    pub dr: [u64; 8],
    /// The XSAVE area in standard form, [`XSAVE_LEN`] bytes: always complete (XSTATE_BV = 7).
    #[serde(serialize_with = "hex_boxed", deserialize_with = "crate::hex::deserialize")]
    pub xsave: Box<[u8; XSAVE_LEN]>,
    /// Whether it executes.
    pub mp_state: MpState,
    /// CPL; kept apart because SS.DPL and CS.RPL differ in corner cases of real mode.
    pub cpl: u8,
    /// Interrupts are held off for one instruction by STI or MOV SS.
    pub interrupt_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// Debug traps (bits of DR6) that are due before the next instruction, or after it under an interrupt shadow, as in VMX's pending
    /// debug exceptions (Intel SDM vol. 3C §24.4.2).
    pub pending_debug: u64,
    /// The next HLT, or the one that the processor is in, ends at once: KVM_HC_KICK_CPU has come.
    pub unhalt: bool,
    /// The PDPTEs that PAE paging keeps in registers (Intel SDM vol. 3A §4.4.1); `None`: those in memory at CR3 are loaded, if
    /// paging uses any.
    pub pdptes: Option<[u64; 4]>,
    /// Time-stamp counter.
    pub tsc: u64,
    /// All other MSRs that the model has and that hold state, by number.
    pub msrs: BTreeMap<u32, u64>,
}

fn hex_boxed<S: Serializer>(bytes: &[u8; XSAVE_LEN], s: S) -> Result<S::Ok, S::Error> {
    crate::hex::serialize(bytes, s)
}

impl VcpuState {
    /// State after power-up or RESET (Intel SDM vol. 3A table 9-1); `signature` is CPUID.1:EAX, which RDX holds.
    /// A boot processor runs at the reset vector; others wait for a SIPI.
    #[must_use]
    pub fn reset(signature: u32, boot: bool) -> VcpuState {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attr: Attr(0x93) };
        let mut seg = [data; 6];
        seg[sreg::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attr: Attr(0x9b) };
        let mut gpr = [0; 16];
        gpr[2] = u64::from(signature);
        let mut drs = [0; 8];
        drs[6] = dr::DR6_FIXED;
        drs[7] = dr::DR7_FIXED;
        let table = TableReg { base: 0, limit: 0xffff };
        VcpuState {
            gpr,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            seg,
            ldtr: Segment { limit: 0xffff, attr: Attr(0x82), ..Segment::default() },
            tr: Segment { limit: 0xffff, attr: Attr(0x8b), ..Segment::default() },
            gdtr: table,
            idtr: table,
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: drs,
            xsave: reset_xsave(),
            mp_state: if boot { MpState::Running } else { MpState::WaitForSipi },
            cpl: 0,
            interrupt_shadow: false,
            nmi_blocked: false,
            nmi_pending: false,
            pending_debug: 0,
            unhalt: false,
            pdptes: None,
            tsc: 0,
            msrs: BTreeMap::new(),
        }
    }
}

/// The XSAVE area of initial x87, SSE and AVX state: FCW 0x37f, MXCSR 0x1f80, all registers zero (after FNINIT;
/// RESET leaves FCW 0x40, which no software can tell from running FNINIT first, as all do).
fn reset_xsave() -> Box<[u8; XSAVE_LEN]> {
    let mut x = Box::new([0; XSAVE_LEN]);
    x[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    x[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    x[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    x[512] = 7;
    x
}
