/* x87, SSE and AVX state: who may use it, its exceptions, FXSAVE, XSAVE and their refusals. */
#define LONG 1
#include "common.inc"
        GUEST "fpu"

main:   call check_x87
        call check_gates
        call check_mf
        call check_xm
        call check_fxsave
        call check_xsave
        ret

check_x87:
        STEP "x87"
        fninit
        fnstcw [word_]
        movzx eax, word ptr [word_]
        CHECK_EQ "control word after FNINIT", rax, 0x37f
        fnstsw ax
        movzx eax, ax
        CHECK_EQ "status word after FNINIT", rax, 0
        fld1
        fld1
        faddp
        fistp qword ptr [area]
        CHECK_EQ "1 + 1", "qword ptr [area]", 2
        fldpi
        fstp tbyte ptr [area]
        mov rax, 0xc90fdaa22168c235
        CHECK_EQ "pi", rax, [area]
        movzx eax, word ptr [area + 8]
        CHECK_EQ "its exponent", rax, 0x4000
        mov rax, 0x1122334455667788
        movq mm3, rax
        movq rcx, mm3
        CHECK_EQ "MMX", rax, rcx
        fxsave [area]
        movzx eax, byte ptr [area + 4]
        CHECK_EQ "an MMX instruction marks all registers used", rax, 0xff
        emms
        fnstenv [area]
        movzx eax, word ptr [area + 8]
        CHECK_EQ "EMMS frees them", rax, 0xffff
        fninit
        fld1
        fldz
        fnsave [area]
        fnstsw ax
        movzx eax, ax
        CHECK_EQ "FNSAVE initializes", rax, 0
        frstor [area]
        fistp dword ptr [word_]
        fistp dword ptr [word_]
        mov eax, [word_]
        CHECK_EQ "FRSTOR", rax, 1
        ret

check_gates:
        STEP "CR0 and CR4"
        SET_CR cr0, CR0_EM
        EXPECT_FAULT NM, 0, "x87 under EM", fld1
        EXPECT_FAULT UD, 0, "SSE under EM", addps xmm0, xmm1
        EXPECT_FAULT UD, 0, "MMX under EM", paddb mm0, mm1
        CLEAR_CR cr0, CR0_EM
        SET_CR cr0, CR0_TS
        EXPECT_FAULT NM, 0, "MMX under TS", paddb mm0, mm1
        EXPECT_FAULT NM, 0, "FXSAVE under TS", fxsave [area]
        EXPECT_NONE "SFENCE under TS", sfence
        CLEAR_CR cr0, CR0_MP
        EXPECT_NONE "WAIT under TS without MP", wait
        SET_CR cr0, CR0_MP
        clts
        CLEAR_CR cr4, CR4_OSFXSR
        EXPECT_FAULT UD, 0, "SSE without OSFXSR", addps xmm0, xmm1
        EXPECT_NONE "x87 without OSFXSR", fld1
        SET_CR cr4, CR4_OSFXSR
        fninit
        ret

check_mf:
        STEP "#MF"
        fninit
        mov word ptr [word_], 0x37b             /* division by zero unmasked */
        fldcw [word_]
        fld1
        fldz
        EXPECT_NONE "the division itself does not fault", fdivp
        fnstsw ax
        and eax, 0x8084
        CHECK_EQ "it is pending", rax, 0x8084
        EXPECT_FAULT MF, 0, "the next x87 instruction does", fld1
        EXPECT_FAULT MF, 0, "WAIT does", wait
        EXPECT_FAULT MF, 0, "an MMX instruction does", paddb mm0, mm1
        EXPECT_NONE "FNSTCW does not", fnstcw [word_]
        EXPECT_NONE "nor does SSE", addps xmm0, xmm1
        fnclex
        EXPECT_NONE "after FNCLEX", fld1
        fninit
        ret

