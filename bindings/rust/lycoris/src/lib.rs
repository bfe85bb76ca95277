//! Merge, inspect and apply LyCORIS adapters (LoRA, LoHa, LoKr, DoRA, full and norm differences).
//!
//! ```no_run
//! use lycoris::{Context, MergeOptions};
//! # fn main() -> lycoris::Result<()> {
//! let context = Context::cpu()?;
//! let options = MergeOptions::new().multiplier(0.8);
//! lycoris::merge_files(&context, "model.safetensors", &["style.safetensors"], "out.safetensors", options)?;
//! # Ok(())
//! # }
//! ```
//!
//! Tensors are borrowed views: pointer, shape, strides, dtype, device. No type of a CUDA crate is in the interface;
//! streams are raw pointers. The manual of everything is the C header.

mod batch;
mod context;
mod error;
mod file;
mod merge;
mod module;
mod network;
mod report;
mod tensor;
mod text;

pub use batch::{Batch, Item};
pub use context::Context;
pub use error::{Error, Result};
pub use file::{File, Writer};
pub use merge::{inspect_file, merge_files, MergeOptions};
pub use module::{Module, ModuleBuilder, ModuleInfo};
pub use network::{MatchOptions, Network};
pub use report::Report;
pub use tensor::{Device, Element, TensorMut, TensorRef};

/// The C names without their prefix. Values that this crate does not know may occur.
pub use lycoris_sys::{
    lyc_algo as Algo, lyc_dora_axis as DoraAxis, lyc_dora_rule as DoraRule, lyc_dtype as DType, lyc_layout as Layout,
    lyc_part as Part, lyc_status as Status,
};

/// The raw declarations, for what this crate does not offer.
pub use lycoris_sys as sys;

/// Release of the library in use.
pub fn version() -> Result<String> {
    error::load()?;
    // SAFETY: a constant text.
    Ok(unsafe { text::owned(sys::lyc_version_string()) })
}
