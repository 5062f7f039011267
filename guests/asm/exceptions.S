/* Each exception that software can provoke: error codes, saved RIP and flags, priority, IST, double fault. */
#define LONG 1
#include "common.inc"
#define DF_VECTOR 8
        GUEST "exceptions"

main:   call check_simple
        call check_errors
        call check_flags
        call check_priority
        call check_ist
        call check_double
        call check_user
        ret

check_simple:
        STEP "one by one"
        xor ecx, ecx
        mov eax, 1
        xor edx, edx
        EXPECT_FAULT DE, 0, "division by zero", div ecx
        CHECK_EQ "RAX is unchanged", rax, 1
        mov edx, 5
        mov ecx, 5
        EXPECT_FAULT DE, 0, "a quotient too large", div ecx
        mov eax, 0x80000000
        mov edx, 0xffffffff
        mov ecx, -1
        EXPECT_FAULT DE, 0, "IDIV of the smallest by -1", idiv ecx
        mov ax, 0x100
        mov cl, 1
        EXPECT_FAULT DE, 0, "an 8-bit quotient too large", div cl
        EXPECT_TRAP BP, 0, "INT3", int3
        EXPECT_TRAP BP, 0, "INT 3 by two bytes", .byte 0xcd, 3
        EXPECT_TRAP DB, 0, "INT1", .byte 0xf1
        EXPECT_FAULT UD, 0, "UD2", ud2
        EXPECT_FAULT UD, 0, "UD1", .byte 0x0f, 0xb9, 0xc0
        EXPECT_FAULT UD, 0, "INTO in 64-bit mode", .byte 0xce
        EXPECT_FAULT UD, 0, "PUSH ES in 64-bit mode", .byte 0x06
        EXPECT_FAULT UD, 0, "LOCK without a memory operand", .byte 0xf0, 0xff, 0xc0
        EXPECT_FAULT UD, 0, "LOCK MOV", .byte 0xf0, 0x89, 0x00
        EXPECT_FAULT UD, 0, "LOCK CMP", .byte 0xf0, 0x39, 0x00
        EXPECT_FAULT UD, 0, "MOV to CS", .byte 0x8e, 0xc8
        EXPECT_FAULT UD, 0, "MOV from CR1", .byte 0x0f, 0x20, 0xc8
        EXPECT_FAULT UD, 0, "far JMP to a register", .byte 0xff, 0xe8
        EXPECT_FAULT UD, 0, "LEA of a register", .byte 0x8d, 0xc0
        EXPECT_FAULT UD, 0, "RSM outside of SMM", rsm
        EXPECT_FAULT UD, 0, "an opcode that no processor has", .byte 0x0f, 0xff, 0xc0
        EXPECT_FAULT GP, 0, "15 prefixes", .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
        EXPECT_NONE "14 prefixes", .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
        SET_CR cr0, CR0_TS
        EXPECT_FAULT NM, 0, "x87 with TS", fld1
        EXPECT_FAULT NM, 0, "SSE with TS", movaps xmm0, xmm1
        EXPECT_FAULT NM, 0, "WAIT with TS and MP", wait
        clts
        EXPECT_NONE "after CLTS", fld1
        fninit
        mov rcx, offset aligned + 1
        EXPECT_FAULT GP, 0, "MOVAPS at a bad address", movaps xmm0, [rcx]
        mov ecx, 0xc0000fff
        EXPECT_FAULT GP, 0, "RDMSR of what is no MSR", rdmsr
        ret

