//! Part of Ringer.

pub mod acpi;
