// The head's loss and gradients over several chunks of targets are those of a whole computation in
// fp64, and the logits are never whole. Run under mpirun, too: tensor ranks share the vocabulary.
#include "models/head.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/gemm/peak.h"
#include "models/tensor_parallel.h"
#include "parallel/random.h"
#include "tests/comm/ranks_test.h"
#include "tests/kernels/op_test.h"
#include "tests/models/host_scales.h"

namespace orchard::testing {
namespace {

// Ids of one rank: on the CPU a chunk then has 128 targets. Seven times the least chunk of 64 leave a
// remainder for every larger chunk.
constexpr std::int64_t share = 24001, hidden = 8, rows = 500;
constexpr std::int64_t targets = 437, padded_targets = 7 * target_multiple;
constexpr float scale = 1.0f / targets;

std::vector<float> normal_values(const std::string& name, std::int64_t count, DType dtype) {
  const CounterRandom random(31, name);
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(0.8 * random.normal(static_cast<std::uint64_t>(i)));
    values.push_back(dtype == DType::f32 ? value : to_float(to_bf16(value)));
  }
  return values;
}

// Rows that predict a target, some apart and some side by side, and ids at both ends of every share.
struct Targets {
  explicit Targets(std::int64_t vocabulary) {
    for (std::int64_t i = 0; i < padded_targets; ++i) {
      const bool real = i < targets;
      where.push_back(real ? static_cast<std::int32_t>(i + i / 7) : -1);
      const std::int64_t id = i % 5 == 0   ? i / 5 % (vocabulary / share) * share
                              : i % 5 == 1 ? (i / 5 % (vocabulary / share) + 1) * share - 1
                                           : i * 7919 % vocabulary;
      ids.push_back(real ? static_cast<std::int32_t>(id) : -1);
    }
  }
  std::vector<std::int32_t> where, ids;  // [padded targets]
};

// A sum, and the sizes of its terms added up.
struct Sum {
  double value = 0, terms = 0;
};

struct Whole {
  std::vector<double> losses;     // [padded targets]
  std::vector<Sum> d_h, d_table;  // [rows, hidden], [vocabulary, hidden]
};

Whole whole_computation(const std::vector<float>& h, const std::vector<float>& table) {
  const std::int64_t vocabulary = std::ssize(table) / hidden;
  const Targets all(vocabulary);
  Whole result{.losses = std::vector<double>(padded_targets),
               .d_h = std::vector<Sum>(h.size()),
               .d_table = std::vector<Sum>(table.size())};
  std::vector<double> logits(static_cast<std::size_t>(vocabulary));
  for (std::size_t i = 0; i < targets; ++i) {
    const auto first = static_cast<std::size_t>(all.where[i] * hidden);
    double sum = 0;
    for (std::size_t v = 0; v < logits.size(); ++v) {
      logits[v] = 0;
      for (std::size_t j = 0; j < hidden; ++j)
        logits[v] += static_cast<double>(h[first + j]) * table[v * hidden + j];
      sum += std::exp(logits[v]);
    }
    const auto target = static_cast<std::size_t>(all.ids[i]);
    result.losses[i] = std::log(sum) - logits[target];
    for (std::size_t v = 0; v < logits.size(); ++v) {
      const double p = std::exp(logits[v]) / sum, is_target = v == target;
      const auto add = [&](Sum& to, double factor) {
        to.value += scale * (p - is_target) * factor;
        to.terms += scale * (p + is_target) * std::abs(factor);
      };
      for (std::size_t j = 0; j < hidden; ++j) {
        add(result.d_h[first + j], table[v * hidden + j]);
        add(result.d_table[v * hidden + j], h[first + j]);
      }
    }
  }
  return result;
}

double value_at(const ConstTensor& t, std::int64_t i) {
  return t.dtype() == DType::f32 ? t.data<float>()[i] : to_float(t.data<bf16>()[i]);
}

void expect_sums(const ConstTensor& actual, std::span<const Sum> expected, double bound,
                 const char* what) {
  ASSERT_EQ(actual.numel(), std::ssize(expected)) << what;
  for (std::int64_t i = 0; i < actual.numel(); ++i) {
    const Sum& wanted = expected[static_cast<std::size_t>(i)];
    ASSERT_TRUE(std::abs(value_at(actual, i) - wanted.value) <= bound * wanted.terms)
        << what << "[" << i << "] is " << value_at(actual, i) << ", expected " << wanted.value;
  }
}

class HeadInChunks : public ::testing::TestWithParam<DType> {
 protected:
  HeadInChunks()
      : world_(session->world()),
        device_(make_cpu_device({.threads = 1})),
        stream_(device_->make_stream()),
        vocabulary_(share * world_->size()),
        h_(normal_values("h", rows * hidden, dtype())),
        table_(normal_values("table", vocabulary_ * hidden, dtype())),
        targets_(vocabulary_),
        whole_(whole_computation(h_, table_)) {}

