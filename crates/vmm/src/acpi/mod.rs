//! ACPI tables and the MP table.
