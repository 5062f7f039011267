/* Exceptions that only 32-bit code has, and returns that are refused: BOUND, INTO, IRET, RETF, bad stacks in the TSS. */
#define LONG 0
#include "common.inc"
#include "desc32.inc"
#define UCODE0 0x20
#define UDATA0 0x28
#define KCODE32_3 0x1b

        GUEST "exceptions-32"
        .set S1, 0x90
        .set DF_TSS, 0x98
        .set GATE, 0xa0

main:   call check_old
        call check_iret
        call check_retf
        call check_stack
        call check_double
        ret

check_old:
        STEP "BOUND, INTO, AAM"
        mov dword ptr [limits], 10
        mov dword ptr [limits + 4], 20
        mov eax, 10
        EXPECT_NONE "BOUND at the lower end", bound eax, [limits]
        mov eax, 20
        EXPECT_NONE "BOUND at the upper end", bound eax, [limits]
        mov eax, 21
        EXPECT_FAULT BR, 0, "BOUND above", bound eax, [limits]
        mov eax, -1
        EXPECT_FAULT BR, 0, "BOUND below, signed", bound eax, [limits]
        xor eax, eax
        EXPECT_NONE "INTO without OF", into
        mov al, 0x7f
        add al, 1
        EXPECT_TRAP OF, 0, "INTO with OF", into
        mov eax, 5
        EXPECT_FAULT DE, 0, "AAM 0", .byte 0xd4, 0
        EXPECT_NONE "INC EAX is no prefix", .byte 0x40
        EXPECT_FAULT UD, 0, "BOUND of a register", .byte 0x62, 0xc0
        EXPECT_FAULT UD, 0, "LES of a register", .byte 0xc4, 0xc0
        EXPECT_FAULT UD, 0, "SWAPGS", .byte 0x0f, 0x01, 0xf8
        mov eax, 0x8000
        EXPECT_FAULT GP, 0x8000, "a selector beyond the GDT", mov ds, eax
        ret

/* IRET_FAULT error, text, CS, SS, ESP: an IRET with these is refused with #GP. */
        .macro IRET_FAULT code, text, cs, ss=KDATA, esp=USER_STACK
        ARM_RESUME 59f
        push \ss
        push \esp
        push 2
        push \cs
        push offset user_trap
58:     iretd
59:     call check_trap
        CHECK_ID "\text"
        .long GP << 16 | (\code), 58b
        .endm

check_iret:
        STEP "IRET"
        IRET_FAULT 0, "to a null CS", 0
        IRET_FAULT KDATA, "to data", KDATA
        IRET_FAULT UCODE0, "to ring 3's code with RPL 0", UCODE0
        IRET_FAULT KCODE32, "to ring 0's code with RPL 3", KCODE32_3
        IRET_FAULT 0x800, "beyond the GDT", 0x800
        IRET_FAULT 0, "to ring 3 with a null SS", UCODE32, 0
        IRET_FAULT KDATA, "to ring 3 with ring 0's SS", UCODE32, KDATA
        IRET_FAULT UDATA0, "to ring 3 with RPL 0 in SS", UCODE32, UDATA0
        IRET_FAULT UCODE0, "to ring 3 with code as SS", UCODE32, UCODE32
        DESC gdt+S1, 0, 0xfffff, 0x7b, 0xc
        ARM_RESUME 1f
        push UDATA
        push USER_STACK
        push 2
        push S1+3
        push offset user_trap
        iretd
1:      CHECK_EQ "to code not present", "dword ptr [trap_vec]", NP
        CHECK_EQ "its selector", "dword ptr [trap_err]", S1
        EXPECT_USER USER_TRAP, 0, 0, "a good one", user_trap
        mov dword ptr [USER_STACK], offset user_trap
        mov dword ptr [USER_STACK + 4], KCODE32
        mov dword ptr [USER_STACK + 8], 2
        EXPECT_USER GP, KCODE32, user_iret, "ring 3 to ring 0", user_iret
        ret

check_retf:
        STEP "RETF"
        ARM_RESUME 1f
        push UDATA
        push USER_STACK
        push UCODE32
        push offset user_trap
        retf
1:      CHECK_EQ "to ring 3", "dword ptr [trap_cs]", UCODE32
        CHECK_EQ "its ESP", "dword ptr [trap_sp]", USER_STACK
        ARM_RESUME 1f
        push KCODE32
        push offset 1f
        push KCODE32
        push 0xfffffff0
        DESC gdt+S1, 0, 0xff, 0x9b, 0xc
        mov dword ptr [esp + 4], S1
        retf
