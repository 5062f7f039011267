//! The list of guests.

use crate::{End, Guest};

/// Most guests ask CPUID what there is to check.
const ANY: &str = "host";
const FIVE_LEVELS: &str = "host,+la57";

macro_rules! guests {
    ($($name:literal, $vcpus:literal, $cpu:ident, $end:ident, $checks:literal;)*) => {
        /// All guests.
        pub const ALL: &[Guest] = &[$(Guest {
            name: $name,
            image: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".elf")),
            vcpus: $vcpus,
            cpu: $cpu,
            end: End::$end,
            checks: $checks,
        },)*];
    };
}

guests! {
    "paging-32", 1, ANY, DebugExit, "32-bit paging: A and D bits, rights, error codes, 4 MiB pages";
    "paging-pae", 1, ANY, DebugExit, "PAE paging: PDPT registers, NX, reserved bits, 2 MiB pages";
    "paging-4level", 1, ANY, DebugExit, "4-level paging: each level's bits, NX, SMEP, SMAP, large pages, TLB, PCID, INVPCID";
    "paging-5level", 1, FIVE_LEVELS, DebugExit, "5-level paging: 57-bit addresses, the same bits and errors";
    "exceptions", 1, ANY, DebugExit, "exceptions: error codes, saved state, priority, IST, double fault, ring 3";
    "exceptions-32", 1, ANY, DebugExit, "BOUND, INTO, refused IRET and RETF, bad stacks in the TSS, double fault into a task";
    "iret-64", 1, ANY, DebugExit, "IRET, far RET and CALL in 64-bit mode, call gates of 16 bytes";
    "interrupts", 1, ANY, DebugExit, "PIC, PIT, LAPIC and its timer, IOAPIC, priorities, shadows, HLT, NMI, x2APIC";
    "segmentation", 1, ANY, DebugExit, "limits, expand-down, rights, conforming code, call gates, LAR and its kin, the LDT";
    "modes", 1, ANY, DebugExit, "real, 16-bit protected, unreal and virtual-8086 mode, from 32-bit protected mode and back";
    "syscall", 1, ANY, DebugExit, "SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, FS and GS bases";
    "smp", 2, ANY, DebugExit, "start-up, atomics, memory order, IPIs, TLB shoot-down, cross-modifying code";
    "smc", 1, ANY, DebugExit, "self-modifying code: same block, aliases, across pages, string instructions, remapping";
    "task-switch", 1, ANY, DebugExit, "32- and 16-bit TSSs by JMP, CALL, gates, interrupts and IRET; busy bit, NT, faults";
    "modes-long", 1, ANY, DebugExit, "64-bit mode to compatibility, protected and real mode, and back";
    "sysenter-32", 1, ANY, DebugExit, "SYSENTER and SYSEXIT, SYSCALL and SYSRET in 32-bit protected mode";
    "debug", 1, ANY, DebugExit, "single steps, hardware breakpoints, DR6 and DR7, general detect";
    "fpu", 1, ANY, DebugExit, "x87, SSE and AVX state and exceptions, FXSAVE, XSAVE";
    "msr", 1, ANY, DebugExit, "CPUID, MSRs and control registers: what there is, what is refused";
    "io", 1, ANY, DebugExit, "port sizes, string I/O, IOPL and the TSS's bitmap";
    "timer", 1, ANY, DebugExit, "TSC, PM timer, HPET, PIT and LAPIC timer against each other";
    "latency", 1, ANY, DebugExit, "a timer interrupt reaches loops of all shapes in ring 3 within a millisecond";
    "reset", 1, ANY, DebugExitAfterResets, "reset by i8042, port 0xCF9 and triple fault";
    "poweroff", 1, ANY, PowerOff, "power-off by ACPI";
    "strings", 1, ANY, DebugExit, "REP instructions: counts, direction, address sizes, faults mid-way";
}
