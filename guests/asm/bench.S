/*
 * The boot sector of the speed comparison: goes to 64-bit mode and runs one loop, then ends by the debug-exit port and by
 * Bochs's shutdown port. KIND chooses the loop, COUNT says how often it runs; both come from build.rs, which also knows
 * the instructions of one turn. All within the 512 bytes that a BIOS loads.
 */
        .intel_syntax noprefix
        .set PML4, 0x1000
        .set PDPT, 0x2000
        .set PD, 0x3000
        .set BUFFER, 0x20000            /* 256 KiB and a little */

        .text
        .code16
        .global start
start:  cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7c00
        cld
        mov di, PML4
        mov cx, 3 * 2048
        rep stosw
        mov word ptr [PML4], PDPT + 3
        mov word ptr [PDPT], PD + 3
        mov word ptr [PD], 0x83         /* 2 MiB one to one */
        mov eax, 0x20                   /* PAE */
        mov cr4, eax
        mov eax, PML4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or ah, 1                        /* LME */
        wrmsr
        lgdt [gdtr]
        mov eax, cr0
        or eax, 0x80000001
        mov cr0, eax
        .byte 0xea
        .word long
        .word 8

        .code64
long:   mov ebx, 0x12345
        mov edx, 0x777
        mov esi, 1
        mov edi, BUFFER
        mov ecx, COUNT
        .align 16
#if KIND == 0
/* Integer arithmetic: 14 instructions a turn. */
1:      add rax, rbx
        xor rdx, rax
        rol rdx, 7
        lea rsi, [rsi + rdx * 2 + 3]
        imul rbx, rsi, 33
        sub rax, rdx
        shr rax, 3
        or rax, 1
        and rbx, 0x7ffffff
        add rbx, rdx
        adc rsi, 0
        not rdx
        dec ecx
        jnz 1b
#elif KIND == 1
/* Loads and stores over 256 KiB: 12 instructions a turn, 5 of them touch memory. */
1:      mov rax, [rdi + rsi]
        add rax, rcx
        mov [rdi + rsi + 8], rax
        mov edx, [rdi + rsi + 64]
        add [rdi + rsi + 128], edx
        movzx ebx, byte ptr [rdi + rsi + 200]
        xor rdx, rbx
        lea rsi, [rsi + rdx]
        add rsi, 328
        and esi, 0x3fff8
        dec ecx
        jnz 1b
#else
/* Branches that a pseudo-random number decides, and a call: 16 instructions a turn whichever way it goes. */
1:      imul esi, esi, 1664525
        add esi, 1013904223
        test esi, 0x10000000
        jz 2f
        add rax, rsi
        jmp 3f
2:      xor rax, rsi
        inc rdx
3:      call 6f
        dec ecx
        jnz 1b
        jmp 9f
6:      test esi, 0x04000000
        jnz 7f
        add rdx, 3
        jmp 8f
7:      sub rdx, 5
        inc rax
8:      test rdx, rdx
        ret
#endif
9:      xor eax, eax
        out 0xf4, al
        mov dx, 0x8900
        mov esi, offset text
        mov ecx, 8
        cld
2:      lodsb
        out dx, al
        loop 2b
3:      hlt
        jmp 3b
text:   .ascii "Shutdown"

        .align 8
gdt:    .quad 0, 0x00af9b000000ffff
gdtr:   .word 15
        .long gdt
        .org 510
        .word 0xaa55
