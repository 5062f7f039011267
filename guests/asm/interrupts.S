/* PIC and PIT, local APIC and its timer, I/O APIC, priorities, shadows, HLT, NMI, x2APIC. */
#define LONG 1
#include "common.inc"
#include "irq.inc"
        GUEST "interrupts"

        .macro RESET_LOG
        mov qword ptr [irq_count], 0
        mov qword ptr [irq_log], 0
        .endm

main:   call lapic_on
        call pic_on
        call check_pic
        call check_self
        call check_priority
        call check_shadow
        call check_timer
        call check_ioapic
        call check_level
        call check_nmi
        call check_x2apic
        ret

check_pic:
        STEP "PIC and PIT"
        HOOK 0x20, pic_hook
        HOOK 0x28, pic_hook
        in al, 0x21
        movzx eax, al
        CHECK_EQ "mask of the first PIC", rax, 0xfb
        OUTB 0x21, 0xfa
        mov al, 2
        mov ecx, 1193                           /* about a kHz */
        call pit_start
        mov eax, 4
        call wait_irqs
        mov eax, [irq_log]
        CHECK_EQ "IRQ 0 arrives as vector 0x20", rax, 0x20202020

        OUTB 0x21, 0xfb
        mov al, 0                               /* once */
        mov ecx, 500
        call pit_start
        OUTB 0x20, 0x0a                         /* read IRR */
1:      in al, 0x20
        test al, 1
        jz 1b
        RESET_LOG
        OPEN
        CHECK_EQ "a masked request waits", "qword ptr [irq_count]", 0
        OUTB 0x21, 0xfa
        OPEN
        CHECK_EQ "until it is unmasked", "qword ptr [irq_count]", 1
        OPEN
        CHECK_EQ "mode 0 asks once", "qword ptr [irq_count]", 1
        OUTB 0x21, 0xfb

        /* IRQ 8 through the second PIC: the RTC's periodic interrupt. */
        RESET_LOG
        OUTB 0x70, 0x0a
        OUTB 0x71, 0x26
        OUTB 0x70, 0x0b
        OUTB 0x71, 0x42
        OUTB 0x70, 0x0c
        in al, 0x71
        OUTB 0xa1, 0xfe
        mov eax, 1
        call wait_irqs
        CHECK_EQ "IRQ 8 arrives as vector 0x28", "qword ptr [irq_log]", 0x28
        OUTB 0x70, 0x0b
        OUTB 0x71, 0x02
        OUTB 0x70, 0x0c
        in al, 0x71
        and eax, 0xc0
        OUTB 0xa1, 0xff
        LAPIC_SET LAPIC_LINT0, 0x10700
        ret

check_self:
        STEP "self-IPI"
        HOOK 0x41, lapic_hook
        HOOK 0x51, lapic_hook
        HOOK 0x61, lapic_hook
        HOOK 0x71, lapic_hook
        HOOK 0x45, lapic_hook
        RESET_LOG
        SELF_IPI 0x41
        VECTOR_BIT LAPIC_IRR, 0x41
        CHECK_EQ "it waits in IRR", rax, 1
        CHECK_EQ "interrupts are off", "qword ptr [irq_count]", 0
        OPEN
        CHECK_EQ "taken", "qword ptr [irq_log]", 0x41
        VECTOR_BIT LAPIC_IRR, 0x41
        CHECK_EQ "IRR is clear", rax, 0
        VECTOR_BIT LAPIC_ISR, 0x41
        CHECK_EQ "ISR is clear after EOI", rax, 0
        RESET_LOG
        SELF_IPI 0x41
        SELF_IPI 0x41
        OPEN
        CHECK_EQ "the same vector twice is one", "qword ptr [irq_count]", 1

        RESET_LOG
        LAPIC_SET LAPIC_DFR, 0xffffffff
        LAPIC_SET LAPIC_LDR, 0x04000000
        LAPIC_SET LAPIC_ICR2, 0x04000000
        LAPIC_SET LAPIC_ICR, 0x4841
        OPEN
        CHECK_EQ "by logical destination", "qword ptr [irq_count]", 1
        LAPIC_SET LAPIC_ICR2, 0x02000000
        LAPIC_SET LAPIC_ICR, 0x4841
        OPEN
        CHECK_EQ "another's logical destination", "qword ptr [irq_count]", 1
        LAPIC_GET eax, LAPIC_ID
        mov r15d, LAPIC_ICR2
        mov [r15], eax
        LAPIC_SET LAPIC_ICR, 0x4041
        OPEN
        CHECK_EQ "by physical destination", "qword ptr [irq_count]", 2
        ret

