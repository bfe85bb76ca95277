use std::ptr;

use lycoris_sys as sys;

use crate::error::{check, growing, Result};
use crate::text::{c_string, owned, List};
use crate::{Algo, Context, DType, DoraAxis, DoraRule, TensorMut, TensorRef};

/// The delta of one layer: its factors, and how they make a delta. It does not hold the layer's weight.
pub struct Module {
    pub(crate) raw: *mut sys::lyc_module,
    context: Context,
}

// SAFETY: several threads may use a module as long as none writes or binds parameters, which is unsafe here.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}

/// What a module came to; see `lyc_module_info`.
#[derive(Clone, Copy, Debug)]
pub struct ModuleInfo {
    pub algo: Algo,
    pub rank: i32,
    pub alpha: f64,
    /// What the delta is multiplied by.
    pub scale: f64,
    pub dora_axis: DoraAxis,
    pub dora_rule: DoraRule,
    /// The delta depends on the weight.
    pub needs_base: bool,
    pub invertible: bool,
    pub out_features: i64,
    pub in_elements: i64,
}

/// What to build; see `lyc_module_options`.
pub struct ModuleBuilder {
    options: sys::lyc_module_options,
}

impl ModuleBuilder {
    /// A linear layer's weight.
    pub fn linear(self, out_features: i64, in_features: i64) -> Self {
        self.weight(&[out_features, in_features])
    }

    /// Any weight, as \[O, I, K...\]; at most five dimensions count.
    pub fn weight(mut self, shape: &[i64]) -> Self {
        self.options.ndim = shape.len() as i32;
        for (to, size) in self.options.shape.iter_mut().zip(shape) {
            *to = *size;
        }
        self
    }

    pub fn rank(mut self, rank: i32) -> Self {
        self.options.rank = rank;
        self
    }

    pub fn alpha(mut self, alpha: f64) -> Self {
        self.options.alpha = alpha;
        self
    }

    /// LoKr: size of the smaller part.
    pub fn factor(mut self, factor: i32) -> Self {
        self.options.factor = factor;
        self
    }

    /// Of the parameters.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = dtype;
        self
    }

    pub fn dora(mut self, axis: DoraAxis, rule: DoraRule) -> Self {
        self.options.dora_axis = axis;
        self.options.dora_rule = rule;
        self
    }

    /// `sys::LYC_MODULE_*`, added to the ones set before.
    pub fn flags(mut self, flags: u32) -> Self {
        self.options.flags |= flags;
        self
    }

    /// All parameters are zero.
    pub fn build(self, context: &Context) -> Result<Module> {
        let struct_size = growing(sys::lyc_module_options_init).struct_size;
        let options = sys::lyc_module_options { struct_size, ..self.options };
        let mut raw = ptr::null_mut();
        // SAFETY: live context, valid options, a place for the result.
        check(unsafe { sys::lyc_module_create(context.raw, &options, &mut raw) })?;
        Ok(Module::of(raw, context))
    }
}

impl Module {
    pub(crate) fn of(raw: *mut sys::lyc_module, context: &Context) -> Module {
        Module { raw, context: context.clone() }
    }

    pub fn builder(algo: Algo) -> ModuleBuilder {
        // SAFETY: numbers, for which zeros are values. The library, which may not be loaded yet, is asked in build().
        let zeros = unsafe { std::mem::zeroed::<sys::lyc_module_options>() };
        ModuleBuilder { options: sys::lyc_module_options { algo, ..zeros } }
    }

