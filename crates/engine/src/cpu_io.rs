//! [`CpuIo`]: everything a processor asks of the machine around it.

use ringer_arch::cpu::CpuidDynamic;

/// What waits for a processor in its local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// An interrupt whose priority is above the processor's (TPR and in-service) waits, or the PIC's line is up.
    pub intr: bool,
    /// An NMI waits. Reading takes it: the processor keeps it until it can be delivered.
    pub nmi: bool,
    /// An INIT waits. Reading takes it.
    pub init: bool,
    /// A start-up IPI with this vector waits. Reading takes it.
    pub sipi: Option<u8>,
    /// Another processor asks this one to leave HLT, interrupt or not (KVM_HC_KICK_CPU). Reading takes it: the processor keeps
    /// it until a HLT, this one or the next, has ended.
    pub unhalt: bool,
}

/// The machine as one processor sees it. One object a processor, called on that processor's thread only, between
/// or inside instructions; it never calls back into the engine, and never blocks for long.
pub trait CpuIo: Send + Sync {
    /// IN of 1, 2 or 4 bytes. A port that nobody owns reads all ones.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// OUT of 1, 2 or 4 bytes.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// Load of 1 to 64 bytes from guest-physical addresses that are not RAM. Unowned ones read all ones.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// Store of 1 to 64 bytes to guest-physical addresses that are not RAM.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// What waits, after [`StopToken::ATTENTION`](crate::StopToken::ATTENTION) was taken.
    fn pending(&self) -> Pending;
    /// Acknowledges the highest-priority interrupt and returns its vector; `None` if it has gone (spurious).
    fn acknowledge(&self) -> Option<u8>;
    /// CR8, the task-priority class (0 to 15).
    fn cr8(&self) -> u64;
    /// Sets CR8; `value` is 0 to 15.
    fn set_cr8(&self, value: u64);
    /// Reads an MSR that belongs to the machine (APIC base, x2APIC, TSC deadline, the KVM ones); `None`: no such MSR,
    /// the processor raises #GP.
    fn msr_read(&self, msr: u32) -> Option<u64>;
    /// Writes such an MSR; `None`: no such MSR or a value it refuses, the processor raises #GP.
    fn msr_write(&self, msr: u32, value: u64) -> Option<()>;
    /// What CPUID's answers depend on in the machine: frequencies, the paravirtual interface, whether the local APIC is enabled. The
    /// processor fills in the rest. By default nothing of it is there.
    fn cpuid(&self) -> CpuidDynamic {
        CpuidDynamic::default()
    }
    /// A KVM hypercall (VMCALL or VMMCALL from ring 0; Linux Documentation/virt/kvm/x86/hypercalls.rst): number,
    /// four arguments, the result for RAX.
    fn hypercall(&self, nr: u64, args: [u64; 4]) -> u64;
    /// The machine's TSC now, before this processor's TSC_ADJUST.
    fn tsc(&self) -> u64;
    /// The processor resets itself (INIT taken): the local APIC goes to its INIT state.
    fn reset_apic(&self);
}
