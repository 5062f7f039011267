/* Segments: limits, expand-down, rights, null and conforming ones, call gates, LAR and its kin, the LDT. */
#define LONG 0
#include "common.inc"
#include "desc32.inc"
        GUEST "segmentation"
        .set S1, 0x90                   /* free slots of the GDT */
        .set S2, 0x98
        .set S3, 0xa0
        .set GATE, 0xa8

main:   call check_limits
        call check_down
        call check_rights
        call check_loading
        call check_code
        call check_conforming
        call check_gates
        call check_queries
        call check_ldt
        ret

check_limits:
        STEP "limits"
        DESC gdt+S1, SCRATCH, 0xff, 0x93, 4
        mov eax, S1
        mov es, eax
        EXPECT_NONE "the last byte", mov al, es:[0xff]
        EXPECT_FAULT GP, 0, "one behind it", mov al, es:[0x100]
        EXPECT_NONE "the last dword", mov eax, es:[0xfc]
        EXPECT_FAULT GP, 0, "a dword that sticks out", mov eax, es:[0xfd]
        EXPECT_FAULT GP, 0, "the highest address", mov al, es:[0xffffffff]
        EXPECT_FAULT GP, 0, "a write", mov es:[0x100], al
        mov edi, 0xfe
        mov ecx, 5
        xor eax, eax
        EXPECT_FAULT GP, 0, "STOSB", rep stosb
        CHECK_EQ "it stops at the limit", edi, 0x100
        CHECK_EQ "with what is left", ecx, 3
        mov dword ptr [SCRATCH + 0x80], 0x1234567
        mov eax, es:[0x80]
        CHECK_EQ "the base counts", eax, 0x1234567
        DESC gdt+S1, SCRATCH, 0, 0x93, 0xc
        mov eax, S1
        mov es, eax
        EXPECT_NONE "limit 0 in pages", mov al, es:[0xfff]
        EXPECT_FAULT GP, 0, "behind the page", mov al, es:[0x1000]
        DESC gdt+S1, 0, 0x2ff, 0x93, 0xc
        mov eax, S1
        mov ss, eax
        mov ebp, 0x300000
        EXPECT_FAULT SS_, 0, "SS, through EBP", mov eax, [ebp]
        EXPECT_FAULT SS_, 0, "SS by prefix", mov eax, ss:[0x300000]
        mov eax, KDATA
        mov ss, eax
        mov es, eax
        ret

check_down:
        STEP "expand-down"
        DESC gdt+S1, SCRATCH, 0xff, 0x97, 4
        mov eax, S1
        mov es, eax
        EXPECT_FAULT GP, 0, "at the limit", mov al, es:[0xff]
        EXPECT_NONE "above it", mov al, es:[0x100]
        EXPECT_FAULT GP, 0, "a dword half above", mov eax, es:[0xfe]
        EXPECT_NONE "far above", mov al, es:[0x100000]
        DESC gdt+S1, SCRATCH, 0xff, 0x97, 0
        mov eax, S1
        mov es, eax
        EXPECT_NONE "16-bit: the last byte", mov al, es:[0xffff]
        EXPECT_FAULT GP, 0, "16-bit: behind it", mov al, es:[0x10000]
        EXPECT_FAULT GP, 0, "16-bit: a dword that sticks out", mov eax, es:[0xfffd]
        mov eax, KDATA
        mov es, eax
        ret

check_rights:
        STEP "rights"
        DESC gdt+S1, 0, 0xfffff, 0x91, 0xc
        mov eax, S1
        mov es, eax
        EXPECT_NONE "read of read-only data", mov eax, es:[SCRATCH]
        EXPECT_FAULT GP, 0, "write to it", mov es:[SCRATCH], eax
        EXPECT_FAULT GP, 0, "read-modify-write of it", inc dword ptr es:[SCRATCH]
        EXPECT_FAULT GP, 0, "write through CS", mov cs:[SCRATCH], eax
        EXPECT_NONE "read through CS", mov eax, cs:[SCRATCH]
        DESC gdt+S2, 0, 0xfffff, 0x99, 0xc
        JMPFAR32 S2, 1f
1:      EXPECT_FAULT GP, 0, "read through execute-only CS", mov eax, cs:[SCRATCH]
        JMPFAR32 KCODE32, 2f
