// Checks cost nothing while they hold, and their messages show shapes.
#include "kernels/core/error.h"

#include <gtest/gtest.h>

#include "kernels/core/shape.h"
#include "kernels/core/tensor.h"
#include "tests/message_of.h"

namespace orchard::testing {

struct CountsFormats {
  int* times;
};

}  // namespace orchard::testing

template <>
struct fmt::formatter<orchard::testing::CountsFormats> {
  constexpr auto parse(fmt::format_parse_context& context) const { return context.begin(); }
  auto format(const orchard::testing::CountsFormats& value, fmt::format_context& context) const {
    ++*value.times;
    return context.out();
  }
};

namespace orchard::testing {
namespace {

TEST(Require, FormatsOnlyWhenTheCheckFails) {
  int times = 0;
  require(true, "{}", CountsFormats{&times});
  EXPECT_EQ(times, 0);
  EXPECT_THROW(require(false, "{}", CountsFormats{&times}), Error);
  EXPECT_EQ(times, 1);
}

TEST(ShapeText, ListsTheExtents) {
  EXPECT_EQ(fmt::format("{}", Shape{}), "[]");
  EXPECT_EQ(fmt::format("{}", Shape{7}), "[7]");
  EXPECT_EQ(fmt::format("{} and more", Shape{2, 0, 3}), "[2, 0, 3] and more");
}

TEST(ShapeText, NamesTheShapeThatACheckRefused) {
  float storage[6] = {};
  const Tensor x(storage, DType::f32, {2, 3}, DeviceKind::cpu);
  EXPECT_EQ(message_of([&] { x.slice(1, 2); }), "rows [1, 3) lie outside [2, 3]");
  EXPECT_EQ(message_of([&] { x.reshape({7}); }), "cannot view [2, 3] as [7]");
  EXPECT_EQ(message_of([&] { x.dim(2); }), "dimension 2 of shape [2, 3] does not exist");
  EXPECT_EQ(message_of([&] { x.data<bf16>(); }), "a tensor of f32 [2, 3] was read as bf16");
}

}  // namespace
}  // namespace orchard::testing
