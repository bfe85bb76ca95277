//! Texts and lists of texts across the border.
use std::ffi::{c_char, CStr, CString};
use std::path::Path;

use crate::{Error, Result, Status};

/// # Safety
/// `text` is NULL or a C string.
pub(crate) unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        String::new()
    } else {
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

pub(crate) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(Status::ERROR_INVALID_ARGUMENT, format!("{text:?} has a NUL")))
}

pub(crate) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::new(Status::ERROR_INVALID_ARGUMENT, format!("{path:?} has a NUL")))
}

/// `const char *const *`, and what it points to.
#[derive(Default)]
pub(crate) struct List {
    pointers: Vec<*const c_char>,
    _texts: Vec<CString>,
}

impl List {
    pub(crate) fn new(texts: Vec<CString>) -> List {
        List { pointers: texts.iter().map(|text| text.as_ptr()).collect(), _texts: texts }
    }

    pub(crate) fn of<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<List> {
        Ok(List::new(texts.into_iter().map(|text| c_string(text.as_ref())).collect::<Result<_>>()?))
    }

    pub(crate) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.pointers.len()
    }
}
