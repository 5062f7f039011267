//! What the numbers were taken on.

use std::fs;
use std::process::Command;

/// The host and QEMU in one clause.
pub fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|t| field(&t, "model name"));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output().ok();
    let qemu = qemu.and_then(|o| String::from_utf8_lossy(&o.stdout).lines().next().map(str::to_owned));
    format!(
        "{cpus} processors ({}); {}",
        cpu.as_deref().unwrap_or("of an unknown model"),
        qemu.as_deref().unwrap_or("no QEMU")
    )
}

/// The first `name : value` of a text.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|l| {
        let (key, value) = l.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn finds_a_field() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "cache"), None);
    }
}
