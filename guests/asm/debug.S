/* Single steps, hardware breakpoints on code, data and ports, DR6 and DR7, general detect, INT1. */
#define LONG 1
#include "common.inc"
        GUEST "debug"

main:   call check_registers
        call check_step
        call check_code
        call check_data
        call check_io
        call check_detect
        ret

/* Logs the saved RIP and DR6 of up to 16 debug exceptions, and clears DR6. */
db_hook:
        mov rax, [db_count]
        and eax, 15
        mov rcx, [rdi + F_IP]
        mov [db_ip + rax * 8], rcx
        mov rcx, dr6
        mov [db_dr6 + rax * 8], rcx
        inc qword ptr [db_count]
        mov ecx, 0xffff0ff0
        mov dr6, rcx
        mov rcx, [rdi + F_FLAGS]
        mov [db_flags], rcx
        test dword ptr [step_off], 1
        jz 1f
        and dword ptr [rdi + F_FLAGS], ~EFLAGS_TF
1:      or dword ptr [rdi + F_FLAGS], EFLAGS_RF
        mov rcx, [continue_at]
        test rcx, rcx
        jz 2f
        mov [rdi + F_IP], rcx
2:      ret

        .macro CLEAR_LOG
        mov qword ptr [db_count], 0
        mov qword ptr [db_dr6], 0
        .endm
/* DR7 value; DR0 is set before. */
        .macro ARM value
        mov eax, \value
        mov dr7, rax
        .endm
        .macro DISARM
        mov eax, 0x400
        mov dr7, rax
        .endm
        .macro STEP_ON
        pushfq
        or dword ptr [rsp], EFLAGS_TF
        popfq
        .endm
        .macro STEP_OFF
        pushfq
        and dword ptr [rsp], ~EFLAGS_TF
        popfq
        .endm

check_registers:
        STEP "registers"
        HOOK DB, db_hook
        mov rax, dr7
        CHECK_EQ "DR7 at start", rax, 0x400
        mov rax, 0xffff0ff0
        mov dr6, rax
        xor eax, eax
        mov dr7, rax
        mov rax, dr7
        CHECK_EQ "bit 10 of DR7 is one", rax, 0x400
        mov rax, 0x1234567887654321
        mov dr3, rax
        mov rcx, dr3
        CHECK_EQ "DR3 has 64 bits", rcx, rax
        mov rax, 1 << 32
        EXPECT_FAULT GP, 0, "upper half of DR7", mov dr7, rax
        EXPECT_FAULT GP, 0, "upper half of DR6", mov dr6, rax
        mov rax, dr4
        mov rcx, dr6
        CHECK_EQ "DR4 is DR6 without CR4.DE", rax, rcx
        SET_CR cr4, CR4_DE
        EXPECT_FAULT UD, 0, "DR4 with CR4.DE", mov rax, dr4
        CLEAR_CR cr4, CR4_DE
        xor eax, eax
        mov dr3, rax
        ret

check_step:
        STEP "single steps"
        CLEAR_LOG
        mov dword ptr [step_off], 0
        STEP_ON
        nop
1:      xor eax, eax
2:      STEP_OFF
        mov rax, offset 1b
        CHECK_EQ "after the first instruction behind POPF", rax, [db_ip]
        mov rax, offset 2b
        CHECK_EQ "after the second", rax, [db_ip + 8]
        mov eax, 0xffff4ff0
        CHECK_EQ "DR6.BS", rax, [db_dr6]
        CHECK_EQ "five in all", "qword ptr [db_count]", 5
        CLEAR_LOG
        mov rdi, offset buffer
        mov ecx, 3
        STEP_ON
3:      rep stosb
4:      STEP_OFF
        mov rax, offset 3b
        CHECK_EQ "within REP: the same RIP", rax, [db_ip]
        CHECK_EQ "and again", rax, [db_ip + 8]
        mov rax, offset 4b
        CHECK_EQ "after the last", rax, [db_ip + 16]
        CLEAR_LOG
        mov eax, ss
        STEP_ON
        mov ss, eax
5:      nop
6:      STEP_OFF
        mov rax, offset 6b
        CHECK_EQ "no step between MOV SS and the next instruction", rax, [db_ip]
        CLEAR_LOG
        HOOK 0x40, empty_hook
        STEP_ON
        int 0x40
7:      nop
8:      STEP_OFF
        mov rax, [db_ip]
        mov rcx, offset 8b
        CHECK_EQ "no step in a handler, nor right behind its IRET", rax, rcx
        CLEAR_LOG
        mov dword ptr [step_off], 1
        STEP_ON
        nop
        nop
        CHECK_EQ "the handler may end it", "qword ptr [db_count]", 1
        CLEAR_LOG
        UNHOOK DB
        EXPECT_TRAP DB, 0, "INT1", .byte 0xf1
        HOOK DB, db_hook
        ret
