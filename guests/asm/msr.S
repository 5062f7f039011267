/* CPUID, MSRs and control registers: what there is, and what is refused. */
#define LONG 1
#include "common.inc"
        GUEST "msr"

main:   call check_cpuid
        call check_efer
        call check_cr
        call check_msrs
        call check_mtrr
        ret

check_cpuid:
        STEP "CPUID"
        mov rax, -1
        mov rbx, -1
        mov rcx, -1
        mov rdx, -1
        xor eax, eax
        cpuid
        cmp eax, 1
        CHECK "leaf 1 is there", ae
        shr rbx, 32
        CHECK_EQ "upper halves are cleared", rbx, 0
        mov eax, 1
        cpuid
        shr ebx, 24
        CHECK_EQ "initial APIC id", rbx, 0
        and edx, 0x07808b79             /* what every 64-bit processor has: FPU PSE TSC MSR PAE CX8 APIC SEP, MMX FXSR SSE SSE2 */
        CHECK_EQ "the least features", rdx, 0x07808b79
        mov eax, 0x80000000
        cpuid
        cmp eax, 0x80000008
        CHECK "extended leaves", ae
        mov eax, 0x80000001
        cpuid
        bt edx, 29
        CHECK "long mode", c
        mov eax, 1
        xor ecx, ecx
        cpuid
        mov esi, ecx
        EXPECT_USER USER_TRAP, 0, 0, "CPUID in ring 3", user_cpuid
        CHECK_EQ "says the same", rcx, rsi
        ret

check_efer:
        STEP "EFER"
        mov ecx, EFER
        rdmsr
        mov esi, eax
        and eax, 0xd00
        CHECK_EQ "LME, LMA and NXE are on", rax, 0xd00
        mov eax, esi
        xor edx, edx
        xor eax, 0x100
        EXPECT_FAULT GP, 0, "LME cannot change under paging", wrmsr
        mov eax, esi
        or eax, 0x200
        EXPECT_FAULT GP, 0, "reserved bit 9", wrmsr
        mov eax, esi
        mov edx, 1
        EXPECT_FAULT GP, 0, "the upper half", wrmsr
        mov eax, esi
        xor edx, edx
        EXPECT_NONE "the same again", wrmsr
        rdmsr
        CHECK_EQ "kept", rax, rsi
        ret

check_cr:
        STEP "control registers"
        mov rsi, cr0
        mov rax, rsi
        btr rax, 31
        EXPECT_FAULT GP, 0, "paging off in 64-bit mode", mov cr0, rax
        mov rax, rsi
        btr rax, 0
        EXPECT_FAULT GP, 0, "PG without PE", mov cr0, rax
        mov rax, rsi
        bts rax, 29
        btr rax, 30
        EXPECT_FAULT GP, 0, "NW without CD", mov cr0, rax
        mov rax, rsi
        bts rax, 32
        EXPECT_FAULT GP, 0, "bit 32 of CR0", mov cr0, rax
        mov rax, cr0
        CHECK_EQ "CR0 is unchanged", rax, rsi
        mov rdi, cr4
        mov rax, rdi
        btr rax, 5
        EXPECT_FAULT GP, 0, "PAE off in 64-bit mode", mov cr4, rax
        mov rax, rdi
        bts rax, 31
        EXPECT_FAULT GP, 0, "a reserved bit of CR4", mov cr4, rax
        mov rax, rdi
        bts rax, 40
        EXPECT_FAULT GP, 0, "an upper bit of CR4", mov cr4, rax
        CPUID_BIT 7, 0, ecx, 16
        jc 1f
        mov rax, rdi
        or eax, CR4_LA57
        EXPECT_FAULT GP, 0, "LA57 without the feature", mov cr4, rax
1:      mov rax, 0x123456789abcdef0
        mov cr2, rax
        mov rcx, cr2
        CHECK_EQ "CR2 holds anything", rcx, rax
        smsw eax
        CHECK_EQ "SMSW", rax, rsi
        mov eax, 0xb                    /* TS on, PE still on */
        lmsw ax
        mov rax, cr0
        mov rcx, rsi
        or ecx, CR0_TS
        CHECK_EQ "LMSW sets TS", rax, rcx
        xor eax, eax
        lmsw ax
        mov rax, cr0
        and eax, 1
        CHECK_EQ "LMSW does not clear PE", rax, 1
        mov cr0, rsi
        EXPECT_FAULT UD, 0, "there is no CR5", .byte 0x0f, 0x20, 0xe8
        ret

check_msrs:
        STEP "MSRs"
        mov ecx, 0x12345678
        EXPECT_FAULT GP, 0, "RDMSR of none", rdmsr
        EXPECT_FAULT GP, 0, "WRMSR of none", wrmsr
        EXPECT_USER GP, 0, user_rdmsr, "RDMSR in ring 3", user_rdmsr
        mov ecx, 0x277
        rdmsr
        CHECK_EQ "PAT at reset, low", rax, 0x00070406
        CHECK_EQ "PAT at reset, high", rdx, 0x00070406
        mov eax, 0x00070106
        EXPECT_NONE "a good PAT", wrmsr
        rdmsr
        CHECK_EQ "kept", rax, 0x00070106
        mov eax, 0x00070206
        EXPECT_FAULT GP, 0, "type 2 in the PAT", wrmsr
        mov eax, 0x00070806
        EXPECT_FAULT GP, 0, "a reserved bit of the PAT", wrmsr
        mov eax, 0x00070406
        wrmsr
        mov ecx, 0x1b
        rdmsr
        and eax, 0xfffffd00
        mov ecx, 0xfee00900
        CHECK_EQ "APIC base: boot processor, on, at its place", rax, rcx
        mov ecx, 0x1b
        rdmsr
        or edx, 0x80000000
        EXPECT_FAULT GP, 0, "reserved bits of the APIC base", wrmsr
        mov ecx, 0x10
        rdmsr
        mov edi, edx
        mov eax, 0
        mov edx, 0x1000
        wrmsr
        rdmsr
        CHECK_EQ "the TSC can be set", rdx, 0x1000
        rdtsc
        CHECK_EQ "RDTSC follows", rdx, 0x1000
        CPUID_BIT 7, 0, ebx, 1
        jnc 1f
        mov ecx, 0x3b
        rdmsr
        cmp edx, 0
        CHECK "TSC_ADJUST follows", ne
        xor eax, eax
        xor edx, edx
        wrmsr
        rdtsc
        cmp edx, 0x1000
        CHECK "and the TSC follows it", ne
1:      xor ecx, ecx
        mov eax, 1
        xor edx, edx
        cpuid
        ret

check_mtrr:
        CPUID_BIT 1, 0, edx, 12
        jc 1f
        ret
1:      STEP "MTRRs"
        mov ecx, 0xfe
        rdmsr
        xor eax, 1
        EXPECT_FAULT GP, 0, "MTRRcap is read-only", wrmsr
        mov ecx, 0x2ff
        rdmsr
        mov esi, eax
        mov eax, 0xc02
        xor edx, edx
        EXPECT_FAULT GP, 0, "default type 2", wrmsr
        mov eax, esi
        EXPECT_NONE "the same again", wrmsr
        ret

        .section .user
user_cpuid:
        mov eax, 1
        cpuid
        int USER_TRAP
user_rdmsr:
        rdmsr
