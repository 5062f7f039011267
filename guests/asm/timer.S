/*
 * The clocks against each other: TSC, ACPI PM timer, HPET, PIT, LAPIC timer. Each pair is read over about ten milliseconds;
 * they must agree within a quarter, in one of several tries: a host that takes the processor away between two readings
 * spoils a try, not the clocks.
 */
#define LONG 1
#include "common.inc"
#include "irq.inc"
        GUEST "timer"
#define PM_TIMER 0x608
#define HPET 0xfed00000
#define TICKS 35795                     /* of the PM timer: 10 ms */

main:   call check_monotonic
        call check_hpet
        call check_tsc
        call check_pit
        call check_lapic
        ret

/* PM timer in eax. */
pm_read:
        push rdx
        mov dx, PM_TIMER
        in eax, dx
        pop rdx
        ret

/* OVER label: r12 = what the clock at `label` (which leaves its count in rax) counts, r13 = PM timer ticks meanwhile. */
        .macro OVER label
        call \label
        mov r12, rax
        call pm_read
        mov r13d, eax
66:     pause
        call pm_read
        sub eax, r13d
        cmp eax, TICKS
        jb 66b
        mov r13d, eax
        call \label
        sub r12, rax
        neg r12
        .endm

/* AGREE "text", label, hz: the clock runs at r14 Hz, if measured against the PM timer. */
        .macro AGREE text, label
        mov r11d, 10
67:     OVER \label
        /* expected = r13 * r14 / 3579545; |r12 - expected| * 4 < expected */
        mov rax, r13
        mul r14
        mov ecx, 3579545
        div rcx
        mov rcx, rax
        sub rax, r12
        mov rdx, rax
        neg rdx
        cmovs rdx, rax
        shl rdx, 2
        cmp rdx, rcx
        jb 68f
        dec r11d
        jnz 67b
        CHECK_EQ "\text", r12, rcx
68:
        .endm

check_monotonic:
        STEP "none goes back"
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov rbx, rax
        mov ecx, 2000
1:      rdtsc
        shl rdx, 32
        or rax, rdx
        cmp rax, rbx
        CHECK "the TSC never goes back", ae
        mov rbx, rax
        loop 1b
        call pm_read
        mov ebx, eax
        mov ecx, 2000
2:      call pm_read
        mov edx, eax
        sub edx, ebx
        CHECK "the PM timer never goes back", ns
        mov ebx, eax
        loop 2b
        ret

check_hpet:
        STEP "HPET and PM timer"
        mov r15d, HPET
        mov eax, [r15 + 4]              /* femtoseconds a tick */
        test eax, eax
        CHECK "its period is not zero", ne
        cmp eax, 100000000
        CHECK "nor above 100 ns", be
        mov ecx, eax
        mov rax, 1000000000000000
        xor edx, edx
        div rcx
        mov r14, rax
        mov eax, [r15 + 0x10]
        or eax, 1
        mov [r15 + 0x10], eax
        AGREE "HPET", hpet_read
        mov r15d, HPET
        and dword ptr [r15 + 0x10], ~1
        mov rax, [r15 + 0xf0]
        mov rcx, [r15 + 0xf0]
        CHECK_EQ "it stands still when it is off", rax, rcx
        mov qword ptr [r15 + 0xf0], 0x12345678
        CHECK_EQ "and can be set", "qword ptr [r15 + 0xf0]", 0x12345678
        ret
hpet_read:
        mov r15d, HPET
        mov rax, [r15 + 0xf0]
        ret

check_tsc:
        mov eax, 0x40000000
        cpuid
        cmp eax, 0x40000010
        jae 1f
        ret
1:      STEP "TSC: what CPUID says, and PM timer"
        mov eax, 0x40000010
        cpuid
        mov eax, eax
        imul r14, rax, 1000
        mov ebx, ebx
        mov [bus_khz], rbx
        AGREE "TSC", tsc_read
        ret
tsc_read:
        rdtsc
        shl rdx, 32
        or rax, rdx
        ret

check_pit:
        STEP "PIT and PM timer"
        mov r14d, 1193182
        in al, 0x61
        and al, 0xfc
        or al, 1                        /* gate of channel 2, no speaker */
        out 0x61, al
        OUTB 0x43, 0xb0                 /* channel 2, mode 0, both bytes */
        OUTB 0x42, 0xff
        OUTB 0x42, 0xff
        AGREE "PIT", pit_read
        OUTB 0x43, 0xb0
        OUTB 0x42, 100
        OUTB 0x42, 0
1:      in al, 0x61
        test al, 0x20
        jz 1b
        in al, 0x61
        and eax, 0x20
        CHECK_EQ "channel 2's output is up at the end", rax, 0x20
        ret
/* It counts down: its negative. */
pit_read:
        OUTB 0x43, 0x80
        in al, 0x42
        mov ah, al
        in al, 0x42
        xchg al, ah
        movzx eax, ax
        neg rax
        ret

check_lapic:
        cmp qword ptr [bus_khz], 0
        jne 1f
        ret
1:      STEP "LAPIC timer and PM timer"
        call lapic_on
        LAPIC_SET LAPIC_TDCR, 0xb
        LAPIC_SET LAPIC_TIMER, 0x10062
        LAPIC_SET LAPIC_TICR, 0xffffffff
        imul r14, [bus_khz], 1000
        AGREE "LAPIC timer", lapic_read
        LAPIC_SET LAPIC_TDCR, 0         /* half the rate */
        LAPIC_SET LAPIC_TICR, 0xffffffff
        shr r14, 1
        AGREE "LAPIC timer, divided by 2", lapic_read
        ret
lapic_read:
        LAPIC_GET eax, LAPIC_TCCR
        neg rax
        ret

        .bss
        .align 8
bus_khz: .fill 8
        .text
