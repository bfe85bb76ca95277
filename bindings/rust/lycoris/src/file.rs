use std::path::Path;
use std::ptr;

use lycoris_sys as sys;

use crate::error::{check, load, Result};
use crate::text::{c_path, c_string, owned};
use crate::{DType, TensorRef};

/// A safetensors file or folder, read when asked for.
pub struct File {
    raw: *mut sys::lyc_file,
    _image: Vec<u8>,
}

// SAFETY: files may be used by several threads at once.
unsafe impl Send for File {}
unsafe impl Sync for File {}

impl File {
    pub fn open(path: impl AsRef<Path>) -> Result<File> {
        load()?;
        let path = c_path(path.as_ref())?;
        let mut raw = ptr::null_mut();
        // SAFETY: a C string, a place for the result.
        check(unsafe { sys::lyc_file_open(path.as_ptr(), &mut raw) })?;
        Ok(File { raw, _image: Vec::new() })
    }

    /// The bytes of a file.
    pub fn from_bytes(image: Vec<u8>) -> Result<File> {
        load()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the image stays where it is until after the release.
        check(unsafe { sys::lyc_file_open_memory(image.as_ptr().cast(), image.len(), &mut raw) })?;
        Ok(File { raw, _image: image })
    }

    /// Names, in the order of the data.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut count = 0;
        // SAFETY: live file, place for the result; names live as long as the file.
        unsafe {
            check(sys::lyc_file_tensor_count(self.raw, &mut count))?;
            (0..count)
                .map(|index| {
                    let mut name = ptr::null();
                    check(sys::lyc_file_get_tensor(self.raw, index, &mut name, ptr::null_mut()))?;
                    Ok(owned(name))
                })
                .collect()
        }
    }

    fn find(&self, name: &str) -> Result<(usize, sys::lyc_tensor)> {
        let name = c_string(name)?;
        let mut index = 0;
        // SAFETY: live file, places for the results; zeros are a value.
        unsafe {
            let mut tensor = std::mem::zeroed();
            check(sys::lyc_file_find_tensor(self.raw, name.as_ptr(), &mut index))?;
            check(sys::lyc_file_get_tensor(self.raw, index, ptr::null_mut(), &mut tensor))?;
            Ok((index, tensor))
        }
    }

    /// Type and shape, without reading.
    pub fn describe(&self, name: &str) -> Result<(DType, Vec<i64>)> {
        let (_, tensor) = self.find(name)?;
        Ok((tensor.dtype, tensor.shape[..tensor.ndim as usize].to_vec()))
    }

    /// The bytes of a tensor.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (index, tensor) = self.find(name)?;
        let mut data = vec![0; tensor.capacity as usize];
        // SAFETY: the memory is as long as said.
        check(unsafe { sys::lyc_file_read_tensor(self.raw, index, data.as_mut_ptr().cast(), data.len()) })?;
        Ok(data)
    }

    pub fn metadata(&self) -> Result<Vec<(String, String)>> {
        let mut count = 0;
        // SAFETY: live file, places for the results.
        unsafe {
            check(sys::lyc_file_metadata_count(self.raw, &mut count))?;
            (0..count)
                .map(|index| {
                    let (mut key, mut value) = (ptr::null(), ptr::null());
                    check(sys::lyc_file_get_metadata(self.raw, index, &mut key, &mut value))?;
                    Ok((owned(key), owned(value)))
                })
                .collect()
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once, before the image goes.
        unsafe { sys::lyc_file_release(self.raw) }
    }
}

/// A new safetensors file. Nothing appears at its path before [`Writer::finish`].
pub struct Writer<'a> {
    raw: *mut sys::lyc_writer,
    tensors: std::marker::PhantomData<TensorRef<'a>>,
}

impl<'a> Writer<'a> {
    pub fn create(path: impl AsRef<Path>) -> Result<Writer<'a>> {
        load()?;
        let path = c_path(path.as_ref())?;
        let mut raw = ptr::null_mut();
        // SAFETY: a C string, a place for the result.
        check(unsafe { sys::lyc_writer_create(path.as_ptr(), &mut raw) })?;
        Ok(Writer { raw, tensors: std::marker::PhantomData })
    }

    pub fn set_metadata(&mut self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        // SAFETY: live writer, C strings.
        check(unsafe { sys::lyc_writer_set_metadata(self.raw, key.as_ptr(), value.as_ptr()) })
    }

    pub fn add(&mut self, name: &str, tensor: TensorRef<'a>) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: the memory stays for 'a, which the writer does not outlive.
        check(unsafe { sys::lyc_writer_add(self.raw, name.as_ptr(), &tensor.raw) })
    }

    /// Write everything, and put it at the path in one step.
    pub fn finish(self) -> Result<()> {
        // SAFETY: live writer, whose tensors are still borrowed.
        check(unsafe { sys::lyc_writer_finish(self.raw) })
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { sys::lyc_writer_release(self.raw) }
    }
}
