/* From 64-bit mode to compatibility mode of 32 and 16 bits, to protected and real mode, and back. */
#define LONG 1
#include "common.inc"
#include "real.inc"
        GUEST "modes-long"
        .set C16, 0x90                  /* 16-bit code and data at LOW */
        .set D16, 0x98

main:   call check_compat
        call check_compat_faults
        call check_16
        call check_real
        ret

check_compat:
        STEP "compatibility mode, 32 bits"
        mov rax, KCODE32 << 32
        mov rcx, offset compat_simple
        or rax, rcx
        mov [far_target], rax
        mov rsi, -1
        mov r9, 0x123456789abcdef0
        mov r8, rsp
        call fword ptr [far_target]
        mov rax, rsp
        CHECK_EQ "RSP", rax, r8
        mov rcx, 0x123456789abcdef0
        CHECK_EQ "R9 stays", r9, rcx
        CHECK_EQ "CS inside", "qword ptr [seen]", KCODE32
        CHECK_EQ "DEC, not a REX prefix", "qword ptr [seen + 8]", 6
        CHECK_EQ "32-bit addresses wrap", "qword ptr [seen + 16]", 0x7777
        CHECK_EQ "PUSH is 4 bytes", "qword ptr [seen + 24]", 4
        CHECK_EQ "a 32-bit result clears the upper half", rsi, 0
        ret

        .code32
compat_simple:
        mov eax, cs
        mov [seen], eax
        mov eax, 7
        dec eax
        mov [seen + 8], eax
        mov dword ptr [wrap_cell], 0x7777
        mov ebx, 0xffffff00
        mov eax, [ebx + wrap_cell + 0x100]
        mov [seen + 16], eax
        mov eax, esp
        push eax
        sub eax, esp
        mov [seen + 24], eax
        pop eax
        inc esi
        retf
        .code64

/* Exceptions of compatibility-mode code run 64-bit handlers on 64-bit frames. */
check_compat_faults:
        STEP "exceptions in compatibility mode"
        HOOK UD, ud_hook
        mov rax, KCODE32 << 32
        mov rcx, offset compat_ud
        or rax, rcx
        mov [far_target], rax
        mov r8, rsp
        call fword ptr [far_target]
        CHECK_EQ "CS of the frame", "qword ptr [trap_cs]", KCODE32
        CHECK_EQ "RIP of the frame", "qword ptr [trap_ip]", "offset compat_ud"
        CHECK_EQ "SS of the frame", "qword ptr [trap_ss]", KDATA
        CHECK_EQ "it went on in compatibility mode", "qword ptr [seen]", 0x4321
        UNHOOK UD
        mov rax, 0x00cf93000000ffff
        mov [gdt + D16], rax
        mov word ptr [gdt + D16], 0xff          /* a limit that counts in compatibility mode only */
        mov dword ptr [gdt + D16 + 4], 0x00409300
        mov eax, D16
        mov es, eax
        mov rax, es:[0x1000]
        mov rax, KCODE32 << 32
        mov rcx, offset compat_limit
        or rax, rcx
        mov [far_target], rax
        EXPECT_AT GP, 0, 0, "the limit of ES in compatibility mode", call fword ptr [far_target]
        mov eax, KDATA
        mov es, eax
        EXPECT_FAULT UD, 0, "a far CALL by an immediate in 64-bit mode", .byte 0x9a, 0, 0, 0, 0, KCODE32, 0
        ret
ud_hook:
        add qword ptr [rdi + F_IP], 2
        ret
        .code32
compat_ud:
        ud2
        mov eax, 0x4321
        mov [seen], eax
        retf
compat_limit:
        mov al, es:[0xff]
        mov al, es:[0x100]
        retf
        .code64

check_16:
        STEP "compatibility mode, 16 bits"
        call copy_low
        mov rax, 0x00009b010000ffff             /* base LOW */
        mov [gdt + C16], rax
        mov rax, 0x000093010000ffff
        mov [gdt + D16], rax
        mov dword ptr [LOW], 0x21cd             /* scratch */
        mov rsi, offset compat_16
        mov rdi, LOW + 0x800
        mov ecx, offset compat_16_end - compat_16
        rep movsb
        mov rax, C16 << 32 | 0x800
        mov [far_target], rax
        mov rsi, 0xffff
        call fword ptr [far_target]
        mov eax, [LOW + 0x700]
        CHECK_EQ "16-bit operands", rax, 0x00010000
        ret
        .code16
compat_16:
        mov ax, D16
        mov ds, ax
        xor eax, eax
        mov ax, si
        inc ax                                  /* wraps at 16 bits */
        mov bx, 0x600
        mov [bx + 0x100], ax
        mov word ptr [0x702], 1
        mov ax, KDATA
        mov ds, ax
        .byte 0x66
        retf
compat_16_end:
        .code64

/* Out of long mode altogether, a routine in real mode, and back. */
check_real:
        STEP "real mode and back"
        call copy_low
        mov word ptr [LOW + real_target - low], offset real_simple - low
        mov [saved_rsp], rsp
        mov rax, 0x00009b010000ffff
        mov [gdt + C16], rax
        mov rax, 0x000093010000ffff
        mov [gdt + D16], rax
        mov rax, KCODE32 << 32
        mov rcx, offset leave_long
        or rax, rcx
        mov [far_target], rax
        jmp fword ptr [far_target]
back_in_long:
        mov eax, KDATA
        mov ss, eax
        mov rsp, [saved_rsp]
        lidt [idt_pointer]
        movzx eax, word ptr [LOW + r_cs - low]
        CHECK_EQ "CS in real mode", rax, LOW >> 4
        movzx eax, word ptr [LOW + r_msw - low]
        and eax, 1
        CHECK_EQ "PE is off", rax, 0
        CHECK_EQ "LMA was off", "qword ptr [seen + 32]", 0
        EXPECT_FAULT UD, 0, "exceptions work again", ud2
        EXPECT_USER USER_TRAP, 0, 0, "and ring 3", user_trap
        ret

        .code32
leave_long:
        mov eax, cr0
        btr eax, 31
        mov cr0, eax
        mov ecx, EFER
        rdmsr
        and eax, 0x400
        mov [seen + 32], eax
        rdmsr
        btr eax, 8
        wrmsr
        mov eax, D16
        mov ds, eax
        mov es, eax
        mov ss, eax
        .byte 0xea
        .long to_real - low
        .word C16
from_real:
        mov eax, KDATA
        mov ds, eax
        mov es, eax
        mov fs, eax
        mov gs, eax
        mov ecx, EFER
        rdmsr
        bts eax, 8
        wrmsr
        mov eax, cr0
        bts eax, 31
        mov cr0, eax
        JMPFAR32 KCODE64, back_in_long
        .code64

        .section .user
user_trap:
        int USER_TRAP

        .bss
        .align 8
far_target: .fill 8
saved_rsp: .fill 8
wrap_cell: .fill 8
seen:   .fill 64
        .text
