/* SYSCALL, SYSRET, SYSENTER, SYSEXIT between ring 0 and ring 3, SWAPGS, FS and GS bases. */
#define LONG 1
#include "common.inc"
        GUEST "syscall"
#define MSR_STAR   0xc0000081
#define MSR_LSTAR  0xc0000082
#define MSR_CSTAR  0xc0000083
#define MSR_FMASK  0xc0000084
#define FS_BASE    0xc0000100
#define GS_BASE    0xc0000101
#define KERNEL_GS  0xc0000102

main:   xor eax, eax
        cpuid
        xor eax, eax
        cmp ebx, 0x68747541             /* "Auth"enticAMD */
        sete al
        mov [amd], rax
        call check_syscall
        call check_sysret
        call check_compat
        call check_sysenter
        call check_bases
        call check_fsgsbase
        ret

check_syscall:
        STEP "SYSCALL"
        EXPECT_FAULT UD, 0, "SYSCALL without EFER.SCE", syscall
        EXPECT_FAULT UD, 0, "SYSRET without EFER.SCE", sysretq
        mov ecx, EFER
        rdmsr
        or eax, 1
        wrmsr
        SET_MSR MSR_STAR, 0, 0x00230008
        SET_MSR MSR_LSTAR, "offset on_syscall"
        SET_MSR MSR_CSTAR, "offset on_syscall"
        SET_MSR MSR_FMASK, 0x400
        mov ecx, MSR_LSTAR
        mov edx, 0x01000000             /* Canonical neither in 48 bits nor in 57: a processor with LA57 takes 57. */
        EXPECT_FAULT GP, 0, "LSTAR takes canonical addresses only", wrmsr
        mov qword ptr [handler], offset back
        mov rsi, 0x1234
        EXPECT_USER USER_TRAP, 0, 0, "there and back", user_syscall
        CHECK_EQ "RCX holds the next instruction's address", "qword ptr [seen_rcx]", "offset after_syscall"
        mov rax, [seen_r11]
        and eax, 0x401
        CHECK_EQ "R11 holds the flags", rax, 0x401
        mov rax, [seen_flags]
        and eax, 0x401
        CHECK_EQ "FMASK clears its bits only", rax, 1
        CHECK_EQ "CS", "qword ptr [seen_cs]", KCODE64
        CHECK_EQ "SS", "qword ptr [seen_ss]", KDATA
        CHECK_EQ "RSP is the user's", "qword ptr [seen_rsp]", USER_STACK
        CHECK_EQ "CS behind SYSRET", "qword ptr [trap_cs]", UCODE64
        CHECK_EQ "SS behind SYSRET", "qword ptr [trap_ss]", UDATA
        CHECK_EQ "other registers stay", rsi, 0x1234
        mov rax, [trap_flags]
        and eax, 0x401
        CHECK_EQ "SYSRET takes the flags from R11", rax, 0x401
        cld
        ret
/* Logs, and goes to `handler`. */
on_syscall:
        mov [seen_rcx], rcx
        mov [seen_r11], r11
        mov [seen_rsp], rsp
        mov rsp, [resume_sp]
        lea rsp, [rsp - 256]
        pushfq
        pop rax
        mov [seen_flags], rax
        mov eax, cs
        mov [seen_cs], rax
        mov eax, ss
        mov [seen_ss], rax
        jmp [handler]
back:   mov rsp, [seen_rsp]
        sysretq

check_sysret:
        STEP "SYSRET"
        EXPECT_USER GP, 0, user_sysret, "SYSRET in ring 3", user_sysret
        mov rcx, 0x0000900000000000
        mov r11d, 2
        ARM_RESUME 1f
        sysretq
1:      CHECK_EQ "RCX that is not canonical", "qword ptr [trap_vec]", GP
        mov rax, [trap_cs]
        and eax, 3
        cmp qword ptr [amd], 0
        je 2f
        CHECK_EQ "AMD: the fault is the user's", rax, 3
        jmp 3f
2:      CHECK_EQ "Intel: the fault is SYSRET's", rax, 0
3:      mov ecx, offset user_trap
        mov r11d, 0x10000 | 0x20000 | 2         /* RF, VM */
        ARM_RESUME 1f
        sysretq
