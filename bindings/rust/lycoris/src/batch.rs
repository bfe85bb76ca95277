use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr;

use lycoris_sys as sys;

use crate::error::{check, Result};
use crate::{Context, Module, Part, TensorMut, TensorRef};

/// Many weights in one submission, prepared once and run often. It borrows its weights.
pub struct Batch<'a> {
    pub(crate) raw: *mut sys::lyc_batch,
    context: Context,
    weights: PhantomData<TensorMut<'a>>,
}

// SAFETY: a batch may be used by any thread, one at a time.
unsafe impl Send for Batch<'_> {}

/// One module on one weight.
pub struct Item<'m, 'a> {
    raw: sys::lyc_batch_item,
    base: Option<sys::lyc_tensor>,
    out: Option<sys::lyc_tensor>,
    lifetimes: PhantomData<(&'m Module, TensorMut<'a>)>,
}

impl<'m, 'a> Item<'m, 'a> {
    /// weight += dW
    pub fn in_place(module: &'m Module, weight: TensorMut<'a>) -> Self {
        Item::new(module, Some(weight.raw), None)
    }

    /// out = base + dW
    pub fn new_weight(module: &'m Module, base: TensorRef<'a>, out: TensorMut<'a>) -> Self {
        Item::new(module, Some(base.raw), Some(out.raw))
    }

    /// out = dW, for modules that need no base.
    pub fn difference(module: &'m Module, out: TensorMut<'a>) -> Self {
        Item::new(module, None, Some(out.raw))
    }

    fn new(module: &'m Module, base: Option<sys::lyc_tensor>, out: Option<sys::lyc_tensor>) -> Self {
        let raw = sys::lyc_batch_item {
            module: module.raw,
            base: ptr::null(),
            out: ptr::null(),
            row_begin: 0,
            row_count: 0,
            multiplier_index: 0,
            part: Part::WEIGHT,
            weight: ptr::null(),
        };
        Item { raw, base, out, lifetimes: PhantomData }
    }

    /// The rows of the delta that the weight takes, where a fused layer's adapter goes to its parts.
    pub fn rows(mut self, begin: i64, count: i64) -> Self {
        self.raw.row_begin = begin;
        self.raw.row_count = count;
        self
    }

    /// Which of a run's multipliers counts.
    pub fn multiplier_index(mut self, index: i32) -> Self {
        self.raw.multiplier_index = index;
        self
    }

    pub fn part(mut self, part: Part) -> Self {
        self.raw.part = part;
        self
    }
}

impl<'a> Batch<'a> {
    /// The library keeps the modules; memory that they are bound to is the caller's care.
    pub fn new(context: &Context, items: &[Item<'_, 'a>]) -> Result<Batch<'a>> {
        let address = |tensor: &Option<sys::lyc_tensor>| tensor.as_ref().map_or(ptr::null(), |t| t as *const _);
        let raw_items: Vec<_> = items
            .iter()
            .map(|item| sys::lyc_batch_item { base: address(&item.base), out: address(&item.out), ..item.raw })
            .collect();
        let mut raw = ptr::null_mut();
        // SAFETY: live context and modules, views of memory borrowed for 'a.
        check(unsafe { sys::lyc_batch_create(context.raw, raw_items.as_ptr(), raw_items.len(), &mut raw) })?;
        Ok(Batch::of(raw, context))
    }

    pub(crate) fn of(raw: *mut sys::lyc_batch, context: &Context) -> Batch<'a> {
        Batch { raw, context: context.clone(), weights: PhantomData }
    }

    /// out = base + sum of deltas. No multipliers = all 1.
    pub fn merge(&mut self, multipliers: &[f32]) -> Result<()> {
        self.run(sys::lyc_batch_op::MERGE, multipliers)
    }

    /// out = base - sum of deltas.
    pub fn unmerge(&mut self, multipliers: &[f32]) -> Result<()> {
        self.run(sys::lyc_batch_op::UNMERGE, multipliers)
    }

    /// out = sum of deltas.
    pub fn diff(&mut self, multipliers: &[f32]) -> Result<()> {
        self.run(sys::lyc_batch_op::DIFF, multipliers)
    }

    fn run(&mut self, op: sys::lyc_batch_op, multipliers: &[f32]) -> Result<()> {
        let view = TensorRef::new(multipliers, &[multipliers.len() as i64])?;
        let view = if multipliers.is_empty() { ptr::null() } else { &view.raw as *const _ };
        // SAFETY: live batch, whose weights are borrowed; CPU multipliers are read before the call returns.
        check(unsafe { sys::lyc_batch_run(self.raw, op, view, &self.context.exec()) })
    }

    /// What a run does, as text.
    pub fn explain(&self) -> Result<String> {
        let mut length = 0;
        // SAFETY: live batch; first asks for the length, then gives a buffer of it and the NUL.
        unsafe {
            check(sys::lyc_batch_explain(self.raw, ptr::null_mut(), 0, &mut length))?;
            let mut buffer = vec![0u8; length + 1];
            check(sys::lyc_batch_explain(self.raw, buffer.as_mut_ptr().cast(), buffer.len(), &mut length))?;
            let text = CString::from_vec_with_nul(buffer).map(CString::into_bytes).unwrap_or_default();
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { sys::lyc_batch_release(self.raw) }
    }
}