check_xm:
        STEP "#XM"
        mov dword ptr [word_], 0x1d80           /* division by zero unmasked */
        ldmxcsr [word_]
        pxor xmm0, xmm0
        movaps xmm1, [ones]
        movaps xmm2, xmm1
        EXPECT_FAULT XM, 0, "a vector division by zero", divps xmm1, xmm0
        stmxcsr [word_]
        mov eax, [word_]
        and eax, 0x3f
        CHECK_EQ "its flag", rax, 4
        movq rax, xmm1
        movq rcx, xmm2
        CHECK_EQ "the destination stays", rax, rcx
        CLEAR_CR cr4, CR4_OSXMMEXCPT
        EXPECT_FAULT UD, 0, "without OSXMMEXCPT it is #UD", divps xmm1, xmm0
        SET_CR cr4, CR4_OSXMMEXCPT
        mov dword ptr [word_], 0x1f80
        ldmxcsr [word_]
        EXPECT_NONE "masked", divps xmm1, xmm0
        movq rax, xmm1
        mov rcx, 0x7f8000007f800000
        CHECK_EQ "infinities", rax, rcx
        mov dword ptr [word_], 0x11f80
        EXPECT_FAULT GP, 0, "reserved bits of MXCSR", ldmxcsr [word_]
        mov dword ptr [word_], 0x1f80
        ldmxcsr [word_]
        ret

check_fxsave:
        STEP "FXSAVE and FXRSTOR"
        call clear_area
        fninit
        fld1
        movaps xmm5, [ones]
        pcmpeqd xmm15, xmm15
        fxsave64 [area]
        movzx eax, word ptr [area]
        CHECK_EQ "control word", rax, 0x37f
        movzx eax, byte ptr [area + 4]
        CHECK_EQ "abridged tags", rax, 0x80
        mov eax, [area + 24]
        CHECK_EQ "MXCSR", rax, 0x1f80
        mov rax, 0x8000000000000000
        CHECK_EQ "ST0", rax, [area + 32]
        mov rax, [ones]
        CHECK_EQ "XMM5", rax, [area + 160 + 5 * 16]
        CHECK_EQ "XMM15", "qword ptr [area + 160 + 15 * 16 + 8]", -1
        fninit
        pxor xmm5, xmm5
        pxor xmm15, xmm15
        fxrstor64 [area]
        movq rcx, xmm5
        CHECK_EQ "XMM5 is back", rax, rcx
        fistp dword ptr [word_]
        mov eax, [word_]
        CHECK_EQ "ST0 is back", rax, 1
        EXPECT_FAULT GP, 0, "FXSAVE at a bad address", fxsave [area + 8]
        mov dword ptr [area + 24], 0x80001f80
        EXPECT_FAULT GP, 0, "FXRSTOR of a bad MXCSR", fxrstor [area]
        fninit
        ret

check_xsave:
        CPUID_BIT 1, 0, ecx, 26
        jc 1f
        ret