1:      CHECK_EQ "ring 3 runs", "qword ptr [trap_vec]", USER_TRAP
        mov rax, [trap_flags]
        and eax, 0x30000
        CHECK_EQ "SYSRET clears RF and VM", rax, 0
        ret

check_compat:
        STEP "compatibility mode"
        mov rcx, 0x4200000000
        add rcx, offset user32
        mov r11d, 2
        ARM_RESUME 1f
        .byte 0x0f, 0x07                        /* SYSRET to 32-bit code */
1:      CHECK_EQ "it comes to ring 3", "qword ptr [trap_vec]", USER_TRAP
        CHECK_EQ "CS", "qword ptr [trap_cs]", UCODE32
        CHECK_EQ "SS", "qword ptr [trap_ss]", UDATA
        CHECK_EQ "it runs 32-bit code", rax, 0x11223344
        mov qword ptr [handler], offset compat_back
        mov qword ptr [seen_rcx], 0
        mov ecx, offset user32_syscall
        mov r11d, 2
        ARM_RESUME 1f
        .byte 0x0f, 0x07
1:      cmp qword ptr [amd], 0
        je 2f
        CHECK_EQ "AMD: SYSCALL from 32-bit code", "qword ptr [trap_vec]", USER_TRAP
        CHECK_EQ "RCX", "qword ptr [seen_rcx]", "offset user32_next"
        CHECK_EQ "in 64-bit mode", "qword ptr [seen_cs]", KCODE64
        ret
2:      CHECK_EQ "Intel: no SYSCALL from 32-bit code", "qword ptr [trap_vec]", UD
        ret
compat_back:
        mov rsp, [seen_rsp]
        .byte 0x0f, 0x07

check_sysenter:
        STEP "SYSENTER"
        SET_MSR 0x175, "offset sysenter_stack"
        SET_MSR 0x176, "offset on_sysenter"
        SET_MSR 0x174, 0
        cmp qword ptr [amd], 0
        je 1f
        EXPECT_USER UD, 0, user_sysenter, "AMD: no SYSENTER in 64-bit mode", user_sysenter
        mov ecx, offset user32_sysenter
        mov r11d, 2
        ARM_RESUME 2f
        .byte 0x0f, 0x07
2:      CHECK_EQ "AMD: nor in compatibility mode", "qword ptr [trap_vec]", UD
        EXPECT_FAULT UD, 0, "AMD: no SYSEXIT", .byte 0x0f, 0x35
        ret
1:      EXPECT_USER GP, 0, user_sysenter, "SYSENTER without IA32_SYSENTER_CS", user_sysenter
        SET_MSR 0x174, SYSENTER_CS_SEL
        EXPECT_USER GP, 0, user_sysexit, "SYSEXIT in ring 3", user_sysexit
        EXPECT_USER USER_TRAP, 0, 0, "there and back", user_sysenter
        CHECK_EQ "CS", "qword ptr [seen_cs]", SYSENTER_CS_SEL
        CHECK_EQ "SS", "qword ptr [seen_ss]", 0x68
        CHECK_EQ "RSP", "qword ptr [seen_rsp]", "offset sysenter_stack"
        CHECK_EQ "CS behind SYSEXIT", "qword ptr [trap_cs]", 0x83
        CHECK_EQ "SS behind SYSEXIT", "qword ptr [trap_ss]", 0x8b
        CHECK_EQ "RSP behind SYSEXIT", "qword ptr [trap_sp]", 0x9fefc0
        ret
on_sysenter:
        mov [seen_rsp], rsp
        mov eax, cs
        mov [seen_cs], rax
        mov eax, ss
        mov [seen_ss], rax
        mov edx, offset user_trap
        mov ecx, USER_STACK-64
        .byte 0x48
        .byte 0x0f, 0x35

