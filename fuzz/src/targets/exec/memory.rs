//! Guest RAM for random code: page tables, descriptor tables, TSS, stacks, and the code itself.

use super::{Place, Plan, RAM, Shape, Tables};
use crate::input::Rng;
use ringer_arch::cpu::CpuModel;
use ringer_memory::GuestMemory;

pub const GDT: u64 = 0x1000;
pub const GDT_LEN: u64 = 0x100;
pub const LDT: u64 = 0x1800;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const TSS_LEN: u64 = 0x2100;
pub const TSS2: u64 = 0x5100;
/// Root of 5-level paging, then of 4-level; the third level, which PAE shares; directories and tables.
pub const PML5: u64 = 0x6000;
pub const PML4: u64 = 0x7000;
pub const PDPT: u64 = 0x8000;
const PD: u64 = 0x9000;
const PT: u64 = 0xa000;
pub const PD32: u64 = 0xb000;
const PT32: u64 = 0xc000;
/// Four pages of code.
pub const CODE: u64 = 0x10000;
pub const CODE_LEN: u64 = 0x4000;
pub const STACK: u64 = 0x1f000;

/// Bytes of code at the end of RAM, for places that lead there.
pub const TAIL: u64 = 0x40;
/// A page that is no RAM, and where it is mapped.
const DEVICE_PHYS: u64 = 0xfed0_0000;
pub const DEVICE: u64 = RAM - 0x2000;

/// Selectors in the GDT.
pub mod selector {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE32: u16 = 0x18;
    pub const CODE16: u16 = 0x20;
    pub const DATA16: u16 = 0x28;
    pub const TSS: u16 = 0x30;
    pub const LDT: u16 = 0x40;
    pub const USER32: u16 = 0x50;
    pub const USER_DATA: u16 = 0x58;
    pub const USER64: u16 = 0x60;
    pub const USER16: u16 = 0x68;
    pub const TSS16: u16 = 0x70;
    pub const TSS_OTHER: u16 = 0x78;
    pub const GATE: u16 = 0x80;
    pub const GATE_OTHER: u16 = 0x90;
    pub const TASK_GATE: u16 = 0xa0;
    pub const CONFORMING: u16 = 0xa8;
    pub const DOWN: u16 = 0xb0;
}

/// Where the code starts: in the first page, or close to its end.
pub fn entry(plan: &Plan) -> u64 {
    if plan.flag(5) { 0xff0 } else { 0 }
}

/// Writes everything; what an earlier run left elsewhere is made zero.
pub fn fill(memory: &GuestMemory, plan: &mut Plan, code: &[u8], model: &CpuModel) {
    clear(memory);
    let put = |gpa: u64, bytes: &[u8]| memory.write(gpa, bytes).expect("inside RAM");
    put(GDT, &quads(&gdt(plan)));
    put(LDT, &quads(&gdt(plan)));
    put(IDT, &idt(plan));
    put(TSS, &tss(plan));
    put(TSS2, &tss(plan)[..0x100]);
    page_tables(plan, model, &put);
    real_mode_vectors(plan, &put);
    let mut body: Vec<u8> = if code.is_empty() { vec![0xf4] } else { code.to_vec() };
    if plan.random {
        body.resize(64 + plan.rng.index(1024), 0);
        plan.rng.fill(&mut body);
    }
    let mut text: Vec<u8> = Vec::new();
    text.resize(entry(plan) as usize, 0x90);
    while text.len() < CODE_LEN as usize {
        text.extend(&body);
    }
    put(CODE, &text[..CODE_LEN as usize]);
    if plan.place == Place::Device {
        let entry = DEVICE_PHYS | 7;
        put(PT + DEVICE / 4096 * 8, &entry.to_le_bytes());
        put(PT32 + DEVICE / 4096 * 4, &(entry as u32).to_le_bytes());
    } else if plan.place != Place::Usual {
        let tail = body.len().min(TAIL as usize);
        put(RAM - TAIL, &body[..tail]);
    }
    let mut stack = [0; 0x100];
    for c in stack.chunks_mut(8) {
        let v =
            if plan.rng.one_in(2) { selector_value(&mut plan.rng).into() } else { address(&mut plan.rng) };
        c.copy_from_slice(&u64::to_le_bytes(v));
    }
    put(STACK, &stack);
}

/// The engine has dropped its fast entries: the dirty log is whole.
fn clear(memory: &GuestMemory) {
    let zero = [0; 4096];
    for (r, log) in memory.regions().to_vec().iter().zip(memory.take_dirty()) {
        for page in 0..r.size / 4096 {
            if log[page as usize / 64] >> (page % 64) & 1 != 0 {
                memory.write(r.gpa + page * 4096, &zero).expect("inside RAM");
            }
        }
    }
    let _written_just_now = memory.take_dirty();
}

fn quads(v: &[u64]) -> Vec<u8> {
    v.iter().flat_map(|q| q.to_le_bytes()).collect()
}