1:      CHECK_EQ "beyond the limit", "dword ptr [trap_vec]", GP
        CHECK_EQ "without a code", "dword ptr [trap_err]", 0
        ret

/* The stack that the TSS names for ring 0 must be good, or else #TS comes, on a good stack: that of a task. */
check_stack:
        STEP "a bad stack for ring 0"
        CALLGATE gdt+GATE, in_gate, KCODE32, 0, 0xec
        EXPECT_USER USER_TRAP, 0, 0, "a good one", user_gate
        call df_task
        mov eax, offset ts_task
        mov [df_tss + 0x20], eax
        mov dword ptr [idt + TS * 8], DF_TSS << 16
        mov dword ptr [idt + TS * 8 + 4], 0x8500
        mov dword ptr [tss + 8], UDATA          /* SS0 */
        mov dword ptr [seen], 0
        mov dword ptr [saved_esp], esp
        push UDATA
        push USER_STACK
        push 2
        push UCODE32
        push offset user_gate
        iretd
after_ts:
        mov dword ptr [tss + 8], KDATA
        CHECK_EQ "#TS of SS0", "dword ptr [seen]", 0x28
        CHECK_EQ "at the CALL", "dword ptr [seen + 4]", "offset user_gate"
        clts
        ret
in_gate:
        retf
/* The task that takes #TS: error code on its stack, and the old task's EIP in its TSS. It does not go back. */
ts_task:
        pop [seen]
        mov eax, [tss + 0x20]
        mov [seen + 4], eax
        mov ecx, offset after_ts
leave_to:
        pushfd                                  /* no longer nested */
        and dword ptr [esp], ~EFLAGS_NT
        popfd
        mov byte ptr [gdt + TSS_SEL + 5], 0x89
        mov eax, TSS_SEL
        ltr ax
        mov eax, KDATA
        mov ds, eax
        mov es, eax
        mov fs, eax
        mov gs, eax
        mov ss, eax
        mov esp, [saved_esp]
        jmp ecx

/* A double fault by a stack that cannot take the frame: it needs a task of its own. */
check_double:
        STEP "double fault into a task"
        call df_task
        mov eax, offset in_df
        mov [df_tss + 0x20], eax
        mov dword ptr [idt + 8 * 8], DF_TSS << 16
        mov dword ptr [idt + 8 * 8 + 4], 0x8500
        DESC gdt+S1, 0, 0xfff, 0x93, 4
        mov dword ptr [saved_esp], esp
        mov dword ptr [seen], 0xffff
        mov eax, S1
        mov ss, eax
        mov esp, 0x800000                       /* beyond SS's limit */
bad_push:
        push eax
after_df:
        CHECK_EQ "its error code", "dword ptr [seen]", 0
        CHECK_EQ "EIP", "dword ptr [seen + 4]", "offset bad_push"
        CHECK_EQ "SS", "dword ptr [seen + 8]", S1
        clts
        ret
in_df:  pop [seen]
        mov eax, [tss + 0x20]
        mov [seen + 4], eax
        mov eax, [tss + 0x50]
        mov [seen + 8], eax
        mov ecx, offset after_df
        jmp leave_to

df_task:
        mov edi, offset df_tss
        mov ecx, 26
        xor eax, eax
        rep stosd
        mov dword ptr [df_tss + 0x24], 2
        mov dword ptr [df_tss + 0x38], offset ist1_top
        mov dword ptr [df_tss + 0x48], KDATA
        mov dword ptr [df_tss + 0x4c], KCODE32
        mov dword ptr [df_tss + 0x50], KDATA
        mov dword ptr [df_tss + 0x54], KDATA
        mov eax, offset df_tss
        mov dword ptr [gdt + DF_TSS], 0x67
        mov dword ptr [gdt + DF_TSS + 4], 0x8900
        mov [gdt + DF_TSS + 2], ax
        shr eax, 16
        mov [gdt + DF_TSS + 4], al
        ret

user_trap:
        int USER_TRAP
user_gate:
        .byte 0x9a
        .long 0
        .word GATE
        int USER_TRAP
user_iret:
        iretd                                   /* with what check_iret has put there */

        .bss
        .align 8
limits: .fill 8
seen:   .fill 16
saved_esp: .fill 4
df_tss: .fill 104
        .text
