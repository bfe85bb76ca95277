use std::any::Any;
use std::ffi::{c_void, CString};
use std::ops::ControlFlow;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::Path;
use std::ptr;

use lycoris_sys as sys;

use crate::error::{check, growing, Result};
use crate::text::{c_path, c_string, List};
use crate::{Context, DType, DoraRule, Report};

type ProgressFn<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// How to merge; see `lyc_merge_options`.
#[derive(Default)]
pub struct MergeOptions<'a> {
    rules: Vec<(Option<String>, i32, f32)>,
    includes: Vec<String>,
    excludes: Vec<String>,
    dtype: Option<DType>,
    dora_rule: Option<DoraRule>,
    flags: u32,
    progress: Option<Box<ProgressFn<'a>>>,
}

impl<'a> MergeOptions<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Strength of all adapters.
    pub fn multiplier(self, multiplier: f32) -> Self {
        self.rule(None, -1, multiplier)
    }

    /// Strength of one adapter.
    pub fn adapter_multiplier(self, adapter: usize, multiplier: f32) -> Self {
        self.rule(None, adapter as i32, multiplier)
    }

    /// Strength by layer; later rules win. Adapter -1 = all.
    pub fn rule(mut self, pattern: Option<&str>, adapter: i32, multiplier: f32) -> Self {
        self.rules.push((pattern.map(str::to_owned), adapter, multiplier));
        self
    }

    /// Use only layers that match one of the wildcards.
    pub fn include(mut self, pattern: &str) -> Self {
        self.includes.push(pattern.to_owned());
        self
    }

    pub fn exclude(mut self, pattern: &str) -> Self {
        self.excludes.push(pattern.to_owned());
        self
    }

    /// Of floating-point tensors in the output, instead of their own.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    pub fn dora_rule(mut self, rule: DoraRule) -> Self {
        self.dora_rule = Some(rule);
        self
    }

    pub fn allow_unmatched(mut self) -> Self {
        self.flags |= sys::LYC_ALLOW_UNMATCHED;
        self
    }

    pub fn overwrite(mut self) -> Self {
        self.flags |= sys::LYC_OVERWRITE;
        self
    }

    /// Called now and then with the bytes done and in total, on the calling thread; `Break` cancels.
    pub fn progress(mut self, progress: impl FnMut(u64, u64) -> ControlFlow<()> + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

/// What the callback needs, and the panic that it caught.
struct Progress<'a> {
    function: Box<ProgressFn<'a>>,
    panic: Option<Box<dyn Any + Send>>,
}

/// No panic may cross C: it cancels, and goes on when the call is back.
unsafe extern "C" fn report_progress(user_data: *mut c_void, done: u64, total: u64) -> i32 {
    // SAFETY: user_data is the Progress of the call under way.
    let progress = unsafe { &mut *user_data.cast::<Progress<'_>>() };
    match catch_unwind(AssertUnwindSafe(|| (progress.function)(done, total))) {
        Ok(flow) => flow.is_break() as i32,
        Err(panic) => {
            progress.panic = Some(panic);
            1
        }
    }
}

/// Merge adapters into a base model, file to file. Nothing appears at `out` before all is written.
pub fn merge_files<P: AsRef<Path>>(
    context: &Context,
    base: impl AsRef<Path>,
    adapters: &[P],
    out: impl AsRef<Path>,
    options: MergeOptions<'_>,
) -> Result<Report> {
    let (base, out) = (c_path(base.as_ref())?, c_path(out.as_ref())?);
    let adapters = List::new(adapters.iter().map(|path| c_path(path.as_ref())).collect::<Result<_>>()?);
    let (includes, excludes) = (List::of(&options.includes)?, List::of(&options.excludes)?);
    let patterns: Vec<Option<CString>> = (options.rules.iter())
        .map(|(pattern, ..)| pattern.as_deref().map(c_string).transpose())
        .collect::<Result<_>>()?;
    let rules: Vec<_> = (options.rules.iter().zip(&patterns))
        .map(|(&(_, adapter_index, multiplier), pattern)| sys::lyc_multiplier_rule {
            pattern: pattern.as_ref().map_or(ptr::null(), |text| text.as_ptr()),
            adapter_index,
            multiplier,
        })
        .collect();
    let mut progress = options.progress.map(|function| Progress { function, panic: None });

    let mut raw = growing(sys::lyc_merge_options_init);
    raw.flags = options.flags;
    raw.dtype = options.dtype.unwrap_or(DType::NONE);
    raw.dora_rule = options.dora_rule.unwrap_or(DoraRule::DEFAULT);
    (raw.multipliers, raw.multiplier_count) = (rules.as_ptr(), rules.len());
    (raw.includes, raw.include_count) = (includes.as_ptr(), includes.len());
    (raw.excludes, raw.exclude_count) = (excludes.as_ptr(), excludes.len());
    if let Some(progress) = &mut progress {
        raw.progress = Some(report_progress);
        raw.user_data = ptr::from_mut(progress).cast();
    }
    let mut report = ptr::null_mut();
    // SAFETY: live context, C strings, options and lists that outlive the call, a place for the result.
    let status = unsafe {
        let (list, count) = (adapters.as_ptr(), adapters.len());
        sys::lyc_merge_files(context.raw, base.as_ptr(), list, count, out.as_ptr(), &raw, &mut report)
    };
    if let Some(panic) = progress.and_then(|progress| progress.panic) {
        resume_unwind(panic);
    }
    check(status)?;
    // SAFETY: the report just made.
    unsafe { Report::take(report) }
}

/// Look into a base or adapter file; the report's JSON has the answer.
pub fn inspect_file(context: &Context, path: impl AsRef<Path>) -> Result<Report> {
    let path = c_path(path.as_ref())?;
    let mut report = ptr::null_mut();
    // SAFETY: live context, a C string, a place for the result.
    unsafe {
        check(sys::lyc_inspect_file(context.raw, path.as_ptr(), &mut report))?;
        Report::take(report)
    }
}
