//! The bodies of the fuzz targets.

mod cpu;
mod devices;
mod exec;
mod files;
mod paging;
mod spec;

pub use cpu::cpu_model;
pub use devices::{acpi, bus, hpet, i8042, ioapic, kvm_pv, lapic, pic, pit, platform, ports, rtc, serial};
pub use exec::{decode_exec, smp_exec, translate_exec};
pub use files::{cpio, deb, kernel_load, module, unpack};
pub use paging::page_walk;
pub use spec::spec;

/// A body: any bytes, and it returns.
pub type Body = fn(&[u8]);

/// All of them, by name.
pub const ALL: &[(&str, Body)] = &[
    ("decode_exec", decode_exec),
    ("translate_exec", translate_exec),
    ("smp_exec", smp_exec),
    ("lapic", lapic),
    ("ioapic", ioapic),
    ("pic", pic),
    ("pit", pit),
    ("hpet", hpet),
    ("rtc", rtc),
    ("serial", serial),
    ("i8042", i8042),
    ("acpi", acpi),
    ("ports", ports),
    ("kvm_pv", kvm_pv),
    ("bus", bus),
    ("platform", platform),
    ("kernel_load", kernel_load),
    ("unpack", unpack),
    ("deb", deb),
    ("module", module),
    ("cpio", cpio),
    ("cpu_model", cpu_model),
    ("page_walk", page_walk),
    ("spec", spec),
];
