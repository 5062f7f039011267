/* 32-bit paging: accessed and dirty bits, rights, error codes, 4 MiB pages and their high address bits. */
#define LONG 0
#include "common.inc"
        GUEST "paging-32"
        .set TVA, 0x80000000
        .set T_PT, 0x402000
        .set PAGE0, 0x410000
        .set PAGE1, 0x411000
        .set BIG, 0x400000
        .set P, 1
        .set RW, 2
        .set US, 4
        .set A, 0x20
        .set D, 0x40
        .set PS, 0x80

        .macro PTE i, value
        mov dword ptr [T_PT + (\i) * 4], \value
        invlpg [TVA + (\i) * 4096]
        .endm
        .macro PDE i, value
        mov dword ptr [page_dir + (\i) * 4], \value
        call flush
        .endm

main:   STEP "without CR4.PSE"
        /* 16 MiB one to one by small pages, open to ring 3. */
        mov edi, offset low_tables
        mov eax, P + RW + US
        mov ecx, 4096
1:      stosd
        add eax, 4096
        loop 1b
        mov dword ptr [page_dir], offset low_tables + P + RW + US
        mov dword ptr [page_dir + 4], offset low_tables + 0x1000 + P + RW + US
        mov dword ptr [page_dir + 8], offset low_tables + 0x2000 + P + RW + US
        mov dword ptr [page_dir + 12], offset low_tables + 0x3000 + P + RW + US
        /* Bit 7 means nothing without PSE. */
        mov dword ptr [page_dir + 0x800], T_PT + P + RW + US + PS
        mov dword ptr [T_PT], PAGE0 + P + RW + US
        mov dword ptr [T_PT + 4], PAGE1 + P + RW + US
        mov dword ptr [PAGE0], 0x1000
        mov dword ptr [PAGE1], 0x1001
        mov eax, offset page_dir
        mov cr3, eax
        SET_CR cr0, CR0_PG + CR0_WP
        mov ebx, TVA
        mov eax, [ebx]
        CHECK_EQ "bit 7 is no large page without PSE", eax, 0x1000
        CHECK_EQ "A in the directory", "dword ptr [page_dir + 0x800]", T_PT+P+RW+US+PS+A
        CHECK_EQ "A in the table", "dword ptr [T_PT]", PAGE0+P+RW+US+A
        mov [ebx + 4], eax
        CHECK_EQ "D in the table", "dword ptr [T_PT]", PAGE0+P+RW+US+A+D
        PDE 512, T_PT+P+RW+US

        call rights
        call large
        STEP "paging off"
        CLEAR_CR cr0, 0
        mov eax, cr0
        btr eax, 31
        mov cr0, eax
        CHECK_EQ "physical addresses again", "dword ptr [PAGE1]", 0x1001
        ret

flush:  push eax
        mov eax, cr3
        mov cr3, eax
        pop eax
        ret

rights: STEP "rights and error codes"
        PTE 0, PAGE0+RW+US
        EXPECT_FAULT PF, 0, "read, not present", mov eax, [ebx + 0x123]
        lea eax, [ebx + 0x123]
        CHECK_EQ "CR2", eax, [trap_cr2]
        EXPECT_FAULT PF, 2, "write, not present", mov [ebx], eax
        EXPECT_USER PF, 4, user_read, "user read, not present", user_read
        EXPECT_USER PF, 6, user_write, "user write, not present", user_write
        EXPECT_AT PF, 0, 0, "fetch, not present: no I bit without NX", call ebx
        PTE 0, PAGE0+P+US
        EXPECT_FAULT PF, 3, "write, read-only, WP", mov [ebx], eax
        EXPECT_USER PF, 7, user_write, "user write, read-only", user_write
        EXPECT_USER USER_TRAP, 0, 0, "user read", user_read
        CLEAR_CR cr0, CR0_WP
        call flush
        EXPECT_NONE "write, read-only, no WP", mov [ebx + 8], eax
        SET_CR cr0, CR0_WP
        call flush
        PTE 0, PAGE0+P+RW
        EXPECT_USER PF, 5, user_read, "user read, supervisor's", user_read
        PTE 0, PAGE0+P+RW+US
        PDE 512, T_PT+P+RW
        EXPECT_USER PF, 5, user_read, "user read, directory of the supervisor", user_read
        PDE 512, T_PT+P+US
        EXPECT_FAULT PF, 3, "write, directory read-only", mov [ebx], eax
        PDE 512, RW+US
        EXPECT_FAULT PF, 0, "directory not present", mov eax, [ebx]
        PDE 512, T_PT+P+RW+US
        EXPECT_USER USER_TRAP, 0, 0, "open again", user_write
        PTE 1, 0
        mov eax, -1
        EXPECT_FAULT PF, 2, "write into a missing second page", mov [ebx + 0xffe], eax
        lea eax, [ebx + 0x1000]
        CHECK_EQ "CR2 is the second page's", eax, [trap_cr2]
        movzx eax, word ptr [PAGE0 + 0xffe]
        CHECK_EQ "the first page is unchanged", eax, 0
        ret

large:  STEP "4 MiB pages"
        CPUID_BIT 1, 0, edx, 3
        jc 1f
        ret
1:      SET_CR cr4, CR4_PSE
        mov ebx, TVA
        PDE 513, BIG+P+RW+PS
        lea ecx, [ebx + 0x400000]
        CHECK_EQ "a read", "dword ptr [ecx + 0x11000]", 0x1001
        CHECK_EQ "A", "dword ptr [page_dir + 513 * 4]", BIG+P+RW+PS+A
        mov dword ptr [ecx + 0x3ffffc], 5
        CHECK_EQ "a write at its end", "dword ptr [0x7ffffc]", 5
        CHECK_EQ "A and D", "dword ptr [page_dir + 513 * 4]", BIG+P+RW+PS+A+D
        PDE 513, BIG+0x200000+P+RW+PS
        EXPECT_FAULT PF, 9, "bit 21 is reserved", mov eax, [ecx]
        PDE 513, BIG+P+PS
        EXPECT_FAULT PF, 3, "read-only", mov [ecx], eax
        mov ebx, ecx
        EXPECT_USER PF, 5, user_read, "the supervisor's", user_read
        mov ebx, TVA
        mov eax, [ecx + 0x1000]
        mov dword ptr [page_dir + 513 * 4], 0
        invlpg [ecx + 0x3ff000]
        EXPECT_FAULT PF, 0, "gone after INVLPG inside", mov eax, [ecx + 0x1000]
        CLEAR_CR cr4, CR4_PSE
        ret

user_read:
        mov eax, [ebx]
        int USER_TRAP
user_write:
        mov [ebx], eax
        int USER_TRAP

        .bss
        .align 4096
page_dir: .fill 4096
low_tables: .fill 4 * 4096
        .text