2:      mov eax, S2
        EXPECT_FAULT GP, S2, "ES of execute-only code", mov es, eax
        DESC gdt+S2, 0, 0xfffff, 0x9b, 0xc
        EXPECT_NONE "ES of readable code", mov es, eax
        EXPECT_FAULT GP, 0, "write through it", mov es:[SCRATCH], eax
        xor eax, eax
        EXPECT_NONE "a null selector in ES", mov es, eax
        EXPECT_FAULT GP, 0, "its use", mov al, es:[SCRATCH]
        mov eax, 3
        EXPECT_NONE "a null selector with RPL", mov es, eax
        mov eax, es
        CHECK_EQ "reads back", eax, 3
        mov eax, KDATA
        mov es, eax
        ret

check_loading:
        STEP "loading"
        xor eax, eax
        EXPECT_FAULT GP, 0, "SS null", mov ss, eax
        mov eax, KDATA + 3
        EXPECT_FAULT GP, KDATA, "ES with RPL above DPL", mov es, eax
        EXPECT_FAULT GP, KDATA, "SS with RPL other than CPL", mov ss, eax
        mov eax, UDATA
        EXPECT_FAULT GP, 0x28, "SS with DPL other than CPL", mov ss, eax
        EXPECT_NONE "ES of ring 3", mov es, eax
        DESC gdt+S1, 0, 0xfffff, 0x91, 0xc
        mov eax, S1
        EXPECT_FAULT GP, S1, "SS read-only", mov ss, eax
        DESC gdt+S1, 0, 0xfffff, 0x13, 0xc
        EXPECT_FAULT NP, S1, "ES not present", mov es, eax
        EXPECT_FAULT SS_, S1, "SS not present", mov ss, eax
        DESC gdt+S1, 0, 0xfffff, 0x89, 0
        EXPECT_FAULT GP, S1, "ES of a TSS", mov es, eax
        mov eax, 0x800
        EXPECT_FAULT GP, 0x800, "beyond the GDT", mov es, eax
        DESC gdt+S1, 0, 0xfffff, 0x92, 0xc
        mov eax, S1
        mov es, eax
        movzx eax, byte ptr [gdt + S1 + 5]
        CHECK_EQ "the accessed bit is set in memory", eax, 0x93
        mov dword ptr [SCRATCH], 0x12345678
        mov dword ptr [SCRATCH + 4], S1
        mov dword ptr [gdt + S1], 0
        mov dword ptr [gdt + S1 + 4], 0
        mov eax, es:[SCRATCH]
        DESC gdt+S1, SCRATCH, 0xfff, 0x93, 4
        CHECK_EQ "the hidden part stays when the descriptor goes", eax, 0x12345678
        lfs ebx, [SCRATCH]
        CHECK_EQ "LFS: the offset", ebx, 0x12345678
        mov eax, fs
        CHECK_EQ "LFS: the selector", eax, S1
        push fs
        pop eax
        and eax, 0xffff
        CHECK_EQ "PUSH FS", eax, S1
        push KDATA
        pop es
        push KDATA
        pop fs
        ret

check_code:
        STEP "code segments"
        mov dword ptr [SCRATCH], 0x90909090
        mov dword ptr [SCRATCH + 4], 0x90909090
        DESC gdt+S1, SCRATCH, 3, 0x9b, 4
        EXPECT_AT GP, 0, 4, "code runs into its limit", .byte 0xea, 0, 0, 0, 0, S1, 0
        CHECK_EQ "CS", "dword ptr [trap_cs]", S1
        EXPECT_FAULT GP, 0, "a far jump beyond the limit", .byte 0xea, 4, 0, 0, 0, S1, 0
        EXPECT_FAULT GP, 0, "a far jump to null", .byte 0xea, 0, 0, 0, 0, 0, 0
        EXPECT_FAULT GP, KDATA, "a far jump to data", .byte 0xea, 0, 0, 0, 0, KDATA, 0
        DESC gdt+S1, SCRATCH, 3, 0x1b, 4
        EXPECT_FAULT NP, S1, "a far jump to code not present", .byte 0xea, 0, 0, 0, 0, S1, 0
        EXPECT_FAULT GP, 0x20, "a far jump to ring 3", .byte 0xea, 0, 0, 0, 0, UCODE32, 0
        EXPECT_USER GP, KCODE32, user_far, "ring 3: a far jump to ring 0", user_far
        mov eax, cs
        CHECK_EQ "CS reads with RPL 0", eax, KCODE32
        ret

