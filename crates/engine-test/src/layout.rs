//! Where things stand in the test machine: guest-physical addresses of its 4 MiB of RAM, and linear addresses.
//!
//! All linear addresses but the high ones are below 2 GiB, so that they fit absolute displacements and 32-bit code.

/// Page size.
pub const PAGE: u64 = 4096;
/// Bytes of guest RAM.
pub const RAM: u64 = 4 << 20;

/// Guest-physical address of the GDT.
pub const GDT: u64 = 0x1000;
/// The IDT, 256 gates of 16 bytes.
pub const IDT: u64 = 0x2000;
/// The task-state segment.
pub const TSS: u64 = 0x3000;
/// Handlers: one page of entries, then what they share.
pub const HANDLERS: u64 = 0x4000;
/// What handlers count and record; see [`crate::handlers`].
pub const LOG: u64 = 0x6000;
/// Length of the instruction at each offset of the code window, 0 where none starts: what handlers skip.
pub const SKIP: u64 = 0x8000;
/// Counts asynchronous interrupts.
pub const ASYNC: u64 = 0xc000;
/// Ends of the stacks that the TSS names: of asynchronous interrupts, of other events by choice, of double faults and NMIs, ring 0's.
pub const IST_ASYNC: u64 = 0xe000;
/// See [`IST_ASYNC`].
pub const IST_EVENT: u64 = 0xf000;
/// See [`IST_ASYNC`].
pub const IST_LAST: u64 = 0xf800;
/// See [`IST_ASYNC`].
pub const RSP0: u64 = 0x1_0000;
/// Page tables: the root, the root of the other address space, then others as they are made.
pub const ROOT: u64 = 0x1_0000;
/// See [`ROOT`].
pub const OTHER_ROOT: u64 = 0x1_1000;
/// The table that maps the data window, at a known place so that programs can edit it.
pub const DATA_TABLE: u64 = 0x1_2000;
/// The table that maps the code windows of user programs.
pub const CODE_TABLE: u64 = 0x1_3000;
/// The data window's table in the other address space.
pub const OTHER_DATA_TABLE: u64 = 0x1_4000;
/// The table that maps the code window of supervisor programs.
pub const KERNEL_CODE_TABLE: u64 = 0x1_5000;
/// First of the tables that programs do not edit.
pub const TABLES: u64 = 0x5_0000;
/// Code pages.
pub const CODE_GPA: u64 = 0x2_0000;
/// Pages that code pages can be remapped to.
pub const CODE2_GPA: u64 = 0x2_8000;
/// Data pages.
pub const DATA_GPA: u64 = 0x3_0000;
/// Stack pages.
pub const STACK_GPA: u64 = 0x4_0000;
/// A page of programs' own: counters, jump tables, bytes to write into code.
pub const SCRATCH_GPA: u64 = 0x4_6000;
/// Kernel code that user programs call.
pub const FRAGMENTS_GPA: u64 = 0x4_8000;
/// What is mapped by a large page.
pub const LARGE_GPA: u64 = 0x20_0000;
/// Guest-physical address of a page that is not RAM.
pub const MMIO_GPA: u64 = 0xfed0_0000;

/// Bytes of the code window.
pub const CODE_LEN: u64 = 4 * PAGE;
/// Supervisor pages: [`SYS`] + gpa, below [`SYS_LEN`].
pub const SYS: u64 = 0x1000_0000;
/// See [`SYS`].
pub const SYS_LEN: u64 = 0x8_0000;
/// Code window of user programs.
pub const CODE: u64 = 0x40_0000;
/// The same pages, writable and not executable.
pub const CODE_ALIAS: u64 = 0x48_0000;
/// Code window of supervisor programs: the same pages once more.
pub const KERNEL_CODE: u64 = 0x1100_0000;
/// The fragments, for the supervisor.
pub const FRAGMENTS: u64 = 0x1108_0000;
/// Data window.
pub const DATA: u64 = 0x60_0000;
/// Pages of the data window.
pub const DATA_PAGES: u64 = 16;
/// Stack window: four pages, of which the middle two are mapped.
pub const STACK: u64 = 0x70_0000;
/// Where stack pointers start.
pub const STACK_TOP: u64 = STACK + 2 * PAGE + 0x800;
/// The page of programs' own.
pub const SCRATCH: u64 = 0x78_0000;
/// What is mapped by a large page.
pub const LARGE: u64 = 0x80_0000;
/// Data pages for the supervisor, in the upper half.
pub const HIGH: u64 = 0xffff_8880_0000_0000;

/// Port that ends a program.
pub const PORT_END: u8 = 0xf4;
/// Port that makes an interrupt pending at once: vector 0x40 + the low four bits of what is written.
pub const PORT_RAISE: u8 = 0xe9;
/// Port that makes an NMI pending at once.
pub const PORT_NMI: u8 = 0xea;
/// Vector that ends a program.
pub const VECTOR_END: u8 = 0xff;
/// Vector that calls a fragment.
pub const VECTOR_CALL: u8 = 0x81;
/// Vector of asynchronous interrupts.
pub const VECTOR_ASYNC: u8 = 0xf0;
/// First vector that [`PORT_RAISE`] raises.
pub const VECTOR_RAISE: u8 = 0x40;

/// Offset in [`LOG`] of how many events there were.
pub const LOG_COUNT: u64 = 0;
/// Offset in [`LOG`] of how many events end the program.
pub const LOG_LIMIT: u64 = 4;
/// Offset in [`LOG`] of the code window's linear address.
pub const LOG_WINDOW: u64 = 8;
/// Offset in [`SCRATCH`] of where a fault outside the code window goes on, once.
pub const SCRATCH_RESUME: u64 = 0;
/// Offset in [`SCRATCH`] of counters.
pub const SCRATCH_COUNTERS: u64 = 0x40;
/// Offset in [`SCRATCH`] of jump tables.
pub const SCRATCH_TABLES: u64 = 0x200;
/// Offset in [`SCRATCH`] of the addresses of fragments.
pub const SCRATCH_FRAGMENTS: u64 = 0xc00;
/// Offset in [`SCRATCH`] of bytes to write into code.
pub const SCRATCH_BYTES: u64 = 0x800;

/// Selectors.
pub mod selector {
    /// 64-bit code of ring 0.
    pub const KERNEL_CODE: u16 = 0x08;
    /// Data of ring 0.
    pub const KERNEL_DATA: u16 = 0x10;
    /// 32-bit code of ring 3; STAR counts from here.
    pub const USER_CODE32: u16 = 0x1b;
    /// Data of ring 3.
    pub const USER_DATA: u16 = 0x23;
    /// 64-bit code of ring 3.
    pub const USER_CODE64: u16 = 0x2b;
    /// 32-bit code of ring 0.
    pub const KERNEL_CODE32: u16 = 0x30;
    /// Task register.
    pub const TSS: u16 = 0x38;
}
