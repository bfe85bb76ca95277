// One family written as another.
#pragma once

#include "core/module.hpp"

namespace lyc {

/// A module of family `to` with the same delta, in the same context, its parameters F32. UNSUPPORTED where there is
/// none; so far `to` is LOCON, for sums of low-rank products.
Ref<lyc_module> convert(const lyc_module &module, lyc_algo to);

}  // namespace lyc
