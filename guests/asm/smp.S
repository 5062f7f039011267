/* Two processors: start-up, atomics, memory order, IPIs, TLB shoot-down, code that the other one changes. */
#define LONG 1
#include "common.inc"
#include "irq.inc"
#include "smp.inc"
        GUEST "smp"
        .set VA, 0x8000000000
        .set T_PDPT, 0x400000
        .set T_PD, 0x401000
        .set T_PT, 0x402000
        .set PAGE, 0x410000             /* 16 pages, each with its number in it */
        .set CODE_PAGE, 0x430000

main:   call lapic_on
        call check_start
        call check_atomics
        call check_order
        call check_ipi
        call check_shootdown
        call check_code
        call check_again
        ret

check_start:
        STEP "INIT and SIPI"
        call ap_start
        movzx eax, word ptr [AP_CODE + ap_cs - ap_code]
        CHECK_EQ "CS is the SIPI's page", rax, AP_CODE >> 4
        mov eax, [AP_CODE + ap_cr0 - ap_code]
        and eax, 0x80000001
        CHECK_EQ "real mode", rax, 0
        LAPIC_GET eax, LAPIC_ID
        mov ecx, [ap_id]
        cmp eax, ecx
        CHECK "its APIC id is its own", ne
        mov ecx, 0x1b
        rdmsr
        and eax, 0x100
        CHECK_EQ "this is the boot processor", rax, 0x100
        AP read_base
        AP_WAIT
        mov rax, [shared]
        and eax, 0x100
        CHECK_EQ "that is not", rax, 0
        ret
read_base:
        mov ecx, 0x1b
        rdmsr
        mov [shared], rax
        ret

/* BOTH label: here and there at once. */
        .macro BOTH label
        AP \label
        call \label
        AP_WAIT
        .endm

check_atomics:
        STEP "LOCK INC, XADD, BTS"
        mov qword ptr [shared], 0
        mov qword ptr [shared + 8], 0
        mov qword ptr [shared + 16], 0
        BOTH count_up
        CHECK_EQ "LOCK INC", "qword ptr [shared]", 200000
        CHECK_EQ "LOCK XADD", "qword ptr [shared + 8]", 600000
        CHECK_EQ "LOCK CMPXCHG", "qword ptr [shared + 16]", 100000
        STEP "spinlocks"
        mov qword ptr [shared], 0
        BOTH by_xchg
        CHECK_EQ "XCHG", "qword ptr [shared]", 40000
        mov qword ptr [shared], 0
        BOTH by_bts
        CHECK_EQ "LOCK BTS", "qword ptr [shared]", 40000
        CPUID_BIT 1, 0, ecx, 13
        jnc 1f
        STEP "CMPXCHG16B"
        mov qword ptr [shared], 0
        mov qword ptr [shared + 8], 0
        BOTH by_cmpxchg16b
        CHECK_EQ "low half", "qword ptr [shared]", 40000
        CHECK_EQ "high half", "qword ptr [shared + 8]", 120000
1:      STEP "a locked access across cache lines and pages"
        mov qword ptr [split], 0
        BOTH by_split
        CHECK_EQ "LOCK ADD", "qword ptr [split]", 40000
        ret
count_up:
        mov ecx, 100000
1:      lock inc qword ptr [shared]
        mov eax, 3
        lock xadd [shared + 8], rax
        loop 1b
        mov ecx, 50000
2:      mov rax, [shared + 16]
3:      lea rdx, [rax + 1]
        lock cmpxchg [shared + 16], rdx
        jne 3b
        loop 2b
        ret
by_xchg:
        mov ecx, 20000
1:      mov eax, 1
        xchg eax, [lock_word]
        test eax, eax
        jnz 2f
        inc qword ptr [shared]
        mov dword ptr [lock_word], 0
        loop 1b
        ret
2:      pause
        jmp 1b
by_bts: mov ecx, 20000
1:      lock bts dword ptr [lock_word], 31
        jc 2f
        inc qword ptr [shared]
        lock btr dword ptr [lock_word], 31
        loop 1b
        ret
2:      pause
        jmp 1b
by_cmpxchg16b:
        mov esi, 20000
1:      mov rax, [shared]
        mov rdx, [shared + 8]
