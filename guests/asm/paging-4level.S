/* 4-level paging: bits and errors of each level, NX, large pages, SMEP, SMAP, TLB maintenance, PCID. */
#define LONG 1
#include "common.inc"
#include "paging64.inc"
        GUEST "paging-4level"

main:   call check_ad
        call check_errors
        call check_crossing
        call check_nx
        call check_reserved
        call check_giant
        call check_smep_smap
        call check_canonical
        call check_tlb
        call check_global
        call check_pcid
        ret

check_canonical:
        STEP "canonical addresses"
        mov rdx, 0x0000800000000000
        EXPECT_FAULT GP, 0, "read above the lower half", mov rax, [rdx]
        mov rbp, rdx
        EXPECT_FAULT SS_, 0, "the same through RBP", mov rax, [rbp]
        EXPECT_AT GP, 0, 0, "a jump there", jmp rdx
        mov rdx, 0xffff800000000000
        EXPECT_FAULT PF, 0, "the upper half's first byte", mov rax, [rdx]
        EXPECT_FAULT GP, 0, "and the one before", mov al, [rdx - 1]
        ret

/* Translations are forgotten when they must be. */
check_tlb:
        STEP "INVLPG and CR3"
        call test_tables
        mov rax, [rbx]
        mov qword ptr [T_PT], PAGE1+P+RW+US
        invlpg [rbx + 0x7ff]
        mov rax, [rbx]
        CHECK_EQ "a new page after INVLPG of any byte of it", rax, 0x1001
        mov qword ptr [T_PT], PAGE2+P+RW+US
        call flush
        mov rax, [rbx]
        CHECK_EQ "a new page after MOV to CR3", rax, 0x1002
        mov qword ptr [T_PT], PAGE0
        invlpg [rbx]
        EXPECT_FAULT PF, 0, "gone after INVLPG", mov rax, [rbx]
        mov qword ptr [T_PT], PAGE0+P+RW+US
        EXPECT_NONE "what was not present needs no INVLPG", mov rax, [rbx]
        CHECK_EQ "the page's own", rax, 0x1000
        mov rax, [rbx + 0x200000]
        mov rax, [rbx + 0x3ff000]
        mov qword ptr [T_PD + 8], 0
        invlpg [rbx + 0x2ff000]
        EXPECT_FAULT PF, 0, "a large page is gone after INVLPG inside", mov rax, [rbx + 0x200000]
        EXPECT_FAULT PF, 0, "all of it", mov rax, [rbx + 0x3ff000]
        mov qword ptr [T_PD + 8], BIG+P+RW+US+PS
        mov rax, [rbx]
        mov qword ptr [T_PT + 8], PAGE2+P+RW+US
        mov qword ptr [T_PD], 0
        invlpg [rbx]
        EXPECT_FAULT PF, 0, "INVLPG forgets upper levels as well", mov rax, [rbx]
        mov qword ptr [T_PD], T_PT+P+RW+US
        mov rdx, 1 << 60
        EXPECT_FAULT GP, 0, "reserved bits of CR3", mov cr3, rdx
        ret

check_global:
        STEP "global pages"
        call test_tables
        SET_CR cr4, CR4_PGE
        PTE 0, PAGE0+P+RW+US+G
        mov rax, [rbx]
        mov qword ptr [T_PT], PAGE1+P+RW+US+G
        call flush
        mov rax, [rbx]
        and rax, -2
        CHECK_EQ "after CR3 either translation", rax, 0x1000
        invlpg [rbx]
        mov rax, [rbx]
        CHECK_EQ "INVLPG forgets global pages", rax, 0x1001
        mov qword ptr [T_PT], PAGE0+P+RW+US+G
        CLEAR_CR cr4, CR4_PGE
        mov rax, [rbx]
        CHECK_EQ "a change of CR4.PGE forgets them", rax, 0x1000
        mov qword ptr [T_PT], PAGE1+P+RW+US+G
        SET_CR cr4, CR4_PGE
        mov rax, [rbx]
        CHECK_EQ "either way", rax, 0x1001
        CLEAR_CR cr4, CR4_PGE
        PTE 0, PAGE1+P+RW+US+G
        mov rax, [rbx]
        mov qword ptr [T_PT], PAGE0+P+RW+US+G
        call flush
        mov rax, [rbx]
        CHECK_EQ "G means nothing without CR4.PGE", rax, 0x1000
        ret

