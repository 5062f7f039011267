/* REP string instructions: counts, direction, address sizes, and where they stop at a fault. */
#define LONG 1
#include "common.inc"
        GUEST "strings"
        .set PAGE, 0x410000             /* mapped at VA, with nothing behind it */
        .set VA, 0x8000000000
        .set T_PDPT, 0x400000
        .set T_PD, 0x401000
        .set T_PT, 0x402000

main:   mov qword ptr [pml4 + 8], T_PDPT + 3
        mov qword ptr [T_PDPT], T_PD + 3
        mov qword ptr [T_PD], T_PT + 3
        mov qword ptr [T_PT + 8], PAGE + 3
        mov qword ptr [T_PT + 16], PAGE + 0x1000 + 3
        call check_plain
        call check_direction
        call check_faults
        call check_sizes
        call check_compare
        ret

/* Fills PAGE and PAGE + 0x1000 with a pattern, clears `buffer`. */
fresh:  push rdi
        push rcx
        push rax
        mov rdi, PAGE
        xor eax, eax
1:      mov [rdi + rax], al
        inc eax
        cmp eax, 0x2000
        jne 1b
        mov rdi, offset buffer
        mov ecx, 0x2000
        xor eax, eax
        rep stosb
        pop rax
        pop rcx
        pop rdi
        ret

check_plain:
        STEP "counts"
        call fresh
        mov rsi, PAGE
        mov rdi, offset buffer
        mov ecx, 0x1800
        rep movsb
        CHECK_EQ "RCX", rcx, 0
        CHECK_EQ "RSI", rsi, PAGE + 0x1800
        CHECK_EQ "RDI", rdi, "offset buffer + 0x1800"
        CHECK_EQ "the last byte", "qword ptr [buffer + 0x17f9]", "qword ptr [PAGE + 0x17f9]"
        xor ecx, ecx
        rep movsb
        CHECK_EQ "a count of zero", rsi, PAGE + 0x1800
        mov rdi, 0x0000900000000000
        EXPECT_NONE "a count of zero touches nothing", rep stosb
        mov eax, 0x55
        mov rdi, offset buffer
        mov ecx, 3
        rep stosq
        CHECK_EQ "STOSQ", rdi, "offset buffer + 24"
        CHECK_EQ "what it stored", "qword ptr [buffer + 16]", 0x55
        mov rsi, PAGE + 8
        lodsd
        CHECK_EQ "LODSD", rax, 0x0b0a0908
        mov ecx, 5
        rep lodsb
        CHECK_EQ "REP LODSB keeps the last", rax, 0x0b0a0910
        /* Overlap: a pattern spreads. */
        mov word ptr [buffer], 0x2211
        mov rsi, offset buffer
        mov rdi, offset buffer + 2
        mov ecx, 100
        rep movsb
        movzx eax, word ptr [buffer + 100]
        CHECK_EQ "an overlap of two bytes repeats them", rax, 0x2211
        mov byte ptr [buffer], 0x77
        mov rsi, offset buffer
        mov rdi, offset buffer + 1
        mov ecx, 200
        rep movsb
        mov eax, [buffer + 197]
        CHECK_EQ "an overlap of one", rax, 0x77777777
        ret

check_direction:
        STEP "backwards"
        call fresh
        std
        mov rsi, PAGE + 0x1007
        mov rdi, offset buffer + 0x1007
        mov ecx, 0x1008
        rep movsb
        cld
        CHECK_EQ "RSI", rsi, PAGE-1
        CHECK_EQ "RDI", rdi, "offset buffer - 1"
        CHECK_EQ "the first bytes", "qword ptr [buffer]", "qword ptr [PAGE]"
        std
        mov rsi, PAGE + 0x1000
        mov rdi, offset buffer + 0x1000
        mov ecx, 4
        rep movsd
        cld
        CHECK_EQ "RSI by dwords", rsi, PAGE + 0xff0
        mov eax, [buffer + 0xff4]
        mov ecx, 0xf7f6f5f4
        CHECK_EQ "what it copied", rax, rcx
        ret

