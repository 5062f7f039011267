//! An instruction with another memory operand, by its bytes (Intel SDM vol. 2A §2.1, §2.2.1): decoding it to its parts and encoding those
//! anew takes several times as long.

/// Prefixes, none of which is needed but LOCK, REP, REPNE and the operand size's.
const ADDRESS_SIZE: u8 = 0x67;
const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
const KEPT: [u8; 4] = [0x66, 0xf0, 0xf2, 0xf3];

/// Bytes of the longest instruction: processors take none longer.
const LONGEST: usize = 15;

/// Appends to `out` the instruction of 64-bit code in `bytes`, with `[r10+disp]` for its memory operand. None for what is encoded otherwise
/// than by opcode and ModRM: VEX, XOP, and MOV with a whole address; and where a prefix that it has many times leaves no room for REX.
pub fn retarget(bytes: &[u8], disp: i32, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let done = write(bytes, disp, out).filter(|()| out.len() - start <= LONGEST);
    if done.is_none() {
        out.truncate(start);
    }
    done
}

fn write(bytes: &[u8], disp: i32, out: &mut Vec<u8>) -> Option<()> {
    let mut at = 0;
    let mut rex = 0;
    let opcode = loop {
        let b = *bytes.get(at)?;
        at += 1;
        if KEPT.contains(&b) {
            out.push(b);
        } else if b & 0xf0 == 0x40 {
            rex = b;
            break *bytes.get(at)?;
        } else if b != ADDRESS_SIZE && !SEGMENTS.contains(&b) {
            at -= 1;
            break b;
        }
    };
    at += 1;
    // The base is an extended register, and there is no index.
    out.push(0x41 | rex & 0x4c);
    out.push(opcode);
    match opcode {
        0x0f => {
            let second = *bytes.get(at)?;
            at += 1;
            out.push(second);
            match second {
                0x38 | 0x3a => {
                    out.push(*bytes.get(at)?);
                    at += 1;
                }
                // 3DNow!, whose opcode comes last.
                0x0f => return None,
                _ => {}
            }
        }
        // A REX that is not the last prefix does not count; VEX, EVEX, XOP; MOV to and from a whole address.
        0x40..=0x4f | 0xc4 | 0xc5 | 0x62 | 0x8f | 0xa0..=0xa3 => return None,
        b if KEPT.contains(&b) || SEGMENTS.contains(&b) || b == ADDRESS_SIZE => return None,
        _ => {}
    }
    let modrm = *bytes.get(at)?;
    at += 1;
    let (md, rm) = (modrm >> 6, modrm & 7);
    let mut skip = match md {
        0 if rm == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    if rm == 4 {
        let sib = *bytes.get(at)?;
        skip += 1;
        if md == 0 && sib & 7 == 5 {
            skip += 4;
        }
    }
    at += skip;
    let reg = modrm & 0x38;
    match (disp, i8::try_from(disp)) {
        (0, _) => out.push(reg | 2),
        (_, Ok(d)) => out.extend([0x40 | reg | 2, d as u8]),
        _ => {
            out.push(0x80 | reg | 2);
            out.extend(disp.to_le_bytes());
        }
    }
    out.extend_from_slice(bytes.get(at..)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, OpKind, Register};

    const CASES: &[&[u8]] = &[
        // mov rax,[rbx]; mov rax,[rsp+8]; mov eax,[rip+16]; mov eax,[0x1000]; mov al,gs:[rbx+rcx*4+0x100]
        &[0x48, 0x8b, 0x03],
        &[0x48, 0x8b, 0x44, 0x24, 0x08],
        &[0x8b, 0x05, 0x10, 0, 0, 0],
        &[0x8b, 0x04, 0x25, 0, 0x10, 0, 0],
        &[0x65, 0x8a, 0x84, 0x8b, 0, 1, 0, 0],
        // mov r15,[r12+r13*8]; mov byte [rbp+0],7; mov dword [rbx+rsi],0x12345678; mov word [rax],0x1234
        &[0x4f, 0x8b, 0x3c, 0xec],
        &[0xc6, 0x45, 0, 7],
        &[0xc7, 0x04, 0x33, 0x78, 0x56, 0x34, 0x12],
        &[0x66, 0xc7, 0x00, 0x34, 0x12],
        // lock cmpxchg16b [rsi]; add qword [rax*8+0x100],-1; imul ecx,[rdx],100; shld [rax],ecx,3
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0e],
        &[0x48, 0x83, 0x04, 0xc5, 0, 1, 0, 0, 0xff],
        &[0x6b, 0x0a, 100],
        &[0x0f, 0xa4, 0x08, 3],
        // movaps xmm9,[rcx]; movsd xmm0,[rdi+8]; pshufb xmm1,[rax]; pinsrq xmm2,[rbx],1; crc32 eax,byte [rsi]
        &[0x44, 0x0f, 0x28, 0x09],
        &[0xf2, 0x0f, 0x10, 0x47, 0x08],
        &[0x66, 0x0f, 0x38, 0x00, 0x08],
        &[0x66, 0x48, 0x0f, 0x3a, 0x22, 0x13, 1],
        &[0xf2, 0x0f, 0x38, 0xf0, 0x06],
        // fld tbyte [rax]; fadd dword [rbx+4]; movzx r8d,byte [r9]; test byte [rdx],1; mov eax,[ecx] with a 32-bit address
        &[0xdb, 0x28],
        &[0xd8, 0x43, 0x04],
        &[0x45, 0x0f, 0xb6, 0x01],
        &[0xf6, 0x02, 1],
        &[0x67, 0x8b, 0x01],
        // mov sil,[rax] and mov dh,[rax] would be the same with a REX prefix, so the caller keeps the latter away
        &[0x40, 0x8a, 0x30],
    ];

    #[test]
    fn only_the_memory_operand_changes() {
        for bytes in CASES {
            let before = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
            assert_eq!(before.len(), bytes.len(), "{bytes:x?}");
            for disp in [0, 8, -128, 128, 0x1234_5678] {
                let mut out = vec![0x90];
                retarget(bytes, disp, &mut out).unwrap_or_else(|| panic!("{before}"));
                let after = Decoder::with_ip(64, &out[1..], 0, DecoderOptions::NONE).decode();
                assert_eq!(after.len(), out.len() - 1, "{before}");
                assert_eq!((after.memory_base(), after.memory_index()), (Register::R10, Register::None));
                assert_eq!(after.memory_displacement64() as i64, i64::from(disp), "{before}");
                assert!(!after.has_segment_prefix());
                let mut like = before;
                like.set_memory_base(Register::R10);
                like.set_memory_index(Register::None);
                like.set_memory_index_scale(1);
                like.set_memory_displacement64(i64::from(disp) as u64);
                like.set_memory_displ_size(after.memory_displ_size());
                like.set_segment_prefix(Register::None);
                like.set_len(after.len());
                like.set_next_ip(after.next_ip());
                assert_eq!(like, after, "{before}");
                assert!((0..after.op_count()).any(|n| after.op_kind(n) == OpKind::Memory));
            }
        }
    }

    #[test]
    fn other_encodings_are_refused() {
        // vmovaps ymm0,[rax]; mov al,[whole address]; pop [rax] (XOP's escape); REX before 0x66; no memory; cut off
        let all: [&[u8]; 7] = [
            &[0xc5, 0xfc, 0x28, 0x00],
            &[0xa0, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x8f, 0x00],
            &[0x48, 0x66, 0x8b, 0x00],
            &[0x48, 0x8b, 0xc1],
            &[0x48, 0x8b],
            &[],
        ];
        for bytes in all {
            let mut out = vec![1, 2];
            assert_eq!(retarget(bytes, 4, &mut out), None, "{bytes:x?}");
            assert_eq!(out, [1, 2]);
        }
    }

    #[test]
    fn none_becomes_too_long() {
        // lock add [rdx], al, with the prefix often
        let long = [&[0xf0; 13][..], &[0x00, 0x02]].concat();
        let mut out = vec![0x90];
        assert_eq!(retarget(&long[1..], 0, &mut out), Some(()));
        assert_eq!(out.len(), 1 + LONGEST);
        out.truncate(1);
        assert_eq!(retarget(&long, 0, &mut out), None);
        assert_eq!(out, [0x90]);
    }
}