2:      lea rbx, [rax + 1]
        lea rcx, [rdx + 3]
        lock cmpxchg16b [shared]
        jne 2b
        dec esi
        jnz 1b
        ret
by_split:
        mov ecx, 20000
1:      lock add qword ptr [split], 1
        loop 1b
        ret

/* Stores are seen in order; MFENCE keeps a load behind a store. */
check_order:
        STEP "memory order"
        mov qword ptr [shared], 0
        mov qword ptr [shared + 64], 0
        mov qword ptr [shared + 128], 0
        AP writer
        xor ebx, ebx
1:      mov rax, [shared + 64]
        mov rcx, [shared]
        cmp rcx, rax
        jae 2f
        inc ebx
2:      cmp rax, 100000
        jb 1b
        AP_WAIT
        CHECK_EQ "a later store is never seen before an earlier one", rbx, 0
        mov qword ptr [shared], 0
        mov qword ptr [shared + 64], 0
        mov qword ptr [rounds], 0
        mov qword ptr [rounds + 64], 0
        AP store_load_there
        call store_load_here
        AP_WAIT
        CHECK_EQ "store, MFENCE, load: one of the two sees the other", "qword ptr [shared + 128]", 0
        ret
writer: mov ecx, 1
1:      mov [shared], rcx
        mov [shared + 64], rcx
        inc rcx
        cmp rcx, 100000
        jbe 1b
        ret
/* Round n: each stores n in its own word, then looks at the other's; both old is wrong. */
store_load_here:
        mov ecx, 1
1:      mov [shared], rcx
        mfence
        mov rax, [shared + 64]
        mov [seen], rax
        mov [rounds], rcx
2:      pause
        cmp [rounds + 64], rcx
        jb 2b
        cmp [seen], rcx
        jae 3f
        cmp [seen + 64], rcx
        jae 3f
        inc qword ptr [shared + 128]
3:      mov [rounds + 128], rcx
        inc rcx
        cmp ecx, 1000
        jbe 1b
        ret
store_load_there:
        mov ecx, 1
1:      mov [shared + 64], rcx
        mfence
        mov rax, [shared]
        mov [seen + 64], rax
        mov [rounds + 64], rcx
2:      pause
        cmp [rounds + 128], rcx
        jb 2b
        inc rcx
        cmp ecx, 1000
        jbe 1b
        ret

check_ipi:
        STEP "IPIs"
        HOOK 0x41, ping_hook
        HOOK 0x42, pong_hook
        mov qword ptr [pongs], 0
        mov qword ptr [shared], 0
        LAPIC_GET eax, LAPIC_ID
        mov [bsp_id], eax
        AP sleeper
        mov ebx, 1
1:      AP_IPI 0x4041
2:      mov rax, rbx
        cli
        cmp [pongs], rax
        jae 3f
        sti
        hlt
        jmp 2b
3:      inc ebx
        cmp ebx, 100
        jbe 1b
        CHECK_EQ "each ping woke the other from HLT", "qword ptr [shared]", 100
        HOOK 0x43, count_hook
        mov qword ptr [counted], 0
        LAPIC_SET LAPIC_ICR, 0xc4043            /* all but self */
4:      pause
        cmp qword ptr [counted], 1
        jb 4b
        OPEN
        CHECK_EQ "to all but self", "qword ptr [counted]", 1
        LAPIC_SET LAPIC_ICR, 0x84043            /* all */
5:      OPEN
        cmp qword ptr [counted], 3
        jb 5b
        HOOK NMI, nmi_hook
        mov qword ptr [counted], 0
        AP_IPI 0x4400
6:      pause
        cmp qword ptr [counted], 1
        jb 6b
        mov qword ptr [stop], 1
        AP_IPI 0x4043
        AP_WAIT
        ret
sleeper:
        sti
        hlt
        cli
        cmp qword ptr [stop], 0
        je sleeper
        ret
ping_hook:
        inc qword ptr [shared]
        LAPIC_SET LAPIC_EOI, 0
        mov eax, [bsp_id]
        mov r15d, LAPIC_ICR2
        mov [r15], eax
        LAPIC_SET LAPIC_ICR, 0x4042
        ret
pong_hook:
        inc qword ptr [pongs]
        LAPIC_SET LAPIC_EOI, 0
        ret
count_hook:
        LAPIC_SET LAPIC_EOI, 0
