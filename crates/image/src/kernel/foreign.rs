//! What a file is that is no kernel for this machine: a name for it and the way out.

use crate::ImageError;
use crate::source::Source;

struct Kind {
    offset: usize,
    magic: &'static [u8],
    what: &'static str,
    way_out: &'static str,
}

const fn kind(offset: usize, magic: &'static [u8], what: &'static str, way_out: &'static str) -> Kind {
    Kind { offset, magic, what, way_out }
}

const NEED_X86: &str = "give a kernel built for x86-64";
pub(crate) const NEED_KERNEL: &str =
    "give a kernel: a bzImage (vmlinuz), an ELF vmlinux or a multiboot image";
const AS_INITRD: &str = "give it as the initrd, and a vmlinuz as the kernel";
const UNPACK: &str = "unpack it first and give the vmlinuz in it";

/// Checked in order: an ARM64 or RISC-V kernel with an EFI stub also starts with "MZ".
const KINDS: &[Kind] = &[
    kind(0x38, b"ARM\x64", "a 64-bit ARM kernel", NEED_X86),
    kind(0x38, b"RSC\x05", "a RISC-V kernel", NEED_X86),
    kind(0x24, &[0x18, 0x28, 0x6f, 0x01], "a 32-bit ARM kernel (zImage)", NEED_X86),
    kind(0, &[0x27, 0x05, 0x19, 0x56], "a U-Boot image", "give the kernel inside it, built for x86-64"),
    kind(0, b"MZ", "an EFI program without a Linux boot header", NEED_KERNEL),
    kind(0, b"070701", "a cpio archive", AS_INITRD),
    kind(0, b"!<arch>\n", "an archive, perhaps a Debian package", UNPACK),
    kind(0, &[0xed, 0xab, 0xee, 0xdb], "an RPM package", UNPACK),
    kind(0, b"PK\x03\x04", "a zip archive", UNPACK),
    kind(257, b"ustar", "a tar archive", UNPACK),
    kind(0x8001, b"CD001", "a CD image", "give the kernel on it"),
    kind(0, b"QFI\xfb", "a qcow2 disk image", NEED_KERNEL),
    kind(0, b"#!", "a script", NEED_KERNEL),
    kind(0, b"version https://git-lfs", "a Git LFS pointer", "fetch the real file with git lfs pull"),
];

/// The error for a file that no parser claims.
pub(crate) fn refuse(src: Source) -> ImageError {
    for k in KINDS {
        if src.bytes.get(k.offset..).is_some_and(|b| b.starts_with(k.magic)) {
            if k.magic == b"MZ" && src.bytes.len() < 0x290 {
                return ImageError::Truncated {
                    name: src.name.to_owned(),
                    what: "a kernel's setup header",
                    end: 0x290,
                    len: src.len(),
                };
            }
            return src.foreign(k.what, k.way_out);
        }
    }
    if src.bytes.get(510..512) == Some(&[0x55, 0xaa]) {
        return src.foreign("a disk image", "give the kernel on it, or a boot sector of at most 64 KiB");
    }
    if src.bytes.iter().take(512).all(|&b| b == 0) {
        return src.damaged("it holds only zeroes");
    }
    if src.bytes.iter().take(512).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return src.foreign("a text file", NEED_KERNEL);
    }
    src.foreign("in no kernel format that is known", NEED_KERNEL)
}