check_errors:
        STEP "error codes that name selectors"
        xor eax, eax
        lldt ax
        mov eax, 0x13c
        EXPECT_FAULT GP, 0x13c, "a selector beyond the LDT's end", mov ds, eax
        mov eax, 0x1003
        EXPECT_FAULT GP, 0x1000, "a selector beyond the GDT's end: no RPL in the code", mov ds, eax
        mov eax, SPARE
        mov rcx, 0x00cf13000000ffff                 /* data, not present */
        mov [gdt + SPARE], rcx
        EXPECT_FAULT NP, SPARE, "DS not present", mov ds, eax
        EXPECT_FAULT SS_, SPARE, "SS not present", mov ss, eax
        mov rcx, 0x00cf99000000ffff                 /* code, execute only */
        mov [gdt + SPARE], rcx
        EXPECT_FAULT GP, SPARE, "DS of execute-only code", mov ds, eax
        EXPECT_FAULT GP, SPARE, "SS of code", mov ss, eax
        mov qword ptr [gdt + SPARE], 0
        lidt [short_idt]
        EXPECT_FAULT GP, 0x32 << 3 | 2, "INT n whose gate lies beyond the IDT's limit", int 0x32
        lidt [idt_pointer]
        mov byte ptr [idt + 0x32 * 16 + 5], 0x0e
        EXPECT_FAULT NP, 0x32 << 3 | 2, "INT n of a gate not present", int 0x32
        mov byte ptr [idt + 0x32 * 16 + 5], 0x80
        EXPECT_FAULT GP, 0x32 << 3 | 2, "INT n of what is no gate", int 0x32
        mov byte ptr [idt + 0x32 * 16 + 5], 0x8e
        mov word ptr [idt + 0x32 * 16 + 2], 0
        EXPECT_FAULT GP, 0, "a gate with a null selector", int 0x32
        mov word ptr [idt + 0x32 * 16 + 2], KDATA
        EXPECT_FAULT GP, KDATA, "a gate to data", int 0x32
        mov word ptr [idt + 0x32 * 16 + 2], KCODE32
        EXPECT_FAULT GP, KCODE32, "a gate to 32-bit code", int 0x32
        mov word ptr [idt + 0x32 * 16 + 2], KCS
        EXPECT_TRAP 0x32, 0, "a good gate", int 0x32
        ret

/* Saved flags: RF for faults, not for traps; gates clear TF, NT, RF and, interrupt gates, IF. */
check_flags:
        STEP "flags"
        EXPECT_FAULT UD, 0, "UD2", ud2
        mov rax, [trap_flags]
        and eax, EFLAGS_RF
        CHECK_EQ "RF is set in the image of a fault", rax, EFLAGS_RF
        EXPECT_TRAP BP, 0, "INT3", int3
        mov rax, [trap_flags]
        and eax, EFLAGS_RF
        CHECK_EQ "RF is clear in the image of a trap", rax, 0
        stc
        std
        EXPECT_TRAP 0x33, 0, "INT n", int 0x33
        cld
        mov rax, [trap_flags]
        and eax, 0x401
        CHECK_EQ "CF and DF are saved", rax, 0x401
        HOOK 0x34, flags_hook
        mov byte ptr [idt + 0x35 * 16 + 5], 0x8f    /* a trap gate */
        HOOK 0x35, flags_hook
        push 0x4202                                 /* NT, IF */
        popfq
        int 0x34
        pushfq
        cli
        CHECK_EQ "an interrupt gate clears IF and NT", "qword ptr [seen_flags]", 0
        pop rax
        and eax, 0x4200
        CHECK_EQ "IRET brings them back", rax, 0x4200
        push 0x4202
        popfq
        int 0x35
        cli
        CHECK_EQ "a trap gate leaves IF", "qword ptr [seen_flags]", 0x200
        push 2
        popfq
        ret
flags_hook:
        pushfq
        pop rax
        and eax, EFLAGS_IF | EFLAGS_NT | EFLAGS_TF | EFLAGS_RF
        mov [seen_flags], rax
        ret

