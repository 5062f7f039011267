/* IRET, far RET and far CALL in 64-bit mode: what they load, what they refuse, call gates of 16 bytes. */
#define LONG 1
#include "common.inc"
        GUEST "iret-64"
        .set S1, 0x90
        .set GATE, 0xa0                 /* two slots */

main:   call check_good
        call check_refused
        call check_far
        call check_gate
        ret

/* FRAME ip, cs, flags, sp, ss on the stack; these may be registers. */
        .macro FRAME ip, cs, flags, sp, ss
        push \ss
        push \sp
        push \flags
        push \cs
        push \ip
        .endm

check_good:
        STEP "IRET"
        mov r8, rsp
        lea r9, [rsp - 1024]
        FRAME "offset 1f", KCS, 0x403, r9, KDATA
        iretq
1:      mov rax, rsp
        mov rsp, r8
        cld
        CHECK_EQ "RSP is loaded without a change of rings", rax, r9
        xor ecx, ecx
        FRAME "offset 1f", KCS, 2, r9, 0
        iretq
1:      mov eax, ss
        mov rsp, r8
        CHECK_EQ "a null SS in ring 0", rax, 0
        mov eax, KDATA
        mov ss, eax
        FRAME "offset 1f", KCS, 0x203, r8, KDATA
        iretq
1:      pushfq
        cli
        pop rax
        and eax, 0x201
        CHECK_EQ "flags", rax, 0x201
        EXPECT_USER USER_TRAP, 0, 0, "to ring 3", user_trap
        CHECK_EQ "its RSP", "qword ptr [trap_sp]", USER_STACK
        ARM_RESUME 1f
        FRAME "offset user_compat", UCODE32, 2, USER_STACK, UDATA
        iretq
1:      CHECK_EQ "to compatibility mode", "qword ptr [trap_cs]", UCODE32
        CHECK_EQ "it ran as 32-bit code", rax, 0x7ffffffe
        /* IRETD pops five dwords. */
        mov r8, rsp
        sub rsp, 20
        mov rax, offset 1f
        mov [rsp], eax
        mov dword ptr [rsp + 4], KCS
        mov dword ptr [rsp + 8], 2
        mov [rsp + 12], r8d
        mov dword ptr [rsp + 16], KDATA
        .byte 0xcf
1:      mov rax, rsp
        CHECK_EQ "IRETD", rax, r8
        ret

        .macro REFUSED vec, code, text, ip, cs, flags, sp, ss
        mov r8, rsp
        ARM_RESUME 59f
        FRAME "\ip", \cs, \flags, \sp, \ss
58:     iretq
59:     call check_trap
        CHECK_ID "\text"
        .long \vec << 16 | (\code), 58b
        .endm

check_refused:
        STEP "refused"
        mov rcx, 0x0000900000000000
        REFUSED GP, 0, "RIP that is not canonical", rcx, KCS, 2, r8, KDATA
        REFUSED GP, 0, "a null CS", "offset user_trap", 0, 2, r8, KDATA
        REFUSED GP, KDATA, "CS of data", "offset user_trap", KDATA, 2, r8, KDATA
        REFUSED GP, 0x30, "ring 3's code with RPL 0", "offset user_trap", 0x30, 2, r8, KDATA
        REFUSED GP, 0, "ring 3 with a null SS", "offset user_trap", UCODE64, 2, r8, 0
        REFUSED GP, KDATA, "ring 3 with ring 0's SS", "offset user_trap", UCODE64, 2, r8, KDATA
        mov rax, 0x00effb000000ffff             /* L and D */
        mov [gdt + S1], rax
        REFUSED GP, S1, "code with L and D", "offset user_trap", 0x93, 2, r8, UDATA
        mov rax, 0x00af7b000000ffff
        mov [gdt + S1], rax
        REFUSED NP, S1, "code not present", "offset user_trap", 0x93, 2, r8, UDATA
        ARM_RESUME 59f
        FRAME "offset 59f", KCS, 2, r8, KDATA
        pushfq
        or dword ptr [rsp], EFLAGS_NT
        popfq
