//! Where is liblycoris? LYCORIS_LIB_DIR, LYCORIS_ROOT/lib, pkg-config, or else the linker's own folders.
use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    for name in ["LYCORIS_LIB_DIR", "LYCORIS_ROOT", "LYCORIS_STATIC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_DYNAMIC_LOADING").is_some() || env::var_os("DOCS_RS").is_some() {
        return;
    }
    if let Some(folder) = folder() {
        println!("cargo:rustc-link-search=native={}", folder.display());
        // An rpath set here would not reach dependents; they may read DEP_LYCORIS_LIBDIR and set their own.
        println!("cargo:libdir={}", folder.display());
    } else {
        println!("cargo:warning=liblycoris: LYCORIS_LIB_DIR is not set and pkg-config does not know lycoris");
    }
    let kind = if env::var_os("LYCORIS_STATIC").is_some() { "static" } else { "dylib" };
    println!("cargo:rustc-link-lib={kind}=lycoris");
}

fn folder() -> Option<PathBuf> {
    if let Some(folder) = env::var_os("LYCORIS_LIB_DIR") {
        return Some(folder.into());
    }
    if let Some(root) = env::var_os("LYCORIS_ROOT") {
        return Some(PathBuf::from(root).join("lib"));
    }
    let found = Command::new("pkg-config").args(["--variable=libdir", "lycoris"]).output().ok()?;
    let folder = String::from_utf8(found.stdout).ok()?;
    (found.status.success() && !folder.trim().is_empty()).then(|| folder.trim().into())
}
