// Depthwise convolution by the vendor's library, beside our kernels: sums of integers, so equal bits.
#include <fmt/core.h>

#include "kernels/convolution/convolution.h"
#include "kernels/core/error.h"
#include "kernels/gpu/library_calls.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/environment.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

class DepthwiseLibrary : public ::testing::TestWithParam<DeviceKind> {
 protected:
  // Integers of at most 3.
  static Guarded integers(const Shape& shape, int seed) {
    Guarded values(DType::bf16, shape);
    for (std::int64_t i = 0; i < values.size(); ++i)
      values.set(i, static_cast<double>((i * 2654435761 + seed) / 64 % 7 - 3));
    return values;
  }
  // What `op(picture, weight, result)` computes with ORCHARD_GPU_DEPTHWISE = `library`: by cuDNN
  // if, and only if, it is asked for.
  template <class Make>
  static Guarded result_of(const char* library, const Make& make) {
    const Environment environment("ORCHARD_GPU_DEPTHWISE", library);
    const FoundDevice found = find_device(GetParam());
    const auto stream = found.device->make_stream();
    const Shape shape{3, 11, 7, 24};
    Guarded picture = integers(shape, 1), weight = integers({24, 3, 3}, 2);
    Guarded result(DType::bf16, shape);
    OnDevice picture_d(*stream, picture), weight_d(*stream, weight), result_d(*stream, result);
    run_and_download(*stream, make(picture_d, weight_d, result_d), {&result_d});
    EXPECT_EQ(found.device->extension<LibraryCalls>().count > 0, library == std::string("cudnn"));
    return result;
  }
  void SetUp() override {
    if (const FoundDevice found = find_device(GetParam()); !found.device)
      GTEST_SKIP() << found.absence;
  }
};

template <class Test>
void expect_equal(const Test& result_of) {
  if (const std::string error = message_of([&] { result_of("cudnn"); });
      error.starts_with("cuDNN is not installed") || error.starts_with("this program was built"))
    GTEST_SKIP() << error;
  EXPECT_TRUE(result_of("cudnn") == result_of("own"));
}

TEST_P(DepthwiseLibrary, ForwardEqualsOurs) {
  expect_equal([](const char* library) {
    return result_of(library, [](Tensor x, Tensor weight, Tensor y) {
      return DepthwiseConv3x3Forward{.x = x, .weight = weight, .y = y};
    });
  });
}

TEST_P(DepthwiseLibrary, TheGradientOfTheInputEqualsOurs) {
  expect_equal([](const char* library) {
    return result_of(library, [](Tensor d_y, Tensor weight, Tensor d_x) {
      return DepthwiseConv3x3BackwardInput{.d_y = d_y, .weight = weight, .d_x = d_x};
    });
  });
}

TEST_P(DepthwiseLibrary, AnUnknownOneIsRefused) {
  EXPECT_EQ(message_of([] {
              result_of("cudann", [](Tensor x, Tensor weight, Tensor y) {
                return DepthwiseConv3x3Forward{.x = x, .weight = weight, .y = y};
              });
            }),
            "ORCHARD_GPU_DEPTHWISE is cudann; it may be own or cudnn");
}

INSTANTIATE_TEST_SUITE_P(Gpu, DepthwiseLibrary,
                         ::testing::Values(DeviceKind::simt, DeviceKind::cuda),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace orchard::testing
