//! A processor's state for random code: what the mode needs, the rest at random.

use super::memory::{self, selector as s};
use super::{Place, Plan, RAM, Shape, Tables};
use crate::input::Rng;
use ringer_arch::cpu::CpuModel;
use ringer_arch::regs::{cr0, cr4, dr, efer, rflags};
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};
use ringer_arch::{VcpuState, msr};

pub fn make(plan: &mut Plan, model: &CpuModel) -> VcpuState {
    let mut v = VcpuState::reset(model.signature(), true);
    control(&mut v, plan, model);
    v.cpl = plan.cpl;
    segments(&mut v, plan);
    registers(&mut v, plan);
    v.rip = memory::entry(plan);
    if v.seg[sreg::CS].base == 0 {
        v.rip += memory::CODE;
    }
    let flat = matches!(plan.shape, Shape::Long | Shape::Prot32 | Shape::Compat32);
    if flat && plan.place != Place::Usual {
        v.rip = place(plan, &v);
    }
    v.gdtr = TableReg { base: memory::GDT, limit: memory::GDT_LEN as u16 - 1 };
    let limit = if plan.shape == Shape::Real { 0x3ff } else { 0xfff };
    v.idtr = TableReg { base: if plan.shape == Shape::Real { 0 } else { memory::IDT }, limit };
    flags(&mut v, plan);
    debug(&mut v, &mut plan.rng);
    vectors(&mut v, &mut plan.rng);
    msrs(&mut v, &mut plan.rng);
    if plan.flag(7) && plan.rng.one_in(4) {
        v.idtr.limit = plan.rng.value() as u16;
        v.gdtr.limit = plan.rng.value() as u16;
    }
    v.interrupt_shadow = plan.rng.one_in(16);
    v.nmi_blocked = plan.rng.one_in(8);
    v.nmi_pending = plan.rng.one_in(16);
    v
}

/// Where flat code starts. What maps RAM's last page without wild tables maps the last page of any 2 MiB, too.
fn place(plan: &mut Plan, v: &VcpuState) -> u64 {
    let before = 1 + plan.rng.below(memory::TAIL);
    match plan.place {
        Place::Usual => v.rip,
        Place::EndOfRam => RAM - before,
        Place::Device => memory::DEVICE + plan.rng.below(0x1000),
        Place::EndOfLowerHalf if plan.shape == Shape::Long => {
            (1 << if v.cr4 & cr4::LA57 != 0 { 56 } else { 47 }) - before
        }
        _ if plan.shape == Shape::Long => 0u64.wrapping_sub(before),
        _ => (1 << 32) - before,
    }
}

fn control(v: &mut VcpuState, plan: &mut Plan, model: &CpuModel) {
    let rng = &mut plan.rng;
    let paged = plan.tables != Tables::Off;
    let long = matches!(plan.tables, Tables::Level4 | Tables::Level5);
    v.cr0 = cr0::ET | cr0::NE;
    v.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    if plan.flags >> 7 & 1 != 0 {
        let free = cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM;
        v.cr0 ^= rng.u64() & rng.u64() & free;
        v.cr4 ^= rng.u64() & rng.u64();
    } else if rng.one_in(2) {
        v.cr0 |= cr0::WP | cr0::AM;
    }
    v.cr4 &= model.cr4_mask() & !(cr4::PAE | cr4::LA57);
    if plan.shape != Shape::Real {
        v.cr0 |= cr0::PE;
    }
    if paged {
        v.cr0 |= cr0::PG;
    }
    if long {
        v.cr4 |= cr4::PAE;
        v.efer |= efer::LME | efer::LMA;
    } else {
        v.cr4 &= !cr4::PCIDE;
    }
    if plan.tables == Tables::Pae {
        v.cr4 |= cr4::PAE;
    }
    v.cr3 = match plan.tables {
        Tables::Off | Tables::Bits32 => memory::PD32,
        Tables::Pae => memory::PDPT,
        Tables::Level4 => memory::PML4,
        Tables::Level5 => memory::PML5,
    };
    if plan.tables == Tables::Level5 {
        if model.cr4_mask() & cr4::LA57 != 0 {
            v.cr4 |= cr4::LA57;
        } else {
            v.cr3 = memory::PML4;
        }
    }
    v.efer |= rng.u64() & (efer::SCE | efer::NXE) & model.efer_mask();
    v.xcr0 = rng.pick(&[7, 7, 7, 3, 1]) & (model.xcr0_mask() | 1);
    v.cr2 = rng.value();
}

fn seg(selector: u16, base: u64, limit: u32, attr: u32) -> Segment {
    Segment { selector, base, limit, attr: Attr(attr) }
}

