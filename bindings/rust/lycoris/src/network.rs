use std::path::Path;
use std::ptr;

use lycoris_sys as sys;

use crate::error::{check, growing, Result};
use crate::text::{c_path, owned, List};
use crate::{Batch, Context, DoraRule, Module, Report, TensorMut};

/// An adapter file in memory: modules, and the names of their layers.
pub struct Network {
    raw: *mut sys::lyc_network,
    context: Context,
}

// SAFETY: as for Module; a network does not change.
unsafe impl Send for Network {}

/// Which layers count, and what is left over.
#[derive(Clone, Debug, Default)]
pub struct MatchOptions {
    /// Adapter keys that find no weight are reported, and are no error.
    pub allow_unmatched: bool,
    /// Shell wildcards; only layers that match one are used. None = all.
    pub includes: Vec<String>,
    pub excludes: Vec<String>,
}

impl Network {
    /// The file's dialect is found by itself.
    pub fn load(context: &Context, path: impl AsRef<Path>) -> Result<Network> {
        Network::load_with_rule(context, path, DoraRule::DEFAULT)
    }

    /// With a DoRA rule instead of the dialect's.
    pub fn load_with_rule(context: &Context, path: impl AsRef<Path>, rule: DoraRule) -> Result<Network> {
        let path = c_path(path.as_ref())?;
        let mut options = growing(sys::lyc_network_options_init);
        options.dora_rule = rule;
        let mut raw = ptr::null_mut();
        // SAFETY: live context, a C string, valid options, a place for the result.
        check(unsafe { sys::lyc_network_load(context.raw, path.as_ptr(), &options, &mut raw) })?;
        Ok(Network { raw, context: context.clone() })
    }

    /// Layer names and modules, ordered by name.
    pub fn modules(&self) -> Result<Vec<(String, Module)>> {
        let mut count = 0;
        // SAFETY: live network, places for the results.
        unsafe {
            check(sys::lyc_network_count(self.raw, &mut count))?;
            (0..count)
                .map(|index| {
                    let (mut name, mut module) = (ptr::null(), ptr::null_mut());
                    check(sys::lyc_network_get_module(self.raw, index, &mut name, &mut module))?;
                    Ok((owned(name), Module::of(module, &self.context)))
                })
                .collect()
        }
    }

    /// Find the weights that networks adapt, and prepare the batch that changes them in place. Multiplier i of a run
    /// belongs to networks\[i\].
    pub fn match_weights<'a>(
        context: &Context,
        networks: &[&Network],
        weights: Vec<(&str, TensorMut<'a>)>,
        options: &MatchOptions,
    ) -> Result<(Batch<'a>, Report)> {
        let networks: Vec<_> = networks.iter().map(|network| network.raw).collect();
        let names = List::of(weights.iter().map(|(name, _)| name))?;
        let views: Vec<_> = weights.iter().map(|(_, tensor)| tensor.raw).collect();
        let (includes, excludes) = (List::of(&options.includes)?, List::of(&options.excludes)?);
        let mut raw_options = growing(sys::lyc_match_options_init);
        raw_options.flags = if options.allow_unmatched { sys::LYC_ALLOW_UNMATCHED } else { 0 };
        (raw_options.includes, raw_options.include_count) = (includes.as_ptr(), includes.len());
        (raw_options.excludes, raw_options.exclude_count) = (excludes.as_ptr(), excludes.len());
        let (mut batch, mut report) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: live objects, lists of the lengths given, memory borrowed for 'a, places for the results.
        unsafe {
            check(sys::lyc_batch_create_from_networks(
                context.raw,
                networks.as_ptr(),
                networks.len(),
                names.as_ptr(),
                views.as_ptr(),
                views.len(),
                &raw_options,
                &mut batch,
                &mut report,
            ))?;
            let batch = Batch::of(batch, context);
            Ok((batch, Report::take(report)?))
        }
    }

    /// Add this adapter to weights, in place.
    pub fn merge_into(&self, weights: Vec<(&str, TensorMut<'_>)>, multiplier: f32) -> Result<Report> {
        let options = MatchOptions::default();
        let (mut batch, report) = Network::match_weights(&self.context, &[self], weights, &options)?;
        batch.merge(&[multiplier])?;
        Ok(report)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { sys::lyc_network_release(self.raw) }
    }
}
