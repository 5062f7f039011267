/* Code that changes: in its own block, the next instruction, through another mapping, by string instructions. */
#define LONG 1
#include "common.inc"
        GUEST "smc"
        .set VA, 0x8000000000
        .set T_PDPT, 0x400000
        .set T_PD, 0x401000
        .set T_PT, 0x402000
        .set PAGE0, 0x410000
        .set PAGE1, 0x411000
        .set PAGE2, 0x412000

main:   mov qword ptr [pml4 + 8], T_PDPT + 3
        mov qword ptr [T_PDPT], T_PD + 3
        mov qword ptr [T_PD], T_PT + 3
        mov qword ptr [T_PT], PAGE0 + 3
        mov qword ptr [T_PT + 8], PAGE1 + 3
        mov rbx, VA
        call check_same
        call check_call
        call check_alias
        call check_crossing
        call check_string
        call check_remap
        call check_data
        call check_loop
        ret

/* The immediate of the very next instruction, and of one further on. Twice: with the code known, too. */
check_same:
        STEP "the same block"
        mov ecx, 1
1:      mov [2f + 1], ecx
2:      mov eax, 0x11111111
        CHECK_EQ "the next instruction", rax, rcx
        lea edx, [ecx + 0x1000]
        mov [3f + 1], edx
        nop
        nop
        nop
3:      mov eax, 0x22222222
        CHECK_EQ "one further on", rax, rdx
        inc ecx
        cmp ecx, 200
        jne 1b
        /* An instruction that overwrites itself runs to its end, and is another the next time. */
        mov byte ptr [4f], 0xaa                 /* STOSB */
        mov rdi, offset 4f
        mov al, 0x90
        mov ecx, 3
4:      stosb
        dec ecx
        mov rdx, offset 4b + 1
        CHECK_EQ "it stored once", rdi, rdx
        movzx edx, byte ptr [4b]
        CHECK_EQ "and is a NOP now", rdx, 0x90
        ret

/* A subroutine that is rewritten between calls. */
check_call:
        STEP "a subroutine"
        mov byte ptr [PAGE0], 0xb8              /* MOV EAX, imm32; RET */
        mov byte ptr [PAGE0 + 5], 0xc3
        mov ecx, 1
1:      mov [PAGE0 + 1], ecx
        mov eax, PAGE0
        call rax
        CHECK_EQ "its value", rax, rcx
        inc ecx
        cmp ecx, 200
        jne 1b
        ret

/* Written through one linear address, run through another. */
check_alias:
        STEP "another mapping of the page"
        mov ecx, 1
1:      mov [PAGE0 + 1], ecx
        call rbx
        CHECK_EQ "written physically, run virtually", rax, rcx
        lea edx, [ecx + 0x5000]
        mov [rbx + 1], edx
        mov eax, PAGE0
        call rax
        CHECK_EQ "the other way", rax, rdx
        inc ecx
        cmp ecx, 100
        jne 1b
        ret

/* MOV EAX, imm32 across two pages; each half changes in turn. */
check_crossing:
        STEP "an instruction on two pages"
        mov byte ptr [PAGE0 + 0xffd], 0xb8
        mov byte ptr [PAGE1 + 2], 0xc3
        lea rsi, [rbx + 0xffd]
        mov ecx, 0x01010101
1:      mov [PAGE0 + 0xffe], cx
        mov edx, ecx
        shr edx, 16
        mov [PAGE1], dx
        call rsi
        CHECK_EQ "both halves", rax, rcx
        xor ecx, 0x00ff0000
        mov edx, ecx
        shr edx, 16
        mov [PAGE1], dx
        call rsi
        CHECK_EQ "the second page alone", rax, rcx
        xor ecx, 0x00000ff0
        mov [PAGE0 + 0xffe], cx
        call rsi
        CHECK_EQ "the first page alone", rax, rcx
        add ecx, 0x00010001
        cmp ecx, 0x01300130
        jb 1b
        mov qword ptr [T_PT + 8], PAGE2 + 3
        invlpg [rbx + 0x1000]
        mov dword ptr [PAGE2], 0x00c37777
        call rsi
        shr eax, 16
        CHECK_EQ "another second page", rax, 0x7777
        mov qword ptr [T_PT + 8], PAGE1 + 3
        invlpg [rbx + 0x1000]
        ret

