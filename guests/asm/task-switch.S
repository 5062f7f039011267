/* Hardware task switches: 32- and 16-bit TSSs, by JMP, CALL, gates, interrupts and IRET; busy bit, NT, back link, faults. */
#define LONG 0
#include "common.inc"
#include "desc32.inc"
        GUEST "task-switch"
        .set T32, 0x90                  /* slots of the GDT */
        .set T16, 0x98
        .set GATE, 0xa0
        .set BAD, 0xa8
        .set TSS32, 0x420000            /* where the other tasks' TSSs are */
        .set TSS16, 0x421000
        .set STACK32, 0x424000

main:   call check_jump
        call check_call
        call check_gate
        call check_16
        call check_interrupt
        call check_faults
        call check_user
        ret

/* A fresh task: EIP at eax. */
new_task:
        push edi
        push ecx
        push eax
        mov edi, TSS32
        xor eax, eax
        mov ecx, 26
        rep stosd
        pop eax
        mov [TSS32 + 0x20], eax
        mov dword ptr [TSS32 + 0x24], 2
        mov dword ptr [TSS32 + 0x28], 0xa1      /* EAX to EDI */
        mov dword ptr [TSS32 + 0x2c], 0xa2
        mov dword ptr [TSS32 + 0x30], 0xa3
        mov dword ptr [TSS32 + 0x34], 0xa4
        mov dword ptr [TSS32 + 0x38], STACK32
        mov dword ptr [TSS32 + 0x3c], 0xa5
        mov dword ptr [TSS32 + 0x40], 0xa6
        mov dword ptr [TSS32 + 0x44], 0xa7
        mov dword ptr [TSS32 + 0x48], KDATA
        mov dword ptr [TSS32 + 0x4c], KCODE32
        mov dword ptr [TSS32 + 0x50], KDATA
        mov dword ptr [TSS32 + 0x54], KDATA
        mov dword ptr [TSS32 + 0x58], 0
        mov dword ptr [TSS32 + 0x5c], UDATA
        DESC gdt+T32, TSS32, 0x67, 0x89, 0
        pop ecx
        pop edi
        ret

        .macro FAR op, sel
        .byte \op
        .long 0
        .word \sel
        .endm

check_jump:
        STEP "JMP"
        mov eax, offset task_jump
        call new_task
        mov ebx, 0xb1
        mov esi, 0xb2
        stc
        FAR 0xea, T32
        CHECK "the flags came back", c
        CHECK_EQ "EBX came back", ebx, 0xb1
        CHECK_EQ "ESI came back", esi, 0xb2
        CHECK_EQ "EAX of the other task", "dword ptr [seen]", 0xa1
        CHECK_EQ "EDI of the other task", "dword ptr [seen + 4]", 0xa7
        CHECK_EQ "ESP of the other task", "dword ptr [seen + 8]", STACK32
        CHECK_EQ "GS of the other task", "dword ptr [seen + 12]", UDATA
        CHECK_EQ "its TR", "dword ptr [seen + 16]", T32
        CHECK_EQ "its EFLAGS", "dword ptr [seen + 20]", 2
        CHECK_EQ "this TSS was not busy meanwhile", "dword ptr [seen + 24]", 0x89
        CHECK_EQ "but that one was", "dword ptr [seen + 28]", 0x8b
        movzx eax, byte ptr [gdt + T32 + 5]
        CHECK_EQ "now it is not", eax, 0x89
        movzx eax, byte ptr [gdt + TSS_SEL + 5]
        CHECK_EQ "this one is busy again", eax, 0x8b
        mov eax, [TSS32 + 0x20]
        CHECK_EQ "its EIP was saved", eax, "offset after_jump"
        CHECK_EQ "its EAX too", "dword ptr [TSS32 + 0x28]", 0x99
        mov eax, cr0
        and eax, CR0_TS
        CHECK_EQ "TS is set", eax, CR0_TS
        clts
        ret
task_jump:
        mov [seen], eax
        mov [seen + 4], edi
        mov [seen + 8], esp
        mov eax, gs
        mov [seen + 12], eax
        str eax
        mov [seen + 16], eax
        pushfd
        pop eax
        mov [seen + 20], eax
        movzx eax, byte ptr [gdt + TSS_SEL + 5]
        mov [seen + 24], eax
        movzx eax, byte ptr [gdt + T32 + 5]
        mov [seen + 28], eax
        mov eax, 0x99
        FAR 0xea, TSS_SEL
after_jump:
        hlt

check_call:
        STEP "CALL and IRET"
        mov eax, offset task_call
        call new_task
        FAR 0x9a, T32
        mov eax, [seen]
        and eax, 0x4000
        CHECK_EQ "NT inside", eax, 0x4000
        movzx eax, word ptr [TSS32]
        CHECK_EQ "back link", eax, TSS_SEL
        CHECK_EQ "both are busy inside", "dword ptr [seen + 4]", 0x8b
        pushfd
        pop eax
        and eax, 0x4000
        CHECK_EQ "no NT outside", eax, 0
        movzx eax, byte ptr [gdt + T32 + 5]
        CHECK_EQ "not busy after IRET", eax, 0x89
        mov eax, [TSS32 + 0x24]
        and eax, 0x4000
        CHECK_EQ "IRET clears NT in the saved flags", eax, 0
        FAR 0x9a, T32
        CHECK_EQ "it goes on behind its IRET", "dword ptr [seen + 8]", 2
        clts
        ret
task_call:
        mov dword ptr [seen + 8], 1