check_priority:
        STEP "priority"
        RESET_LOG
        SELF_IPI 0x41
        SELF_IPI 0x71
        SELF_IPI 0x51
        OPEN
        mov eax, [irq_log]
        CHECK_EQ "the highest vector first", rax, 0x415171

        RESET_LOG
        LAPIC_SET LAPIC_TPR, 0x50
        mov rax, cr8
        CHECK_EQ "CR8 is TPR's upper half", rax, 5
        SELF_IPI 0x51
        SELF_IPI 0x41
        SELF_IPI 0x61
        OPEN
        CHECK_EQ "only what is above TPR", "qword ptr [irq_log]", 0x61
        sti
        mov eax, 4
        mov cr8, rax
        nop
        cli
        CHECK_EQ "a lower TPR lets the next in", "qword ptr [irq_log]", 0x5161
        LAPIC_GET eax, LAPIC_TPR
        CHECK_EQ "TPR was set by CR8", rax, 0x40
        xor eax, eax
        mov cr8, rax
        OPEN
        CHECK_EQ "the last", "qword ptr [irq_log]", 0x415161
        mov eax, 16
        EXPECT_FAULT GP, 0, "CR8 of 16", mov cr8, rax

        RESET_LOG
        HOOK 0x51, nest_hook
        SELF_IPI 0x51
        OPEN
        mov eax, [irq_log]
        CHECK_EQ "nested by priority", rax, 0x45516151
        CHECK_EQ "PPR in the handler", "qword ptr [seen_ppr]", 0x50
        CHECK_EQ "ISR in the handler", "qword ptr [seen_isr]", 1
        HOOK 0x51, lapic_hook
        ret
/* Asks for 0x61 and 0x45 while 0x51 is in service. */
nest_hook:
        push rdi
        call log_hook
        LAPIC_GET eax, LAPIC_PPR
        mov [seen_ppr], rax
        VECTOR_BIT LAPIC_ISR, 0x51
        mov [seen_isr], rax
        SELF_IPI 0x45
        SELF_IPI 0x61
        OPEN
        pop rdi
        jmp lapic_hook

check_shadow:
        STEP "STI, POPF and MOV SS"
        RESET_LOG
        SELF_IPI 0x41
        sti
        cli
        nop
        CHECK_EQ "nothing between STI and the next instruction", "qword ptr [irq_count]", 0
        sti
        nop
1:      nop
        cli
        CHECK_EQ "right behind it", "qword ptr [irq_count]", 1
        mov rax, offset 1b
        CHECK_EQ "the saved RIP", rax, [trap_ip]
        SELF_IPI 0x41
        push 0x202
        popfq
2:      nop
        cli
        mov rax, offset 2b
        CHECK_EQ "POPF has no shadow", rax, [trap_ip]
        SELF_IPI 0x41
        push 0
        popfq
        push KDATA
        push rsp
        add qword ptr [rsp], 8
        push 0x202
        push KCS
        push offset 3f
        iretq
3:      nop
        cli
        mov rax, offset 3b
        CHECK_EQ "IRET has none either", rax, [trap_ip]
        mov eax, 15
        mov cr8, rax
        SELF_IPI 0x41
        sti
        nop
        xor eax, eax
        mov cr8, rax
4:      nop
        cli
        mov rax, offset 4b
        CHECK_EQ "MOV to CR8 lets it in at once", rax, [trap_ip]
        ret