check_string:
        STEP "REP MOVS and STOS over code"
        mov ecx, 1
        push rbx
        mov ebx, 1
1:      mov [template + 1], ebx
        mov rsi, offset template
        mov rdi, PAGE0
        mov ecx, 8
        rep movsb
        mov eax, PAGE0
        call rax
        CHECK_EQ "copied code", rax, rbx
        inc ebx
        cmp ebx, 100
        jne 1b
        pop rbx
        mov rdi, PAGE0
        mov ecx, 0x800
        mov al, 0xc3
        rep stosb
        mov eax, 0x1234
        call rbx
        CHECK_EQ "filled with RET", rax, 0x1234
        mov rdi, PAGE0
        mov ecx, 100
        mov al, 0x90
        rep stosb
        mov byte ptr [PAGE0 + 5], 0xb0          /* MOV AL, imm8 */
        lock or byte ptr [PAGE0 + 6], 0x0f
        mov eax, 0
        call rbx
        CHECK_EQ "a locked OR of code", rax, 0x9f
        movdqu xmm0, [template]
        mov dword ptr [template + 1], 0x4242
        movdqu xmm0, [template]
        movdqu [PAGE0], xmm0
        call rbx
        CHECK_EQ "a vector store over code", rax, 0x4242
        push 0x4343
        pop [PAGE0 + 1]
        mov byte ptr [PAGE0 + 5], 0xc3
        call rbx
        CHECK_EQ "POP over code", rax, 0x4343
        ret

/* The same linear address, another page. */
check_remap:
        STEP "other pages"
        mov byte ptr [PAGE1], 0xb8
        mov dword ptr [PAGE1 + 1], 0x1111
        mov byte ptr [PAGE1 + 5], 0xc3
        mov byte ptr [PAGE2], 0xb8
        mov dword ptr [PAGE2 + 1], 0x2222
        mov byte ptr [PAGE2 + 5], 0xc3
        mov ecx, 50
1:      mov qword ptr [T_PT], PAGE1 + 3
        invlpg [rbx]
        call rbx
        CHECK_EQ "the first", rax, 0x1111
        mov qword ptr [T_PT], PAGE2 + 3
        mov rax, cr3
        mov cr3, rax
        call rbx
        CHECK_EQ "the second", rax, 0x2222
        dec ecx
        jnz 1b
        mov qword ptr [T_PT], PAGE0 + 3
        invlpg [rbx]
        ret

/* Data beside code: both stay right. */
check_data:
        STEP "data beside code"
        mov byte ptr [PAGE0], 0xff              /* INC DWORD PTR [RDI]; RET */
        mov word ptr [PAGE0 + 1], 0xc307
        lea rdi, [rbx + 64]
        mov qword ptr [rdi], 0
        mov ecx, 5000
1:      call rbx
        dec ecx
        jnz 1b
        CHECK_EQ "code counts in its own page", "qword ptr [PAGE0 + 64]", 5000
        ret

/* A loop that patches its own branch to get out. */
check_loop:
        STEP "a loop that ends itself"
        mov byte ptr [2f], 0xeb                 /* JMP */
        mov ecx, 0
1:      inc ecx
        cmp ecx, 1000
        jne 2f
        mov word ptr [2f], 0x9090
2:      jmp 1b
        CHECK_EQ "after so many turns", rcx, 1000
        ret

        .data
        .align 16
template:
        .byte 0xb8, 0, 0, 0, 0, 0xc3, 0x90, 0x90
        .quad 0
        .text
