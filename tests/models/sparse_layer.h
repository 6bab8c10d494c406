// One sparse layer, forward and backward, on the ranks of a layout and on one rank alone. The tests
// compare the two.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "models/moe.h"
#include "parallel/parameter_collectives.h"
#include "parallel/random.h"
#include "parallel/sharded_step.h"
#include "tests/models/host_scales.h"

namespace orchard::testing {

// Real tokens of the sequences of one data rank's micro-batch; each sequence is `padding` rows longer,
// or has `length` rows, where that is given.
struct Tokens {
  std::vector<std::int64_t> real;
  std::int64_t padding = 0, length = 0;

  std::int64_t length_of(std::int64_t sequence_real) const {
    return length > 0 ? length : sequence_real + padding;
  }
};

struct LayerCase {
  Layout layout = {};
  int ranks = 1;
  std::vector<Tokens> micro_batches;  // by data rank, the last one repeated
  SequenceParallel sequence_parallel = SequenceParallel::yes;
  ExpertDispatchOptions options = {};
  MicroBatchSizes sizes = MicroBatchSizes::any;
  float capacity_factor = 0;
  int top_k = 2;
  DType dtype = DType::f32;
  // Experts that every token chooses, of all ranks; empty: as the reference run's router chose.
  std::vector<std::int32_t> everyone_chooses = {};

  std::string to_string() const {
    return fmt::format(
        "{} ranks, {}, {}, {} chunks, dispatch {}, messages {}, sizes {}, capacity {}, {}", ranks,
        layout.to_string(),
        sequence_parallel == SequenceParallel::yes ? "shared rows" : "same rows", options.chunks,
        static_cast<int>(options.dispatch), static_cast<int>(options.messages),
        static_cast<int>(sizes), capacity_factor, name_of(dtype));
  }
};

inline DecoderConfig sparse_config(const LayerCase& c) {
  return {.layers = 2,
          .hidden = 32,
          .ffn = 64,
          .moe = {.experts = 8, .top_k = c.top_k, .capacity_factor = c.capacity_factor}};
}

// What one run leaves of one micro-batch.
struct LayerOutput {
  std::vector<float> y, d_x;  // [rows, hidden]
  std::vector<float> balance, z;
  std::vector<std::int32_t> counts, chosen;
  bool operator==(const LayerOutput&) const = default;
};

struct LayerResult {
  std::vector<LayerOutput> micro_batches;
  std::map<std::string, std::vector<float>> gradients;  // whole
  bool operator==(const LayerResult&) const = default;
};

template <class T>
std::vector<T> copied(ConstTensor t) {
  if (t.dtype() == DType::bf16) {
    std::vector<T> wide;
    for (std::int64_t i = 0; i < t.numel(); ++i)
      wide.push_back(static_cast<T>(to_float(t.data<bf16>()[i])));
    return wide;
  }
  return {static_cast<const T*>(t.raw()), static_cast<const T*>(t.raw()) + t.numel()};
}

// A layer with its memory. Alone, or with the place of a rank.
class SparseLayer {
 public:
  SparseLayer(Device& device, const LayerCase& c, const ParallelContext* parallel = nullptr)
      : stream_(device.make_stream()),
        arena_(device),
        case_(c),
        parallel_(parallel),
        store_(parallel ? parallel->place() : ShardingPlace{}),
        layer_(store_, "moe", sparse_config(c)) {
    store_.allocate(device, *stream_, c.dtype,
                    parallel ? ParameterUse::training_on_shards : ParameterUse::training);
    if (parallel) shards_.emplace(device, *stream_, *parallel, store_);
    // Larger than in training, so that rounding is small beside what is compared.
    store_.initialise(*stream_, 5, 10);
    if (!parallel) return;
    dispatcher_ = ExpertDispatcher::of(device, *stream_, *parallel, 8, c.options);
    Communicator& tensor = (*parallel)[MeshGroup::tensor];
    std::vector<int> places(static_cast<std::size_t>(tensor.size()));
    std::iota(places.begin(), places.end(), 0);
    results_ = tensor.make_group("results", places);
  }

  ParameterStore& store() { return store_; }
  Stream& stream() { return *stream_; }
  ExpertDispatcher& dispatcher() { return *dispatcher_; }
  const Arena& arena() const { return arena_; }

