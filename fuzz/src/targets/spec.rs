//! What the command line says of a machine.

use crate::input::Input;
use ringer_vmm::{VmSpec, parse_size, show_size};

/// Sizes and numbers of processors.
pub fn spec(data: &[u8]) {
    let mut input = Input(data);
    let mut spec = VmSpec::new("kernel".into());
    spec.cpus = input.u32();
    spec.memory = input.u64();
    spec.code_memory = Some(input.u64()).filter(|n| n & 1 == 0);
    let _refused = spec.check();
    assert!(!show_size(spec.memory).is_empty());
    let text = String::from_utf8_lossy(input.0).into_owned();
    if let Ok(bytes) = parse_size(&text) {
        let shown = show_size(bytes);
        assert!(
            shown.contains('.') || bytes < 1024 || parse_size(&shown) == Ok(bytes),
            "{text} {bytes} {shown}"
        );
    }
}
