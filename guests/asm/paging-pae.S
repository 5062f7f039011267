/* PAE paging: the four PDPT registers, NX, 2 MiB pages, error codes. */
#define LONG 0
#include "common.inc"
        GUEST "paging-pae"
        .set TVA, 0x80000000
        .set T_PD, 0x401000
        .set T_PT, 0x402000
        .set PAGE0, 0x410000
        .set PAGE1, 0x411000
        .set P, 1
        .set RW, 2
        .set US, 4
        .set A, 0x20
        .set D, 0x40
        .set PS, 0x80

        .macro PTE i, value, high=0
        mov dword ptr [T_PT + (\i) * 8], \value
        mov dword ptr [T_PT + (\i) * 8 + 4], \high
        invlpg [TVA + (\i) * 4096]
        .endm

main:   STEP "entry"
        mov dword ptr [pdpt], offset low_dir + P
        mov dword ptr [pdpt + 16], T_PD + P
        mov edi, offset low_dir
        mov eax, P + RW + US + PS
        mov ecx, 16
1:      mov [edi], eax
        add edi, 8
        add eax, 0x200000
        loop 1b
        mov dword ptr [T_PD], T_PT + P + RW + US
        mov dword ptr [T_PT], PAGE0 + P + RW + US
        mov dword ptr [T_PT + 8], PAGE1 + P + RW + US
        mov dword ptr [PAGE0], 0x1000
        mov dword ptr [PAGE1], 0x1001
        SET_CR cr4, CR4_PAE
        mov eax, offset pdpt
        mov cr3, eax
        SET_CR cr0, CR0_PG + CR0_WP
        mov ebx, TVA
        mov eax, [ebx]
        CHECK_EQ "a read", eax, 0x1000
        CHECK_EQ "no A in a PDPT entry", "dword ptr [pdpt + 16]", T_PD+P
        CHECK_EQ "A in the directory", "dword ptr [T_PD]", T_PT+P+RW+US+A
        CHECK_EQ "A in the table", "dword ptr [T_PT]", PAGE0+P+RW+US+A
        mov [ebx + 4], eax
        CHECK_EQ "D in the table", "dword ptr [T_PT]", PAGE0+P+RW+US+A+D

        STEP "rights and error codes"
        PTE 0, PAGE0+P+US
        EXPECT_FAULT PF, 3, "write, read-only", mov [ebx], eax
        EXPECT_USER PF, 7, user_write, "user write, read-only", user_write
        PTE 0, PAGE0+P+RW
        EXPECT_USER PF, 5, user_read, "user read, supervisor's", user_read
        EXPECT_FAULT PF, 0, "PDPT entry not present", mov eax, [0x40000000]
        EXPECT_FAULT PF, 2, "directory entry not present", mov [TVA + 0x200000], eax
        PTE 0, PAGE0+P+RW+US, 0x80000
        EXPECT_FAULT PF, 9, "a reserved address bit", mov eax, [ebx]
        PTE 0, PAGE0+P+RW+US, 0x80000000
        EXPECT_FAULT PF, 9, "bit 63 without NXE", mov eax, [ebx]
        PTE 0, PAGE0+P+RW+US
        mov dword ptr [T_PD + 8], 0x400000+P+RW+US+PS
        lea ecx, [ebx + 0x200000]
        CHECK_EQ "a 2 MiB page", "dword ptr [ecx + 0x11000]", 0x1001
        mov dword ptr [ecx + 0x1ffffc], 5
        CHECK_EQ "a write at its end", "dword ptr [0x5ffffc]", 5
        CHECK_EQ "A and D", "dword ptr [T_PD + 8]", 0x400000+P+RW+US+PS+A+D
        mov dword ptr [T_PD + 8], 0x500000+P+RW+US+PS
        call flush
        EXPECT_FAULT PF, 9, "bit 20 of a 2 MiB page", mov eax, [ecx]

        STEP "NX"
        CPUID_BIT 0x80000001, 0, edx, 20
        mov ebx, TVA
        jnc 2f
        mov ecx, EFER
        rdmsr
        or eax, 0x800
        wrmsr
        call flush
        mov byte ptr [PAGE0], 0xc3
        EXPECT_NONE "run", call ebx
        PTE 0, PAGE0+P+RW+US, 0x80000000
        EXPECT_AT PF, 0x11, 0, "fetch under NX", call ebx
        EXPECT_NONE "read under NX", mov eax, [ebx]
        PTE 0, PAGE0
        EXPECT_AT PF, 0x10, 0, "fetch, not present", call ebx
        PTE 0, PAGE0+P+RW+US
        mov ecx, EFER
        rdmsr
        and eax, ~0x800
        wrmsr

2:      STEP "PDPT registers"
        call flush
        mov eax, [ebx]
        mov dword ptr [pdpt + 16], 0
        invlpg [ebx]
        EXPECT_NONE "the PDPT is read when CR3 is loaded, not later", mov eax, [ebx]
        call flush
        EXPECT_FAULT PF, 0, "after MOV to CR3", mov eax, [ebx]
        mov dword ptr [pdpt + 16], T_PD+P+2
        mov eax, offset pdpt
        EXPECT_FAULT GP, 0, "bit 1 of a PDPT entry is reserved", mov cr3, eax
        mov dword ptr [pdpt + 16], T_PD+P+0x20
        EXPECT_FAULT GP, 0, "bit 5 of a PDPT entry is reserved", mov cr3, eax
        mov dword ptr [pdpt + 16], 0x1e6
        EXPECT_NONE "nothing is reserved without P", mov cr3, eax
        mov dword ptr [pdpt + 16], T_PD+P
        mov cr3, eax
        EXPECT_NONE "mapped again", mov eax, [ebx]

        STEP "paging off and back to 32-bit paging"
        mov eax, cr0
        btr eax, 31
        mov cr0, eax
        CLEAR_CR cr4, CR4_PAE
        CHECK_EQ "physical addresses", "dword ptr [PAGE1]", 0x1001
        ret

flush:  push eax
        mov eax, cr3
        mov cr3, eax
        pop eax
        ret

user_read:
        mov eax, [ebx]
        int USER_TRAP
user_write:
        mov [ebx], eax
        int USER_TRAP

        .bss
        .align 4096
low_dir: .fill 4096
pdpt:   .fill 32
        .text
