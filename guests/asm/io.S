/* Ports: sizes, string instructions, IOPL and the TSS's bitmap, what nobody owns. */
#define LONG 1
#include "common.inc"
        GUEST "io"
#define SCRATCH_REG 0x3ff               /* COM1's scratch register holds a byte for nobody */

main:   call check_sizes
        call check_strings
        call check_rights
        ret

check_sizes:
        STEP "sizes"
        mov edx, SCRATCH_REG
        mov al, 0x5a
        out dx, al
        mov rax, -1
        in al, dx
        movzx eax, al
        CHECK_EQ "a byte", rax, 0x5a
        mov rax, 0x1122334455667788
        in al, dx
        mov rcx, 0x112233445566775a
        CHECK_EQ "IN AL leaves the rest of RAX", rax, rcx
        mov edx, SCRATCH_REG - 1
        in ax, dx
        shr ax, 8
        movzx eax, ax
        CHECK_EQ "a word is two bytes of neighbouring ports", rax, 0x5a
        mov rax, -1
        mov edx, 0x5550
        in eax, dx
        mov ecx, 0xffffffff
        CHECK_EQ "nobody's port reads ones, and IN EAX clears the upper half", rax, rcx
        xor eax, eax
        in ax, dx
        CHECK_EQ "16 bits of ones", rax, 0xffff
        xor eax, eax
        in al, dx
        CHECK_EQ "8 bits of ones", rax, 0xff
        EXPECT_NONE "a write to nobody's port", out dx, eax
        mov edx, 0xffff
        in al, dx
        movzx eax, al
        CHECK_EQ "the last port", rax, 0xff
        mov al, 0x50
        out 0x70, al
        mov al, 0x33
        out 0x71, al
        mov al, 0x51
        out 0x70, al
        mov al, 0x44
        out 0x71, al
        mov al, 0x50
        out 0x70, al
        in al, 0x71
        movzx eax, al
        CHECK_EQ "CMOS memory", rax, 0x33
        ret

check_strings:
        STEP "string instructions"
        mov edx, SCRATCH_REG
        mov rsi, offset bytes
        mov ecx, 3
        rep outsb
        CHECK_EQ "RSI", rsi, "offset bytes + 3"
        CHECK_EQ "RCX", rcx, 0
        mov rdi, offset buffer
        mov ecx, 4
        rep insb
        CHECK_EQ "RDI", rdi, "offset buffer + 4"
        mov eax, [buffer]
        CHECK_EQ "the last byte that OUTSB wrote, four times", rax, 0x33333333
        std
        mov rsi, offset bytes + 1
        outsb
        cld
        CHECK_EQ "OUTSB backwards", rsi, "offset bytes"
        in al, dx
        movzx eax, al
        CHECK_EQ "what it wrote", rax, 0x22
        mov edx, 0x5550
        mov rdi, offset buffer
        insd
        CHECK_EQ "INSD", rdi, "offset buffer + 4"
        mov edx, SCRATCH_REG
        mov rdi, 0x4000000000
        mov ecx, 2
        EXPECT_FAULT PF, 2, "INSB to nowhere", rep insb
        CHECK_EQ "RCX stays", rcx, 2
        mov rsi, rdi
        EXPECT_FAULT PF, 0, "OUTSB from nowhere", rep outsb
        /* The last 4 bytes of a page, then nothing. */
        mov qword ptr [pd + 2 * 8], 0           /* 4 MiB to 6 MiB is gone */
        mov rax, cr3
        mov cr3, rax
        mov rdi, 0x3ffffc
        mov ecx, 10
        EXPECT_FAULT PF, 2, "INSB stops at the fault", rep insb
        CHECK_EQ "RDI", rdi, 0x400000
        CHECK_EQ "RCX", rcx, 6
        mov qword ptr [pd + 2 * 8], 0x400083
        ret

/* USER_IO flags, vector, "text", label */
        .macro USER_IO flags, vec, text, label
        push 2 + \flags
        popfq
        EXPECT_USER \vec, 0, 0, "\text", \label
        .endm
        .set IOPL3, 0x3000

check_rights:
        STEP "IOPL and the bitmap"
        USER_IO 0, GP, "IN in ring 3", user_in
        USER_IO IOPL3, USER_TRAP, "IN with IOPL 3", user_in
        USER_IO 0x2000, GP, "IN with IOPL 2", user_in
        and byte ptr [tss_io + SCRATCH_REG / 8], 0x7f
        USER_IO 0, USER_TRAP, "IN of an open port", user_in
        USER_IO 0, USER_TRAP, "OUTSB to it", user_outsb
        USER_IO 0, GP, "a word that reaches into a closed one", user_in_word
        and byte ptr [tss_io + (SCRATCH_REG + 1) / 8], 0xfe
        USER_IO 0, USER_TRAP, "both open", user_in_word
        USER_IO 0, GP, "a dword needs four", user_in_dword
        or byte ptr [tss_io + SCRATCH_REG / 8], 0x80
        USER_IO 0, GP, "closed again", user_in
        and byte ptr [tss_io + 0x5550 / 8], 0xf0
        USER_IO 0, USER_TRAP, "four open", user_in_four
        mov word ptr [tss + 0x66], 0xdfff
        USER_IO 0, GP, "a bitmap beyond the TSS's limit", user_in_four
        mov word ptr [tss + 0x66], offset tss_io - tss
        USER_IO 0, USER_TRAP, "within it", user_in_four
        USER_IO IOPL3, USER_TRAP, "STI and CLI with IOPL 3", user_sti
        USER_IO 0, GP, "STI with IOPL 0", user_sti
        USER_IO IOPL3, USER_TRAP, "POPF with IOPL 3", user_popf
        mov rax, [trap_flags]
        and eax, 0x3200
        CHECK_EQ "sets IF, not IOPL", rax, 0x3200
        push 2
        popfq
        ret

        .section .user
user_in:
        mov edx, SCRATCH_REG
        in al, dx
        int USER_TRAP
user_in_word:
        mov edx, SCRATCH_REG
        in ax, dx
        int USER_TRAP
user_in_dword:
        mov edx, SCRATCH_REG
        in eax, dx
        int USER_TRAP
user_in_four:
        mov edx, 0x5550
        in eax, dx
        int USER_TRAP
user_outsb:
        mov edx, SCRATCH_REG
        mov esi, USER
        outsb
        int USER_TRAP
user_sti:
        sti
        cli
        int USER_TRAP
user_popf:
        push 0x202
        popfq
        int USER_TRAP

        .data
bytes:  .byte 0x11, 0x22, 0x33
        .bss
        .align 8
buffer: .fill 64
        .text
