#include <iterator>

#include "algo/families.hpp"

namespace lyc::algo {
namespace {

constexpr const Algorithm *kAlgorithms[] = {
#define LYC_FAMILY(constant) &constant,
#include "algo/families.def"
#undef LYC_FAMILY
};

}  // namespace

bool contains(const char *const *names, std::string_view name) {
  for (; *names; ++names)
    if (name == *names) return true;
  return false;
}

AlgorithmList algorithms() { return {std::begin(kAlgorithms), std::end(kAlgorithms)}; }

const Algorithm *find_algorithm(lyc_algo id) {
  for (const Algorithm *algorithm : kAlgorithms)
    if (algorithm->id == id) return algorithm;
  return nullptr;
}

const Algorithm *find_algorithm(std::string_view name) {
  for (const Algorithm *algorithm : kAlgorithms)
    if (algorithm->name == name || contains(algorithm->aliases, name)) return algorithm;
  return nullptr;
}

const Algorithm *recognise(const Factors &factors) {
  for (const Algorithm *algorithm : kAlgorithms)
    for (const char *const *suffix = algorithm->signature; *suffix; ++suffix)
      if (factors.has(*suffix) && (!algorithm->owns || algorithm->owns(factors))) return algorithm;
  return nullptr;
}

}  // namespace lyc::algo
