//! One target under libFuzzer: the one that the variable `FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = fuzz::TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("FUZZ_TARGET must be one of {:?}", fuzz::TARGETS.map(|target| target.name)))
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
