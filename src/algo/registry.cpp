#include "algo/families.hpp"

namespace lyc::algo {
namespace {

// The one list, in the order in which files are recognised.
constexpr const Algorithm *kAlgorithms[] = {&kLocon, &kLoha, &kLokr, &kFull, &kNorm};

struct Alias {
  std::string_view name;
  lyc_algo id;
};
constexpr Alias kAliases[] = {{"lora", LYC_ALGO_LOCON}, {"kron", LYC_ALGO_LOKR}, {"diff", LYC_ALGO_FULL}};

}  // namespace

const Algorithm *find_algorithm(lyc_algo id) {
  for (const Algorithm *algorithm : kAlgorithms)
    if (algorithm->id == id) return algorithm;
  return nullptr;
}

const Algorithm *find_algorithm(std::string_view name) {
  for (const Algorithm *algorithm : kAlgorithms)
    if (algorithm->name == name) return algorithm;
  for (const Alias &alias : kAliases)
    if (alias.name == name) return find_algorithm(alias.id);
  return nullptr;
}

const Algorithm *recognise(const Factors &factors) {
  for (const Algorithm *algorithm : kAlgorithms)
    for (const char *const *suffix = algorithm->signature; *suffix; ++suffix)
      if (factors.has(*suffix)) return algorithm;
  return nullptr;
}

}  // namespace lyc::algo
