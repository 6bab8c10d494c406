// Sorts of pairs by CUB, on a GPU, and by what stands in for it on the emulator.
#include "kernels/gpu/sort_pairs.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/call.h"
#endif

namespace orchard::testing {
namespace {

using ::testing::HasSubstr;

std::size_t scratch_bytes([[maybe_unused]] DeviceKind kind, int items, int bits) {
#ifdef ORCHARD_HAS_CUDA
  if (kind == DeviceKind::cuda) return cuda::sort_scratch_bytes(items, bits);
#endif
  return simt::sort_scratch_bytes(items, bits);
}

void queue_sort(Stream& stream, const SortPairs& sort, std::byte* scratch) {
#ifdef ORCHARD_HAS_CUDA
  if (stream.device().kind() == DeviceKind::cuda) return cuda::sort_pairs(stream, sort, scratch);
#endif
  simt::sort_pairs(stream, sort, scratch);
}

struct Case {
  int items, bits;
  int different = 0;  // keys; 0: as many as the bits hold
};

// Pairs on the host, and their copies on a device. Values are unlike the places of their keys.
class Pairs {
 public:
  Pairs(Stream& stream, const Case& c)
      : stream_(stream),
        case_(c),
        keys_(DType::i32, {c.items}),
        values_(keys_),
        sorted_keys_(keys_),
        sorted_values_(keys_),
        scratch_(stream.device().allocate(scratch_bytes(stream.device().kind(), c.items, c.bits))) {
    fill(1);
    for (int i = 0; i < c.items; ++i) values_.set(i, 5 * i - 7);
  }

  // Random keys; the largest that the bits hold is among them.
  void fill(unsigned seed) {
    std::mt19937 engine(seed);
    const std::uint32_t most = (std::uint32_t{1} << case_.bits) - 1;
    const std::uint32_t different = case_.different > 0 ? case_.different - 1u : most;
    for (int i = 0; i < case_.items; ++i) keys_.set(i, most - (engine() & most) % (different + 1));
    if (case_.items > 2) keys_.set(case_.items / 2, most);
  }

  void upload() {
    keys_d_.upload();
    values_d_.upload();
  }
  SortPairs sort() {
    return {.items = case_.items,
            .bits = case_.bits,
            .keys = keys_d_.tensor().data<std::int32_t>(),
            .values = values_d_.tensor().data<std::int32_t>(),
            .sorted_keys = sorted_keys_d_.tensor().data<std::int32_t>(),
            .sorted_values = sorted_values_d_.tensor().data<std::int32_t>()};
  }
  std::byte* scratch() const { return scratch_.data(); }

  void download_and_check() {
    std::vector<int> order(static_cast<std::size_t>(case_.items));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, {}, [&](int i) { return keys_.at(i); });
    Guarded keys = keys_, values = values_;
    for (OnDevice* const each : {&keys_d_, &values_d_, &sorted_keys_d_, &sorted_values_d_})
      each->download();
    stream_.synchronize();
    EXPECT_TRUE(keys_ == keys) << "keys that were given have changed";
    EXPECT_TRUE(values_ == values) << "values that were given have changed";
    for (int i = 0; i < case_.items; ++i) {
      const int from = order[static_cast<std::size_t>(i)];
      ASSERT_EQ(sorted_keys_.at(i), keys.at(from)) << "place " << i;
      ASSERT_EQ(sorted_values_.at(i), values.at(from)) << "place " << i;
    }
  }