/* When an instruction is wrong in two ways (SDM vol. 3 table 6-2, APM vol. 2 table 8-9). */
check_priority:
        STEP "priority"
        mov rcx, 0x0000900000000000
        EXPECT_FAULT UD, 0, "#UD before #GP of the address", .byte 0xf0, 0x89, 0x01
        SET_CR cr0, CR0_TS
        EXPECT_FAULT UD, 0, "LOCK before #NM", .byte 0xf0, 0x0f, 0x28, 0x01
        EXPECT_FAULT NM, 0, "#NM before #GP of the address", movaps xmm0, [rcx]
        mov rdx, 0x5000000000
        EXPECT_FAULT NM, 0, "#NM before #PF", fld qword ptr [rdx]
        clts
        EXPECT_FAULT PF, 0, "#PF of a DIV's operand", div qword ptr [rdx]
        mov byte ptr [idt + PF * 16 + 4], 1
        mov rax, rsp
        ARM_RESUME 1f
        mov rsp, rdx
        push rax
1:      mov byte ptr [idt + PF * 16 + 4], 0
        CHECK_EQ "PUSH to nowhere", "qword ptr [trap_vec]", PF
        CHECK_EQ "its error code", "qword ptr [trap_err]", 2
        CHECK_EQ "RSP before the PUSH is saved", rdx, [trap_sp]
        lea rcx, [rdx - 8]
        CHECK_EQ "CR2 below it", rcx, [trap_cr2]
        ret

/* IST stacks, and what is pushed. */
check_ist:
        STEP "IST"
        mov byte ptr [idt + UD * 16 + 4], 1
        mov r8, rsp
        EXPECT_FAULT UD, 0, "UD2 on IST 1", ud2
        mov byte ptr [idt + UD * 16 + 4], 0
        mov rax, [trap_frame]
        add rax, F_SS + 8
        CHECK_EQ "the frame is at the top of IST 1", rax, "offset ist1_top"
        CHECK_EQ "saved RSP", r8, [trap_sp]
        CHECK_EQ "saved SS", "qword ptr [trap_ss]", KDATA
        CHECK_EQ "saved CS", "qword ptr [trap_cs]", KCS
        mov r9, rsp
        sub rsp, 3                                  /* a stack that is not aligned */
        ARM_RESUME 1f
        ud2
1:      mov rsp, r9
        mov rax, [trap_frame]
        add rax, F_SS + 8
        mov rcx, r9
        sub rcx, 3
        and rcx, -16
        CHECK_EQ "the frame is aligned to 16 bytes", rax, rcx
        ret

check_double:
        STEP "double fault"
        mov byte ptr [idt + DF_VECTOR * 16 + 4], 2
        mov byte ptr [idt + NP * 16 + 5], 0x0e      /* #NP and #GP without gates */
        mov byte ptr [idt + GP * 16 + 5], 0x0e
        mov eax, 0x1000
        EXPECT_AT DF_VECTOR, 0, 0, "#GP whose gate is not present", mov ds, eax
        mov rax, [trap_frame]
        add rax, F_SS + 8
        CHECK_EQ "on IST 2", rax, "offset ist2_top"
        mov byte ptr [idt + GP * 16 + 5], 0x8e
        mov byte ptr [idt + NP * 16 + 5], 0x8e
        mov byte ptr [idt + PF * 16 + 5], 0x0e
        mov rdx, 0x5000000000
        EXPECT_AT DF_VECTOR, 0, 0, "#PF, then #NP", mov rax, [rdx]
        CHECK_EQ "CR2 of the page fault", rdx, [trap_cr2]
        mov byte ptr [idt + PF * 16 + 5], 0x8e
        mov byte ptr [idt + UD * 16 + 5], 0x0e
        EXPECT_FAULT NP, UD << 3 | 3, "#UD, then #NP: no double fault, EXT is set", ud2
        mov byte ptr [idt + UD * 16 + 5], 0x8e
        mov byte ptr [idt + DF_VECTOR * 16 + 4], 0
        ret