nmi_hook:
        lock inc qword ptr [counted]
        ret

/* The other reads a page all the time; this one moves the page, and the other must see it once it has answered. */
check_shootdown:
        STEP "TLB shoot-down"
        mov qword ptr [pml4 + 8], T_PDPT + 3
        mov qword ptr [T_PDPT], T_PD + 3
        mov qword ptr [T_PD], T_PT + 3
        mov qword ptr [T_PT], PAGE + 3
        mov rdi, PAGE
        xor eax, eax
1:      mov [rdi], rax
        add rdi, 4096
        inc eax
        cmp eax, 16
        jne 1b
        HOOK 0x44, shoot_hook
        mov qword ptr [stop], 0
        mov qword ptr [shot], 0
        mov qword ptr [wrong], 0
        mov qword ptr [wanted], 0
        AP reader
        mov ebx, 1
2:      mov eax, ebx
        and eax, 15
        mov [next], rax
        shl eax, 12
        add eax, PAGE + 3
        mov [T_PT], rax
        AP_IPI 0x4044
3:      pause
        cmp [shot], rbx
        jb 3b
        inc ebx
        cmp ebx, 200
        jbe 2b
        mov qword ptr [stop], 1
        AP_WAIT
        CHECK_EQ "no read through a translation that was shot down", "qword ptr [wrong]", 0
        ret
reader: mov rbx, VA
        sti
1:      cli
        mov rax, [rbx]
        cmp rax, [wanted]
        je 2f
        cmp rax, [next]                 /* allowed as soon as the entry is written */
        je 2f
        inc qword ptr [wrong]
2:      sti
        pause
        cmp qword ptr [stop], 0
        je 1b
        cli
        ret
shoot_hook:
        mov rax, VA
        invlpg [rax]
        mov rcx, [rax]
        cmp rcx, [next]
        je 1f
        inc qword ptr [wrong]
1:      mov [wanted], rcx
        LAPIC_SET LAPIC_EOI, 0
        inc qword ptr [shot]
        ret

/* This one writes an instruction, the other serializes and runs it. */
check_code:
        STEP "cross-modifying code"
        mov byte ptr [CODE_PAGE], 0xb8          /* MOV EAX, imm32; RET */
        mov byte ptr [CODE_PAGE + 5], 0xc3
        mov qword ptr [wrong], 0
        mov qword ptr [rounds], 0
        mov qword ptr [rounds + 64], 0
        AP runner
        mov ebx, 1
1:      mov [CODE_PAGE + 1], ebx
        mov [rounds], rbx
2:      pause
        cmp [rounds + 64], rbx
        jb 2b
        inc ebx
        cmp ebx, 200
        jbe 1b
        AP_WAIT
        CHECK_EQ "the new instruction runs", "qword ptr [wrong]", 0
        ret
runner: mov esi, 1
1:      pause
        cmp [rounds], rsi
        jb 1b
        xor eax, eax
        cpuid
        mov eax, CODE_PAGE
        call rax
        cmp eax, esi
        je 2f
        inc qword ptr [wrong]
2:      mov [rounds + 64], rsi
        inc esi
        cmp esi, 200
        jbe 1b
        ret

check_again:
        STEP "INIT and SIPI of a running processor"
        AP forever
        mov ecx, 1000
1:      pause
        loop 1b
        call ap_start
        CHECK_EQ "it started again", "qword ptr [ap_starts]", 2
        mov qword ptr [shared], 0
        AP mark
        AP_WAIT
        CHECK_EQ "and works", "qword ptr [shared]", 0x77
        LAPIC_SET LAPIC_ICR, 0xc4600 + (AP_CODE >> 12)
        mov ecx, 20000
2:      pause
        loop 2b
        CHECK_EQ "a SIPI without INIT does nothing", "qword ptr [ap_starts]", 2
        ret
forever:
        jmp forever
mark:   mov qword ptr [shared], 0x77
        ret

        .bss
        .align 4096
        .fill 4092
split:  .fill 4
        .align 64
shared: .fill 192
rounds: .fill 192
seen:   .fill 128
lock_word: .fill 8
pongs:  .fill 8
bsp_id: .fill 8
counted: .fill 8
stop:   .fill 8
shot:   .fill 8
wrong:  .fill 8
wanted: .fill 8
next:   .fill 8
        .text
