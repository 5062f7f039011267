/* 5-level paging: entered with paging off, 57-bit addresses, the same bits and errors at every level. */
#define LONG 1
#include "common.inc"
#include "paging64.inc"
        GUEST "paging-5level"

main:   CPUID_BIT 7, 0, ecx, 16
        jc 1f
        SKIP "no LA57"
1:      STEP "57-bit addresses"
        mov rax, cr4
        or eax, CR4_LA57
        EXPECT_FAULT GP, 0, "LA57 cannot change in 64-bit mode", mov cr4, rax
        mov qword ptr [pml5], offset pml4 + P + RW + US
        mov rdi, offset pml5
        mov esi, CR4_LA57
        call switch_levels
        mov rax, cr4
        and eax, CR4_LA57
        CHECK_EQ "LA57 is on", rax, CR4_LA57

        /* PML5 entry 511 leads to the same tables: the upper end of the address space. */
        call test_tables
        mov rax, [pml5]
        mov [pml5 + 511 * 8], rax
        mov rcx, 0xffff000000000000 + TVA
        mov rax, [rcx]
        CHECK_EQ "a read through PML5 entry 511", rax, 0x1000
        mov rax, [pml5]
        and eax, 0xfff
        CHECK_EQ "A in the PML5 entry", rax, P+RW+US+A
        mov rax, [pml5]
        mov [pml5 + 8], rax
        mov rcx, 1 << 48 | TVA
        mov rax, [rcx + 0x1000]
        CHECK_EQ "a read with bit 48", rax, 0x1001
        mov rcx, 0x00ff000000000000 + TVA
        EXPECT_FAULT PF, 0, "57 bits, not mapped", mov rax, [rcx]
        CHECK_EQ "CR2 has 57 bits", rcx, [trap_cr2]
        mov rcx, 0x0100000000000000
        EXPECT_FAULT GP, 0, "not canonical at 57 bits", mov rax, [rcx]
        ENTRY pml5+8, 0
        mov rcx, 1 << 48 | TVA
        EXPECT_FAULT PF, 0, "PML5 entry not present", mov rax, [rcx]
        mov rax, offset pml4 + P + RW
        ENTRY pml5+8, rax
        EXPECT_NONE "PML5 entry of the supervisor", mov rax, [rcx]
        mov rbx, rcx
        EXPECT_USER PF, 5, user_read, "the user's read", user_read
        mov rax, offset pml4 + P + US
        ENTRY pml5+8, rax
        EXPECT_FAULT PF, 3, "PML5 entry read-only", mov [rcx], rax
        or rax, PS
        ENTRY pml5+8, rax
        EXPECT_FAULT PF, 9, "bit 7 of a PML5 entry", mov rax, [rcx]
        ENTRY pml5+8, 0

        call check_ad
        call check_errors
        call check_crossing
        call check_nx
        call check_reserved
        call check_giant
        call check_smep_smap

        STEP "back to 4 levels"
        mov rdi, offset pml4
        xor esi, esi
        call switch_levels
        call test_tables
        CHECK_EQ "read", "qword ptr [rbx]", 0x1000
        ret

/* Leaves 64-bit mode, and comes back with CR3 = rdi and the LA57 bit of rsi. */
switch_levels:
        pop r15
        mov r14, rsp
        push KCODE32
        push offset 1f
        retfq
        .code32
1:      mov eax, cr0
        btr eax, 31
        mov cr0, eax
        mov eax, cr4
        and eax, ~CR4_LA57
        or eax, esi
        mov cr4, eax
        mov cr3, edi
        mov eax, cr0
        bts eax, 31
        mov cr0, eax
        JMPFAR32 KCODE64, 2f
        .code64
2:      mov eax, KDATA
        mov ss, eax
        mov rsp, r14
        jmp r15

        .bss
        .align 4096
pml5:   .fill 4096
        .text
