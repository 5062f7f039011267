//! Which instruction forms there are, which of them are run natively, and why the others are not.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeInfo};
use ringer_arch::cpu::{CpuModel, Feature, Vendor};

/// What is done with a form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Run on both sides and compared.
    Both,
    /// Not in the model: the interpreter must raise #UD; the host may have it.
    Absent,
    /// Not run, for this reason.
    No(&'static str),
}

/// What is done with the instruction form `code` under `model`.
#[must_use]
pub fn reach(code: Code, model: &CpuModel, bits: u32) -> Reach {
    let info = code.op_code();
    if let Some(why) = excluded(info) {
        return Reach::No(why);
    }
    let decoded = match model.vendor() {
        Vendor::Amd if bits == 32 => info.amd_decoder32(),
        Vendor::Amd => info.amd_decoder64(),
        Vendor::Intel if bits == 32 => info.intel_decoder32(),
        Vendor::Intel => info.intel_decoder64(),
    };
    if !decoded {
        return Reach::No("not an instruction of this vendor's processors");
    }
    // A prefix makes these of others, which are there without the feature: WBINVD, PREFETCH.
    let anyway = matches!(info.mnemonic(), Mnemonic::Wbnoinvd | Mnemonic::Prefetchwt1);
    if !anyway && !info.cpuid_known(model) {
        return Reach::Absent;
    }
    Reach::Both
}

/// All forms of code of so many bits (64 or 32), with what is done with them.
#[must_use]
pub fn all(model: &CpuModel, bits: u32) -> Vec<(Code, Reach)> {
    let there = |c: &Code| if bits == 64 { c.op_code().mode64() } else { c.op_code().mode32() };
    Code::values()
        .filter(|c| there(c) && c.op_code().is_instruction() && !c.op_code().fwait())
        .map(|c| (c, reach(c, model, bits)))
        .collect()
}

/// Forms that are not run natively, with the reason.
fn excluded(info: &OpCodeInfo) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match info.mnemonic() {
        M::Syscall | M::Sysenter => "enters the host's kernel; the interpreter enters the guest's",
        M::Cpuid | M::Xgetbv => "answers for the host's processor natively, for the model in the interpreter",
        M::Rdtsc | M::Rdtscp | M::Rdpru | M::Rdpmc => "reads a counter that runs on",
        M::Rdpid => "reads the number of the host's processor",
        M::Rdrand | M::Rdseed => "random by purpose",
        M::Sgdt | M::Sidt | M::Sldt | M::Smsw | M::Str => {
            "under UMIP the Linux kernel emulates it for user code (arch/x86/kernel/umip.c)"
        }
        M::Vmcall | M::Vmmcall => "a hypervisor under the host would answer it",
        M::Xsaveopt | M::Xsaveopt64 => {
            "may leave out what has not changed since the last XRSTOR, which is the processor's to judge (SDM vol. 1 §13.9)"
        }
        M::Xbegin | M::Xabort | M::Xend | M::Xtest => "transactions abort at the processor's discretion",
        M::Mwait | M::Mwaitx | M::Monitor | M::Monitorx | M::Umwait | M::Umonitor | M::Tpause => {
            "waits for the host"
        }
        M::Wrpkru | M::Rdpkru => "the host's kernel decides about protection keys",
        M::Clui | M::Stui | M::Testui | M::Uiret | M::Senduipi => {
            "user interrupts belong to the host's kernel"
        }
        M::Enclu | M::Encls | M::Enclv => "enclaves belong to the host's kernel",
        _ => return None,
    })
}

trait Known {
    fn cpuid_known(&self, model: &CpuModel) -> bool;
}

impl Known for OpCodeInfo {
    fn cpuid_known(&self, model: &CpuModel) -> bool {
        let encoded = matches!(self.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
        encoded && self.code().cpuid_features().iter().all(|f| in_model(*f, model))
    }
}

/// Whether the model has what the decoder calls `f`.
#[must_use]
pub fn in_model(f: CpuidFeature, model: &CpuModel) -> bool {
    use CpuidFeature as F;
    let feature = match f {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CPUID
        | F::PAUSE
        | F::MULTIBYTENOP
        | F::CET_IBT
        | F::CET_SS => return true,
        F::FPU | F::FPU287 | F::FPU387 => Feature::FPU,
        F::MMX => Feature::MMX,
        F::SSE => Feature::SSE,
        F::SSE2 => Feature::SSE2,
        F::LZCNT => Feature::LZCNT,
        F::CLFSH => Feature::CLFSH,
        F::TSC => Feature::TSC,
        F::MSR => Feature::MSR,
        F::SHA => Feature::SHA,
        other => {
            let name = format!("{other:?}");
            return Feature::all().iter().any(|f| format!("{f:?}") == name && model.has(*f));
        }
    };
    model.has(feature)
}
