//! Opening the library at run time, with nothing but the system's own functions.
use std::ffi::{c_void, CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use crate::ffi::{Functions, LYC_ABI_MAJOR};

static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

pub(crate) fn functions() -> &'static Functions {
    FUNCTIONS.get().expect("lycoris_sys::load() must succeed before the first call")
}

pub(crate) fn load(path: Option<&Path>) -> Result<(), String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if FUNCTIONS.get().is_some() {
        return Ok(());
    }
    let candidates = path.map_or_else(candidates, |path| vec![path.to_owned()]);
    let mut failures = Vec::new();
    for candidate in candidates {
        match open(&candidate) {
            Ok(functions) => {
                let _ = FUNCTIONS.set(functions);
                return Ok(());
            }
            Err(failure) => failures.push(failure),
        }
    }
    Err(failures.join("; "))
}

fn candidates() -> Vec<PathBuf> {
    if let Some(file) = std::env::var_os("LYCORIS_LIBRARY") {
        return vec![file.into()];
    }
    let names: &[&str] = if cfg!(windows) {
        &["lycoris.dll"]
    } else if cfg!(target_os = "macos") {
        &["liblycoris.0.dylib", "liblycoris.dylib"]
    } else {
        &["liblycoris.so.0", "liblycoris.so"]
    };
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent);
    let beside = names.iter().filter_map(|name| Some(beside?.join(name))).filter(|file| file.exists());
    beside.chain(names.iter().map(PathBuf::from)).collect()
}

fn open(path: &Path) -> Result<Functions, String> {
    let library = Library::open(path)?;
    // SAFETY: lyc_abi_version never changes; the others are looked up only in a library of this ABI.
    unsafe {
        let version = library.symbol("lyc_abi_version\0")?;
        let version = std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(version)();
        if version >> 16 != LYC_ABI_MAJOR {
            return Err(format!("{} has ABI {}, {} is needed", path.display(), version >> 16, LYC_ABI_MAJOR));
        }
        Functions::find(&library)
    }
}

/// Never closed: its functions are kept for good.
pub(crate) struct Library(*mut c_void);

#[cfg(unix)]
mod system {
    use std::ffi::{c_char, c_int, c_void};
    unsafe extern "C" {
        pub fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
        pub fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
        pub fn dlerror() -> *const c_char;
    }
    pub const RTLD_NOW: c_int = 2;
}

#[cfg(unix)]
impl Library {
    fn open(path: &Path) -> Result<Library, String> {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "path has a NUL".to_owned())?;
        // SAFETY: plain calls of libc; dlerror is not NULL after a failure.
        unsafe {
            let library = system::dlopen(name.as_ptr(), system::RTLD_NOW);
            if library.is_null() {
                return Err(CStr::from_ptr(system::dlerror()).to_string_lossy().into_owned());
            }
            Ok(Library(library))
        }
    }

    /// `name` ends with a NUL.
    pub(crate) fn symbol(&self, name: &str) -> Result<*mut c_void, String> {
        // SAFETY: the library is open, the name is terminated.
        let symbol = unsafe { system::dlsym(self.0, name.as_ptr().cast()) };
        if symbol.is_null() {
            Err(format!("the library has no {}", name.trim_end_matches('\0')))
        } else {
            Ok(symbol)
        }
    }
}

#[cfg(windows)]
mod system {
    use std::ffi::{c_char, c_void};
    #[link(name = "kernel32")]
    unsafe extern "system" {
        pub fn LoadLibraryW(path: *const u16) -> *mut c_void;
        pub fn GetProcAddress(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
}

#[cfg(windows)]
impl Library {
    fn open(path: &Path) -> Result<Library, String> {
        use std::os::windows::ffi::OsStrExt;
        let name: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
        // SAFETY: the name is terminated.
        let library = unsafe { system::LoadLibraryW(name.as_ptr()) };
        if library.is_null() {
            return Err(format!("{}: {}", path.display(), std::io::Error::last_os_error()));
        }
        Ok(Library(library))
    }

    /// `name` ends with a NUL.
    pub(crate) fn symbol(&self, name: &str) -> Result<*mut c_void, String> {
        // SAFETY: the library is open, the name is terminated.
        let symbol = unsafe { system::GetProcAddress(self.0, name.as_ptr().cast()) };
        if symbol.is_null() {
            Err(format!("the library has no {}", name.trim_end_matches('\0')))
        } else {
            Ok(symbol)
        }
    }
}
