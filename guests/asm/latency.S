/*
 * A timer interrupt reaches ring 3 within a millisecond, whatever loop is there: loops that never leave their block, loops over
 * pages, indirect jumps, calls, and strings. The LAPIC timer is set, the loop entered; the TSC tells how late the interrupt
 * came. A host that takes the processor away spoils some tries, not most of them; if it does, there are more rounds.
 */
#define LONG 1
#include "common.inc"
#include "irq.inc"
        GUEST "latency"
#define VECTOR 0x50
#define TRIES 32
#define ENOUGH 16
#define ROUNDS 40
#define USER_DATA (USER + 0x10000)
#define AFTER_US 150                    /* from setting the timer to its end */

        .macro SHAPE text, label
        mov r12, offset \label
        call shape
        CHECK "within 1 ms: \text", ae
        STEP "\text: nanoseconds of the best and of the median try"
        call print_times
        .endm

main:   mov eax, 0x40000000
        cpuid
        cmp eax, 0x40000010
        jae 1f
        SKIP "CPUID does not tell the frequencies"
1:      mov eax, 0x40000010
        cpuid
        mov eax, eax
        mov ebx, ebx
        mov [tsc_khz], rax
        mov [bus_khz], rbx
        call lapic_on
        HOOK VECTOR, on_timer
        LAPIC_SET LAPIC_TDCR, 0xb
        LAPIC_SET LAPIC_TIMER, VECTOR
        SHAPE "a jump to itself", loop_self
        SHAPE "a counter", loop_count
        SHAPE "LOOP", loop_loop
        SHAPE "a load and a store", loop_memory
        SHAPE "jumps between two pages", loop_pages
        SHAPE "straight code over the end of a page", loop_straight
        SHAPE "indirect jumps", loop_indirect
        SHAPE "indirect jumps between pages", loop_indirect_pages
        SHAPE "calls and returns", loop_calls
        SHAPE "indirect calls to another page", loop_calls_pages
        SHAPE "x87 and vectors", loop_float
        SHAPE "long string stores", loop_strings
        SHAPE "CPUID", loop_cpuid
        ret

/* Rounds of tries of the loop at r12, until in one the median is below a millisecond: then AE, and the times are sorted. */
shape:  mov r13d, ROUNDS
1:      mov qword ptr [tries], 0
        call arm
        mov [back_sp], rsp
        push UDATA
        push USER_STACK
        push EFLAGS_IF | 2
        push UCS
        push r12
        mov rbx, USER_DATA
        iretq
back:   call sort
        mov eax, 1000000
        cmp rax, [times + 8 * ENOUGH]
        jae 2f
        dec r13d
        jnz 1b
        cmp rax, [times + 8 * ENOUGH]
2:      ret

/* Notes when the timer will have run out, then sets it: no try is taken for better than it is. */
arm:    mov ecx, 1000
        mov eax, AFTER_US
        mul qword ptr [bus_khz]
        div rcx
        mov rbx, rax
        mov eax, AFTER_US
        mul qword ptr [tsc_khz]
        div rcx
        mov rcx, rax
        rdtsc
        shl rdx, 32
        or rax, rdx
        add rax, rcx
        mov [due], rax
        LAPIC_SET LAPIC_TICR, ebx
        ret

on_timer:
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, [due]
        jae 1f
        xor eax, eax                    /* the two clocks are not exactly alike */
1:      mov ecx, 1000000
        mul rcx
        div qword ptr [tsc_khz]
        mov rcx, [tries]
        mov [times + 8 * rcx], rax
        LAPIC_SET LAPIC_EOI, 0
        cmp qword ptr [rdi + F_CS], UCS
        CHECK "it interrupts ring 3", e
        inc qword ptr [tries]
        cmp qword ptr [tries], TRIES
        je 2f
        jmp arm
2:      mov qword ptr [rdi + F_IP], offset back
        mov qword ptr [rdi + F_CS], KCS
        mov qword ptr [rdi + F_FLAGS], 2
        mov rax, [back_sp]
        mov [rdi + F_SP], rax
        mov qword ptr [rdi + F_SS], KDATA
        ret

/* Sorts the times, by insertion. */
sort:   mov ecx, 1
1:      mov rax, [times + 8 * rcx]
        mov rdx, rcx
2:      mov rbx, [times + 8 * rdx - 8]
        cmp rbx, rax
        jbe 3f
        mov [times + 8 * rdx], rbx
        dec rdx
        jnz 2b
3:      mov [times + 8 * rdx], rax
        inc ecx
        cmp ecx, TRIES
        jb 1b
        ret

print_times:
        mov rax, [times]
        call print_decimal
        mov al, ' '
        call print_char
        mov rax, [times + 8 * ENOUGH]
        call print_decimal
        mov al, '\n'
        jmp print_char

print_decimal:
        mov ecx, 10
        xor edx, edx
        div rcx
        push rdx
        test rax, rax
        jz 1f
        call print_decimal
1:      pop rax
        add al, '0'
        jmp print_char

        .bss
        .align 8
tsc_khz: .fill 8
bus_khz: .fill 8
due:    .fill 8
back_sp: .fill 8
tries:  .fill 8
times:  .fill 8 * TRIES

        .section .user
        .code64
loop_self:
        jmp loop_self
loop_count:
        inc rax
        cmp rax, -1
        jne loop_count
        jmp loop_count
loop_loop:
        loop loop_loop
        jmp loop_loop
loop_memory:
        mov rax, [rbx]
        add rax, rcx
        mov [rbx + 8], rax
        jmp loop_memory
loop_float:
        fld1
        fstp qword ptr [rbx]
        addpd xmm0, xmm1
        jmp loop_float
loop_strings:
        mov rdi, rbx
        mov ecx, 0x100000 / 8
        rep stosq
        jmp loop_strings
loop_cpuid:
        xor eax, eax
        cpuid
        jmp loop_cpuid
loop_indirect:
        lea rcx, [rip + 1f]
        jmp rcx
1:      lea rcx, [rip + loop_indirect]
        jmp rcx
loop_calls:
        call 1f
        call 1f
        jmp loop_calls
1:      inc rax
        ret
loop_calls_pages:
        lea rcx, [rip + other_page_call]
1:      call rcx
        jmp 1b
loop_pages:
        inc rax
        jmp other_page
loop_indirect_pages:
        lea rcx, [rip + other_page_indirect]
        jmp rcx
        .org 0x1000
other_page:
        dec rax
        jmp loop_pages
other_page_call:
        inc rdx
        ret
other_page_indirect:
        lea rcx, [rip + loop_indirect_pages]
        jmp rcx
        .org 0x1fee                     /* of a section that begins with 4 bytes */
loop_straight:
        .rept 4
        add rax, 0x12345678             /* of 6 bytes: the third lies in both pages */
        .endr
        jmp loop_straight
        .text