check_timer:
        STEP "LAPIC timer"
        HOOK 0x62, lapic_hook
        RESET_LOG
        LAPIC_SET LAPIC_TDCR, 0xb
        LAPIC_SET LAPIC_TIMER, 0x62
        LAPIC_SET LAPIC_TICR, 200000
        mov eax, 1
        call wait_irqs
        CHECK_EQ "one-shot", "qword ptr [irq_log]", 0x62
        LAPIC_GET eax, LAPIC_TCCR
        CHECK_EQ "it stays at zero", rax, 0
        LAPIC_SET LAPIC_TIMER, 0x20062
        LAPIC_SET LAPIC_TICR, 200000
        mov eax, 5
        call wait_irqs
        mov eax, [irq_log]
        CHECK_EQ "periodic", rax, 0x62626262
        LAPIC_SET LAPIC_TICR, 0
        OPEN
        RESET_LOG
        LAPIC_SET LAPIC_TIMER, 0x10062
        LAPIC_SET LAPIC_TICR, 100000
1:      LAPIC_GET eax, LAPIC_TCCR
        test eax, eax
        jnz 1b
        OPEN
        CHECK_EQ "masked", "qword ptr [irq_count]", 0
        LAPIC_SET LAPIC_TIMER, 0x62
        LAPIC_SET LAPIC_TICR, 1000000000
        LAPIC_GET eax, LAPIC_TCCR
        LAPIC_GET ecx, LAPIC_TCCR
        cmp eax, 1000000000
        CHECK "the count goes down", be
        cmp ecx, eax
        CHECK "and on", be
        LAPIC_SET LAPIC_TICR, 0
        LAPIC_GET eax, LAPIC_TCCR
        CHECK_EQ "zero stops it", rax, 0

        CPUID_BIT 1, 0, ecx, 24
        jc 2f
        ret
2:      STEP "TSC deadline"
        RESET_LOG
        LAPIC_SET LAPIC_TIMER, 0x40062
        mfence
        rdtsc
        mov ecx, 0x6e0
        add eax, 200000
        adc edx, 0
        wrmsr
        mov eax, 1
        call wait_irqs
        mov ecx, 0x6e0
        rdmsr
        or eax, edx
        CHECK_EQ "the deadline is zero once it passed", rax, 0
        mov eax, 1
        xor edx, edx
        wrmsr
        mov eax, 2
        call wait_irqs
        CHECK_EQ "a deadline in the past fires at once", "qword ptr [irq_log]", 0x6262
        mov eax, -1
        mov edx, 0x7fffffff
        wrmsr
        mov ecx, 0x6e0
        rdmsr
        shl rdx, 32
        or rax, rdx
        mov rdx, 0x7fffffffffffffff
        CHECK_EQ "a far one is kept", rax, rdx
        xor eax, eax
        xor edx, edx
        wrmsr
        OPEN
        CHECK_EQ "zero disarms", "qword ptr [irq_count]", 2
        LAPIC_SET LAPIC_TIMER, 0x10062
        ret

check_ioapic:
        STEP "I/O APIC"
        mov eax, 1
        call ioapic_read
        shr eax, 16
        and eax, 0xff
        CHECK_EQ "24 pins", rax, 23
        HOOK 0x70, lapic_hook
        RESET_LOG
        RTE 2, 0x70
        mov al, 2
        mov ecx, 1193
        call pit_start
        mov eax, 4
        call wait_irqs
        mov eax, [irq_log]
        CHECK_EQ "the PIT on pin 2, edge", rax, 0x70707070
        RTE 2, 0x10070
        OPEN
        mov eax, 0x14
        call ioapic_read
        CHECK_EQ "read back", rax, 0x10070
        mov al, 0
        mov ecx, 0
        call pit_start
        ret

/* COM1's "transmitter empty" stays up until its identification register is read. */
check_level:
        STEP "level and remote IRR"
1:      mov dx, COM1 + 5
        in al, dx
        test al, 0x40
        jz 1b
        RESET_LOG
        HOOK 0x72, level_hook
        mov dx, COM1 + 4
        mov al, 8
        out dx, al
        RTE 4, 0x18072
        mov dx, COM1 + 1
        mov al, 2
        out dx, al
        OPEN
        push qword ptr [irq_count]
        RTE 4, 0x8072
        mov eax, 3
        call wait_irqs
        OPEN
        mov dx, COM1 + 1
        mov al, 0
        out dx, al
        RTE 4, 0x18072
        OPEN
        pop rax
        CHECK_EQ "masked", rax, 0
        CHECK_EQ "a level that stays up comes again after EOI", "qword ptr [irq_count]", 3
        CHECK_EQ "remote IRR in the handler", "qword ptr [seen_rte]", 0xc072
        mov eax, 0x18
        call ioapic_read
        CHECK_EQ "not after EOI", rax, 0x18072
        ret
