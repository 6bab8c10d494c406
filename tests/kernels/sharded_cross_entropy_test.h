// Softmax cross-entropy over the shards of a vocabulary, put together by hand as ranks do it.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/loss/loss.h"
#include "tests/kernels/device_test.h"

namespace orchard::testing {

// What one rank makes of its columns, and then of everybody's statistics.
class LossShard {
 public:
  LossShard(const Guarded& logits, std::int64_t columns, int index, DType dtype)
      : columns_(columns),
        index_(index),
        logits_(DType::f32, {logits.shape()[0], columns}),
        exponentials_(logits_),
        statistics_(DType::f32, {logits.shape()[0], softmax_statistics}),
        d_logits_(dtype, logits_.shape()),
        losses_(DType::f32, {logits.shape()[0]}) {
    const std::int64_t vocab = logits.shape()[1];
    for (std::int64_t i = 0; i < logits_.size(); ++i)
      logits_.set(i, logits.at(i / columns * vocab + shard(vocab).first_id + i % columns));
  }

  VocabularyShard shard(std::int64_t vocab) const {
    return {.first_id = index_ * columns_, .vocabulary = vocab};
  }

  void take_statistics(Stream& stream, Guarded& targets, std::int64_t vocab) {
    OnDevice logits(stream, logits_), where(stream, targets), statistics(stream, statistics_),
        exponentials(stream, exponentials_);
    SoftmaxOfShard op{.logits = logits,
                      .targets = where,
                      .shard = shard(vocab),
                      .statistics = statistics,
                      .exponentials = exponentials};
    run_repeatedly(stream, op, {&statistics, &exponentials});
    const Guarded first = statistics_;
    op.exponentials = {};
    run_and_download(stream, op, {&statistics});
    EXPECT_TRUE(statistics_ == first) << "they depend on whether exponentials are wanted";
    op.exponentials = logits.tensor();
    run_and_download(stream, op, {&statistics, &logits});
    for (std::int64_t i = 0; i < logits_.size(); ++i) {
      if (targets.at(i / columns_) < 0) continue;
      const double in_place = logits_.at(i), apart = exponentials_.at(i);
      ASSERT_TRUE(in_place == apart || (std::isnan(in_place) && std::isnan(apart)))
          << "exponentials cannot take logits' place";
    }
  }

  void take_loss(Stream& stream, Guarded& all, Guarded& targets, std::int64_t vocab, float scale) {
    Guarded factor = number(scale);
    OnDevice statistics(stream, all), where(stream, targets), losses(stream, losses_),
        exponentials(stream, exponentials_), d_logits(stream, d_logits_), factor_d(stream, factor);
    run_repeatedly(stream,
                   CrossEntropyOfShards{.statistics = statistics,
                                        .targets = where,
                                        .index = index_,
                                        .shard = shard(vocab),
                                        .scale = factor_d,
                                        .losses = losses,
                                        .exponentials = exponentials,
                                        .d_logits = d_logits},
                   {&losses, &d_logits});
  }

  const Guarded& statistics() const { return statistics_; }
  const Guarded& d_logits() const { return d_logits_; }
  const Guarded& losses() const { return losses_; }

 private:
  std::int64_t columns_;
  int index_;
  Guarded logits_, exponentials_, statistics_, d_logits_, losses_;
};

// All shards of `logits`, one after the other.
inline std::vector<LossShard> run_loss_shards(Stream& stream, const Guarded& logits,
                                              Guarded& targets, int shards, DType dtype,
                                              float scale) {
  const std::int64_t rows = logits.shape()[0], vocab = logits.shape()[1];
  std::vector<LossShard> ranks;
  Guarded all(DType::f32, {shards, rows, softmax_statistics});
  for (int i = 0; i < shards; ++i) {
    LossShard& rank = ranks.emplace_back(logits, vocab / shards, i, dtype);
    rank.take_statistics(stream, targets, vocab);
    for (std::int64_t j = 0; j < rank.statistics().size(); ++j)
      all.set(i * rank.statistics().size() + j, rank.statistics().at(j));
  }
  for (LossShard& rank : ranks) rank.take_loss(stream, all, targets, vocab, scale);
  return ranks;
}

}  // namespace orchard::testing
