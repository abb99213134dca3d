//! The fuzzer for the target that `MERIDIAN_FUZZ_TARGET` names, with libFuzzer's arguments. tools/fuzz runs it.
#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("MERIDIAN_FUZZ_TARGET").unwrap_or_default();
        let Some((_, target)) = fuzz::target(&name) else {
            let known = fuzz::TARGETS.map(|(name, _)| name).join(" ");
            eprintln!("set MERIDIAN_FUZZ_TARGET to one of: {known}");
            std::process::exit(2);
        };
        let _ = TARGET.set(target);
    },
    |bytes: &[u8]| TARGET.get().expect("the fuzzer calls init first")(bytes)
);