/* Two address spaces with PCIDs 1 and 2: pml4 has page 0, pml4_b page 1 at TVA. */
check_pcid:
        CPUID_BIT 1, 0, ecx, 17
        mov rbx, TVA
        jnc 9f
        STEP "PCID"
        call test_tables
        mov rax, [pml4]
        mov [pml4_b], rax
        mov qword ptr [pml4_b + 8], offset pdpt_b + P + RW + US
        mov qword ptr [pdpt_b], offset pd_b + P + RW + US
        mov qword ptr [pd_b], offset pt_b + P + RW + US
        mov qword ptr [pt_b], PAGE1+P+RW+US
        mov rax, offset pml4 + 8
        mov cr3, rax
        mov rax, cr4
        or eax, CR4_PCIDE
        EXPECT_FAULT GP, 0, "PCIDE while CR3 has low bits", mov cr4, rax
        mov rax, offset pml4
        mov cr3, rax
        SET_CR cr4, CR4_PCIDE
        mov rsi, offset pml4 + 1                /* address space A */
        mov rdi, offset pml4_b + 2              /* address space B */
        mov r8, 1 << 63 | 1
        add r8, offset pml4                     /* A, keeping what is known */
        mov r9, 1 << 63 | 2
        add r9, offset pml4_b
        mov cr3, rsi
        mov rax, [rbx]
        CHECK_EQ "space A", rax, 0x1000
        mov cr3, rdi
        mov rax, [rbx]
        CHECK_EQ "space B", rax, 0x1001
        mov rax, cr3
        CHECK_EQ "CR3 holds the PCID", rax, rdi
        mov cr3, r8
        mov rax, cr3
        CHECK_EQ "bit 63 is not kept", rax, rsi
        mov rax, [rbx]
        CHECK_EQ "space A again", rax, 0x1000
        mov cr3, r9
        mov rax, [rbx]
        CHECK_EQ "space B again", rax, 0x1001
        mov qword ptr [T_PT], PAGE2+P+RW+US
        mov cr3, rsi
        mov rax, [rbx]
        CHECK_EQ "MOV to CR3 without bit 63 forgets that PCID", rax, 0x1002
        mov qword ptr [T_PT], PAGE0+P+RW+US
        invlpg [rbx]
        mov rax, [rbx]
        CHECK_EQ "INVLPG acts on the current PCID", rax, 0x1000
        mov rax, cr0
        btr rax, 31
        EXPECT_FAULT GP, 0, "paging off under PCIDE", mov cr0, rax
        call check_invpcid
        mov rax, offset pml4
        mov cr3, rax
        CLEAR_CR cr4, CR4_PCIDE
        mov rax, [rbx]
        CHECK_EQ "after PCIDE", rax, 0x1000
9:      ret

check_invpcid:
        CPUID_BIT 7, 0, ebx, 10
        mov rbx, TVA
        jc 1f
        ret
1:      STEP "INVPCID"
        mov cr3, r9
        mov rax, [rbx]
        mov qword ptr [T_PT], PAGE2+P+RW+US
        mov qword ptr [desc], 1
        mov [desc + 8], rbx
        xor ecx, ecx
        invpcid rcx, [desc]
        mov cr3, r8
        mov rax, [rbx]
        CHECK_EQ "type 0: one address of another PCID", rax, 0x1002
        mov cr3, r9
        mov qword ptr [T_PT], PAGE0+P+RW+US
        mov ecx, 1
        invpcid rcx, [desc]
        mov cr3, r8
        mov rax, [rbx]
        CHECK_EQ "type 1: all of a PCID", rax, 0x1000
        mov qword ptr [T_PT], PAGE2+P+RW+US
        mov ecx, 3
        mov qword ptr [desc], 0
        mov qword ptr [desc + 8], 0
        invpcid rcx, [desc]
        mov rax, [rbx]
        CHECK_EQ "type 3: all but global ones", rax, 0x1002
        SET_CR cr4, CR4_PGE
        PTE 0, PAGE0+P+RW+US+G
        mov rax, [rbx]
        mov qword ptr [T_PT], PAGE2+P+RW+US
        mov ecx, 2
        invpcid rcx, [desc]
        mov rax, [rbx]
        CHECK_EQ "type 2: global ones too", rax, 0x1002
        CLEAR_CR cr4, CR4_PGE
        mov ecx, 4
        EXPECT_FAULT GP, 0, "type 4", invpcid rcx, [desc]
        mov qword ptr [desc], 0x1000
        mov ecx, 1
        EXPECT_FAULT GP, 0, "reserved bits of the descriptor", invpcid rcx, [desc]
        mov qword ptr [desc], 1
        mov rax, 1 << 63
        mov [desc + 8], rax
        xor ecx, ecx
        EXPECT_FAULT GP, 0, "type 0 with an address that is not canonical", invpcid rcx, [desc]
        EXPECT_USER GP, 0, user_invpcid, "as the user", user_invpcid
        mov qword ptr [T_PT], PAGE0+P+RW+US
        invlpg [rbx]
        ret

        .section .user
user_invpcid:
        invpcid rcx, [USER]
        int USER_TRAP

        .bss
        .align 4096
pml4_b: .fill 4096
pdpt_b: .fill 4096
pd_b:   .fill 4096
pt_b:   .fill 4096
desc:   .fill 16
        .text
