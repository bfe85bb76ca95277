#include "algo/family.hpp"

namespace lyc::test {
namespace {

using testing::HasSubstr;
constexpr lyc_algo kId = LYC_ALGO_LOHA;

const Shapes kTucker = {{"hada_w1_a", {2, 6}}, {"hada_w1_b", {3, 4}}, {"hada_t1", {2, 3, 3, 2}},
                        {"hada_w2_a", {3, 6}}, {"hada_w2_b", {2, 4}}, {"hada_t2", {3, 2, 3, 2}}};

TEST(Loha, Shapes) {
  EXPECT_EQ(shapes_of(kId, {2}, {6, 4, {3, 3}}),
            (Shapes{{"hada_w1_a", {6, 2}}, {"hada_w1_b", {2, 36}}, {"hada_w2_a", {6, 2}}, {"hada_w2_b", {2, 36}}}));
  EXPECT_EQ(shapes_of(kId, {2, LYC_MODULE_TUCKER}, {6, 4, {3}}),  // the a factors are transposed
            (Shapes{{"hada_w1_a", {2, 6}},
                    {"hada_w1_b", {2, 4}},
                    {"hada_t1", {2, 2, 3}},
                    {"hada_w2_a", {2, 6}},
                    {"hada_w2_b", {2, 4}},
                    {"hada_t2", {2, 2, 3}}}));
}

TEST(Loha, RoundTrip) {
  for (const auto &layer : kLayers)
    for (std::uint32_t flags : {0, LYC_MODULE_TUCKER}) expect_round_trip(kId, {3, flags}, layer);
}

TEST(Loha, Delta) {
  for (const auto &layer : kLayers) {
    const Filled f(shapes_of(kId, {3}, layer));
    const std::int64_t columns = layer.in * layer.kernel_size();
    expect_delta(kId, f, layer, [&](auto o, auto i, auto k) {
      const auto half = [&](const char *a, const char *b) {
        double sum = 0;
        for (std::int64_t r = 0; r < 3; ++r) sum += f(a, o * 3 + r) * f(b, r * columns + i * layer.kernel_size() + k);
        return sum;
      };
      return half("hada_w1_a", "hada_w1_b") * half("hada_w2_a", "hada_w2_b");
    });
  }
}

TEST(Loha, TuckerDelta) {
  const Filled f(kTucker);
  expect_delta(kId, f, {6, 4, {3, 2}}, [&](auto o, auto i, auto k) {
    const auto half = [&](const char *a, const char *t, const char *b, std::int64_t ranks_a, std::int64_t ranks_b) {
      double sum = 0;
      for (std::int64_t p = 0; p < ranks_a; ++p)
        for (std::int64_t q = 0; q < ranks_b; ++q)
          sum += f(a, p * 6 + o) * f(t, (p * ranks_b + q) * 6 + k) * f(b, q * 4 + i);
      return sum;
    };
    return half("hada_w1_a", "hada_t1", "hada_w1_b", 2, 3) * half("hada_w2_a", "hada_t2", "hada_w2_b", 3, 2);
  });
}

TEST(Loha, RefusesByName) {
  const Shapes plain = shapes_of(kId, {2}, {6, 4, {}});
  for (const auto &[name, shape] : plain)
    EXPECT_THAT(refusal(kId, without(plain, name)), HasSubstr(name + " is missing"));
  EXPECT_THAT(refusal(kId, with(plain, "hada_w1_a", {6, 3})), HasSubstr("hada_w1_a has rank 3, hada_w1_b has 2"));
  EXPECT_THAT(refusal(kId, with(plain, "hada_w2_a", {5, 2})), HasSubstr("hada_w1_a has rows 6, hada_w2_a has 5"));
  EXPECT_THAT(refusal(kId, with(plain, "hada_w2_b", {2, 5})), HasSubstr("hada_w1_b has columns 4, hada_w2_b has 5"));
  EXPECT_THAT(refusal(kId, without(kTucker, "hada_t2")), testing::Not(HasSubstr("accepted")));
  EXPECT_THAT(refusal(kId, with(kTucker, "hada_t1", {2, 2, 3, 2})), HasSubstr("hada_t1 has rank 2, hada_w1_b has 3"));
  EXPECT_THAT(refusal(kId, with(kTucker, "hada_t2", {3, 2, 2, 3})), HasSubstr("kernels [3, 2] and [2, 3]"));
}

}  // namespace
}  // namespace lyc::test
