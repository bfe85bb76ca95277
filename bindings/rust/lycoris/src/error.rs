use lycoris_sys as sys;

use crate::{text, Status};

pub type Result<T> = std::result::Result<T, Error>;

/// A call of the library failed.
#[derive(Clone, Debug)]
pub struct Error {
    status: Status,
    native_code: i32,
    message: String,
}

impl Error {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Error {
        Error { status, native_code: 0, message: message.into() }
    }

    pub fn status(&self) -> Status {
        self.status
    }

    /// errno, or the CUDA error number; 0 if none.
    pub fn native_code(&self) -> i32 {
        self.native_code
    }

    /// What was wrong, and why.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// The status of a call just made by this thread.
pub(crate) fn check(status: Status) -> Result<()> {
    if status == Status::OK {
        return Ok(());
    }
    let mut info = growing(sys::lyc_error_info_init);
    // SAFETY: the struct is set up, the message belongs to this thread.
    let (known, message) = unsafe { (sys::lyc_last_error_info(&mut info), text::owned(sys::lyc_last_error_message())) };
    Err(Error { status, native_code: if known == Status::OK { info.native_code } else { 0 }, message })
}

/// Is the library there? To be asked before the first call that makes something.
pub(crate) fn load() -> Result<()> {
    sys::load(None).map_err(|reason| Error::new(Status::ERROR_UNSUPPORTED, reason))
}

/// A struct that may grow, set up by its C function.
pub(crate) fn growing<T>(init: unsafe extern "C" fn(*mut T, usize)) -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: these structs are numbers and pointers, for which zeros are values; init fills in what it knows.
    unsafe {
        init(value.as_mut_ptr(), size_of::<T>());
        value.assume_init()
    }
}