  static DType dtype() { return GetParam(); }

  Tensor on_device(Arena& arena, const std::vector<float>& values, Shape shape) const {
    const Tensor t = arena.allocate(dtype(), shape);
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      const float value = values[static_cast<std::size_t>(i)];
      if (dtype() == DType::f32) {
        t.data<float>()[i] = value;
      } else {
        t.data<bf16>()[i] = to_bf16(value);
      }
    }
    return t;
  }

  static ConstTensor view(const std::vector<std::int32_t>& values) {
    return {values.data(), DType::i32, {std::ssize(values)}, DeviceKind::cpu};
  }

  void expect_whole_computation(SequenceParallel sequence_parallel) {
    const ParallelContext ranks(*world_, {.tensor = world_->size()}, sequence_parallel);
    ParameterStore store(ranks.place());
    const Parameter& table = store.declare(
        {.name = "embedding", .shape = {vocabulary_, hidden}, .sharding = {.tensor_dim = 0}});
    store.allocate(*device_, *stream_, dtype());
    const std::int64_t first_id = table.shard.slice.begin;
    store.write(*stream_, table, std::span(table_).subspan(first_id * hidden, share * hidden));
    const LanguageModelHead head(table);

    Arena inputs(*device_), arena(*device_);
    const DeviceBatch batch{.rows = rows,
                            .target_rows = view(targets_.where),
                            .target_ids = view(targets_.ids),
                            .targets = targets};
    const HostScales scales{.target = scale};
    const auto pass_in = [&](Arena& memory, Purpose purpose) {
      return Pass{.stream = *stream_,
                  .arena = memory,
                  .batch = batch,
                  .scales = scales,
                  .purpose = purpose,
                  .parallel = &ranks};
    };
    Pass before = pass_in(inputs, Purpose::train);
    const Residual x{share_of_rows(before, on_device(inputs, h_, {rows, hidden})), {}};
    const Tensor d_h = inputs.allocate(dtype(), x.sum.shape());

    const std::int64_t live = device_->statistics().live_bytes;
    Pass pass = pass_in(arena, Purpose::train);
    LanguageModelHead::Saved saved;
    head.forward(pass, x, saved);
    head.backward_input(pass, {}, saved, d_h);
    stream_->synchronize();

    // fp32: the logits' own size times a rounding, and sums of as many terms as there are ids.
    const double fp32 =
        (16 + 4 * std::sqrt(static_cast<double>(vocabulary_))) * unit_roundoff(DType::f32);
    // bf16 rounds each gradient of a logit, and that of a row once more.
    const double bound = fp32 + (dtype() == DType::bf16 ? 2 * unit_roundoff(DType::bf16) : 0);
    for (std::int64_t i = 0; i < padded_targets; ++i) {
      const double wanted = whole_.losses[static_cast<std::size_t>(i)];
      ASSERT_NEAR(value_at(saved.losses, i), wanted, fp32 * wanted) << "loss of target " << i;
    }
    expect_sums(gather_rows(before, d_h, rows), whole_.d_h, bound, "d_h");
    expect_sums(table.tied_gradient,
                std::span(whole_.d_table)
                    .subspan(static_cast<std::size_t>(first_id * hidden), share * hidden),
                bound, "d_table");

    // Less than half of the logits, and more than the least chunk of them: at least three chunks, the
    // last one shorter.
    const std::size_t logits = padded_targets * share * size_of(DType::f32);
    EXPECT_LT(arena.peak_bytes(), logits / 2);
    EXPECT_GT(arena.peak_bytes(), logits / 7);
    const std::vector<float> losses(saved.losses.data<float>(),
                                    saved.losses.data<float>() + padded_targets);
    arena.reset(*stream_);
    Pass asking = pass_in(arena, Purpose::evaluate);
    LanguageModelHead::Saved asked;
    head.forward(asking, x, asked);
    stream_->synchronize();
    EXPECT_TRUE(std::equal(losses.begin(), losses.end(), asked.losses.data<float>()))
        << "losses depend on whether gradients are wanted";
    // The arena, now of one block, with the stream's workspace. A CPU without products of bf16 has the table
    // and tiles of logits there, too, widened to f32.
    if (dtype() == DType::f32 || gemm_table(*device_).find("widened") == std::string::npos) {
      EXPECT_LT(device_->statistics().live_bytes - live, static_cast<std::int64_t>(logits));
    }
  }

  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::int64_t vocabulary_;
  std::vector<float> h_, table_;
  Targets targets_;
  Whole whole_;
};

TEST_P(HeadInChunks, IsAWholeComputation) {
  expect_whole_computation(SequenceParallel::no);
  if (world_->size() == 1) return;
  SCOPED_TRACE("ranks share the rows");
  expect_whole_computation(SequenceParallel::yes);
}

INSTANTIATE_TEST_SUITE_P(DTypes, HeadInChunks, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
