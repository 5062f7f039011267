//! The test machine before a program is loaded: descriptor tables, handlers, page tables; and the processor's state.

use crate::handlers;
use crate::layout as l;
use ringer_arch::cpu::CpuModel;
use ringer_arch::desc::{tss64_ist, tss64_rsp};
use ringer_arch::regs::{cr0, cr4, efer, rflags};
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
use ringer_arch::{VcpuState, msr};

/// Page-table bits.
pub mod pte {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const W: u64 = 2;
    /// User.
    pub const U: u64 = 4;
    /// Accessed.
    pub const A: u64 = 0x20;
    /// Dirty.
    pub const D: u64 = 0x40;
    /// A large page.
    pub const PS: u64 = 0x80;
    /// Global.
    pub const G: u64 = 0x100;
    /// Not executable.
    pub const NX: u64 = 1 << 63;
}
use pte::{A, D, G, NX, P, PS, U, W};

/// What the data window's pages are: guest-physical page (counted from [`l::DATA_GPA`], 16: [`l::MMIO_GPA`]) and rights.
pub const DATA_MAP: [(u64, u64); l::DATA_PAGES as usize] = [
    (0, 0),
    (1, P | W | U | NX),
    (2, P | W | U | NX),
    (3, P | U | NX),
    (4, 0),
    (5, P | W | NX | A),
    (6, P | W | U | NX | A | D),
    (2, P | W | U | NX),
    (8, P | W | U | NX),
    (9, P | W | U | NX | A),
    (10, 0),
    (11, P | U | NX | A),
    (12, P | NX),
    (13, P | W | U | NX),
    (14, P | W | U),
    (16, P | W | U | NX | A | D),
];

/// Data pages that all programs may write, by their place in the window.
pub const GOOD_PAGES: [u64; 7] = [1, 2, 6, 7, 8, 9, 13];

struct Image {
    bytes: Vec<u8>,
    next: u64,
}

impl Image {
    fn put(&mut self, gpa: u64, v: u64) {
        self.bytes[gpa as usize..][..8].copy_from_slice(&v.to_le_bytes());
    }

    fn get(&self, gpa: u64) -> u64 {
        let mut b = [0; 8];
        b.copy_from_slice(&self.bytes[gpa as usize..][..8]);
        u64::from_le_bytes(b)
    }

    /// The table that the entry at `at` leads to: `wanted`, if it has none yet.
    fn table(&mut self, at: u64, wanted: u64) -> u64 {
        if self.get(at) & P == 0 {
            let table = if wanted != 0 { wanted } else { self.next };
            if wanted == 0 {
                self.next += l::PAGE;
            }
            self.put(at, table | P | W | U | A);
        }
        self.get(at) & 0xf_ffff_f000
    }

    /// Maps a 4 KiB page; `table` is where its page table is to be, if that matters.
    fn map(&mut self, root: u64, lin: u64, gpa: u64, bits: u64, table: u64) {
        let pdpt = self.table(root + (lin >> 39 & 511) * 8, 0);
        let pd = self.table(pdpt + (lin >> 30 & 511) * 8, 0);
        let pt = self.table(pd + (lin >> 21 & 511) * 8, table);
        self.put(pt + (lin >> 12 & 511) * 8, gpa | bits);
    }
}

fn data_page(n: u64) -> u64 {
    if n == 16 { l::MMIO_GPA } else { l::DATA_GPA + n * l::PAGE }
}

fn map_all(m: &mut Image, root: u64, data_table: u64) {
    let other = root == l::OTHER_ROOT;
    let rwx = P | W | U | A | D;
    for at in (0..l::SYS_LEN).step_by(l::PAGE as usize) {
        m.map(root, l::SYS + at, at, P | W | A | D | G, 0);
    }
    for at in (0..l::CODE_LEN).step_by(l::PAGE as usize) {
        m.map(root, l::CODE + at, l::CODE_GPA + at, rwx, l::CODE_TABLE);
        m.map(root, l::CODE_ALIAS + at, l::CODE_GPA + at, P | W | U | NX, l::CODE_TABLE);
        m.map(root, l::KERNEL_CODE + at, l::CODE_GPA + at, P | W | A | D, l::KERNEL_CODE_TABLE);
        m.map(root, l::FRAGMENTS + at, l::FRAGMENTS_GPA + at, P | W | A | D, l::KERNEL_CODE_TABLE);
    }
    for (i, (page, bits)) in DATA_MAP.iter().enumerate() {
        // In the other address space some neighbours have changed places.
        let page = if other && matches!(page, 1 | 8) { page ^ 9 } else { *page };
        m.map(root, l::DATA + i as u64 * l::PAGE, data_page(page), *bits, data_table);
    }
    for i in 0..8 {
        m.map(root, l::HIGH + i * l::PAGE, l::DATA_GPA + i * l::PAGE, P | W | NX | G | A, 0);
    }
    for i in [1, 2] {
        m.map(root, l::STACK + i * l::PAGE, l::STACK_GPA + i * l::PAGE, P | W | U | NX | A | D, 0);
    }
    m.map(root, l::SCRATCH, l::SCRATCH_GPA, P | W | U | NX | A | D, 0);
    let pdpt = m.get(root) & 0xf_ffff_f000;
    let pd = m.get(pdpt) & 0xf_ffff_f000;
    m.put(pd + (l::LARGE >> 21) * 8, l::LARGE_GPA | P | W | U | PS | NX);
}

