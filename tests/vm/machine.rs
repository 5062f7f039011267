//! What the command line says about the machine, and what the guest then sees.

use crate::support::{guest, note, output, quick, run};

#[track_caller]
fn boots(args: &[&str], script: &str) -> String {
    let args = args.iter().chain(&["--", "sh", "-c"]).chain([&script]);
    output(quick(args)).ended(0).text()
}

#[test]
fn boot_protocols() {
    if guest("cloud").is_none() {
        return;
    }
    for protocol in ["pvh", "linux64", "linux32"] {
        assert_eq!(boots(&["--boot", protocol], "echo up"), "up\n", "{protocol}");
    }
}

#[test]
fn memory_above_four_gib() {
    if guest("cloud").is_none() {
        return;
    }
    let text = boots(&["--memory", "6G"], "grep MemTotal: /proc/meminfo; grep 'System RAM' /proc/iomem");
    let total: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((5_800_000..6 << 20).contains(&total), "{text}");
    assert!(text.contains("100000000-1bfffffff : System RAM"), "{text}");
}

#[test]
fn little_memory() {
    if guest("cloud").is_none() {
        return;
    }
    assert_eq!(boots(&["--memory", "96M"], "echo up"), "up\n");
}

#[test]
fn many_processors() {
    if guest("cloud").is_none() {
        return;
    }
    let text = boots(&["--cpus", "9"], "nproc; grep -c ^processor /proc/cpuinfo");
    assert_eq!(text, "9\n9\n");
}

#[test]
fn processor_models() {
    if guest("cloud").is_none() {
        return;
    }
    let flags = |model: &str| {
        let script =
            "grep -m1 ^flags /proc/cpuinfo; head -c 100000 /bin/busybox | sha256sum; modprobe sha256_ssse3";
        let args = ["--cpu", model, "--", "sh", "-c", script];
        let ran = output(run(args));
        if ran.status == crate::support::ERROR {
            note(&format!("--cpu {model} is not for this host: {}", ran.error()));
            return None;
        }
        let text = ran.ended(0).text();
        let words = text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        Some(move |flag: &str| words.iter().any(|w| w == flag))
    };
    if let Some(has) = flags("x86-64-v2") {
        assert!(has("sse4_2") && has("ssse3") && has("popcnt") && has("cx16") && !has("avx") && !has("bmi1"));
    }
    if let Some(has) = flags("x86-64-v3") {
        assert!(has("avx2") && has("fma") && has("bmi2") && has("movbe") && has("f16c"));
        assert!(!has("avx512f"));
    }
    if let Some(has) = flags("host,-avx2") {
        assert!(has("sse4_2") && !has("avx2"));
    }
}

#[test]
fn kernel_and_initrd_by_name_and_a_command_line() {
    let Some(images) = guest("cloud") else { return };
    let (kernel, initrd) = (images.kernel.to_str().unwrap(), images.initrd.to_str().unwrap());
    let args = ["--kernel", kernel, "--initrd", initrd, "--cmdline", "quiet ringer.test='two words'"];
    let ran = output(run(args.iter().chain(&["--", "cat", "/proc/cmdline"]))).ended(0);
    assert!(ran.text().contains("ringer.test='two words'"), "{}", ran.text());
}

#[test]
fn statistics() {
    if guest("cloud").is_none() {
        return;
    }
    let ran = output(quick(["--stats", "--", "true"])).ended(0);
    let err = ran.error();
    for key in ["run time", "first userspace", "guest instructions", "MIPS", "TLB hit rate", "halts"] {
        assert!(err.contains(key), "{err}");
    }
}