58:     iretq
59:     call check_trap
        CHECK_ID "NT"
        .long GP << 16, 58b
        push 2
        popfq
        ret

check_far:
        STEP "far CALL and RET"
        xor eax, eax
        cpuid
        mov r8, rsp
        cmp ebx, 0x68747541                     /* AMD processors have no far pointers of 80 bits */
        je 1f
        mov qword ptr [target], offset callee
        mov word ptr [target + 8], KCS
        .byte 0x48                              /* m16:64 */
        call fword ptr [target]
        CHECK_EQ "it came back", rax, 0x66
        CHECK_EQ "CS on the stack", rcx, KCS
        mov rax, rsp
        CHECK_EQ "RSP", rax, r8
1:      mov rax, offset callee32
        mov [target], eax
        mov word ptr [target + 4], KCS
        call fword ptr [target]
        CHECK_EQ "m16:32 pushes two dwords", rcx, 8
        mov word ptr [target + 4], 0
        EXPECT_FAULT GP, 0, "to null", call fword ptr [target]
        mov word ptr [target + 4], KDATA
        EXPECT_FAULT GP, KDATA, "to data", jmp fword ptr [target]
        ret
callee: mov rcx, [rsp + 8]
        mov eax, 0x66
        retfq
callee32:
        mov rcx, r8
        sub rcx, rsp
        .byte 0xcb
        nop

/* A call gate of 16 bytes: to 64-bit code only, no parameters, the old stack's address on the new one. */
check_gate:
        STEP "call gates"
        mov rax, offset in_gate
        mov [gdt + GATE], ax
        mov word ptr [gdt + GATE + 2], KCS
        mov word ptr [gdt + GATE + 4], 0xec00
        shr rax, 16
        mov [gdt + GATE + 6], ax
        mov qword ptr [gdt + GATE + 8], 0
        EXPECT_USER USER_TRAP, 0, 0, "from ring 3", user_gate
        CHECK_EQ "CS inside", "qword ptr [seen]", KCS
        CHECK_EQ "SS inside is null", "qword ptr [seen + 8]", 0
        CHECK_EQ "RSP inside", "qword ptr [seen + 16]", "offset trap_stack_top - 32"
        CHECK_EQ "old SS on the stack", "qword ptr [seen + 24]", UDATA
        CHECK_EQ "old RSP on the stack", "qword ptr [seen + 32]", USER_STACK
        CHECK_EQ "CS behind RETF", "qword ptr [trap_cs]", UCODE64
        CHECK_EQ "RSP behind RETF", "qword ptr [trap_sp]", USER_STACK
        mov word ptr [gdt + GATE + 2], KCODE32
        EXPECT_USER GP, KCODE32, user_gate, "a gate to 32-bit code", user_gate
        mov word ptr [gdt + GATE + 2], KCS
        mov byte ptr [gdt + GATE + 13], 0x0c
        EXPECT_USER GP, GATE, user_gate, "the type in its upper half must be 0", user_gate
        mov dword ptr [gdt + GATE + 12], 0
        mov dword ptr [gdt + GATE + 8], 0x9000
        EXPECT_USER GP, 0, 0, "an address that is not canonical", user_gate
        mov dword ptr [gdt + GATE + 8], 0
        mov byte ptr [gdt + GATE + 5], 0x8c
        EXPECT_USER GP, GATE, user_gate, "a gate of ring 0", user_gate
        ret
in_gate:
        mov eax, cs
        mov [seen], rax
        mov eax, ss
        mov [seen + 8], rax
        mov [seen + 16], rsp
        mov rax, [rsp + 24]
        mov [seen + 24], rax
        mov rax, [rsp + 16]
        mov [seen + 32], rax
        retfq

        .section .user
user_trap:
        int USER_TRAP
user_gate:
        call fword ptr [gate_pointer]
        int USER_TRAP
gate_pointer:
        .long 0
        .word GATE
        .code32
user_compat:
        mov eax, 0x7fffffff
        dec eax
        int USER_TRAP

        .bss
        .align 8
target: .fill 16
seen:   .fill 64
        .text
