/*
 * Resets the machine in each way there is: i8042, port 0xCF9, triple fault. CMOS memory, which a reset leaves alone, says
 * how far it has come; on the last boot the machine must be as new.
 */
#define LONG 1
#include "common.inc"
#include "irq.inc"
        GUEST "reset"
#define MARK  0x50                      /* CMOS registers that nobody uses */
#define STAGE 0x51

/* al = CMOS register -> al; or ah is written. */
cmos_read:
        out 0x70, al
        in al, 0x71
        ret
cmos_write:
        out 0x70, al
        mov al, ah
        out 0x71, al
        ret

main:   mov al, MARK
        call cmos_read
        cmp al, 0xa5
        je 1f
        mov eax, 0xa500 + MARK
        call cmos_write
        mov eax, STAGE
        call cmos_write
1:      mov al, STAGE
        call cmos_read
        movzx ebx, al
        mov [stage], rbx
        /* As after power-up, whatever was done before. */
        LAPIC_GET eax, LAPIC_SVR
        CHECK_EQ "LAPIC is reset", rax, 0xff
        LAPIC_GET eax, LAPIC_TIMER
        CHECK_EQ "its timer too", rax, 0x10000
        mov dx, COM1 + 1
        in al, dx
        movzx eax, al
        CHECK_EQ "COM1's interrupts are off", rax, 0
        mov rax, dr7
        CHECK_EQ "no breakpoints", rax, 0x400
        /* The next stage's number; then something to forget, then the reset. */
        lea eax, [rbx + 1]
        shl eax, 8
        or eax, STAGE
        call cmos_write
        call lapic_on
        LAPIC_SET LAPIC_TIMER, 0x20062
        LAPIC_SET LAPIC_TICR, 0x10000000
        mov dx, COM1 + 1
        mov al, 2
        out dx, al
        mov eax, 0x701
        mov dr7, rax
        mov rax, [stage]
        cmp eax, 1
        jb by_i8042
        je by_cf9
        cmp eax, 3
        jb by_triple_fault
        mov eax, MARK
        call cmos_write
        ret

by_i8042:
        STEP "i8042"
1:      in al, 0x64
        test al, 2
        jnz 1b
        mov al, 0xfe
        out 0x64, al
        jmp stay
by_cf9: STEP "port 0xCF9"
        mov dx, 0xcf9
        mov al, 2
        out dx, al
        mov al, 6
        out dx, al
        jmp stay
by_triple_fault:
        STEP "triple fault"
        lidt [no_idt]
        int3
stay:   sti
        hlt
        jmp stay

        .data
no_idt: .word 0
        .quad 0
stage:  .quad 0
        .text
