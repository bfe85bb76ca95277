use lycoris_sys as sys;

use crate::error::{check, growing, Result};
use crate::text::owned;

/// What an operation did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Adapted layers in the adapters.
    pub layers: u64,
    /// Of these, the ones that found their weight.
    pub matched: u64,
    pub excluded: u64,
    pub unmatched: u64,
    /// Tensors in the base.
    pub tensors: u64,
    /// Tensors that differ.
    pub changed: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub seconds: f64,
    /// Everything, as one JSON object.
    pub json: String,
}

impl Report {
    /// # Safety
    /// A live report, whose reference is given over.
    pub(crate) unsafe fn take(raw: *mut sys::lyc_report) -> Result<Report> {
        let mut info = growing(sys::lyc_report_info_init);
        let (status, json) = unsafe { (sys::lyc_report_get_info(raw, &mut info), owned(sys::lyc_report_json(raw))) };
        unsafe { sys::lyc_report_release(raw) };
        check(status)?;
        Ok(Report {
            layers: info.layer_count,
            matched: info.matched_count,
            excluded: info.excluded_count,
            unmatched: info.unmatched_count,
            tensors: info.tensor_count,
            changed: info.changed_count,
            bytes_read: info.bytes_read,
            bytes_written: info.bytes_written,
            seconds: info.seconds,
            json,
        })
    }
}