check_conforming:
        STEP "conforming code"
        DESC gdt+S1, 0, 0xfffff, 0x9f, 0xc
        EXPECT_USER USER_TRAP, 0, 0, "ring 3 calls conforming code of ring 0", user_conforming
        CHECK_EQ "and stays in ring 3", ebx, S1+3
        DESC gdt+S1, 0, 0xfffff, 0xff, 0xc
        EXPECT_FAULT GP, S1, "ring 0 cannot jump to conforming code of ring 3", .byte 0xea, 0, 0, 0, 0, S1, 0
        ret

check_gates:
        STEP "call gates"
        CALLGATE gdt+GATE, gate_entry, KCODE32, 2, 0xec
        EXPECT_USER USER_TRAP, 0, 0, "from ring 3 with two parameters", user_gate
        CHECK_EQ "CS inside", "dword ptr [seen_cs]", KCODE32
        CHECK_EQ "SS inside", "dword ptr [seen_ss]", KDATA
        CHECK_EQ "ESP inside", "dword ptr [seen_esp]", "offset trap_stack_top - 24"
        CHECK_EQ "return CS", "dword ptr [seen + 4]", UCODE32
        CHECK_EQ "the second parameter", "dword ptr [seen + 8]", 0x2222
        CHECK_EQ "the first parameter", "dword ptr [seen + 12]", 0x1111
        CHECK_EQ "the caller's ESP", "dword ptr [seen + 16]", 0x9feff8
        CHECK_EQ "the caller's SS", "dword ptr [seen + 20]", UDATA
        CHECK_EQ "ESP behind RETF 8", "dword ptr [trap_sp]", USER_STACK
        CHECK_EQ "CS behind it", "dword ptr [trap_cs]", UCODE32
        CHECK_EQ "RETF took ring 0's data segment away", ebx, 0
        mov byte ptr [gdt + GATE + 5], 0x8c
        EXPECT_USER GP, GATE, 0, "DPL of the gate", user_gate
        mov byte ptr [gdt + GATE + 5], 0x6c
        EXPECT_USER NP, GATE, 0, "a gate not present", user_gate
        CALLGATE gdt+GATE, gate_entry, 0, 0, 0xec
        EXPECT_USER GP, 0, 0, "a gate to null", user_gate
        CALLGATE gdt+GATE, gate_entry, KDATA, 0, 0xec
        EXPECT_USER GP, KDATA, 0, "a gate to data", user_gate
        CALLGATE gdt+GATE, gate_entry, KCODE32, 0, 0xec
        EXPECT_USER GP, KCODE32, 0, "a jump through a gate does not change rings", user_gate_jump
        CALLGATE gdt+GATE, gate_same, KCODE32, 3, 0x8c
        mov eax, esp
        .byte 0x9a
        .long 0
        .word GATE
1:      mov ecx, offset 1b
        CHECK_EQ "from ring 0 nothing is copied", "dword ptr [seen]", ecx
        CHECK_EQ "and the stack stays", "dword ptr [seen_esp]", eax
        DESC gdt+S2, 0x100000, 0xfffff, 0x9b, 0xc      /* its offsets have 16 bits */
        CALLGATE gdt+GATE, "gate_16 - 0x100000", S2, 0, 0x84
        mov eax, esp
        .byte 0x9a
        .long 0
        .word GATE
gate_entry:
        mov ebx, esp
        mov [seen_esp], ebx
        mov ebx, cs
        mov [seen_cs], ebx
        mov ebx, ss
        mov [seen_ss], ebx
        push esi
        push edi
        push ecx
        lea esi, [esp + 12]
        mov edi, offset seen
        mov ebx, KDATA
        mov ds, ebx
        mov es, ebx
        mov ecx, 6
        rep movsd
        pop ecx
        pop edi
        pop esi
        retf 8
gate_same:
        push dword ptr [esp]
        pop [seen]
        lea ecx, [esp + 8]
        mov [seen_esp], ecx
        retf
gate_16:
        lea ecx, [esp + 4]
        mov [seen_esp], ecx
        mov esp, eax                    /* no way back by RETF: 16 bits of EIP are gone */
        JMPFAR32 KCODE32, 2f
2:
        CHECK_EQ "a 16-bit gate pushes words", "dword ptr [seen_esp]", eax
        ret

