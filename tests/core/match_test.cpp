// Rows of a weight under several adapters, and shell wildcards.
#include "core/match.hpp"

#include <gtest/gtest.h>

#include "base/wildcard.hpp"
#include "support/random.hpp"

namespace lyc::test {
namespace {

Assignment rows(std::size_t source, std::int64_t base_row, std::int64_t count, std::int64_t adapter_row = 0) {
  Assignment a;
  a.source = source;
  a.base_row = base_row;
  a.rows = count;
  a.adapter_row = adapter_row;
  return a;
}

TEST(Segments, FusedAndSplit) {
  const Assignment list[] = {rows(0, 0, 12), rows(1, 0, 4), rows(1, 4, 4), rows(1, 8, 4)};
  const auto cut = segments(list, list + 4);
  ASSERT_EQ(cut.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(cut[i].row_begin, static_cast<std::int64_t>(4 * i));
    EXPECT_EQ(cut[i].row_count, 4);
    ASSERT_EQ(cut[i].assignments.size(), 2u);
    EXPECT_EQ(placement_in(cut[i], *cut[i].assignments[0], 0).row_begin, static_cast<std::int64_t>(4 * i));
    EXPECT_EQ(placement_in(cut[i], *cut[i].assignments[1], 1).row_begin, 0);
  }
}

// Whatever the assignments: every row is in at most one segment, with exactly the assignments that cover it.
TEST(Segments, CoverEveryRowOnce) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    std::vector<Assignment> list;
    for (std::int64_t n = random.between(0, 6); n > 0; --n)
      list.push_back(rows(0, random.between(0, 10), random.between(0, 8), random.between(0, 5)));
    const auto cut = segments(list.data(), list.data() + list.size());
    for (std::int64_t row = 0; row < 20; ++row) {
      std::vector<const Assignment *> want, got;
      for (const Assignment &a : list)
        if (a.base_row <= row && row < a.base_row + a.rows) want.push_back(&a);
      for (const Segment &segment : cut)
        if (segment.row_begin <= row && row < segment.row_begin + segment.row_count) {
          ASSERT_TRUE(got.empty());
          got = segment.assignments;
          for (const Assignment *a : got) {
            const Placement placement = placement_in(segment, *a, 3);
            ASSERT_EQ(placement.row_begin - segment.row_begin, a->adapter_row - a->base_row);
            ASSERT_EQ(placement.row_count, segment.row_count);
          }
        }
      ASSERT_EQ(got, want) << round << ", row " << row;
    }
  }
}

/// The definition of wildcards, word for word; sets in brackets are handled as in fnmatch.
bool reference_match(std::string_view p, std::string_view n) {
  if (p.empty()) return n.empty();
  if (p[0] == '*') return reference_match(p.substr(1), n) || (!n.empty() && reference_match(p, n.substr(1)));
  if (n.empty()) return false;
  const std::size_t close = p[0] == '[' ? p.find(']', 2) : p.npos;
  if (close == p.npos) return (p[0] == '?' || p[0] == n[0]) && reference_match(p.substr(1), n.substr(1));
  std::string_view set = p.substr(1, close - 1);
  const bool inverted = set.size() > 1 && set[0] == '!';
  if (inverted) set.remove_prefix(1);
  bool found = false;
  while (!set.empty()) {
    const bool range = set.size() > 2 && set[1] == '-';
    found |= range ? set[0] <= n[0] && n[0] <= set[2] : set[0] == n[0];
    set.remove_prefix(range ? 3 : 1);
  }
  return found != inverted && reference_match(p.substr(close + 1), n.substr(1));
}

TEST(Wildcard, EqualsTheRecursiveDefinition) {
  Random random(2);
  const auto text = [&](const char *alphabet, std::int64_t letters) {
    std::string s;
    for (std::int64_t n = random.between(0, 8); n > 0; --n) s += alphabet[random.between(0, letters - 1)];
    return s;
  };
  for (int round = 0; round < 300000; ++round) {
    const std::string pattern = text("ab*?[]!-*", 9), name = text("abc-]", 5);
    ASSERT_EQ(matches_wildcard(pattern, name), reference_match(pattern, name)) << pattern << " on " << name;
  }
}

TEST(Wildcard, LongPatternsTakeNoLongTime) {
  const std::string name(5000, 'a');
  std::string pattern;
  for (int i = 0; i < 200; ++i) pattern += "*a";
  EXPECT_TRUE(matches_wildcard(pattern, name));
  EXPECT_FALSE(matches_wildcard(pattern + "b", name));
}

}  // namespace
}  // namespace lyc::test
