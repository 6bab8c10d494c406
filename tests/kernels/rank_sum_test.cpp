// The sum over ranks: the bits of a plain loop, on every device.
#include "kernels/collective/rank_sum.h"

#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

struct Case {
  DType dtype;
  std::int64_t ranks, n, stride;
  int shift = 0;  // of the own part, away from alignment
};

constexpr Case cases[] = {
    {DType::f32, 2, 1, 1},        {DType::f32, 3, 255, 256},       {DType::f32, 8, 5001, 5024},
    {DType::f32, 5, 5001, 5001},  {DType::f32, 4, 4096, 4096, 1},  {DType::f32, 1, 100, 128},
    {DType::f32, 2, 0, 32},       {DType::bf16, 2, 1, 32},         {DType::bf16, 3, 2049, 2080},
    {DType::bf16, 8, 5001, 5024}, {DType::bf16, 7, 4096, 4096, 3},
};

class RankSums : public DeviceTest<Case> {};

INSTANTIATE_TEST_SUITE_P(Devices, RankSums,
                         ::testing::Combine(every_device(), ::testing::ValuesIn(cases)),
                         device_test_name<Case>);

TEST_P(RankSums, AddInRankOrderAndRoundOnce) {
  const auto [dtype, ranks, n, stride, shift] = parameter();
  const int own_rank = static_cast<int>(ranks) / 2;
  Guarded parts = random_normal(dtype, {ranks, stride}, 1), own = random_normal(dtype, {n}, 2),
          result(dtype, {n});
  // Exponents vary, so that sums in another order differ.
  for (std::int64_t i = 0; i < ranks * stride; ++i)
    parts.set(i, std::ldexp(parts.at(i), static_cast<int>(i % 9)));
  Guarded expected(dtype, {n});
  for (std::int64_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int r = 0; r < ranks; ++r) {
      const auto part = static_cast<float>(r == own_rank ? own.at(i) : parts.at(r * stride + i));
      sum = r == 0 ? part : sum + part;
    }
    expected.set(i, sum);
  }
  OnDevice parts_d = on_device(parts), own_d = on_device(own, shift), result_d = on_device(result);
  run_repeatedly(stream(),
                 RankSum{.parts = parts_d, .own = own_d, .own_rank = own_rank, .result = result_d},
                 {&result_d});
  EXPECT_TRUE(result == expected);
  // In place of this rank's part.
  run_and_download(stream(),
                   RankSum{.parts = parts_d, .own = own_d, .own_rank = own_rank, .result = own_d},
                   {&own_d});
  EXPECT_TRUE(own == expected);
}

TEST(RankSum, RefusesWhatItCannotAdd) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  Guarded parts(DType::f32, {2, 3}), own(DType::f32, {4}), result(DType::f32, {4});
  EXPECT_NE(message_of([&] {
              run(*stream, RankSum{.parts = parts, .own = own, .own_rank = 0, .result = result});
            }),
            "");
  Guarded wide(DType::f32, {2, 4});
  EXPECT_NE(message_of([&] {
              run(*stream, RankSum{.parts = wide, .own = own, .own_rank = 2, .result = result});
            }),
            "");
}

}  // namespace
}  // namespace orchard::testing
