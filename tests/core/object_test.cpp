// Reference counts: every reference given back once, the object gone with the last.
#include "core/object.hpp"

#include <gtest/gtest.h>

namespace lyc {
namespace {

struct Counted final : Object {
  explicit Counted(int &living) : living_(living) { ++living_; }
  ~Counted() override { --living_; }
  int &living_;
};

TEST(Ref, OwnsOneReference) {
  int living = 0;
  {
    Ref<Counted> a(new Counted(living));
    EXPECT_EQ(living, 1);
    const Ref<Counted> b = a, c = Ref<Counted>::share(*a);
    a = Ref<Counted>();
    EXPECT_FALSE(a);
    EXPECT_EQ(living, 1);
    EXPECT_EQ(b.get(), c.get());
  }
  EXPECT_EQ(living, 0);
}

TEST(Ref, MovesAndAssignsToItself) {
  int living = 0;
  Ref<Counted> a(new Counted(living));
  Ref<Counted> b = std::move(a);
  const Ref<Counted> &same = b;
  b = same;
  EXPECT_TRUE(b->alive());
  b = Ref<Counted>(new Counted(living));
  EXPECT_EQ(living, 1);
  Counted *detached = b.detach();
  EXPECT_FALSE(b);
  EXPECT_EQ(living, 1);
  detached->release();
  EXPECT_EQ(living, 0);
}

}  // namespace
}  // namespace lyc
