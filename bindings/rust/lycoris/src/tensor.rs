use std::ffi::c_void;
use std::marker::PhantomData;

use lycoris_sys as sys;

use crate::error::{check, Result};
use crate::{DType, Error, Layout, Status};

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(i32),
}

/// Rust's own element types. For bf16 and f16 see [`TensorRef::from_bits`].
///
/// # Safety
/// `DTYPE` must be what the type's bytes are.
pub unsafe trait Element: Copy {
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => { $(unsafe impl Element for $type { const DTYPE: DType = DType::$dtype; })* };
}
elements!(f32 => F32, f64 => F64, i64 => I64, i32 => I32, i16 => I16, i8 => I8, u64 => U64, u32 => U32, u16 => U16, u8 => U8);

/// A strided view to read from.
#[derive(Clone, Copy)]
pub struct TensorRef<'a> {
    pub(crate) raw: sys::lyc_tensor,
    memory: PhantomData<&'a [u8]>,
}

/// A strided view to write to.
pub struct TensorMut<'a> {
    pub(crate) raw: sys::lyc_tensor,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: views of memory that the lifetimes lend; nothing is written through a TensorRef.
unsafe impl Send for TensorRef<'_> {}
unsafe impl Sync for TensorRef<'_> {}
unsafe impl Send for TensorMut<'_> {}

impl<'a> TensorRef<'a> {
    pub fn new<T: Element>(data: &'a [T], shape: &[i64]) -> Result<Self> {
        Self::contiguous(data.as_ptr().cast_mut().cast(), T::DTYPE, shape, size_of_val(data))
    }

    /// 16-bit floats by their bits: `DType::BF16` or `DType::F16`.
    pub fn from_bits(dtype: DType, data: &'a [u16], shape: &[i64]) -> Result<Self> {
        require_16_bit(dtype)?;
        Self::contiguous(data.as_ptr().cast_mut().cast(), dtype, shape, size_of_val(data))
    }

    /// # Safety
    /// The memory is on `device`, holds what the view says, and may be read during `'a`; on CUDA until the stream that
    /// work was given to has passed.
    pub unsafe fn from_raw(data: *const c_void, dtype: DType, shape: &[i64], device: Device) -> Result<Self> {
        Ok(Self::read_only(describe(data.cast_mut(), dtype, shape, Some(device))?))
    }

    fn contiguous(data: *mut c_void, dtype: DType, shape: &[i64], bytes: usize) -> Result<Self> {
        Ok(Self::read_only(fitting(describe(data, dtype, shape, None)?, bytes)?))
    }

    fn read_only(mut raw: sys::lyc_tensor) -> Self {
        raw.flags |= sys::LYC_TENSOR_READ_ONLY;
        TensorRef { raw, memory: PhantomData }
    }
}

impl<'a> TensorMut<'a> {
    pub fn new<T: Element>(data: &'a mut [T], shape: &[i64]) -> Result<Self> {
        let bytes = size_of_val(data);
        Self::contiguous(data.as_mut_ptr().cast(), T::DTYPE, shape, bytes)
    }

    /// 16-bit floats by their bits: `DType::BF16` or `DType::F16`.
    pub fn from_bits(dtype: DType, data: &'a mut [u16], shape: &[i64]) -> Result<Self> {
        require_16_bit(dtype)?;
        let bytes = size_of_val(data);
        Self::contiguous(data.as_mut_ptr().cast(), dtype, shape, bytes)
    }

    /// # Safety
    /// The memory is on `device`, holds what the view says, and is ours alone during `'a`; on CUDA until the stream that
    /// work was given to has passed.
    pub unsafe fn from_raw(data: *mut c_void, dtype: DType, shape: &[i64], device: Device) -> Result<Self> {
        Ok(TensorMut { raw: describe(data, dtype, shape, Some(device))?, memory: PhantomData })
    }

    fn contiguous(data: *mut c_void, dtype: DType, shape: &[i64], bytes: usize) -> Result<Self> {
        Ok(TensorMut { raw: fitting(describe(data, dtype, shape, None)?, bytes)?, memory: PhantomData })
    }

    /// The same memory, to read from.
    pub fn as_ref(&self) -> TensorRef<'_> {
        TensorRef::read_only(self.raw)
    }
}

macro_rules! shared {
    ($($name:ident),*) => { $(
        impl $name<'_> {
            /// Strides in elements, where the memory is not row-major. They stay inside of a borrowed slice: the
            /// library checks.
            pub fn strides(mut self, strides: &[i64]) -> Result<Self> {
                if strides.len() != self.raw.ndim as usize {
                    let message = format!("{} strides for {} dimensions", strides.len(), self.raw.ndim);
                    return Err(Error::new(Status::ERROR_INVALID_ARGUMENT, message));
                }
                self.raw.strides[..strides.len()].copy_from_slice(strides);
                // SAFETY: reads the descriptor only.
                check(unsafe { sys::lyc_tensor_check(&self.raw) })?;
                Ok(self)
            }

            /// Order of the axes; PyTorch's unless said.
            pub fn layout(mut self, layout: Layout) -> Self {
                self.raw.layout = layout;
                self
            }

            pub fn shape(&self) -> &[i64] {
                &self.raw.shape[..self.raw.ndim as usize]
            }

            pub fn dtype(&self) -> DType {
                self.raw.dtype
            }
        }
    )* };
}
shared!(TensorRef, TensorMut);

fn require_16_bit(dtype: DType) -> Result<()> {
    if dtype == DType::BF16 || dtype == DType::F16 {
        return Ok(());
    }
    Err(Error::new(Status::ERROR_INVALID_ARGUMENT, format!("dtype is {dtype:?}, must be BF16 or F16")))
}

/// `device` None: borrowed CPU memory, whose size stays known; raw memory is not checked.
fn describe(data: *mut c_void, dtype: DType, shape: &[i64], device: Option<Device>) -> Result<sys::lyc_tensor> {
    crate::error::load()?;
    // SAFETY: zeros are a value; init fills the descriptor and does not read the memory.
    let mut raw = unsafe { std::mem::zeroed::<sys::lyc_tensor>() };
    check(unsafe { sys::lyc_tensor_init(&mut raw, data, dtype, shape.as_ptr(), shape.len()) })?;
    if let Some(device) = device {
        raw.capacity = 0;
        if let Device::Cuda(index) = device {
            raw.device_type = sys::lyc_device_type::CUDA;
            raw.device_index = index;
        }
    }
    Ok(raw)
}

fn fitting(mut raw: sys::lyc_tensor, bytes: usize) -> Result<sys::lyc_tensor> {
    if raw.capacity > bytes as u64 {
        let message = format!("shape takes {} bytes, slice has {bytes}", raw.capacity);
        return Err(Error::new(Status::ERROR_INVALID_ARGUMENT, message));
    }
    raw.capacity = bytes as u64;
    Ok(raw)
}
