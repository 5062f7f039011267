//! The table of exceptions to the conformance suite.

/// A check that an engine cannot pass.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// The engine's name, [`EMULATED`], or `hand-over` for columns in which processors are handed over.
    pub on: &'static str,
    /// The check's name.
    pub check: &'static str,
    /// Why it cannot.
    pub why: &'static str,
}

/// An exception of a KVM that emulates ring 0.
const fn emulated(check: &'static str, why: &'static str) -> Exception {
    Exception { on: EMULATED, check, why }
}

/// In [`Exception::on`]: a KVM that does not run both rings on the processor, as its probe finds.
pub const EMULATED: &str = "kvm, emulated";

/// All exceptions. The same table stands in docs/conformance.md.
pub const EXCEPTIONS: &[Exception] = &[
    emulated("a page fault in a page fault is #DF(0)", "CR2 is the first fault's address, not the second's"),
    emulated(
        "#NP in the delivery of #UD is #NP with the gate's index",
        "the emulator makes a double fault of it",
    ),
    emulated("#PF in the delivery of #DE is #PF", "the emulator makes a triple fault of it"),
    emulated("#BP and #OF return behind INT3 and INTO", "the emulator has no INT3 and no INTO"),
    emulated("#BR of BOUND", "the emulator has no BOUND"),
    emulated(
        "#UD of UD2, of LOCK where it may not be, and of forms that 64-bit mode has not",
        "the emulator gives up on opcodes that do not exist",
    ),
    emulated("#AC in ring 3 with CR0.AM and RFLAGS.AC", "alignment checks stay on in ring 3"),
    emulated("faults push RF, traps do not", "the emulator has no INT3"),
    emulated("POPF at ring 0 and ring 3 changes what it may", "the emulator has no INT in protected mode"),
    emulated("CR8 holds back interrupts of its class and below", "it does not come out when CR8 is lowered"),
    emulated("an NMI comes in spite of IF and before an interrupt", "it does not come out behind IRET"),
    emulated("NMIs are blocked until IRET", "it does not come out behind IRET"),
    emulated("IRET that sets IF lets a waiting interrupt in at once", "it does not come out behind IRET"),
    emulated(
        "an NMI in ring 3 runs on the stack of its IST",
        "ring 3 has no port access, whatever IOPL and the map say",
    ),
    emulated("interrupts in real and in protected mode", "the emulator has no IRET in 32-bit protected mode"),
    emulated(
        "CR3, CR4 and CR0 refuse what they must",
        "the emulator lets CR0 be loaded without PE in long mode",
    ),
    emulated(
        "REP INS faults in the middle with its registers exact",
        "a chunk that faults is taken back whole",
    ),
    emulated("paging is turned on and off by CR0", "it has no paging outside long mode"),
    emulated("every leaf is as the model says", "leaves 1 and 7 show the host's features"),
    emulated(
        "CPUID in ring 3, and the upper halves of its results",
        "ring 3 has no port access, whatever IOPL and the map say",
    ),
    emulated(
        "a single step traps behind each instruction, and not in the handler",
        "the emulator has no IRET in 32-bit protected mode",
    ),
    emulated(
        "MOV SS holds a single step's trap off for one instruction",
        "the emulator steps every instruction",
    ),
    emulated("an instruction breakpoint faults before, once, with RF", "the emulator pushes no RF"),
    emulated(
        "data breakpoints on writes and on both, by length and alignment",
        "the emulator does not look at data and I/O breakpoints",
    ),
    emulated(
        "a breakpoint and a single step at once are both told",
        "the emulator does not look at data and I/O breakpoints",
    ),
    emulated(
        "DR6 and DR7 have fixed bits; their upper halves are #GP",
        "it shows the guest the host's RTM, and with it DR6's bit 16 can be cleared",
    ),
    emulated("I/O breakpoints with CR4.DE", "the emulator does not look at data and I/O breakpoints"),
    emulated("INT1 is #DB as a trap, without DR6", "the emulator has no INT1"),
    emulated(
        "SYSCALL with TF in SFMASK is not stepped into",
        "SYSCALL and SYSRET between the rings do not go where STAR and LSTAR say",
    ),
    emulated(
        "a data breakpoint in the middle of REP MOVS",
        "the emulator does not look at data and I/O breakpoints",
    ),
    emulated(
        "the host's watchpoint stops behind the write",
        "the emulator does not look at data and I/O breakpoints",
    ),
    emulated(
        "an unmasked x87 exception is #MF at the next waiting instruction",
        "the emulator has no x87 instructions",
    ),
    emulated("an x87 stack fault sets IE, SF and C1", "the emulator has no x87 instructions"),
    emulated(
        "an unmasked SIMD exception is #XM, or #UD without OSXMMEXCPT",
        "the emulator has hardly any SSE instructions",
    ),
    emulated("masked SIMD exceptions only set their flags", "the emulator has hardly any SSE instructions"),
    emulated("LDMXCSR refuses reserved bits", "the emulator has hardly any SSE instructions"),
    emulated(
        "FXSAVE and FXRSTOR; a misaligned area is #GP(0)",
        "the emulator has hardly any SSE instructions",
    ),
    emulated("FNINIT, FNSTCW, FNSTSW, FNSAVE and FRSTOR", "the emulator has no x87 instructions"),
    emulated(
        "a write over two pages faults at the second and writes nothing",
        "the emulator writes the part in the first page",
    ),
    emulated(
        "x87: #NM by CR0.EM and TS; #UD of SSE by EM and OSFXSR before #NM by TS",
        "the emulator has no x87 instructions",
    ),
    emulated("WAIT raises #NM only with MP and TS", "the emulator has no x87 instructions"),
    emulated(
        "an instruction breakpoint comes before the fault of its instruction",
        "the emulator pushes no RF",
    ),
    emulated("CLI and STI need IOPL", "ring 3 has no INT n but as #UD"),
    emulated(
        "UMIP keeps SGDT, SIDT, SLDT, STR and SMSW from ring 3",
        "ring 3 has no port access, whatever IOPL and the map say",
    ),
    emulated("CLTS clears TS", "the emulator has no x87 instructions"),
    emulated(
        "MONITOR, RDPMC and others that the model has not",
        "the emulator gives up on opcodes that do not exist",
    ),
    emulated(
        "data beyond a segment's limit is #GP(0), on the stack #SS(0)",
        "the emulator's #SS has lost its return address",
    ),
    emulated("fetching beyond CS's limit is #GP(0)", "the emulator does not look at CS's limit"),
    emulated("LAR, LSL, VERR, VERW and ARPL", "the emulator has no LAR"),
    emulated(
        "real mode: selectors are bases, and protected mode's limits stay",
        "loading a segment in real mode faults",
    ),
    emulated("CMPXCHG16B of two processors loses nothing", "the emulator has no CMPXCHG16B"),
    emulated("setting the reset state resets a processor", "the emulator has no x87 instructions"),
    emulated(
        "a single step of a REP instruction stops at each iteration",
        "the emulator steps all iterations as one",
    ),
    emulated(
        "SYSCALL from ring 3 and SYSRET back",
        "SYSCALL and SYSRET between the rings do not go where STAR and LSTAR say",
    ),
    emulated(
        "SYSCALL clears the flags of SFMASK",
        "SYSCALL and SYSRET between the rings do not go where STAR and LSTAR say",
    ),
    emulated(
        "SYSCALL and SYSRET are #UD without EFER.SCE",
        "SYSCALL and SYSRET between the rings do not go where STAR and LSTAR say",
    ),
    emulated(
        "SYSRET to an address that is not canonical faults",
        "behind AMD's SYSRET, SS keeps privilege level 0, by which KVM would take ring 3 for ring 0",
    ),
    emulated("SYSRET to 32-bit code", "ring 3 has no port access, whatever IOPL and the map say"),
    emulated("JMP to a TSS switches tasks and saves the old one", "the emulator switches no tasks"),
    emulated("CALL to a TSS nests; IRET goes back", "the emulator switches no tasks"),
    emulated("a task gate takes a double fault", "the emulator switches no tasks"),
    emulated("a task switch in long mode is #GP", "the emulator switches no tasks"),
    emulated(
        "IRET enters virtual-8086 mode; its faults leave it",
        "the emulator has no IRET in 32-bit protected mode",
    ),
    emulated("INT n in virtual-8086 mode needs IOPL 3", "the emulator has no IRET in 32-bit protected mode"),
    emulated(
        "RDTSC does not go back and runs with the machine's clock",
        "its TSC is the host's, and cannot be set",
    ),
    emulated(
        "TSC_ADJUST is added; a write of the TSC changes it",
        "its TSC is the host's, and cannot be set",
    ),
    emulated("the TSC deadline interrupts, and is disarmed", "its TSC is the host's, and cannot be set"),
    emulated(
        "the guest's time stands still while the machine does",
        "its TSC is the host's, and cannot be set",
    ),
    emulated(
        "a call gate to ring 0 switches stacks and copies parameters",
        "ring 3 has no call gates but as #UD",
    ),
    emulated("a call gate of 64-bit mode pushes eight-byte frames", "ring 3 has no call gates but as #UD"),
    emulated("INT n in ring 3 takes the stack of the TSS; IRET returns", "ring 3 has no INT n but as #UD"),
    emulated("INT n through a gate of an inner ring is #GP", "ring 3 has no INT n but as #UD"),
    emulated(
        "IRET to ring 3 makes data segments of inner rings null",
        "the emulator has no IRET in 32-bit protected mode",
    ),
    emulated(
        "IRET with bad selectors faults with their index",
        "the emulator's IRET takes selectors unchecked",
    ),
    emulated("LOCK to an address over two cache lines", "the emulator splits a locked access over two pages"),
];
