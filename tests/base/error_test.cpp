// Messages are the same whatever the host did to the global locale.
#include "base/error.hpp"

#include <gtest/gtest.h>
#include <locale>

namespace lyc {
namespace {

struct Dots : std::numpunct<char> {
  char do_thousands_sep() const override { return '.'; }
  char do_decimal_point() const override { return ','; }
  std::string do_grouping() const override { return "\3"; }
};

struct HostLocale {
  explicit HostLocale(const std::locale &locale) : before(std::locale::global(locale)) {}
  ~HostLocale() { std::locale::global(before); }
  std::locale before;
};

TEST(Concat, JoinsTextAndNumbers) {
  EXPECT_EQ(concat("rank is ", 0, std::string(", not "), std::string_view("ten"), '.'), "rank is 0, not ten.");
  EXPECT_EQ(concat(std::int64_t{-1234567890123}, " ", std::uint64_t{1} << 63), "-1234567890123 9223372036854775808");
  EXPECT_EQ(concat(0.5, " ", 1e300, " ", std::numeric_limits<double>::quiet_NaN()), "0.5 1e+300 nan");
  EXPECT_EQ(concat(LYC_ERROR_IO), "5");
}

TEST(Concat, KnowsNoLocale) {
  const HostLocale host(std::locale(std::locale::classic(), new Dots));
  EXPECT_EQ(concat(1234567, " ", 1234.5), "1234567 1234.5");
}

TEST(Require, MessageAndStatus) {
  try {
    require(false, "rank is ", 0);
    FAIL();
  } catch (const Error &error) {
    EXPECT_EQ(error.status(), LYC_ERROR_INVALID_ARGUMENT);
    EXPECT_STREQ(error.what(), "rank is 0");
  }
}

}  // namespace
}  // namespace lyc