/// An address that may mean something: code, stack, a table, the edge of RAM, MMIO, or any.
pub fn address(rng: &mut Rng) -> u64 {
    let base = match rng.below(10) {
        0..3 => CODE + rng.below(CODE_LEN),
        3..5 => STACK + rng.below(0x100),
        5 => rng.pick(&[GDT, LDT, IDT, TSS, PT, PD, PML4]) + rng.below(0x100) * 8,
        6 => rng.pick(&[0xfee0_0000, 0xfec0_0000, 0xfed0_0000, 0x1f_fff8, 0xffff_fff8, 0x7fff_ffff_fff8]),
        7 => 0xffff_8000_0000_0000 | rng.u64() >> 17,
        8 => rng.below(1 << 21),
        _ => return rng.value(),
    };
    base.wrapping_add(rng.below(16))
}

/// A selector, mostly one that exists.
pub fn selector_value(rng: &mut Rng) -> u16 {
    if rng.one_in(16) {
        return rng.u64() as u16;
    }
    ((rng.below(GDT_LEN / 8) * 8) | rng.below(4) | u64::from(rng.one_in(8)) << 2) as u16
}

fn descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | rights << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}

fn gate(target: u16, offset: u64, kind: u64, extra: u64) -> u64 {
    offset & 0xffff | u64::from(target) << 16 | extra << 32 | kind << 40 | (offset >> 16 & 0xffff) << 48
}

fn gdt(plan: &mut Plan) -> Vec<u64> {
    use selector as s;
    let mut t = vec![0; (GDT_LEN / 8) as usize];
    let mut set = |sel: u16, v: u64| t[usize::from(sel / 8)] = v;
    let rng = &mut plan.rng;
    set(s::CODE64, descriptor(0, 0xfffff, 0xa09b));
    set(s::DATA, descriptor(0, 0xfffff, 0xc093));
    set(s::CODE32, descriptor(0, 0xfffff, 0xc09b));
    set(s::CODE16, descriptor(CODE, 0xffff, 0x009b));
    set(s::DATA16, descriptor(0x10000, 0xffff, 0x0093));
    set(s::TSS, descriptor(TSS, TSS_LEN - 1, 0x0089));
    set(s::LDT, descriptor(LDT, GDT_LEN - 1, 0x0082));
    set(s::USER32, descriptor(0, 0xfffff, 0xc0fb));
    set(s::USER_DATA, descriptor(0, 0xfffff, 0xc0f3));
    set(s::USER64, descriptor(0, 0xfffff, 0xa0fb));
    set(s::USER16, descriptor(CODE, 0xffff, 0x00fb));
    set(s::TSS16, descriptor(TSS2, 0x2b, 0x0081));
    set(s::TSS_OTHER, descriptor(TSS2, 0x67, 0x0089));
    let kind = rng.pick(&[0xec, 0x8c, 0xe4, 0xcc]);
    let code = rng.pick(&[s::CODE64, s::CODE32, s::CODE16, s::CONFORMING, s::USER32]);
    let offset = CODE + rng.below(0x100);
    set(s::GATE, gate(code, offset, kind, rng.below(32)));
    set(s::GATE_OTHER, gate(selector_value(rng), offset, rng.pick(&[0xec, 0xe4]), rng.below(32)));
    set(s::TASK_GATE, gate(rng.pick(&[s::TSS_OTHER, s::TSS16, s::TSS]), 0, 0xe5, 0));
    set(s::CONFORMING, descriptor(0, 0xfffff, 0xc09f));
    set(s::DOWN, descriptor(0, rng.below(0x20), 0xc0f7));
    if !plan.flag(1) {
        for _ in 0..plan.rng.below(6) {
            let i = plan.rng.index(t.len());
            t[i] = match plan.rng.below(3) {
                0 => t[i] ^ 1 << plan.rng.below(64),
                1 => descriptor(
                    address(&mut plan.rng),
                    plan.rng.below(1 << 20),
                    plan.rng.below(1 << 16) & 0xf0ff,
                ),
                _ => plan.rng.u64(),
            };
        }
    }
    t
}

fn idt(plan: &mut Plan) -> Vec<u8> {
    use selector as s;
    let long = matches!(plan.tables, Tables::Level4 | Tables::Level5);
    let mut t = Vec::with_capacity(0x1000);
    let odd = !plan.flag(1);
    for _ in 0..256 {
        let rng = &mut plan.rng;
        let dpl = rng.pick(&[0, 0, 0x60]);
        let (code, kinds): (u16, &[u64]) = match plan.shape {
            _ if long => (s::CODE64, &[0x8e, 0x8f]),
            Shape::Prot16 => (s::CODE16, &[0x86, 0x87]),
            _ => (s::CODE32, &[0x8e, 0x8f, 0x8e, 0x8f, 0x85]),
        };
        let mut kind = rng.pick(kinds) | dpl;
        let mut code = if kind & 0x1f == 5 { rng.pick(&[s::TSS_OTHER, s::TSS16]) } else { code };
        let mut offset = CODE + rng.below(0x40);
        if code == s::CODE16 {
            offset -= CODE;
        }
        if odd && rng.one_in(8) {
            match rng.below(4) {
                0 => kind = rng.below(256),
                1 => code = selector_value(rng),
                2 => offset = address(rng),
                _ => kind ^= 1 << rng.below(8),
            }
        }
        let ist = if long && rng.one_in(4) { rng.below(8) } else { 0 };
        t.extend(gate(code, offset, kind, ist).to_le_bytes());
        if long {
            t.extend((offset >> 32).to_le_bytes());
        }
    }
    t
}

