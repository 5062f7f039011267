#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringer_fuzz::targets::kvm_pv(data));
