//! [`CpuModel`]: what CPUID answers, fixed when the machine is created.

/// One CPUID answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidLeaf {
    /// EAX on entry.
    pub leaf: u32,
    /// ECX on entry; `None`: the leaf has no sub-leaves.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX.
    pub regs: [u32; 4],
}

/// A processor model: its name and all of its CPUID leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuModel {
    /// The name that `--cpu` takes.
    pub name: String,
    /// The leaves.
    pub leaves: Vec<CpuidLeaf>,
}