level_hook:
        call log_hook
        mov eax, 0x18
        call ioapic_read
        mov [seen_rte], rax
        cmp qword ptr [irq_count], 3
        jb 1f
        mov dx, COM1 + 2
        in al, dx
1:      LAPIC_SET LAPIC_EOI, 0
        ret

check_nmi:
        STEP "NMI"
        HOOK NMI, nmi_hook
        mov qword ptr [nmi_count], 0
        call send_nmi
        mov rax, [nmi_count]
        CHECK_EQ "taken with interrupts off", rax, 3
        CHECK_EQ "no NMI inside an NMI's handler", "qword ptr [nmi_inside]", 1
        CHECK_EQ "but after the handler's first IRET", "qword ptr [nmi_after_iret]", 3
        ret
send_nmi:
        LAPIC_GET eax, LAPIC_ID
        mov r15d, LAPIC_ICR2
        mov [r15], eax
        LAPIC_SET LAPIC_ICR, 0x4400
        call icr_wait
        mov ecx, 1000
1:      pause
        loop 1b
        ret
/* The first asks for a second, which must wait for IRET. In the second, a third comes after the IRET of INT 0x44. */
nmi_hook:
        inc qword ptr [nmi_count]
        mov rax, [nmi_count]
        cmp eax, 1
        je 1f
        cmp eax, 2
        je 2f
        ret
1:      call send_nmi
        mov rax, [nmi_count]
        mov [nmi_inside], rax
        ret
2:      HOOK 0x44, empty_hook
        call send_nmi
        int 0x44
        mov ecx, 1000
3:      pause
        loop 3b
        mov rax, [nmi_count]
        mov [nmi_after_iret], rax
empty_hook:
        ret

check_x2apic:
        CPUID_BIT 1, 0, ecx, 21
        jc 1f
        ret
1:      STEP "x2APIC"
        mov ecx, 0x802
        EXPECT_FAULT GP, 0, "its registers are not there in xAPIC mode", rdmsr
        LAPIC_GET ebx, LAPIC_ID
        shr ebx, 24
        mov ecx, 0x1b
        rdmsr
        mov esi, eax
        or eax, 0x400
        wrmsr
        mov ecx, 0x802
        rdmsr
        CHECK_EQ "the same ID", rax, rbx
        EXPECT_FAULT GP, 0, "the ID is read-only", wrmsr
        mov ecx, 0x80f
        rdmsr
        CHECK_EQ "SVR is kept", rax, 0x1ff
        mov ecx, 0x80e
        EXPECT_FAULT GP, 0, "there is no DFR", rdmsr
        RESET_LOG
        HOOK 0x41, x2apic_hook
        mov ecx, 0x83f
        mov eax, 0x41
        xor edx, edx
        wrmsr
        OPEN
        CHECK_EQ "self-IPI", "qword ptr [irq_log]", 0x41
        mov ecx, 0x830
        mov edx, ebx
        mov eax, 0x41
        wrmsr
        OPEN
        CHECK_EQ "ICR in one write", "qword ptr [irq_log]", 0x4141
        mov ecx, 0x80b
        mov eax, 1
        EXPECT_FAULT GP, 0, "EOI of what is not zero", wrmsr
        mov ecx, 0x1b
        mov eax, esi
        xor edx, edx
        EXPECT_FAULT GP, 0, "no direct way back to xAPIC", wrmsr
        and eax, ~0xc00
        EXPECT_NONE "off", wrmsr
        mov eax, esi
        EXPECT_NONE "and on as xAPIC", wrmsr
        LAPIC_GET eax, LAPIC_SVR
        CHECK_EQ "in its reset state", rax, 0xff
        ret
x2apic_hook:
        call log_hook
        mov ecx, 0x80b
        xor eax, eax
        xor edx, edx
        wrmsr
        ret

        .bss
        .align 8
seen_ppr: .fill 8
seen_isr: .fill 8
seen_rte: .fill 8
nmi_count: .fill 8
nmi_inside: .fill 8
nmi_after_iret: .fill 8
        .text