/// A TSS whose fields of 64-bit, 32-bit and 16-bit form are all something.
fn tss(plan: &mut Plan) -> Vec<u8> {
    let mut t = vec![0; TSS_LEN as usize];
    let rng = &mut plan.rng;
    for at in (0..0x68).step_by(4) {
        let v = if rng.one_in(2) { address(rng) as u32 } else { selector_value(rng).into() };
        t[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }
    if matches!(plan.tables, Tables::Level4 | Tables::Level5) {
        for at in (4..0x5c).step_by(8) {
            let v = if rng.one_in(8) { address(rng) } else { STACK + 0x100 };
            t[at..at + 8].copy_from_slice(&v.to_le_bytes());
        }
    } else if rng.one_in(2) {
        let sane =
            [(4, STACK as u32 + 0x100), (8, selector::DATA.into()), (0x1c, PD32 as u32), (0x20, CODE as u32)];
        let more = [
            (0x24, 2),
            (0x48, selector::DATA.into()),
            (0x4c, selector::CODE32.into()),
            (0x50, 0x10),
            (0x54, 0x10),
        ];
        for (at, v) in sane.into_iter().chain(more) {
            t[at..at + 4].copy_from_slice(&u32::to_le_bytes(v));
        }
        t[0x60..0x64].fill(0);
    }
    let io = rng.pick(&[0x68u16, 0x68, 0x2000, 0xffff]);
    t[0x66..0x68].copy_from_slice(&io.to_le_bytes());
    if rng.one_in(2) {
        rng.fill(&mut t[0x68..0x200]);
    }
    t
}

/// Entry 0 of every table leads to an identity mapping of RAM; the others go anywhere.
fn page_tables(plan: &mut Plan, model: &CpuModel, put: &impl Fn(u64, &[u8])) {
    let user = 7;
    let chain = [(PML5, PML4), (PML4, PDPT), (PDPT, PD), (PD, PT)];
    let wild = !plan.flag(0);
    let phys = model.max_phys_bits();
    for (table, next) in chain {
        let pae_root = plan.tables == Tables::Pae && table == PDPT;
        let low = if pae_root { 1 } else { user };
        let mut t = vec![next | low; 512];
        if wild {
            let from = if pae_root { 4 } else { 1 };
            for e in &mut t[from..] {
                *e = wild_entry(&mut plan.rng, next, phys);
            }
        }
        put(table, &quads(&t));
    }
    let mut pt: Vec<u64> = (0..512).map(|i| i << 12 | user).collect();
    if wild {
        for _ in 0..plan.rng.below(40) {
            let i = plan.rng.index(512);
            pt[i] = wild_entry(&mut plan.rng, (i as u64) << 12, phys);
        }
    }
    put(PT, &quads(&pt));
    let narrow = |t: &[u64]| t.iter().flat_map(|e| (*e as u32).to_le_bytes()).collect::<Vec<u8>>();
    let mut pd32 = vec![PT32 | user; 1024];
    let mut pt32: Vec<u64> = (0..1024).map(|i| i << 12 | user).collect();
    if wild {
        for e in &mut pd32[1..] {
            *e = wild_entry(&mut plan.rng, PT32, 32);
        }
        for _ in 0..plan.rng.below(40) {
            let i = plan.rng.index(512);
            pt32[i] = wild_entry(&mut plan.rng, (i as u64) << 12, 32);
        }
    }
    put(PD32, &narrow(&pd32));
    put(PT32, &narrow(&pt32));
}

fn wild_entry(rng: &mut Rng, next: u64, phys: u32) -> u64 {
    let to = match rng.below(16) {
        0..7 => next,
        7..9 => 0,
        9 => rng.pick(&[0xfee0_0000, 0xfec0_0000, 0xc000_0000, 0x4000_0000]),
        10 => rng.pick(&[PML5, PML4, PDPT, PD, PT, PD32, PT32]),
        11 => (rng.u64() & ((1 << phys) - 1)) & !0x1f_ffff,
        12 => rng.u64(),
        _ => rng.below(1 << 21) & !0xfff,
    };
    let mut bits = 7;
    for bit in [0, 1, 2, 63] {
        if rng.one_in(8) {
            bits ^= 1 << bit;
        }
    }
    if rng.one_in(3) {
        bits |= 0x80;
    }
    if rng.one_in(4) {
        bits |= 1 << rng.below(12);
    }
    to | bits
}

fn real_mode_vectors(plan: &mut Plan, put: &impl Fn(u64, &[u8])) {
    let mut t = Vec::with_capacity(1024);
    for _ in 0..256 {
        let offset = plan.rng.below(0x40) as u16;
        let segment = if plan.rng.one_in(16) { plan.rng.u64() as u16 } else { 0x1000 };
        t.extend(offset.to_le_bytes());
        t.extend(segment.to_le_bytes());
    }
    put(0, &t);
}