1:      pushfd
        pop [seen]
        movzx eax, byte ptr [gdt + TSS_SEL + 5]
        mov [seen + 4], eax
        iretd
        inc dword ptr [seen + 8]
        jmp 1b

check_gate:
        STEP "a task gate in the GDT"
        mov eax, offset task_call
        call new_task
        mov dword ptr [seen], 0
        mov dword ptr [gdt + GATE], T32 << 16
        mov dword ptr [gdt + GATE + 4], 0x8500
        FAR 0x9a, GATE
        mov eax, [seen]
        and eax, 0x4000
        CHECK_EQ "NT inside", eax, 0x4000
        clts
        ret

/* 16-bit TSS: IP and SP of 16 bits, so its code and stack are at 64 KiB. */
check_16:
        STEP "a 16-bit TSS"
        mov esi, offset task_16
        mov edi, 0x10000
        mov ecx, offset task_16_end - task_16
        rep movsb
        mov edi, TSS16
        xor eax, eax
        mov ecx, 11
        rep stosd
        DESC gdt+BAD, 0x10000, 0xffff, 0x9b, 0
        mov word ptr [TSS16 + 0x0e], 0
        mov word ptr [TSS16 + 0x10], 2
        mov word ptr [TSS16 + 0x12], 0x1616
        mov word ptr [TSS16 + 0x1a], 0xfff0
        mov word ptr [TSS16 + 0x22], KDATA
        mov word ptr [TSS16 + 0x24], BAD
        mov word ptr [TSS16 + 0x26], KDATA
        mov word ptr [TSS16 + 0x28], KDATA
        DESC gdt+T16, TSS16, 0x2b, 0x81, 0
        mov ebx, 0x12345678
        FAR 0x9a, T16
        CHECK_EQ "EBX came back whole", ebx, 0x12345678
        movzx eax, word ptr [0x8000]
        CHECK_EQ "AX of the task", eax, 0x1616
        movzx eax, word ptr [TSS16 + 0x12]
        CHECK_EQ "AX was saved", eax, 0x4242
        movzx eax, word ptr [TSS16]
        CHECK_EQ "back link", eax, TSS_SEL
        clts
        ret

        .code16
task_16:
        mov [0x8000], ax
        mov ax, 0x4242
        iret
task_16_end:
        .code32

check_interrupt:
        STEP "a task gate in the IDT"
        mov eax, offset task_interrupt
        call new_task
        mov dword ptr [idt + 0x33 * 8], T32 << 16
        mov dword ptr [idt + 0x33 * 8 + 4], 0x8500
        int 0x33
        CHECK_EQ "the task ran", "dword ptr [seen]", 0x33
        clts
        /* An exception with an error code: on the new task's stack. */
        mov eax, offset task_error
        call new_task
        push dword ptr [idt + GP * 8]
        push dword ptr [idt + GP * 8 + 4]
        mov dword ptr [idt + GP * 8], T32 << 16
        mov dword ptr [idt + GP * 8 + 4], 0x8500
        mov eax, 0x1234
1:      mov es, eax
        mov ecx, 0x5678
        pop [idt + GP * 8 + 4]
        pop [idt + GP * 8]
        CHECK_EQ "error code", "dword ptr [seen]", 0x1234
        CHECK_EQ "its stack", "dword ptr [seen + 4]", STACK32-4
        CHECK_EQ "EIP of the old task", "dword ptr [seen + 8]", "offset 1b"
        clts
        ret
task_interrupt:
        mov dword ptr [seen], 0x33
        iretd
task_error:
        mov [seen + 4], esp
        pop [seen]
        mov eax, [tss + 0x20]
        mov [seen + 8], eax
        add dword ptr [tss + 0x20], 2           /* beyond the MOV */
        iretd

check_faults:
        STEP "refusals"
        mov eax, offset task_call
        call new_task
        EXPECT_FAULT GP, TSS_SEL, "JMP to the task itself: it is busy", FAR 0xea, TSS_SEL
        mov byte ptr [gdt + T32 + 5], 0x09
        EXPECT_FAULT NP, T32, "a TSS not present", FAR 0xea, T32
        DESC gdt+T32, TSS32, 0x66, 0x89, 0
        EXPECT_FAULT TS, T32, "a TSS too short", FAR 0xea, T32
        DESC gdt+T32, TSS32, 0x67, 0x8b, 0
        EXPECT_FAULT GP, T32, "a busy TSS", FAR 0x9a, T32
        DESC gdt+T32, TSS32, 0x67, 0x89, 0
        mov dword ptr [gdt + GATE], BAD << 16
        EXPECT_FAULT GP, BAD, "a task gate to code", FAR 0xea, GATE
        mov dword ptr [gdt + GATE + 4], 0x0500
        EXPECT_FAULT NP, GATE, "a task gate not present", FAR 0xea, GATE
        ret

check_user:
        STEP "from ring 3"
        EXPECT_USER GP, T32, user_jump, "a TSS of ring 0", user_jump
        mov eax, offset task_user
        call new_task
        mov byte ptr [gdt + T32 + 5], 0xe9
        EXPECT_USER USER_TRAP, 0, 0, "a TSS of ring 3: there and back", user_jump
        CHECK_EQ "the task ran in ring 0", "dword ptr [seen]", KCODE32
        CHECK_EQ "back in ring 3", "dword ptr [trap_cs]", UCODE32
        clts
        ret
task_user:
        mov eax, cs
        mov [seen], eax
        FAR 0xea, TSS_SEL

user_jump:
        .byte 0xea
        .long 0
        .word T32
        int USER_TRAP

        .bss
        .align 4
seen:   .fill 64
        .text