empty_hook:
        ret

check_code:
        STEP "breakpoints on code"
        CLEAR_LOG
        mov dword ptr [step_off], 0
        mov rax, offset 1f
        mov dr0, rax
        ARM 0x401
        xor ecx, ecx
        nop
1:      inc ecx
        CHECK_EQ "once", "qword ptr [db_count]", 1
        CHECK_EQ "RF let it go on", rcx, 1
        mov rax, offset 1b
        CHECK_EQ "before the instruction", rax, [db_ip]
        mov eax, 0xffff0ff1
        CHECK_EQ "DR6.B0", rax, [db_dr6]
        CLEAR_LOG
        mov rax, offset 3f
        mov dr3, rax
        ARM 0x480                               /* G3 */
        mov eax, ss
        mov ss, eax
3:      nop
        CHECK_EQ "not right behind MOV SS", "qword ptr [db_count]", 0
        mov rax, offset 4f + 1
        mov dr3, rax
4:      mov eax, 0x90909090
        CHECK_EQ "not in an instruction's middle", "qword ptr [db_count]", 0
        DISARM
        mov rax, offset 5f
        mov dr0, rax
5:      nop
        CHECK_EQ "off", "qword ptr [db_count]", 0
        ret

check_data:
        STEP "breakpoints on data"
        CLEAR_LOG
        mov rax, offset buffer + 16
        mov dr1, rax
        ARM 0x00d00404                          /* L1, write, 4 bytes */
        mov eax, [buffer + 16]
        CHECK_EQ "a read does not count", "qword ptr [db_count]", 0
        mov dword ptr [buffer + 16], 1
1:      mov rax, offset 1b
        CHECK_EQ "a write does, after the instruction", rax, [db_ip]
        mov eax, 0xffff0ff2
        CHECK_EQ "DR6.B1", rax, [db_dr6]
        CLEAR_LOG
        mov byte ptr [buffer + 19], 1
        CHECK_EQ "its last byte", "qword ptr [db_count]", 1
        mov byte ptr [buffer + 20], 1
        mov byte ptr [buffer + 15], 1
        CHECK_EQ "not its neighbours", "qword ptr [db_count]", 1
        mov dword ptr [buffer + 13], 1
        CHECK_EQ "a write that overlaps", "qword ptr [db_count]", 2
        inc dword ptr [buffer + 16]
        CHECK_EQ "read-modify-write", "qword ptr [db_count]", 3
        mov rsp, rsp
        CLEAR_LOG
        mov rdi, offset buffer + 14
        mov al, 0
        mov ecx, 10
        rep stosb
        CHECK_EQ "REP STOSB, an element at a time", "qword ptr [db_count]", 4
        ARM 0x00f00404                          /* read or write */
        CLEAR_LOG
        mov eax, [buffer + 16]
        CHECK_EQ "a read", "qword ptr [db_count]", 1
        mov rax, offset buffer
        mov dr1, rax
        ARM 0x00900404                          /* write, 8 bytes */
        CLEAR_LOG
        mov byte ptr [buffer + 7], 1
        CHECK_EQ "the last of eight bytes", "qword ptr [db_count]", 1
        DISARM
        CLEAR_LOG
        mov byte ptr [buffer + 7], 1
        CHECK_EQ "off", "qword ptr [db_count]", 0
        ret

check_io:
        STEP "breakpoints on ports"
        SET_CR cr4, CR4_DE
        CLEAR_LOG
        mov eax, 0x80
        mov dr2, rax
        ARM 0x02000410                          /* L2, I/O, 1 byte */
        xor eax, eax
        out 0x80, al
1:      mov rax, offset 1b
        CHECK_EQ "after OUT", rax, [db_ip]
        mov eax, 0xffff0ff4
        CHECK_EQ "DR6.B2", rax, [db_dr6]
        in al, 0x80
        CHECK_EQ "after IN", "qword ptr [db_count]", 2
        in al, 0x61
        CHECK_EQ "not another port", "qword ptr [db_count]", 2
        DISARM
        CLEAR_CR cr4, CR4_DE
        ret

check_detect:
        STEP "general detect"
        CLEAR_LOG
        ARM 0x2400
        mov qword ptr [continue_at], offset 2f
1:      mov rax, dr0
2:      mov qword ptr [continue_at], 0
        mov rax, offset 1b
        CHECK_EQ "before the instruction", rax, [db_ip]
        mov rax, [db_dr6]
        and eax, 0x2000
        CHECK_EQ "DR6.BD", rax, 0x2000
        mov rax, dr7
        CHECK_EQ "GD is off in the handler and after", rax, 0x400
        ret

        .bss
        .align 16
buffer: .fill 64
db_count: .fill 8
db_ip:  .fill 128
db_dr6: .fill 128
db_flags: .fill 8
continue_at: .fill 8
step_off: .fill 8
        .text
