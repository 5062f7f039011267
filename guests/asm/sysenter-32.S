/* SYSENTER and SYSEXIT in 32-bit protected mode; SYSCALL and SYSRET there, on AMD processors. */
#define LONG 0
#include "common.inc"
        GUEST "sysenter-32"

main:   xor eax, eax
        cpuid
        xor eax, eax
        cmp ebx, 0x68747541             /* "Auth"enticAMD */
        sete al
        mov [amd], eax
        call check_sysenter
        call check_syscall
        ret

check_sysenter:
        STEP "SYSENTER"
        SET_MSR 0x174, 0
        SET_MSR 0x175, "offset sysenter_stack"
        SET_MSR 0x176, "offset on_sysenter"
        EXPECT_FAULT GP, 0, "SYSENTER without IA32_SYSENTER_CS", sysenter
        EXPECT_FAULT GP, 0, "SYSEXIT without it", sysexit
        SET_MSR 0x174, SYSENTER_CS_SEL
        EXPECT_USER GP, 0, user_sysexit, "SYSEXIT in ring 3", user_sysexit
        EXPECT_USER USER_TRAP, 0, user_after, "there and back", user_sysenter
        CHECK_EQ "CS", "dword ptr [seen_cs]", SYSENTER_CS_SEL
        CHECK_EQ "SS", "dword ptr [seen_ss]", 0x68
        CHECK_EQ "ESP", "dword ptr [seen_esp]", "offset sysenter_stack"
        CHECK_EQ "IF is off", "dword ptr [seen_if]", 0
        CHECK_EQ "CS behind SYSEXIT", "dword ptr [trap_cs]", 0x73
        CHECK_EQ "SS behind SYSEXIT", "dword ptr [trap_ss]", 0x7b
        CHECK_EQ "ESP behind SYSEXIT", "dword ptr [trap_sp]", 0x9fefc0
        ret
on_sysenter:
        mov [seen_esp], esp
        pushfd
        pop eax
        and eax, EFLAGS_IF
        mov [seen_if], eax
        mov eax, cs
        mov [seen_cs], eax
        mov eax, ss
        mov [seen_ss], eax
        mov edx, offset user_trap
        mov ecx, 0x9fefc0
        sysexit

check_syscall:
        cmp dword ptr [amd], 0
        jne 1f
        STEP "SYSCALL does not exist here"
        EXPECT_FAULT UD, 0, "Intel: SYSCALL outside of 64-bit mode", .byte 0x0f, 0x05
        ret
1:      STEP "SYSCALL"
        EXPECT_FAULT UD, 0, "SYSCALL without EFER.SCE", .byte 0x0f, 0x05
        mov ecx, EFER
        rdmsr
        or eax, 1
        wrmsr
        /* SYSRET's CS is the base itself, SS the next: user code and data of the SYSENTER six. */
        SET_MSR 0xc0000081, "offset on_syscall", 0x00730018
        EXPECT_USER USER_TRAP, 0, user_after, "there and back", user_syscall
        CHECK_EQ "CS", "dword ptr [seen_cs]", KCODE32
        CHECK_EQ "SS", "dword ptr [seen_ss]", 0x20
        CHECK_EQ "ECX held the next instruction's address", "dword ptr [seen_esp]", "offset user_next"
        CHECK_EQ "CS behind SYSRET", "dword ptr [trap_cs]", 0x73
        CHECK_EQ "SS behind SYSRET", "dword ptr [trap_ss]", 0x7b
        ret
on_syscall:
        mov [seen_esp], ecx
        mov eax, cs
        mov [seen_cs], eax
        mov eax, ss
        mov [seen_ss], eax
        mov ecx, offset user_trap
        .byte 0x0f, 0x07

user_sysenter:
        sysenter
user_sysexit:
        sysexit
user_syscall:
        .byte 0x0f, 0x05
user_next:
        int3
user_trap:
        int USER_TRAP
user_after:

        .bss
        .align 4
amd:    .fill 4
seen_cs: .fill 4
seen_ss: .fill 4
seen_esp: .fill 4
seen_if: .fill 4
        .fill 256
sysenter_stack:
        .text
