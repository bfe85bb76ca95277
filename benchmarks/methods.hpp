// The methods that the benchmarks measure, as terms of random values.
#pragma once

#include <vector>

#include "support/weight_case.hpp"

namespace lyc::bench {

struct Method {
  const char *name;
  test::AdapterChoice adapter;
  double operations = 0.0;  // of the weight's computation, for each element
  bool only_kernels = false;
  bool prepared = false;  // with norms made beforehand
};

std::vector<Method> methods();

/// With as many stages as the shape has; false if the method does not fit it.
bool complete(Method &method, const test::Shape &shape);

/// Rotations have none in any family; those of the other terms stay random.
void use_family_coefficients(test::WeightCase &weights);

/// As prepared norms, in `memory`.
void use_norms(test::WeightCase &weights, std::vector<float> &memory);

}  // namespace lyc::bench
