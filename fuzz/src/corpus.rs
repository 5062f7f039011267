//! What the mutator starts from: small inputs that get far.

use ringer_image::samples;

/// Inputs for the target of that name.
pub(crate) fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "decode_exec" => code(),
        "translate_exec" | "smp_exec" => placed(),
        "kernel_load" => samples::all().into_iter().map(|(_, k)| [b"\x03a=b".to_vec(), k].concat()).collect(),
        "unpack" => packed(),
        "deb" => packages(),
        "module" => vec![samples::vmlinux(), samples::module(b"depends=b-c,a\0alias=x\0softdep=pre: y\0")],
        "spec" => ["512M", "1GiB", "18446744073709551615", "3T"]
            .iter()
            .map(|s| [&[2, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0][..], s.as_bytes()].concat())
            .collect(),
        _ => vec![(0..=255).collect(), vec![0; 64], vec![0xff; 64]],
    }
}

/// Every shape of processor, with code of many kinds behind the header.
fn code() -> Vec<Vec<u8>> {
    let bodies: [&[u8]; 16] = [
        // rep stosb; rep movsq; repne scasb; rep insb; rep outsb
        &[0xf3, 0xaa, 0xf3, 0x48, 0xa5, 0xf2, 0xae, 0xf3, 0x6c, 0xf3, 0x6e],
        // pushf; popf; iret; retf
        &[0x9c, 0x9d, 0xcf, 0xcb],
        // mov cr0, rax; mov cr4, rax; wrmsr; rdmsr; invlpg
        &[0x0f, 0x22, 0xc0, 0x0f, 0x22, 0xe0, 0x0f, 0x30, 0x0f, 0x32, 0x0f, 0x01, 0x38],
        // int 0x80; int3; syscall; sysenter; sysret
        &[0xcd, 0x80, 0xcc, 0x0f, 0x05, 0x0f, 0x34, 0x0f, 0x07],
        // lgdt; lidt; ltr; lldt; sgdt
        &[0x0f, 0x01, 0x10, 0x0f, 0x01, 0x18, 0x0f, 0x00, 0xd8, 0x0f, 0x00, 0xd0, 0x0f, 0x01, 0x00],
        // mov ds, ax; mov ss, ax; pop es; lss; les
        &[0x8e, 0xd8, 0x8e, 0xd0, 0x07, 0x0f, 0xb2, 0x20, 0xc4, 0x00],
        // call far [rax]; jmp far [rax]; far call 0x80:0
        &[0xff, 0x18, 0xff, 0x28, 0x9a, 0, 0, 0, 0, 0x80, 0],
        // fnsave; frstor; fxsave; fxrstor; xsave; xrstor; xsetbv
        &[
            0xdd, 0x30, 0xdd, 0x20, 0x0f, 0xae, 0x00, 0x0f, 0xae, 0x08, 0x0f, 0xae, 0x20, 0x0f, 0xae, 0x28,
            0x0f, 0x01, 0xd1,
        ],
        // movaps [rax]; vpgatherdd; vmaskmovps; maskmovdqu; cmpxchg16b
        &[
            0x0f, 0x29, 0x00, 0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x08, 0xc4, 0xe2, 0x6d, 0x2e, 0x00, 0x66, 0x0f,
            0xf7, 0xc1,
        ],
        &[0xf0, 0x48, 0x0f, 0xc7, 0x08, 0xf0, 0x48, 0x0f, 0xb1, 0x08, 0xf0, 0x0f, 0xc1, 0x00, 0x87, 0x00],
        // div; idiv; bound; into; aam 0; shld; bt
        &[
            0x48, 0xf7, 0xf1, 0xf7, 0xf9, 0xd4, 0x00, 0x62, 0x00, 0xce, 0x0f, 0xa4, 0xc8, 0x21, 0x48, 0x0f,
            0xab, 0x08,
        ],
        // sti; hlt; cli; hlt
        &[0xfb, 0xf4, 0xfa, 0xf4],
        // enter; leave; loop; jrcxz; jmp $
        &[0xc8, 0x10, 0x00, 0x1f, 0xc9, 0xe2, 0xfe, 0xe3, 0x00, 0xeb, 0xfe],
        // mov [rip], eax: writes into its own block
        &[0x89, 0x05, 0, 0, 0, 0, 0x90, 0x90, 0x48, 0x89, 0x05, 0xf0, 0x0f, 0, 0],
        // mov dr7, rax; mov dr0, rcx; rdtsc; cpuid; in; out; vmcall; rdrand; invpcid
        &[
            0x0f, 0x23, 0xf8, 0x0f, 0x23, 0xc1, 0x0f, 0x31, 0x0f, 0xa2, 0xec, 0xef, 0x0f, 0x01, 0xc1, 0x0f,
            0xc7, 0xf0,
        ],
        // arpl; lar; lsl; verr; verw; str; smsw; swapgs; wrgsbase; clac
        &[
            0x63, 0xc8, 0x0f, 0x02, 0xc1, 0x0f, 0x03, 0xc1, 0x0f, 0x00, 0xe1, 0x0f, 0x01, 0xe0, 0x0f, 0x01,
            0xf8, 0x0f, 0x01, 0xca,
        ],
    ];
    let mut out = Vec::new();
    for shape in 0..14u8 {
        for (n, body) in (0u8..).zip(bodies) {
            let flags = [0, 0x20, 0x80, 0xc0, 0x10, 7, 0x41, 0xff][usize::from(n % 8)];
            let mut input = vec![shape, n & 3, n & 1];
            // Rings 2 and 3 are one, and real and V86 mode have but one.
            input.truncate(if matches!(shape, 2..=5) || n & 2 != 0 { 2 } else { 3 });
            input.push(flags);
            input.extend([n, shape, 3, 4, 5, 6, 7, 8]);
            input.extend(body);
            out.push(input);
        }
    }
    out
}

/// The same, at every place, and with random bytes for code.
fn placed() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (n, input) in code().into_iter().enumerate() {
        let place = (n % 8) as u8 | if n % 3 == 0 { 0x80 } else { 0 };
        out.push([&[place][..], &input].concat());
    }
    out
}

fn packed() -> Vec<Vec<u8>> {
    let text: Vec<u8> = samples::vmlinux();
    (0u8..).zip(samples::COMPRESSIONS).map(|(n, c)| [vec![n], samples::pack(c, &text)].concat()).collect()
}

fn packages() -> Vec<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in [("bin/a", &b"AA"[..]), ("lib/a/long/name/of/a/file/that/goes/on/and/on", &[7; 700])]
    {
        let mut h = tar::Header::new_gnu();
        h.set_size(data.len() as u64);
        h.set_mode(0o644);
        tar.append_data(&mut h, name, data).expect("a vector takes it");
    }
    let tar = tar.into_inner().expect("a vector takes it");
    let forms = [
        ("data.tar", tar.clone()),
        ("data.tar.gz", samples::pack(samples::COMPRESSIONS[0], &tar)),
        ("data.tar.xz", samples::pack(samples::COMPRESSIONS[3], &tar)),
        ("data.tar.zst", samples::pack(samples::COMPRESSIONS[5], &tar)),
    ];
    let mut out = Vec::new();
    for (name, data) in forms {
        let mut ar = ar::Builder::new(Vec::new());
        for (name, data) in [("debian-binary", &b"2.0\n"[..]), (name, &data)] {
            let h = ar::Header::new(name.as_bytes().to_vec(), data.len() as u64);
            ar.append(&h, data).expect("a vector takes it");
        }
        out.push(ar.into_inner().expect("a vector takes it"));
    }
    out
}
