/* Real mode, 16-bit protected mode, unreal mode and virtual-8086 mode, from 32-bit protected mode and back. */
#define LONG 0
#include "common.inc"
#include "desc32.inc"
#include "real.inc"
        GUEST "modes"
        .set R16, 0x90                  /* 16-bit code and data at LOW */
        .set D16, 0x98
        .set IVT, 0

main:   call check_real
        call check_unreal
        call check_16
        call check_v86
        call check_v86_io
        ret

/* Calls the 16-bit routine at offset eax of the low page in real mode. ES is `real_es` if that is not zero. */
call_real:
        pushad
        mov [LOW + real_target - low], ax
        mov [saved_esp], esp
        DESC gdt+R16, LOW, 0xffff, 0x9b, 0
        DESC gdt+D16, LOW, 0xffff, 0x93, 0
        mov eax, D16
        mov ds, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        cmp dword ptr cs:[unreal], 0
        jne 1f
        mov es, eax
1:      .byte 0xea
        .long to_real - low
        .word R16
from_real:
        mov eax, KDATA
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        mov esp, [saved_esp]
        lidt [idt_pointer]
        popad
        ret

/* A vector of real mode, to an offset of the low page. */
        .macro VECTOR n, label
        mov dword ptr [IVT + (\n) * 4], (LOW << 12) + \label - low
        .endm
        .macro REAL label
        mov eax, offset \label - low
        call call_real
        .endm
/* What the low page holds, as one word. */
        .macro LOWWORD reg, label
        movzx \reg, word ptr [LOW + \label - low]
        .endm

check_real:
        STEP "real mode"
        call copy_low
        REAL real_simple
        LOWWORD eax, r_cs
        CHECK_EQ "CS", eax, LOW >> 4
        LOWWORD eax, r_msw
        and eax, 1
        CHECK_EQ "PE is off", eax, 0
        mov eax, [LOW + r_wide - low]
        CHECK_EQ "32-bit operands", eax, 0x12345678
        mov eax, [LOW + r_hma - low]
        CHECK_EQ "FFFF:0010 is at 1 MiB", eax, [0x100000]
        LOWWORD eax, r_far
        CHECK_EQ "a far call to another segment", eax, 0x1002

        VECTOR 0x40, real_hook
        REAL real_int
        LOWWORD eax, r_count
        CHECK_EQ "INT through the vector table", eax, 1
        LOWWORD eax, r_ip
        CHECK_EQ "pushed IP", eax, "offset real_int_next - low"
        LOWWORD eax, r_pcs
        CHECK_EQ "pushed CS", eax, LOW >> 4
        LOWWORD eax, r_flags
        and eax, 0x200
        CHECK_EQ "IF is off inside", eax, 0
        LOWWORD eax, r_after
        and eax, 0x201
        CHECK_EQ "IRET brings the flags back", eax, 0x201

        VECTOR 0, real_fault
        VECTOR 6, real_fault
        VECTOR 12, real_fault
        VECTOR 13, real_fault
        REAL real_div
        LOWWORD eax, r_ip
        CHECK_EQ "#DE: IP of the DIV itself", eax, "offset real_div_at - low"
        REAL real_limit
        LOWWORD eax, r_ip
        CHECK_EQ "#GP of a word at FFFF", eax, "offset real_limit_at - low"
        REAL real_limit32
        LOWWORD eax, r_ip
        CHECK_EQ "#GP of a 32-bit offset", eax, "offset real_limit32_at - low"
        REAL real_lldt
        LOWWORD eax, r_ip
        CHECK_EQ "#UD of LLDT", eax, "offset real_lldt_at - low"
        REAL real_arpl
        LOWWORD eax, r_ip
        CHECK_EQ "#UD of ARPL", eax, "offset real_arpl_at - low"
        REAL real_idt
        LOWWORD eax, r_ip
        CHECK_EQ "#GP of a vector beyond the IDT's limit", eax, "offset real_idt_at - low"
        REAL real_wrap
        LOWWORD eax, r_wide
        CHECK_EQ "SP wraps at 64 KiB", eax, 0xfffe
        ret

check_unreal:
        STEP "unreal mode"
        mov dword ptr [0x500000], 0xabcdef01
        mov dword ptr [unreal], 1
        REAL real_big
        mov dword ptr [unreal], 0
        mov eax, [LOW + r_wide - low]
        mov ecx, 0xabcdef01
        CHECK_EQ "real mode reads at 5 MiB", eax, ecx
        ret

check_16:
        STEP "16-bit protected mode"
        mov [saved_esp], esp
        DESC gdt+R16, LOW, 0xffff, 0x9b, 0
        DESC gdt+D16, LOW, 0xffff, 0x93, 0
        .byte 0xea
        .long prot16 - low
        .word R16
