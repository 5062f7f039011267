//! Files that someone gave us: kernels, initrds, packages, modules.

use crate::input::Input;
use ringer_image::boot::{BootConfig, BootProtocol, Initrd, load};
use ringer_image::debian::{cpio::CpioWriter, deb as debian_package, modules};
use ringer_image::kernel::{Compression, Kernel};
use ringer_memory::GuestMemory;
use std::cell::RefCell;

/// RAM to load into: as much as the sample kernels need.
const RAM: u64 = 24 << 20;
/// The most that [`unpack`] lets a packed stream come to.
const UNPACKED: u64 = 4 << 20;

const PROTOCOLS: [BootProtocol; 6] = [
    BootProtocol::Auto,
    BootProtocol::Pvh,
    BootProtocol::Linux64,
    BootProtocol::Linux32,
    BootProtocol::Multiboot,
    BootProtocol::BootSector,
];

/// A kernel file, and loading it by every boot protocol. Input: length of the command line, the command line, the
/// file.
pub fn kernel_load(data: &[u8]) {
    thread_local!(static MEMORY: RefCell<Option<GuestMemory>> = const { RefCell::new(None) });
    let mut input = Input(data);
    let len = input.u8().into();
    let cmdline = String::from_utf8_lossy(input.bytes(len)).into_owned();
    let Ok(kernel) = Kernel::parse("kernel", input.0.to_vec()) else { return };
    assert!(!kernel.describe().is_empty());
    let initrd = Initrd::from_bytes("initrd", cmdline.clone().into_bytes()).with(vec![1; len]);
    MEMORY.with_borrow_mut(|m| {
        let memory = m.get_or_insert_with(|| GuestMemory::new(RAM).expect("the host has 24 MiB"));
        for protocol in PROTOCOLS {
            let initrd = (len % 2 == 1).then_some(&initrd);
            let config =
                BootConfig { protocol, cmdline: &cmdline, initrd, rsdp: Some(0xe_0000), signature: 0x600 };
            let loaded = load(&kernel, memory, &config);
            if let Err(e) = loaded {
                assert!(!e.to_string().contains('\n'), "{e}");
            }
        }
    });
}

/// A packed stream. Input: its format, the stream.
pub fn unpack(data: &[u8]) {
    const FORMATS: [Compression; 6] = [
        Compression::Gzip,
        Compression::Bzip2,
        Compression::Lzma,
        Compression::Xz,
        Compression::Lz4,
        Compression::Zstd,
    ];
    let mut input = Input(data);
    let format = FORMATS[input.below(FORMATS.len())];
    if let Ok(out) = format.unpack(input.0, UNPACKED / 2, UNPACKED) {
        assert!(out.len() as u64 <= UNPACKED);
    }
}

/// A Debian package.
pub fn deb(data: &[u8]) {
    let take = |name: &str, _: Vec<u8>| {
        assert!(!name.starts_with('/') && !name.split('/').any(|c| c == ".."), "{name}");
        Ok(())
    };
    let _damaged = debian_package::read_files("a.deb".as_ref(), data, |n| !n.ends_with('x'), take);
}

/// A kernel module, and others that depend on each other.
pub fn module(data: &[u8]) {
    let Some(m) = modules::parse("kernel/a.ko", data.to_vec()) else { return };
    let b = modules::parse("kernel/b-c.ko", data.to_vec());
    let all: modules::Modules =
        [m].into_iter().chain(b).map(|m| (modules::module_name(&m.path), m)).collect();
    let chosen = modules::closure(&all, &["a", "b_c"]);
    let _tables = modules::tables(&all, &chosen);
}

/// An archive of names and contents that came from elsewhere.
pub fn cpio(data: &[u8]) {
    let mut input = Input(data);
    let mut w = CpioWriter::new(Vec::new());
    while !input.is_empty() {
        let op = input.u8();
        let len = input.u8().into();
        let name = String::from_utf8_lossy(input.bytes(len)).into_owned();
        let mode = input.u32();
        let done = match op & 3 {
            0 => w.dir(&name, mode),
            1 => {
                let n = input.u16().into();
                w.file(&name, mode, input.bytes(n))
            }
            2 => w.symlink(&name, &name),
            _ => w.char_device(&name, mode, mode, mode),
        };
        done.expect("a vector takes it");
    }
    assert!(w.finish().expect("a vector takes it").len() % 512 == 0);
}
