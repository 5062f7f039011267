//! States that no processor of a model can be in. KVM refuses many of them, but not all of its kinds the same ones.

use ringer_arch::VcpuState;
use ringer_arch::cpu::{CpuModel, Feature};
use ringer_arch::regs::{cr0, cr4, dr, efer, rflags, xcr0};
use ringer_arch::seg::sreg;

fn ensure(ok: bool, why: &'static str) -> Result<(), &'static str> {
    if ok { Ok(()) } else { Err(why) }
}

/// Whether a processor of the model can be in the state; if not, why.
pub fn state(model: &CpuModel, s: &VcpuState) -> Result<(), &'static str> {
    let long = s.efer & efer::LMA != 0;
    ensure(s.cr0 & !cr0::ALL == 0, "reserved bits are set in CR0")?;
    ensure(s.cr0 & (cr0::PG | cr0::PE) != cr0::PG, "CR0 has PG without PE")?;
    ensure(s.cr0 & (cr0::NW | cr0::CD) != cr0::NW, "CR0 has NW without CD")?;
    ensure(s.cr4 & !model.cr4_mask() == 0, "CR4 has bits that the processor model has not")?;
    ensure(s.efer & !model.efer_mask() == 0, "EFER has bits that the processor model has not")?;
    let active = s.efer & efer::LME != 0 && s.cr0 & cr0::PG != 0;
    ensure(long == active, "EFER.LMA does not follow from EFER.LME and CR0.PG")?;
    ensure(!long || s.cr4 & cr4::PAE != 0, "long mode is active without CR4.PAE")?;
    ensure(long || s.cr4 & cr4::PCIDE == 0, "CR4.PCIDE is set outside long mode")?;
    let x = s.xcr0;
    let xcr0_ok = x & !(model.xcr0_mask() | xcr0::X87) == 0
        && x & xcr0::X87 != 0
        && x & (xcr0::AVX | xcr0::SSE) != xcr0::AVX;
    ensure(xcr0_ok, "XCR0 has a value that the processor model cannot take")?;
    ensure(s.rflags & !(rflags::ALL | rflags::FIXED) == 0, "reserved bits are set in RFLAGS")?;
    ensure(s.rflags & rflags::FIXED != 0, "RFLAGS bit 1 is not set")?;
    ensure(s.cpl <= 3, "CPL is above 3")?;
    ensure(s.cr0 & cr0::PE != 0 || s.cpl == 0, "CPL is not 0 in real mode")?;
    ensure(s.dr[6] >> 32 == 0 && s.dr[7] >> 32 == 0, "reserved bits are set in DR6 or DR7")?;
    ensure(s.dr[6] & dr::DR6_FIXED == dr::DR6_FIXED, "fixed bits are wrong in DR6")?;
    let mask = if model.has(Feature::MISALIGNSSE) { 0x2_ffff } else { 0xffff };
    let mxcsr = u32::from_le_bytes([s.xsave[24], s.xsave[25], s.xsave[26], s.xsave[27]]);
    ensure(mxcsr & !mask == 0, "reserved bits are set in MXCSR")?;
    let cs = s.seg[sreg::CS].attr;
    ensure(!(long && cs.long() && cs.big()), "CS has both L and D set")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringer_arch::cpu::FeatureSet;

    #[test]
    fn impossible_states_are_named() {
        let host = |leaf, subleaf| {
            let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        let model = CpuModel::named("x86-64-v2", &host, &FeatureSet::software(&host)).unwrap();
        let good = VcpuState::reset(model.signature(), true);
        assert_eq!(state(&model, &good), Ok(()));
        type Change = fn(&mut VcpuState);
        let cases: [(Change, &str); 8] = [
            (|s| s.cr0 |= cr0::PG, "PG without PE"),
            (|s| s.cr0 = cr0::NW, "NW without CD"),
            (|s| s.cr4 |= 1 << 40, "CR4"),
            (|s| s.efer |= 1 << 40, "EFER"),
            (|s| s.rflags = 0, "RFLAGS bit 1"),
            (|s| s.cpl = 3, "real mode"),
            (|s| s.xsave[27] = 0x80, "MXCSR"),
            (|s| s.xcr0 = 0, "XCR0"),
        ];
        for (change, why) in cases {
            let mut s = good.clone();
            change(&mut s);
            assert!(state(&model, &s).unwrap_err().contains(why), "{why}");
        }
    }
}