from_prot16:
        mov eax, KDATA
        mov ss, eax
        mov es, eax
        mov esp, [saved_esp]
        LOWWORD eax, r_wide
        CHECK_EQ "a push at SP = 0 goes to FFFE", eax, 0x4321
        mov eax, D16
        mov es, eax
        EXPECT_FAULT GP, 0, "limit of 64 KiB", mov al, es:[0x10000]
        mov eax, KDATA
        mov es, eax
        ret

/* V86 EFLAGS, label: runs it until an exception comes; all segments 0x2000 but CS and SS. */
        .macro V86 flags, label
        ARM_RESUME 59f
        push 0x2004                     /* GS, FS, DS, ES */
        push 0x2003
        push 0x2001
        push 0x2002
        push LOW >> 4
        push 0xfff0
        push EFLAGS_VM + \flags
        push LOW >> 4
        push offset \label - low
        iretd
59:     add esp, 0
        .endm
        .macro V86_IS vec, text, label
        CHECK_EQ "\text", "dword ptr [trap_vec]", \vec
        CHECK_EQ "\text: IP", "dword ptr [trap_ip]", "offset \label - low"
        .endm

check_v86:
        STEP "virtual-8086 mode"
        mov dword ptr [0x20000], 0x5a5a
        V86 0x3000, v86_start
        mov edi, [trap_frame]
        mov eax, [edi + F_SS + 4]
        CHECK_EQ "INT with IOPL 3", "dword ptr [trap_vec]", USER_TRAP
        CHECK_EQ "CS", "dword ptr [trap_cs]", LOW >> 4
        and eax, 0xffff
        CHECK_EQ "ES on the stack", eax, 0x2002
        movzx eax, word ptr [edi + F_SS + 8]
        CHECK_EQ "DS on the stack", eax, 0x2001
        movzx eax, word ptr [edi + F_SS + 12]
        CHECK_EQ "FS on the stack", eax, 0x2003
        movzx eax, word ptr [edi + F_SS + 16]
        CHECK_EQ "GS on the stack", eax, 0x2004
        mov eax, [trap_flags]
        and eax, EFLAGS_VM
        CHECK_EQ "VM in the saved flags", eax, EFLAGS_VM
        lea eax, [edi + F_SS + 20]
        CHECK_EQ "on the stack of the TSS", eax, "offset trap_stack_top"
        LOWWORD eax, v_word
        CHECK_EQ "segments are paragraphs", eax, 0x5a5a
        HOOK 0x82, v86_hook
        or byte ptr [idt + 0x82 * 8 + 5], 0x60
        V86 0x3000, v86_return
        LOWWORD eax, v_word
        CHECK_EQ "IRET back to V86 restores its segments", eax, 0x2001
        CHECK_EQ "DS is null in the handler", "dword ptr [seen_ds]", 0
        V86 0, v86_cli
        V86_IS GP, "CLI with IOPL 0", v86_cli
        V86 0, v86_pushf
        V86_IS GP, "PUSHF with IOPL 0", v86_pushf
        V86 0, v86_int
        V86_IS GP, "INT with IOPL 0", v86_int
        V86 0, v86_iret
        V86_IS GP, "IRET with IOPL 0", v86_iret
        V86 0x3000, v86_hlt
        V86_IS GP, "HLT", v86_hlt
        V86 0x3000, v86_lgdt
        V86_IS GP, "LGDT", v86_lgdt
        V86 0x3000, v86_cr0
        V86_IS GP, "MOV to CR0", v86_cr0
        V86 0x3000, v86_lldt
        V86_IS UD, "LLDT", v86_lldt
        V86 0x3000, v86_limit
        V86_IS GP, "a word at FFFF", v86_limit
        V86 0, v86_int3
        CHECK_EQ "INT3 with IOPL 0", "dword ptr [trap_vec]", BP
        V86 0x3000, v86_ring0_gate
        V86_IS GP, "INT of ring 0's gate", v86_ring0_gate
        CHECK_EQ "its error code", "dword ptr [trap_err]", 0x192
        ret
v86_hook:
        mov eax, [edi + F_DS]
        and eax, 0xffff
        mov [seen_ds], eax
        ret

check_v86_io:
        STEP "V86 and I/O"
        V86 0x3000, v86_in
        V86_IS GP, "IN is up to the bitmap, not to IOPL", v86_in
        and byte ptr [tss_io + 0x80 / 8], 0xfe
        V86 0, v86_in
        CHECK_EQ "IN of an open port", "dword ptr [trap_vec]", BP
        or byte ptr [tss_io + 0x80 / 8], 1
        ret

        .bss
        .align 4
saved_esp: .fill 4
unreal: .fill 4
seen_ds: .fill 4
        .text