    /// From CPU tensors named as in a file: "lora_up.weight", "hada_w1_a", "alpha". Their values are copied.
    pub fn from_tensors(context: &Context, tensors: &[(&str, TensorRef<'_>)]) -> Result<Module> {
        let names = List::of(tensors.iter().map(|(name, _)| name))?;
        let views: Vec<_> = tensors.iter().map(|(_, tensor)| tensor.raw).collect();
        let device = views.iter().find(|view| view.device_type != sys::lyc_device_type::CPU);
        if device.is_some() {
            let message = "from_tensors copies CPU tensors; bind_param takes others";
            return Err(crate::Error::new(crate::Status::ERROR_INVALID_ARGUMENT, message));
        }
        let mut raw = ptr::null_mut();
        // SAFETY: live context, lists of equal length, a place for the result.
        check(unsafe {
            let count = views.len();
            sys::lyc_module_create_from_tensors(
                context.raw,
                ptr::null(),
                names.as_ptr(),
                views.as_ptr(),
                count,
                &mut raw,
            )
        })?;
        Ok(Module::of(raw, context))
    }

    pub fn info(&self) -> Result<ModuleInfo> {
        let mut info = growing(sys::lyc_module_info_init);
        // SAFETY: live module, valid struct.
        check(unsafe { sys::lyc_module_get_info(self.raw, &mut info) })?;
        Ok(ModuleInfo {
            algo: info.algo,
            rank: info.rank,
            alpha: info.alpha,
            scale: info.scale,
            dora_axis: info.dora_axis,
            dora_rule: info.dora_rule,
            needs_base: info.needs_base != 0,
            invertible: info.invertible != 0,
            out_features: info.out_features,
            in_elements: info.in_elements,
        })
    }

    /// Names, types and shapes, in the order in which files list them.
    pub fn params(&self) -> Result<Vec<(String, DType, Vec<i64>)>> {
        let mut count = 0;
        // SAFETY: live module, places for the results; zeros are a value.
        unsafe {
            check(sys::lyc_module_param_count(self.raw, &mut count))?;
            (0..count)
                .map(|index| {
                    let (mut name, mut tensor) = (ptr::null(), std::mem::zeroed::<sys::lyc_tensor>());
                    check(sys::lyc_module_get_param(self.raw, index, &mut name, &mut tensor))?;
                    Ok((owned(name), tensor.dtype, tensor.shape[..tensor.ndim as usize].to_vec()))
                })
                .collect()
        }
    }

    /// Use this memory for a parameter.
    ///
    /// # Safety
    /// It must stay until the module, and what was made from it, is gone or the parameter is bound anew. Nobody uses
    /// the module meanwhile, nor writes the memory while a call reads it.
    pub unsafe fn bind_param(&self, name: &str, memory: &TensorMut<'_>) -> Result<()> {
        let name = c_string(name)?;
        check(unsafe { sys::lyc_module_bind_param(self.raw, name.as_ptr(), &memory.raw) })
    }

    /// Copy values into a parameter; dtypes are converted.
    ///
    /// # Safety
    /// Nobody uses the module meanwhile, also not through another handle to it.
    pub unsafe fn write_param(&self, name: &str, values: TensorRef<'_>) -> Result<()> {
        let name = c_string(name)?;
        check(unsafe { sys::lyc_module_write_param(self.raw, name.as_ptr(), &values.raw) })
    }

    /// Copy values out of a parameter; dtypes are converted.
    pub fn read_param(&self, name: &str, values: &mut TensorMut<'_>) -> Result<()> {
        let name = c_string(name)?;
        // SAFETY: live module; the memory is ours.
        check(unsafe { sys::lyc_module_read_param(self.raw, name.as_ptr(), &values.raw) })
    }

    /// out = dW(multiplier). `base` is the pristine weight, needed where [`ModuleInfo::needs_base`] says so.
    pub fn diff_weight(&self, base: Option<TensorRef<'_>>, multiplier: f32, out: &mut TensorMut<'_>) -> Result<()> {
        let base = base.as_ref().map_or(ptr::null(), |base| &base.raw as *const _);
        // SAFETY: live module, views of borrowed memory.
        check(unsafe { sys::lyc_get_diff_weight(self.raw, base, multiplier, &out.raw, &self.context.exec()) })
    }

    /// weight += dW(multiplier).
    pub fn merge(&self, weight: &mut TensorMut<'_>, multiplier: f32) -> Result<()> {
        // SAFETY: live module, a view of memory that is ours.
        check(unsafe { sys::lyc_merge(self.raw, &weight.raw, multiplier, ptr::null(), &self.context.exec()) })
    }

    /// out = base + dW(multiplier).
    pub fn merge_to(&self, base: TensorRef<'_>, multiplier: f32, out: &mut TensorMut<'_>) -> Result<()> {
        // SAFETY: live module, views of borrowed memory.
        check(unsafe { sys::lyc_merge(self.raw, &base.raw, multiplier, &out.raw, &self.context.exec()) })
    }

    /// weight -= dW(multiplier), exact up to rounding.
    pub fn unmerge(&self, weight: &mut TensorMut<'_>, multiplier: f32) -> Result<()> {
        // SAFETY: live module, a view of memory that is ours.
        check(unsafe { sys::lyc_unmerge(self.raw, &weight.raw, multiplier, &self.context.exec()) })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { sys::lyc_module_release(self.raw) }
    }
}
