//! Sizes, offsets and values as the C compiler sees them (tests/bindings/layout_probe.c) are what the crate declares.
use std::collections::HashMap;
use std::process::Command;

use lycoris_sys as sys;

#[test]
fn agrees_with_c() {
    let Ok(probe) = std::env::var("LYCORIS_LAYOUT_PROBE") else {
        eprintln!("skipped: LYCORIS_LAYOUT_PROBE does not name the program layout_probe");
        return;
    };
    let output = Command::new(probe).output().unwrap();
    let mut expected: HashMap<String, i64> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect();
    for (name, size, fields) in sys::LAYOUT {
        assert_eq!(expected.remove(*name), Some(*size as i64), "{name}");
        for (field, offset) in *fields {
            let field = format!("{name}.{field}");
            assert_eq!(expected.remove(&field), Some(*offset as i64), "{field}");
        }
    }
    assert!(expected.keys().all(|name| name.starts_with("LYC_")), "{expected:?}");
    assert_eq!(expected["LYC_DTYPE_BF16"], sys::lyc_dtype::BF16.0 as i64);
    assert_eq!(expected["LYC_ERROR_INTERNAL"], sys::lyc_status::ERROR_INTERNAL.0 as i64);
    assert_eq!(expected["LYC_OVERWRITE"], sys::LYC_OVERWRITE as i64);
}

#[test]
fn agrees_with_the_library() {
    sys::load(None).unwrap();
    for (name, size, _) in sys::LAYOUT {
        let text = std::ffi::CString::new(*name).unwrap();
        assert_eq!(unsafe { sys::lyc_struct_size(text.as_ptr()) }, *size, "{name}");
    }
    assert_eq!(unsafe { sys::lyc_abi_version() } >> 16, sys::LYC_ABI_MAJOR);
}