 private:
  Stream& stream_;
  Case case_;
  Guarded keys_, values_, sorted_keys_, sorted_values_;
  OnDevice keys_d_{stream_, keys_}, values_d_{stream_, values_},
      sorted_keys_d_{stream_, sorted_keys_}, sorted_values_d_{stream_, sorted_values_};
  Buffer scratch_;
};

using SortOfPairs = DeviceTest<Case>;

TEST_P(SortOfPairs, OrdersByKeyAndKeepsEqualKeysInOrder) {
  Pairs pairs(stream(), parameter());
  pairs.upload();
  queue_sort(stream(), pairs.sort(), pairs.scratch());
  pairs.download_and_check();
}

TEST_P(SortOfPairs, AGraphSortsWhatIsThereWhenItIsReplayed) {
  Pairs pairs(stream(), parameter());
  pairs.upload();
  queue_sort(stream(), pairs.sort(), pairs.scratch());
  stream().synchronize();
  const auto graph = stream().device().capture(
      stream(), [&] { queue_sort(stream(), pairs.sort(), pairs.scratch()); });
  for (const unsigned seed : {2u, 3u}) {
    pairs.fill(seed);
    pairs.upload();
    graph->replay(stream());
    pairs.download_and_check();
  }
}

// 4864 pairs are what a block of CUB's sorts alone; digits have 8 bits.
INSTANTIATE_TEST_SUITE_P(
    Sizes, SortOfPairs,
    ::testing::Combine(every_gpu(),
                       ::testing::Values(Case{0, 8}, Case{1, 1}, Case{31, 5}, Case{31, 31},
                                         Case{4864, 16}, Case{4865, 16}, Case{100'000, 1},
                                         Case{100'000, 8}, Case{100'000, 9}, Case{100'000, 17},
                                         Case{100'000, 31}, Case{100'000, 31, 1000},
                                         Case{100'000, 20, 1})),
    device_test_name<Case>);

class EmulatedSort : public ::testing::Test {
 protected:
  // What is said of keys [4] of this many bits.
  std::string error_of(const std::vector<int>& keys, int bits) const {
    Guarded given = integers({4}, keys), out(DType::i32, {4});
    OnDevice given_d(*stream_, given), keys_d(*stream_, out), values_d(*stream_, out);
    const Buffer scratch = device_->allocate(simt::sort_scratch_bytes(4, bits));
    return error_of({.items = 4,
                     .bits = bits,
                     .keys = given_d.tensor().data<std::int32_t>(),
                     .values = given_d.tensor().data<std::int32_t>(),
                     .sorted_keys = keys_d.tensor().data<std::int32_t>(),
                     .sorted_values = values_d.tensor().data<std::int32_t>()},
                    scratch);
  }
  std::string error_of(const SortPairs& sort, const Buffer& scratch) const {
    return message_of([&] {
      simt::sort_pairs(*stream_, sort, scratch.data());
      stream_->synchronize();
    });
  }
  Buffer words(int count) const { return device_->allocate(4 * static_cast<std::size_t>(count)); }

  std::unique_ptr<SimtDevice> device_ = make_simt_device();
  std::unique_ptr<Stream> stream_ = device_->make_stream();
};

TEST_F(EmulatedSort, RefusesKeysThatAGpuWouldMisplace) {
  EXPECT_EQ(error_of({7, 0, 3, 7}, 3), "");
  EXPECT_THAT(error_of({7, 0, 8, 7}, 3),
              HasSubstr("sort_pairs: key 2 is 8, which is negative or has more than 3 bits"));
  EXPECT_THAT(error_of({7, -1, 3, 7}, 31), HasSubstr("key 1 is -1, which is negative"));
  EXPECT_THAT(error_of({0, 0, 0, 0}, 32), HasSubstr("sort_pairs: keys of 32 bits"));
  EXPECT_THAT(error_of({0, 0, 0, 0}, 0), HasSubstr("sort_pairs: keys of 0 bits"));
}

TEST_F(EmulatedSort, ShowsThatArraysOverlapOrAreTooShort) {
  const Buffer in = words(4), keys = words(4), values = words(4), scratch = words(8);
  Guarded zero = zeros(DType::i32, {4});
  const auto i32 = [](const Buffer& buffer) {
    return reinterpret_cast<std::int32_t*>(buffer.data());
  };
  const auto sort = [&](const Buffer& sorted_keys, const Buffer& with) {
    stream_->copy(in.tensor(DType::i32, {4}), zero);
    return error_of({.items = 4,
                     .bits = 1,
                     .keys = i32(in),
                     .values = i32(in),
                     .sorted_keys = i32(sorted_keys),
                     .sorted_values = i32(values)},
                    with);
  };
  EXPECT_EQ(sort(keys, scratch), "");
  EXPECT_THAT(sort(in, scratch), HasSubstr("key 0 is -1")) << "keys are sorted into themselves";
  EXPECT_THAT(sort(keys, in), HasSubstr("what 32 bytes are written to"));
  EXPECT_THAT(sort(keys, Buffer()), HasSubstr("what 32 bytes are written to"));
  EXPECT_THAT(sort(words(3), scratch), HasSubstr("what 16 bytes are written to"));
}

#ifdef ORCHARD_HAS_CUDA
TEST(SortOfPairsByCub, IsNotBlamedForWhatACallBeforeItLeft) {
  const FoundDevice found = find_device(DeviceKind::cuda);
  if (!found.device) GTEST_SKIP() << found.absence;
  const auto stream = found.device->make_stream();
  Pairs pairs(*stream, {.items = 100, .bits = 8});
  pairs.upload();
  EXPECT_NE(cudaSetDevice(-1), cudaSuccess);
  queue_sort(*stream, pairs.sort(), pairs.scratch());
  pairs.download_and_check();
}
#endif

}  // namespace
}  // namespace orchard::testing