/* From ring 3: the stack of the TSS, gates of ring 0, privileged instructions. */
check_user:
        STEP "ring 3"
        EXPECT_USER GP, 0, user_hlt, "HLT", user_hlt
        mov rax, [trap_frame]
        add rax, F_SS + 8
        CHECK_EQ "RSP0 of the TSS", rax, "offset trap_stack_top"
        CHECK_EQ "saved SS", "qword ptr [trap_ss]", UDATA
        CHECK_EQ "saved CS", "qword ptr [trap_cs]", UCODE64
        CHECK_EQ "saved RSP", "qword ptr [trap_sp]", USER_STACK
        EXPECT_USER GP, 0, user_cli, "CLI", user_cli
        EXPECT_USER GP, 0, user_cr, "MOV from CR0", user_cr
        EXPECT_USER GP, 0, user_cr_write, "MOV to CR4", user_cr_write
        EXPECT_USER GP, 0, user_dr, "MOV from DR7", user_dr
        EXPECT_USER GP, 0, user_rdmsr, "RDMSR", user_rdmsr
        EXPECT_USER GP, 0, user_invlpg, "INVLPG", user_invlpg
        EXPECT_USER GP, 0, user_lidt, "LIDT", user_lidt
        EXPECT_USER GP, 0, user_in, "IN", user_in
        EXPECT_USER GP, 0, user_clts, "CLTS", user_clts
        EXPECT_USER GP, 0, user_wbinvd, "WBINVD", user_wbinvd
        EXPECT_USER GP, 0x32 << 3 | 2, user_int, "INT of ring 0's gate", user_int
        EXPECT_USER BP, 0, 0, "INT3", user_int3
        EXPECT_USER GP, KDATA, user_sel, "DS of ring 0", user_sel
        SET_CR cr0, CR0_AM
        EXPECT_USER AC, 0, user_ac_load, "alignment check", user_ac
        CLEAR_CR cr0, CR0_AM
        EXPECT_USER USER_TRAP, 0, 0, "no alignment check without AM", user_ac
        SET_CR cr4, CR4_TSD
        EXPECT_USER GP, 0, user_rdtsc, "RDTSC under TSD", user_rdtsc
        EXPECT_NONE "RDTSC under TSD in ring 0", rdtsc
        CLEAR_CR cr4, CR4_TSD
        EXPECT_USER USER_TRAP, 0, 0, "RDTSC", user_rdtsc
        EXPECT_USER USER_TRAP, 0, 0, "SGDT", user_sgdt
        CPUID_BIT 7, 0, ecx, 2
        jnc 1f
        SET_CR cr4, CR4_UMIP
        EXPECT_USER GP, 0, user_sgdt, "SGDT under UMIP", user_sgdt
        EXPECT_USER GP, 0, user_smsw, "SMSW under UMIP", user_smsw
        EXPECT_NONE "SMSW under UMIP in ring 0", smsw eax
        CLEAR_CR cr4, CR4_UMIP
1:      /* POPF in ring 3 changes neither IF nor IOPL. */
        EXPECT_USER USER_TRAP, 0, 0, "POPF", user_popf
        mov rax, [trap_flags]
        and eax, 0x3200
        CHECK_EQ "IF and IOPL", rax, 0
        ret

        .section .user
user_hlt:       hlt
user_cli:       cli
user_cr:        mov rax, cr0
user_cr_write:  mov cr4, rax
user_dr:        mov rax, dr7
user_rdmsr:     rdmsr
user_invlpg:    invlpg [rax]
user_lidt:      lidt [USER]
user_in:        in al, 0x80
user_clts:      clts
user_wbinvd:    wbinvd
user_int:       int 0x32
user_int3:      int3
user_sel:       mov ds, [user_kdata]
user_kdata:     .word KDATA
user_ac:
        pushfq
        or dword ptr [rsp], EFLAGS_AC
        popfq
user_ac_load:
        mov eax, [USER + 0x1001]
        int USER_TRAP
user_rdtsc:
        rdtsc
        int USER_TRAP
user_sgdt:
        sgdt [USER + 0x1000]
        int USER_TRAP
user_smsw:
        smsw eax
        int USER_TRAP
user_popf:
        push 0x3202
        popfq
        int USER_TRAP

        .data
short_idt:
        .word 0x32 * 16 + 14
        .quad idt
        .bss
        .align 16
aligned:        .fill 32
seen_flags:     .fill 8
        .text
