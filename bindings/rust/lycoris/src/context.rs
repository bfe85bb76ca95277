use std::ffi::c_void;
use std::ptr;

use lycoris_sys as sys;

use crate::error::{check, growing, load, Result};

/// A device with its threads and its memory allocator.
///
/// Clones share it; it goes when the last object made from it has gone.
pub struct Context {
    pub(crate) raw: *mut sys::lyc_context,
    stream: *mut c_void,
}

// SAFETY: contexts may be used by several threads at once; a stream is only a number here.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    /// The CPU, with as many threads as the process may use.
    pub fn cpu() -> Result<Context> {
        Context::cpu_with_threads(0)
    }

    pub fn cpu_with_threads(threads: i32) -> Result<Context> {
        Context::create(sys::lyc_device_type::CPU, 0, threads)
    }

    pub fn cuda(index: i32) -> Result<Context> {
        Context::create(sys::lyc_device_type::CUDA, index, 0)
    }

    fn create(device_type: sys::lyc_device_type, device_index: i32, threads: i32) -> Result<Context> {
        load()?;
        let mut options = growing(sys::lyc_context_options_init);
        options.device_type = device_type;
        options.device_index = device_index;
        options.threads = threads;
        let mut raw = ptr::null_mut();
        // SAFETY: valid options, a place for the result.
        check(unsafe { sys::lyc_context_create(&options, &mut raw) })?;
        Ok(Context { raw, stream: ptr::null_mut() })
    }

    /// The same context; what is made from it runs on this stream (`cudaStream_t`, `CUstream`).
    ///
    /// # Safety
    /// The stream belongs to the context's device, and lives as long as what is made from it. Work is only enqueued:
    /// tensors must stay until the stream has passed.
    pub unsafe fn stream(&self, stream: *mut c_void) -> Context {
        let mut same = self.clone();
        same.stream = stream;
        same
    }

    pub fn threads(&self) -> Result<i32> {
        let mut info = growing(sys::lyc_context_info_init);
        // SAFETY: live context, valid struct.
        check(unsafe { sys::lyc_context_get_info(self.raw, &mut info) })?;
        Ok(info.threads)
    }

    pub(crate) fn exec(&self) -> sys::lyc_exec {
        let mut exec = growing(sys::lyc_exec_init);
        exec.stream = self.stream;
        exec
    }
}

impl Clone for Context {
    fn clone(&self) -> Context {
        // SAFETY: live context.
        unsafe { sys::lyc_context_retain(self.raw) };
        Context { raw: self.raw, stream: self.stream }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { sys::lyc_context_release(self.raw) }
    }
}