check_queries:
        STEP "LAR, LSL, VERR, VERW, ARPL"
        DESC gdt+S1, 0x123000, 0x12345, 0x93, 4
        mov ecx, S1
        lar eax, ecx
        CHECK "LAR: valid", e
        and eax, 0xf0ff00
        CHECK_EQ "LAR", eax, 0x409300
        lsl eax, ecx
        CHECK "LSL: valid", e
        CHECK_EQ "LSL in bytes", eax, 0x12345
        mov ecx, KDATA
        lsl eax, ecx
        CHECK_EQ "LSL in pages", eax, -1
        xor ecx, ecx
        lar eax, ecx
        CHECK "LAR of null", ne
        mov ecx, 0x800
        lsl eax, ecx
        CHECK "LSL beyond the GDT", ne
        mov ecx, GATE
        CALLGATE gdt+GATE, gate_entry, KCODE32, 0, 0x8c
        lar eax, ecx
        CHECK "LAR of a call gate", e
        lsl eax, ecx
        CHECK "LSL of a call gate", ne
        mov ecx, KDATA
        verr cx
        CHECK "VERR of data", e
        verw cx
        CHECK "VERW of data", e
        mov ecx, KCODE32
        verr cx
        CHECK "VERR of readable code", e
        verw cx
        CHECK "VERW of code", ne
        DESC gdt+S1, 0, 0xfffff, 0x99, 0xc
        mov ecx, S1
        verr cx
        CHECK "VERR of execute-only code", ne
        DESC gdt+S1, 0, 0xfffff, 0x91, 0xc
        verw cx
        CHECK "VERW of read-only data", ne
        mov ecx, KDATA + 3
        verr cx
        CHECK "VERR with RPL above DPL", ne
        mov eax, 0x10
        mov ecx, 0x23
        arpl ax, cx
        CHECK "ARPL: raised", e
        CHECK_EQ "ARPL", eax, 0x13
        mov ecx, 0x22
        arpl ax, cx
        CHECK "ARPL: not lowered", ne
        CHECK_EQ "ARPL", eax, 0x13
        EXPECT_USER USER_TRAP, 0, 0, "LAR in ring 3", user_lar
        CHECK_EQ "ring 3 does not see ring 0's", ebx, 0
        ret

check_ldt:
        STEP "LDT"
        .set LDT, SCRATCH + 0x1000
        DESC gdt+S1, LDT, 15, 0x82, 0
        mov eax, S1
        lldt ax
        sldt ecx
        and ecx, 0xffff
        CHECK_EQ "SLDT", ecx, S1
        DESC LDT+8, SCRATCH, 0xff, 0x93, 4
        mov dword ptr [SCRATCH + 4], 0x77
        mov eax, 0x0c
        mov es, eax
        CHECK_EQ "a segment of the LDT", "dword ptr es:[4]", 0x77
        mov eax, 0x14
        EXPECT_FAULT GP, 0x14, "beyond the LDT", mov es, eax
        mov eax, KDATA
        EXPECT_FAULT GP, KDATA, "LLDT of data", lldt ax
        DESC gdt+S1, LDT, 15, 0x02, 0
        mov eax, S1
        EXPECT_FAULT NP, S1, "LLDT of one not present", lldt ax
        mov eax, 0x0c
        EXPECT_FAULT GP, 0x0c, "LLDT of one in the LDT", lldt ax
        mov ecx, KDATA
        mov es, ecx
        xor eax, eax
        EXPECT_NONE "LLDT of null", lldt ax
        mov eax, 0x0c
        EXPECT_FAULT GP, 0x0c, "no LDT", mov es, eax
        mov eax, TSS_SEL
        EXPECT_FAULT GP, TSS_SEL, "LTR of a busy TSS", ltr ax
        mov eax, KDATA
        mov es, eax
        sgdt [SCRATCH]
        mov eax, [SCRATCH + 2]
        CHECK_EQ "SGDT", eax, "offset gdt"
        ret

user_far:
        .byte 0xea
        .long 0
        .word KCODE32
user_conforming:
        .byte 0x9a
        .long in_conforming
        .word S1
        int USER_TRAP
in_conforming:
        mov ebx, cs
        retf
user_gate:
        push 0x1111
        push 0x2222
        .byte 0x9a
        .long 0
        .word GATE
        mov ebx, ds
        int USER_TRAP
user_gate_jump:
        .byte 0xea
        .long 0
        .word GATE
user_lar:
        xor ebx, ebx
        mov ecx, KDATA
        lar eax, ecx
        sete bl
        mov ecx, KDATA
        verr cx
        sete bh
        int USER_TRAP

        .bss
        .align 16
seen:   .fill 64
seen_cs: .fill 4
seen_ss: .fill 4
seen_esp: .fill 4
        .text