check_faults:
        STEP "faults mid-way"
        call fresh
        mov rdx, VA
        lea rsi, [rdx + 0x2f00]                 /* 0x100 bytes before the end */
        mov rdi, offset buffer
        mov ecx, 0x1000
        EXPECT_FAULT PF, 0, "MOVSB reads past the end", rep movsb
        lea rax, [rdx + 0x3000]
        CHECK_EQ "CR2", rax, [trap_cr2]
        CHECK_EQ "RSI", rsi, rax
        CHECK_EQ "RDI", rdi, "offset buffer + 0x100"
        CHECK_EQ "RCX", rcx, 0xf00
        CHECK_EQ "all before was copied", "qword ptr [buffer + 0xf8]", "qword ptr [PAGE + 0x1ff8]"
        CHECK_EQ "and no more", "qword ptr [buffer + 0x100]", 0
        mov rsi, PAGE
        lea rdi, [rdx + 0x2ffc]
        mov ecx, 10
        EXPECT_FAULT PF, 2, "MOVSQ writes across the end", rep movsq
        CHECK_EQ "RCX: nothing was done", rcx, 10
        CHECK_EQ "RSI: nothing was done", rsi, PAGE
        lea rax, [rdx + 0x3000]
        CHECK_EQ "CR2", rax, [trap_cr2]
        lea rdi, [rdx + 0x2ff4]
        EXPECT_FAULT PF, 2, "MOVSQ, one element fits", rep movsq
        CHECK_EQ "RCX: one was done", rcx, 9
        CHECK_EQ "RSI: one was done", rsi, PAGE + 8
        lea rax, [rdx + 0x2ffc]
        CHECK_EQ "RDI", rdi, rax
        lea rdi, [rdx + 0x1010]
        mov ecx, 0x40
        xor eax, eax
        std
        EXPECT_FAULT PF, 2, "STOSB backwards over the first byte", rep stosb
        cld
        lea rax, [rdx + 0xfff]
        CHECK_EQ "RDI", rdi, rax
        CHECK_EQ "RCX", rcx, 0x40-0x11
        CHECK_EQ "CR2", rax, [trap_cr2]
        lea rsi, [rdx + 0x2ff0]
        mov ecx, 100
        EXPECT_FAULT PF, 0, "LODSB", rep lodsb
        CHECK_EQ "RCX", rcx, 100-16
        movzx eax, al
        movzx ecx, byte ptr [PAGE + 0x1fff]
        CHECK_EQ "AL", rax, rcx
        ret

check_sizes:
        STEP "address sizes"
        call fresh
        mov rsi, 0x5500000000 + PAGE
        mov rdi, 0x6600000000
        add rdi, offset buffer
        mov rcx, 0x7700000004
        .byte 0x67
        rep movsb
        CHECK_EQ "32-bit addresses: ECX is zero-extended", rcx, 0
        CHECK_EQ "ESI", rsi, PAGE + 4
        CHECK_EQ "EDI", rdi, "offset buffer + 4"
        CHECK_EQ "copied", "qword ptr [buffer]", 0x03020100
        mov rcx, 0x7700000000
        mov rsi, 0x5500000000
        .byte 0x67
        rep movsb
        mov eax, ecx
        CHECK_EQ "a count of zero in ECX does nothing", rax, 0
        mov ecx, 2
        mov rsi, 0xffffffff
        EXPECT_NONE "LODSB at 4 GiB - 1", .byte 0x67, 0xac
        CHECK_EQ "ESI wraps", rsi, 0
        mov r8, rsi
        mov rcx, 0x100000001
        jecxz 1f
        CHECK_EQ "JECXZ looks at ECX", rcx, rcx
        jmp 2f
1:      call check_false
        CHECK_ID "JECXZ of a count that is not zero"
2:      mov rcx, 0x100000000
        jecxz 3f
        call check_false
        CHECK_ID "JECXZ of a zero ECX"
3:      mov rcx, 0x100000001
        .byte 0x67
        loop 4f
4:      CHECK_EQ "LOOP with ECX", rcx, 0
        ret

check_compare:
        STEP "CMPS and SCAS"
        call fresh
        mov rsi, PAGE
        mov rdi, PAGE + 0x100
        mov byte ptr [PAGE + 0x123], 0xff
        mov ecx, 0x80
        repe cmpsb
        CHECK "ZF at a difference", ne
        CHECK_EQ "RSI", rsi, PAGE + 0x24
        CHECK_EQ "RCX", rcx, 0x80-0x24
        mov ecx, 0
        cmp ecx, 1
        stc
        repe cmpsb
        CHECK "a count of zero leaves the flags", c
        mov rdi, PAGE
        mov ecx, 0x1000
        mov al, 0x42
        repne scasb
        CHECK "ZF when found", e
        CHECK_EQ "RDI", rdi, PAGE + 0x43
        mov rdi, VA + 0x2ff0
        mov rsi, VA + 0x2fe0
        mov byte ptr [PAGE + 0x1ff5], 1
        mov ecx, 0x40
        mov al, 0xee
        cmp al, 0xee
        EXPECT_FAULT PF, 0, "SCASB past the end", repne scasb
        mov rdx, VA + 0x3000
        CHECK_EQ "RDI", rdi, rdx
        CHECK_EQ "RCX", rcx, 0x30
        ret

        .bss
        .align 16
        .fill 16
buffer: .fill 0x2000
        .text