1:      STEP "XSAVE"
        EXPECT_FAULT UD, 0, "XGETBV without OSXSAVE", xgetbv
        EXPECT_FAULT UD, 0, "XSAVE without OSXSAVE", xsave [area]
        CPUID_BIT 1, 0, ecx, 27
        CHECK "CPUID does not show OSXSAVE", nc
        SET_CR cr4, CR4_OSXSAVE
        CPUID_BIT 1, 0, ecx, 27
        CHECK "CPUID shows it", c
        xor ecx, ecx
        xgetbv
        CHECK_EQ "XCR0 at start", rax, 1
        xor eax, eax
        xor edx, edx
        EXPECT_FAULT GP, 0, "XCR0 without x87", xsetbv
        mov eax, 5
        EXPECT_FAULT GP, 0, "XCR0 with AVX without SSE", xsetbv
        mov eax, 3
        mov edx, 0x40000000
        EXPECT_FAULT GP, 0, "XCR0 with what is not there", xsetbv
        xor edx, edx
        mov ecx, 1
        EXPECT_FAULT GP, 0, "there is no XCR1 to write", xsetbv
        xor ecx, ecx
        EXPECT_USER GP, 0, user_xsetbv, "XSETBV in ring 3", user_xsetbv
        mov eax, 3
        xor ecx, ecx
        xor edx, edx
        xsetbv
        EXPECT_FAULT UD, 0, "AVX without its bit in XCR0", .byte 0xc5, 0xfc, 0x57, 0xc0
        CPUID_BIT 1, 0, ecx, 28
        jnc 9f
        STEP "AVX"
        mov eax, 7
        xor ecx, ecx
        xor edx, edx
        xsetbv
        mov eax, 0xd
        xor ecx, ecx
        cpuid
        CHECK_EQ "size of the area in use", rbx, 832
        call clear_area
        vmovups ymm3, [eights]
        mov eax, 7
        xor edx, edx
        xsave [area]
        mov rax, [area + 512]
        and eax, 6
        CHECK_EQ "XSTATE_BV", rax, 6
        mov rax, [eights + 16]
        CHECK_EQ "upper half of YMM3", rax, [area + 576 + 3 * 16]
        vzeroall
        mov eax, 7
        xrstor [area]
        vextractf128 xmm0, ymm3, 1
        movq rax, xmm0
        CHECK_EQ "YMM3 is back", rax, [eights + 16]
        and qword ptr [area + 512], ~4
        mov eax, 7
        xrstor [area]
        vextractf128 xmm0, ymm3, 1
        movq rax, xmm0
        CHECK_EQ "a clear bit of XSTATE_BV: zero", rax, 0
        movq rax, xmm3
        CHECK_EQ "the lower half is SSE's", rax, [eights]
        vmovups ymm3, [eights]
        mov eax, 2
        xrstor [area]
        vextractf128 xmm0, ymm3, 1
        movq rax, xmm0
        CHECK_EQ "what is not asked for stays", rax, [eights + 16]
        mov eax, 7
        or qword ptr [area + 512], 8
        EXPECT_FAULT GP, 0, "XRSTOR of a component that XCR0 lacks", xrstor [area]
        and qword ptr [area + 512], 7
        mov qword ptr [area + 528], 1
        EXPECT_FAULT GP, 0, "a reserved word of the header", xrstor [area]
        mov qword ptr [area + 528], 0
        EXPECT_FAULT GP, 0, "XSAVE at a bad address", xsave [area + 32]
        movaps xmm3, [ones]
        vextractf128 xmm0, ymm3, 1
        movq rax, xmm0
        CHECK_EQ "an SSE instruction leaves the upper half", rax, [eights + 16]
        vmovaps xmm3, [ones]
        vextractf128 xmm0, ymm3, 1
        movq rax, xmm0
        CHECK_EQ "an AVX one clears it", rax, 0
        SET_CR cr0, CR0_TS
        EXPECT_FAULT NM, 0, "AVX under TS", vaddps ymm0, ymm0, ymm0
        EXPECT_FAULT NM, 0, "XSAVE under TS", xsave [area]
        clts
        mov rcx, offset ones + 4
        EXPECT_NONE "VADDPS takes any address", vaddps xmm0, xmm0, [rcx]
        EXPECT_FAULT GP, 0, "ADDPS does not", addps xmm0, [rcx]
        EXPECT_FAULT GP, 0, "nor does VMOVAPS", vmovaps xmm0, [rcx]
9:      CLEAR_CR cr4, CR4_OSXSAVE
        ret

clear_area:
        mov rdi, offset area
        mov ecx, 128
        xor eax, eax
        rep stosq
        ret

        .section .user
user_xsetbv:
        xsetbv

        .data
        .align 32
ones:   .long 0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000, 0, 0
        .align 32
eights: .quad 0x1111111111111111, 0x2222222222222222, 0x3333333333333333, 0x4444444444444444
        .bss
        .align 64
area:   .fill 1024
word_:  .fill 8
        .text