check_bases:
        STEP "FS, GS and SWAPGS"
        mov qword ptr [cell_a], 0xa
        mov qword ptr [cell_b], 0xb
        SET_MSR FS_BASE, "offset cell_a"
        SET_MSR GS_BASE, "offset cell_a - 8"
        SET_MSR KERNEL_GS, "offset cell_b - 8"
        xor ecx, ecx
        mov rax, fs:[rcx]
        CHECK_EQ "through FS", rax, 0xa
        mov rax, gs:[rcx + 8]
        CHECK_EQ "through GS", rax, 0xa
        swapgs
        mov rax, gs:[rcx + 8]
        CHECK_EQ "after SWAPGS", rax, 0xb
        mov ecx, KERNEL_GS
        rdmsr
        CHECK_EQ "what was in GS", rax, "offset cell_a - 8"
        swapgs
        EXPECT_USER GP, 0, user_swapgs, "SWAPGS in ring 3", user_swapgs
        mov ecx, FS_BASE
        mov edx, 0x01000000
        EXPECT_FAULT GP, 0, "a base that is not canonical", wrmsr
        xor eax, eax
        mov edx, 0xffff8000
        EXPECT_NONE "the upper half's first", wrmsr
        mov rcx, 0x0000800000000000
        add rcx, offset cell_b
        mov rax, fs:[rcx]
        CHECK_EQ "base and offset wrap at 64 bits", rax, 0xb
        /* A selector brings its descriptor's base, 32 bits. */
        mov rax, 0x00cf93000000ffff
        mov [gdt + SPARE], rax
        mov eax, offset cell_b
        mov [gdt + SPARE + 2], ax
        shr eax, 16
        mov [gdt + SPARE + 4], al
        mov [gdt + SPARE + 7], ah
        mov eax, SPARE
        mov fs, eax
        mov rax, fs:[0]
        CHECK_EQ "MOV to FS loads the base", rax, 0xb
        mov ecx, FS_BASE
        rdmsr
        shl rdx, 32
        or rax, rdx
        CHECK_EQ "which the MSR shows", rax, "offset cell_b"
        /* Bases of the others mean nothing. */
        mov eax, SPARE
        mov ds, eax
        mov rax, [cell_a]
        CHECK_EQ "DS has no base in 64-bit mode", rax, 0xa
        mov eax, KDATA
        mov ds, eax
        mov fs, eax
        mov rbp, 0x0000900000000000
        EXPECT_FAULT GP, 0, "FS override and RBP: #GP, not #SS", mov rax, fs:[rbp]
        ret

check_fsgsbase:
        CPUID_BIT 7, 0, ebx, 0
        jc 1f
        ret
1:      STEP "FSGSBASE"
        EXPECT_FAULT UD, 0, "without CR4.FSGSBASE", rdfsbase rax
        SET_CR cr4, CR4_FSGSBASE
        mov rcx, 0x123456789abc
        wrfsbase rcx
        rdfsbase rax
        CHECK_EQ "FS", rax, rcx
        wrgsbase ecx
        rdgsbase rax
        mov ecx, ecx
        CHECK_EQ "32 bits of GS", rax, rcx
        mov rcx, 0x0100000000000000
        EXPECT_FAULT GP, 0, "a base that is not canonical", wrfsbase rcx
        EXPECT_USER USER_TRAP, 0, 0, "in ring 3", user_fsgs
        CHECK_EQ "what it read", rax, "offset cell_a"
        CLEAR_CR cr4, CR4_FSGSBASE
        CPUID_BIT 0x80000001, 0, edx, 27
        jnc 2f
        SET_MSR 0xc0000103, 0x77
        rdtscp
        CHECK_EQ "RDTSCP reads TSC_AUX", rcx, 0x77
2:      ret

        .section .user
user_syscall:
        stc
        std
        syscall
after_syscall:
        int USER_TRAP
user_trap:
        int USER_TRAP
user_sysret:
        sysretq
user_sysenter:
        sysenter
user_sysexit:
        .byte 0x0f, 0x35
user_swapgs:
        swapgs
user_fsgs:
        mov eax, offset cell_a
        wrfsbase rax
        xor eax, eax
        rdfsbase rax
        int USER_TRAP
        .code32
user32: mov eax, 0x11223344
        dec ecx                                 /* a REX prefix in 64-bit code */
        int USER_TRAP
user32_syscall:
        syscall
user32_next:
        int USER_TRAP
user32_sysenter:
        sysenter

        .bss
        .align 8
amd:    .fill 8
handler: .fill 8
seen_rcx: .fill 8
seen_r11: .fill 8
seen_rsp: .fill 8
seen_flags: .fill 8
seen_cs: .fill 8
seen_ss: .fill 8
cell_a: .fill 8
cell_b: .fill 8
        .fill 512
sysenter_stack:
        .text