  // The micro-batch of a data rank, following `chosen` [rows, k] where it is given. Adds gradients.
  LayerOutput step(int data_rank, const std::vector<std::int32_t>* chosen = nullptr) {
    const DecoderConfig config = sparse_config(case_);
    const Tokens& tokens = case_.micro_batches[std::min(static_cast<std::size_t>(data_rank),
                                                        case_.micro_batches.size() - 1)];
    std::vector<std::int32_t> offsets = {0}, real;
    for (const std::int64_t n : tokens.real) {
      offsets.push_back(static_cast<std::int32_t>(offsets.back() + tokens.length_of(n)));
      real.push_back(static_cast<std::int32_t>(n));
    }
    const std::int64_t rows = offsets.back(),
                       sequences = static_cast<std::int64_t>(tokens.real.size());
    const DeviceBatch batch{.rows = rows,
                            .sequences = sequences,
                            .sequence_offsets = host(offsets),
                            .real_rows = host(real)};
    arena_.reset(*stream_);
    RoutingReplay replay;
    if (chosen) replay[layer_.router()] = host(*chosen).reshape({rows, case_.top_k});
    const HostScales scales{.balance = 0.05f, .z = 0.002f};
    Pass pass{.stream = *stream_,
              .arena = arena_,
              .batch = batch,
              .scales = scales,
              .sizes = case_.sizes,
              .replay = chosen ? &replay : nullptr,
              .parallel = parallel_,
              .dispatcher = dispatcher_.get()};
    const RowsHere here = rows_here(rows);
    const Tensor x = values(fmt::format("x {}", data_rank), here, config.hidden);
    const Tensor d_y = values(fmt::format("d_y {}", data_rank), here, config.hidden);
    const Tensor d_x = arena_.allocate(case_.dtype, x.shape());
    MixtureOfExperts::Saved saved;
    const Tensor y = layer_.forward(pass, x, saved);
    layer_.backward_input(pass, d_y, saved, d_x);
    layer_.backward_weight(pass, saved);
    stream_->synchronize();
    return {.y = whole(pass, here, y, rows),
            .d_x = whole(pass, here, d_x, rows),
            .balance = copied<float>(saved.statistics.balance_loss),
            .z = copied<float>(saved.statistics.z_loss),
            .counts = copied<std::int32_t>(saved.statistics.expert_counts),
            .chosen = copied<std::int32_t>(saved.statistics.chosen)};
  }

  // After the last step.
  std::map<std::string, std::vector<float>> gradients() {
    std::map<std::string, std::vector<float>> all;
    if (shards_) {
      for (const FlatBucket& bucket : shards_->buckets())
        shards_->reduce(*stream_, bucket).wait(*stream_);
      shards_->gather_gradients(*stream_);
    }
    for (const Parameter* p : store_.catalogue())
      all[p->spec.name] = parallel_ ? gather_whole(*stream_, *parallel_, p->spec, p->gradient)
                                    : copied<float>(p->gradient);
    return all;
  }

 private:
  struct RowsHere {
    std::int64_t begin = 0, count = 0;  // count: with padding
    bool shared = false;
  };

  RowsHere rows_here(std::int64_t rows) const {
    if (!parallel_ || case_.sequence_parallel == SequenceParallel::no || case_.layout.tensor == 1)
      return {0, rows, false};
    const Place& tensor = parallel_->place().tensor;
    const std::int64_t share = (rows + tensor.size - 1) / tensor.size;
    return {tensor.index * share, share, true};
  }

  // Rows [begin, begin + count) of endless random rows.
  Tensor values(const std::string& name, const RowsHere& here, std::int64_t hidden) {
    const Tensor t = arena_.allocate(case_.dtype, {here.count, hidden});
    const CounterRandom random(11, name);
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      const auto value =
          static_cast<float>(random.normal(static_cast<std::uint64_t>(here.begin * hidden + i)));
      if (case_.dtype == DType::f32) {
        t.data<float>()[i] = value;
      } else {
        t.data<bf16>()[i] = to_bf16(value);
      }
    }
    return t;
  }

  std::vector<float> whole(Pass& pass, const RowsHere& here, ConstTensor mine, std::int64_t rows) {
    if (!here.shared) return copied<float>(mine);
    const Tensor all =
        pass.allocate(mine.dtype(), mine.shape().with(0, here.count * results_->size()));
    results_->all_gather(pass.stream, all, mine).wait(pass.stream);
    pass.stream.synchronize();
    return copied<float>(ConstTensor(all.slice(0, rows)));
  }

