//! Where things stand in a check's machine. Up to [`RAM`] linear addresses are physical ones in every mode.

/// Bytes of RAM: little, as lock-step runs compare all of it.
pub const RAM: u64 = (4 << 20) + (128 << 10);
/// The GDT, one page.
pub const GDT: u64 = 0x1000;
/// The IDT; in real mode it is at 0.
pub const IDT: u64 = 0x2000;
/// The task-state segment.
pub const TSS: u64 = 0x3000;
/// Room for a second task-state segment.
pub const TSS2: u64 = 0x3800;
/// What each vector leads to, 16 bytes apart: OUT to [`END`], then a return.
pub const HANDLERS: u64 = 0x4000;
/// The LDT, if a check makes one.
pub const LDT: u64 = 0x5000;
/// Code of real mode.
pub const RCODE: u64 = 0x6000;
/// Where the stack of ring 0 starts.
pub const STACK: u64 = 0x8000;
/// The stack that the TSS names for ring 0.
pub const STACK_RING0: u64 = 0x9000;
/// A stack for interrupts of their own (IST 1), or of the second processor.
pub const STACK_IST: u64 = 0xa000;
/// Code of ring 0. Up to [`UCODE`] and from [`KDATA`] to [`UDATA`] pages are the supervisor's.
pub const KCODE: u64 = 0x1_0000;
/// Code of ring 3.
pub const UCODE: u64 = 0x1_8000;
/// Data of ring 0, eight pages.
pub const KDATA: u64 = 0x2_0000;
/// Data of ring 3, eight pages.
pub const UDATA: u64 = 0x2_8000;
/// Where the stack of ring 3 starts.
pub const USTACK: u64 = 0x3_0000;
/// The root of the page tables. The rest follows it.
pub const TABLES: u64 = 0x4_0000;
/// Free for a check's own page tables.
pub const MORE_TABLES: u64 = 0x5_0000;
/// Free RAM, eight pages of ring 0.
pub const FREE: u64 = 0x6_0000;
/// A large page of any size up to 4 MiB, whose first 128 KiB are RAM.
pub const LARGE: u64 = 4 << 20;
/// A page that is not RAM. In every mode it is mapped where it is.
pub const MMIO: u64 = 16 << 20;

/// The port that ends a run.
pub const END: i32 = 0xf4;
/// The port that makes the vector that is written pending on the processor itself.
pub const RAISE: i32 = 0xe0;
/// The port that makes an NMI pending.
pub const NMI: i32 = 0xe1;
/// The port that ends the interrupt of highest priority in service.
pub const EOI: i32 = 0xe2;
/// The port that sends: processor in bits 23:16; in 15:8 0 an interrupt, 1 NMI, 2 INIT, 3 start-up; vector in 7:0. 32 bits.
pub const SEND: i32 = 0xe4;
/// The vector of the TSC deadline.
pub const TIMER_VECTOR: u8 = 0x50;
/// A software interrupt that ring 3 may use.
pub const CALL_VECTOR: u8 = 0x80;

/// Selectors. Those of code and data are flat.
#[allow(missing_docs)]
pub mod sel {
    pub const KCODE64: u16 = 0x08;
    pub const KDATA: u16 = 0x10;
    /// STAR counts from here: data and 64-bit code follow.
    pub const UCODE32: u16 = 0x1b;
    pub const UDATA: u16 = 0x23;
    pub const UCODE64: u16 = 0x2b;
    pub const KCODE32: u16 = 0x30;
    /// Limit 64 KiB, base 0.
    pub const KCODE16: u16 = 0x38;
    pub const KDATA16: u16 = 0x40;
    /// 16 bytes in long mode.
    pub const TSS: u16 = 0x48;
    /// First of those that are free for checks, at most 0x1ff of bytes in all.
    pub const FREE: u16 = 0x68;
}