/// RAM before any program.
#[must_use]
pub fn image() -> Vec<u8> {
    let mut m = Image { bytes: vec![0; l::RAM as usize], next: l::TABLES };
    let gdt: [u64; 9] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x0000_8b00_0000_0067 | ((l::SYS + l::TSS) & 0xff_ffff) << 16 | (l::SYS >> 24) << 56,
        0,
    ];
    for (i, d) in gdt.iter().enumerate() {
        m.put(l::GDT + 8 * i as u64, *d);
    }
    for v in 0..=255u8 {
        let (low, high) = gate(v, 0);
        m.put(l::IDT + 16 * u64::from(v), low);
        m.put(l::IDT + 16 * u64::from(v) + 8, high);
    }
    m.put(l::TSS + u64::from(tss64_rsp(0)), l::SYS + l::RSP0);
    for (n, top) in [(1, l::IST_EVENT), (2, l::IST_ASYNC), (3, l::IST_LAST)] {
        m.put(l::TSS + u64::from(tss64_ist(n)), l::SYS + top);
    }
    m.bytes[l::TSS as usize + 0x66..][..2].copy_from_slice(&0x68u16.to_le_bytes());
    let (code, _) = handlers::long();
    m.bytes[l::HANDLERS as usize..][..code.len()].copy_from_slice(code);
    map_all(&mut m, l::ROOT, l::DATA_TABLE);
    map_all(&mut m, l::OTHER_ROOT, l::OTHER_DATA_TABLE);
    assert!(m.next <= l::SYS_LEN, "the page tables are where programs of ring 0 see them");
    // RET, for calls of fragments that the program does not have.
    m.bytes[l::FRAGMENTS_GPA as usize] = 0xc3;
    for n in 0..8 {
        m.put(l::SCRATCH_GPA + l::SCRATCH_FRAGMENTS + 8 * n, l::FRAGMENTS);
    }
    m.bytes
}

/// The gate of vector `v`. `ist`: the stack of what has none of its own.
#[must_use]
pub fn gate(v: u8, ist: u64) -> (u64, u64) {
    let h = l::SYS + l::HANDLERS + 16 * u64::from(v);
    let ist = match v {
        2 | 8 => 3,
        l::VECTOR_ASYNC => 2,
        l::VECTOR_CALL => 0,
        _ => ist,
    };
    // Software may use the breakpoint, overflow, and some of the vectors beyond the exceptions.
    let dpl: u64 = if matches!(v, 3 | 4 | 0x30..=0x3f | l::VECTOR_END | l::VECTOR_CALL) { 0x60 } else { 0 };
    let code = u64::from(l::selector::KERNEL_CODE);
    (h & 0xffff | code << 16 | ist << 32 | (0x8e | dpl) << 40 | (h >> 16 & 0xffff) << 48, h >> 32)
}

/// The processor before any program: 64-bit mode, ring 0.
#[must_use]
pub fn state(model: &CpuModel) -> VcpuState {
    let mut s = VcpuState::reset(model.signature(), true);
    s.seg = [segment(l::selector::KERNEL_DATA, 0x00cf_9300_0000_ffff); 6];
    s.seg[sreg::CS] = segment(l::selector::KERNEL_CODE, 0x00af_9b00_0000_ffff);
    s.gdtr = TableReg { base: l::SYS + l::GDT, limit: 9 * 8 - 1 };
    s.idtr = TableReg { base: l::SYS + l::IDT, limit: 4095 };
    s.tr = Segment { selector: l::selector::TSS, base: l::SYS + l::TSS, limit: 0x67, attr: Attr(0x8b) };
    s.ldtr = Segment { attr: Attr(Attr::UNUSABLE), ..Segment::default() };
    s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    s.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
    s.cr4 &= model.cr4_mask();
    s.cr3 = l::ROOT;
    s.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    s.xcr0 = model.xcr0_mask() & 7 | 1;
    s.rflags = rflags::FIXED | rflags::IF;
    let (_, entry) = handlers::long();
    let star = u64::from(l::selector::KERNEL_CODE) << 32 | u64::from(l::selector::USER_CODE32) << 48;
    s.msrs.insert(msr::STAR, star);
    s.msrs.insert(msr::LSTAR, l::SYS + l::HANDLERS + entry);
    s.msrs.insert(msr::CSTAR, l::SYS + l::HANDLERS + entry);
    s.msrs.insert(msr::SFMASK, rflags::IF | rflags::TF | rflags::DF | rflags::AC);
    s
}

/// The segment register that `descriptor` gives.
#[must_use]
pub fn segment(selector: u16, descriptor: u64) -> Segment {
    Segment::from_descriptor(selector, descriptor)
}