  static ConstTensor host(const std::vector<std::int32_t>& values) {
    return {values.data(), DType::i32, {static_cast<std::int64_t>(values.size())}, DeviceKind::cpu};
  }

  std::unique_ptr<Stream> stream_;
  Arena arena_;
  LayerCase case_;
  const ParallelContext* parallel_;
  ParameterStore store_;
  MixtureOfExperts layer_;
  std::optional<FlatShards> shards_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
  std::unique_ptr<Communicator> results_;  // the tensor group, for what only the test gathers
};

// All data ranks' micro-batches on one rank, one after the other.
inline LayerResult run_alone(Device& device, const LayerCase& c, int data_ranks) {
  SparseLayer layer(device, c);
  LayerResult result;
  for (int d = 0; d < data_ranks; ++d) {
    LayerOutput free = layer.step(d);
    if (!c.everyone_chooses.empty()) {
      std::vector<std::int32_t> chosen;
      for (std::size_t row = 0; row < free.chosen.size() / c.everyone_chooses.size(); ++row)
        chosen.insert(chosen.end(), c.everyone_chooses.begin(), c.everyone_chooses.end());
      // What the first step added is thrown away with the layer's gradients below.
      free.chosen = chosen;
    }
    result.micro_batches.push_back(free);
  }
  layer.store().zero_gradients(layer.stream());
  for (int d = 0; d < data_ranks; ++d) {
    LayerOutput& output = result.micro_batches[static_cast<std::size_t>(d)];
    const std::vector<std::int32_t> chosen = output.chosen;
    output = layer.step(d, &chosen);
  }
  result.gradients = layer.gradients();
  return result;
}

// The same on the ranks of `group`, following the reference's routing. A rank's result has its own
// micro-batch alone.
inline LayerResult run_on_ranks(Device& device, const LayerCase& c, Communicator& group,
                                const LayerResult& reference) {
  const ParallelContext parallel(group, c.layout, c.sequence_parallel);
  SparseLayer layer(device, c, &parallel);
  const int data = parallel.coordinates().data;
  const std::vector<std::int32_t>& chosen =
      reference.micro_batches[static_cast<std::size_t>(data)].chosen;
  LayerResult result;
  result.micro_batches.push_back(layer.step(data, &chosen));
  result.gradients = layer.gradients();
  return result;
}

// Norm of a - b over a floor or the norm of b.
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b,
                                  double floor) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  const double ratio = std::sqrt(difference) / std::max({std::sqrt(size), floor, 1e-30});
  return std::isnan(ratio) ? INFINITY : ratio;
}

// What differs by more than `tolerance`, as text; nothing where all is well. Gradients that are
// small beside all others are held to 1e-3 of what their share of all would be.
inline std::vector<std::string> differences(const LayerOutput& output, const LayerResult& result,
                                            const LayerOutput& expected,
                                            const LayerResult& reference, double tolerance) {
  std::vector<std::string> found;
  const auto compare = [&](const std::string& what, const std::vector<float>& a,
                           const std::vector<float>& b, double floor = 0) {
    const double difference = relative_difference(a, b, floor);
    if (!(difference <= tolerance)) found.push_back(fmt::format("{} by {:.2g}", what, difference));
  };
  compare("y", output.y, expected.y);
  compare("d_x", output.d_x, expected.d_x);
  compare("balance loss", output.balance, expected.balance);
  compare("z loss", output.z, expected.z);
  if (output.counts != expected.counts) found.emplace_back("expert counts");
  if (output.chosen != expected.chosen) found.emplace_back("choices");
  double square = 0, elements = 0;
  for (const auto& [name, g] : reference.gradients) {
    for (const float v : g) square += static_cast<double>(v) * v;
    elements += static_cast<double>(g.size());
  }
  for (const auto& [name, g] : reference.gradients) {
    const auto it = result.gradients.find(name);
    compare("gradient of " + name, it == result.gradients.end() ? std::vector<float>() : it->second,
            g, 1e-3 * std::sqrt(square * static_cast<double>(g.size()) / elements));
  }
  return found;
}

}  // namespace orchard::testing
