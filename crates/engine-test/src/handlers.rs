//! The guest's event handlers: assembled by the compiler, copied into guest RAM. An unsafe room: it names the bytes by their
//! labels.
//!
//! Entry `v` stands at [`HANDLERS`](crate::layout::HANDLERS) + 16 v. A handler counts the event and records it (vector, error code, CR2, RIP, CS,
//! RFLAGS, RSP, SS) in the log page. A fault in the code window is skipped, as the table at [`SKIP`](crate::layout::SKIP) says how
//! long the instruction is; one elsewhere goes on where the program has said. After too many events, or if there is no way
//! on, the program ends.

use crate::layout as l;
use core::arch::global_asm;

/// Records in the log.
const RECORDS: u64 = 32;

global_asm!(
    ".pushsection .rodata.ringer_handlers, \"a\"",
    ".p2align 4",
    // Other parts of the program, compiled apart, name them.
    ".globl ringer_handlers_64, ringer_syscall_64, ringer_handlers_64_end",
    ".hidden ringer_handlers_64, ringer_syscall_64, ringer_handlers_64_end",
    "ringer_handlers_64:",
    // With an error code: 8, 10 to 14, 17, 21, 29, 30.
    ".set v, 0",
    ".rept 256",
    ".p2align 4",
    ".if v == 0xf0",
    "  lock inc qword ptr [{sys} + {asynchronous}]",
    "  iretq",
    ".else",
    "  .if !(v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21 || v == 29 || v == 30)",
    "  push 0",
    "  .endif",
    "  push v",
    "  jmp 1f",
    ".endif",
    ".set v, v + 1",
    ".endr",
    ".p2align 12",
    "1:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    // From here: rsp + 32 vector, 40 code, 48 rip, 56 cs, 64 rflags, 72 rsp, 80 ss.
    "mov ebx, {sys} + {log}",
    "mov eax, [rbx]",
    "inc eax",
    "mov [rbx], eax",
    "cmp eax, [rbx + {limit}]",
    "ja 9f",
    "and eax, {records} - 1",
    "shl eax, 6",
    "lea rdx, [rbx + rax + 64]",
    "movzx ecx, byte ptr [rsp + 32]",
    "mov [rdx], ecx",
    "mov rax, [rsp + 40]",
    "mov [rdx + 4], eax",
    "mov rax, [rsp + 48]",
    "mov [rdx + 8], rax",
    "mov rax, [rsp + 56]",
    "mov [rdx + 16], rax",
    "mov rax, [rsp + 64]",
    "mov [rdx + 24], rax",
    "mov rax, [rsp + 72]",
    "mov [rdx + 32], rax",
    "mov rax, [rsp + 80]",
    "mov [rdx + 40], rax",
    "mov rax, cr2",
    "mov [rdx + 48], rax",
    "cmp ecx, {end}",
    "je 9f",
    "cmp ecx, {call}",
    "je 7f",
    "cmp ecx, 32",
    "jae 3f",
    // Traps and NMI: 1 to 4.
    "lea eax, [rcx - 1]",
    "cmp eax, 3",
    "jbe 3f",
    "mov rax, [rsp + 48]",
    "sub rax, [rbx + {window}]",
    "cmp rax, {code_len}",
    "jae 5f",
    "movzx ecx, byte ptr [rax + {sys} + {skip}]",
    "test ecx, ecx",
    "jz 5f",
    "add [rsp + 48], rcx",
    "3:",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    "5:",
    "mov rax, [{sys} + {scratch} + {resume}]",
    "test rax, rax",
    "jz 9f",
    "mov qword ptr [{sys} + {scratch} + {resume}], 0",
    "mov [rsp + 48], rax",
    "jmp 3b",
    // Calls the fragment that the program's RAX (low three bits) names.
    "7:",
    "mov rcx, [rsp + 24]",
    "and ecx, 7",
    "mov rax, [rsp + 24]",
    "call qword ptr [{sys} + {scratch} + {fragments} + rcx * 8]",
    "jmp 3b",
    "9:",
    "out {port}, al",
    "8: hlt",
    "jmp 8b",
    ".p2align 4",
    // SYSCALL: RCX and R11 are kept on a stack of ring 0.
    "ringer_syscall_64:",
    "mov [{sys} + {log} + 32], rsp",
    "mov esp, {sys} + {rsp0}",
    "push rcx",
    "push r11",
    "mov ecx, eax",
    "and ecx, 7",
    "call qword ptr [{sys} + {scratch} + {fragments} + rcx * 8]",
    "pop r11",
    "pop rcx",
    "mov rsp, [{sys} + {log} + 32]",
    "sysretq",
    "ringer_handlers_64_end:",
    ".popsection",
    sys = const l::SYS,
    asynchronous = const l::ASYNC,
    log = const l::LOG,
    limit = const l::LOG_LIMIT,
    records = const RECORDS,
    end = const l::VECTOR_END,
    call = const l::VECTOR_CALL,
    window = const l::LOG_WINDOW,
    code_len = const l::CODE_LEN,
    skip = const l::SKIP,
    scratch = const l::SCRATCH_GPA,
    resume = const l::SCRATCH_RESUME,
    fragments = const l::SCRATCH_FRAGMENTS,
    port = const l::PORT_END,
    rsp0 = const l::RSP0,
);

unsafe extern "C" {
    static ringer_handlers_64: [u8; 0];
    static ringer_syscall_64: [u8; 0];
    static ringer_handlers_64_end: [u8; 0];
}

/// The handlers' bytes, and the offset among them of where SYSCALL enters.
#[must_use]
pub fn long() -> (&'static [u8], u64) {
    let (start, entry, end) =
        (&raw const ringer_handlers_64, &raw const ringer_syscall_64, &raw const ringer_handlers_64_end);
    let len = end as usize - start as usize;
    // SAFETY: the labels enclose read-only bytes of this program, which never change.
    let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len) };
    (bytes, entry as u64 - start as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_fit_their_pages() {
        let (bytes, entry) = long();
        assert!(bytes.len() as u64 <= l::LOG - l::HANDLERS);
        assert!(entry > l::PAGE);
        // push 0; push 3; jmp, 16 bytes apart.
        assert_eq!(&bytes[0x30..0x34], [0x6a, 0, 0x6a, 3]);
        assert_eq!(bytes[0xe0], 0x6a);
    }
}