fn segments(v: &mut VcpuState, plan: &mut Plan) {
    let user = plan.cpl == 3;
    let rpl = u16::from(plan.cpl);
    let dpl = u32::from(plan.cpl) << 5;
    let flat = |sel: u16, attr: u32| seg(sel | rpl, 0, u32::MAX, attr | dpl);
    let data = flat(if user { s::USER_DATA } else { s::DATA }, 0xc093);
    let pick = |kernel: u16, user_sel: u16| if user { user_sel } else { kernel };
    match plan.shape {
        Shape::Real | Shape::V86 => {
            let attr = if plan.shape == Shape::V86 { 0xf3 } else { 0x93 };
            let real = |sel: u16| seg(sel, u64::from(sel) << 4, 0xffff, attr);
            v.seg = [real(0x1f0), real(0x1000), real(0x1f00), real(0x100), real(0x1f80), real(0xffff)];
            if plan.shape == Shape::Real {
                v.seg[sreg::CS].attr = Attr(0x9b);
            }
        }
        Shape::Prot16 | Shape::Compat16 => {
            v.seg = [data; 6];
            v.seg[sreg::CS] = seg(pick(s::CODE16, s::USER16) | rpl, memory::CODE, 0xffff, 0x9b | dpl);
        }
        Shape::Prot32 | Shape::Compat32 => {
            v.seg = [data; 6];
            v.seg[sreg::CS] = flat(pick(s::CODE32, s::USER32), 0xc09b);
        }
        Shape::Long => {
            v.seg = [data; 6];
            v.seg[sreg::CS] = flat(pick(s::CODE64, s::USER64), 0xa09b);
            v.seg[sreg::FS].base = memory::STACK;
            v.seg[sreg::GS].base = 0xffff_8000_0000_0000;
        }
    }
    v.ldtr = seg(s::LDT, memory::LDT, memory::GDT_LEN as u32 - 1, 0x82);
    v.tr = seg(s::TSS, memory::TSS, memory::TSS_LEN as u32 - 1, 0x8b);
    if plan.flag(6) {
        let rng = &mut plan.rng;
        for i in [sreg::ES, sreg::SS, sreg::DS, sreg::FS, sreg::GS] {
            if rng.one_in(3) {
                let g = &mut v.seg[i];
                match rng.below(5) {
                    0 => g.limit = rng.value() as u32,
                    1 => g.base = memory::address(rng) & 0xffff_ffff,
                    2 => g.attr = Attr(rng.u64() as u32 & 0x1_f0ff),
                    3 => g.attr.0 ^= 4,
                    _ => g.selector = memory::selector_value(rng),
                }
            }
        }
        if rng.one_in(8) {
            v.tr.attr = Attr(rng.u64() as u32 & 0x1_f0ff);
            v.tr.limit = rng.value() as u32;
        }
    }
}

fn registers(v: &mut VcpuState, plan: &mut Plan) {
    let wide = plan.shape == Shape::Long;
    for r in &mut v.gpr {
        *r = if plan.flags >> 2 & 1 != 0 {
            memory::STACK
        } else if plan.rng.one_in(3) {
            plan.rng.value()
        } else {
            memory::address(&mut plan.rng)
        };
        if !wide {
            *r &= 0xffff_ffff;
        }
    }
    if !plan.rng.one_in(8) {
        v.gpr[4] = match plan.shape {
            Shape::Real | Shape::V86 | Shape::Prot16 | Shape::Compat16 => 0x80,
            _ => memory::STACK + 0x80,
        };
    }
}

fn flags(v: &mut VcpuState, plan: &mut Plan) {
    let rng = &mut plan.rng;
    v.rflags = rflags::FIXED | rng.u64() & (rflags::ARITH | rflags::DF | rflags::ID | rflags::IF);
    if rng.one_in(4) {
        v.rflags |= rng.u64() & (rflags::TF | rflags::RF | rflags::AC | rflags::NT | rflags::IOPL);
    }
    if plan.shape == Shape::V86 {
        v.rflags |= rflags::VM | rng.u64() & (rflags::IOPL | rflags::VIF | rflags::VIP);
    }
}

fn debug(v: &mut VcpuState, rng: &mut Rng) {
    if rng.one_in(8) {
        for r in &mut v.dr[..4] {
            *r = memory::address(rng);
        }
        v.dr[6] = dr::DR6_FIXED | rng.u64() & 0xe00f;
        v.dr[7] = dr::DR7_FIXED | rng.u64() & 0xffff_23ff;
    }
}

fn vectors(v: &mut VcpuState, rng: &mut Rng) {
    if rng.one_in(2) {
        rng.fill(&mut v.xsave[..512]);
        rng.fill(&mut v.xsave[576..]);
        // MXCSR 31:16 are refused.
        v.xsave[26..28].fill(0);
        if rng.one_in(8) {
            rng.fill(&mut v.xsave[512..576]);
        }
    }
    if rng.one_in(4) {
        let mxcsr = 0x1f80u16 & !(1 << rng.below(16)) | (rng.u64() as u16 & rng.u64() as u16);
        v.xsave[24..26].copy_from_slice(&mxcsr.to_le_bytes());
    }
}

fn msrs(v: &mut VcpuState, rng: &mut Rng) {
    let code = memory::CODE;
    let star = u64::from(s::CODE64) << 32 | u64::from((s::USER32 - 8) | 3) << 48;
    for (n, sane) in [
        (msr::STAR, star),
        (msr::LSTAR, code),
        (msr::CSTAR, code),
        (msr::SFMASK, 0x4_7700),
        (msr::KERNEL_GS_BASE, memory::STACK),
        (msr::SYSENTER_CS, s::CODE64.into()),
        (msr::SYSENTER_ESP, memory::STACK),
        (msr::SYSENTER_EIP, code),
    ] {
        let odd = rng.one_in(8);
        let v48 = ((rng.value() << 16) as i64 >> 16) as u64;
        v.msrs.insert(
            n,
            if !odd {
                sane
            } else if n == msr::SFMASK {
                v48 & 0xffff_ffff
            } else {
                v48
            },
        );
    }
}
