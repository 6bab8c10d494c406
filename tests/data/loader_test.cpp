// Prefetching: order, bounds, ends and errors.
#include "data/loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "kernels/core/error.h"

namespace orchard {
namespace {

MicroBatch numbered(std::int64_t n) {
  MicroBatch batch;
  batch.target_count = n;
  return batch;
}

TEST(Loader, DeliversInOrderWhateverTheTiming) {
  PrefetchingLoader loader(
      [](std::int64_t n) -> std::optional<MicroBatch> {
        if (n == 50) return std::nullopt;
        if (n % 7 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        return numbered(n);
      },
      3);
  for (int n = 0; n < 50; ++n) {
    if (n % 11 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const auto batch = loader.next();
    ASSERT_TRUE(batch);
    ASSERT_EQ(batch->target_count, n);
  }
  EXPECT_FALSE(loader.next());
  EXPECT_FALSE(loader.next());
}

TEST(Loader, RunsAheadOnlyAsFarAsItMay) {
  std::atomic<int> made{0};
  PrefetchingLoader loader(
      [&](std::int64_t n) -> std::optional<MicroBatch> {
        ++made;
        return numbered(n);
      },
      2);
  ASSERT_TRUE(loader.next());
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(made, 4);  // taken, two ready, one in hand
  EXPECT_GE(made, 3);
}

TEST(Loader, AnErrorArrivesInItsPlace) {
  PrefetchingLoader loader(
      [](std::int64_t n) -> std::optional<MicroBatch> {
        require(n < 2, "batch {} is broken", n);
        return numbered(n);
      },
      8);
  EXPECT_EQ(loader.next()->target_count, 0);
  EXPECT_EQ(loader.next()->target_count, 1);
  EXPECT_THROW(loader.next(), Error);
  EXPECT_THROW(loader.next(), Error);
}

TEST(Loader, StopsWhileItsQueueIsFull) {
  const auto begin = std::chrono::steady_clock::now();
  {
    PrefetchingLoader loader([](std::int64_t n) { return std::optional(numbered(n)); }, 1);
    ASSERT_TRUE(loader.next());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_THROW(PrefetchingLoader([](std::int64_t n) { return std::optional(numbered(n)); }, 0),
               Error);
}

}  // namespace
}  // namespace orchard
