// One mixture-of-experts layer, forward and backward, with its experts dealt to the ranks.
//
// mpirun -n 4 bench_moe_layer [--tokens 4096] [--hidden 512] [--ffn 1024] [--experts 64] [--top-k 2]
//                             [--chunks 1] [--steps 10] [--pairs 30] [--json]
//
// One line each:
//   layer           median seconds of a step of the slowest rank, and the share of each phase:
//                   router, permute (plans and moves of rows on this rank), dispatch (all-to-alls),
//                   experts, combine
//   permute         bytes that must move over the time, beside a copy of 256 MiB by as many threads
//   combine         likewise
//   all-to-all      of the rows that the layer dispatches, beside a bare MPI_Alltoallv of the same
//                   bytes: median of the ratios of interleaved pairs
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "bench/command_line.h"
#include "comm/mpi.h"
#include "kernels/activation/activation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/gemm/gemm.h"
#include "kernels/permute/exchange.h"
#include "kernels/permute/permute.h"
#include "models/moe.h"
#include "parallel/random.h"

namespace orchard {
namespace {

using Clock = std::chrono::steady_clock;

struct Setting {
  std::int64_t tokens = 4096, hidden = 512, ffn = 1024, experts = 64;
  int top_k = 2, chunks = 1, steps = 10, pairs = 30;
  bool json = false;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double slowest(double seconds) {
  MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return seconds;
}

struct Phases {
  double router = 0, permute = 0, experts = 0, combine = 0;
  double permute_bytes = 0, combine_bytes = 0;  // that had to move
};

// Adds the time of an operation to a phase: the CPU's stream runs each when it is called. The table
// keeps plain functions, so what they need lies in the type.
template <class Op>
class Timed {
 public:
  static void install(OperationTable& table, Phases& phases, double Phases::*phase) {
    original_ = table.find<Op>();
    phases_ = &phases;
    phase_ = phase;
    table.add<Op>(&run_timed);
  }

 private:
  static void run_timed(Stream& stream, const Op& op) {
    const auto start = Clock::now();
    original_(stream, op);
    phases_->*phase_ += seconds_since(start);
    count_bytes(op);
  }

  static double rows_in(ConstTensor slot) {
    double rows = 0;
    for (std::int64_t i = 0; i < slot.numel(); ++i) rows += slot.data<std::int32_t>()[i] >= 0;
    return rows;
  }
  static double row_bytes(ConstTensor x) {
    return x.dim(0) > 0 ? static_cast<double>(x.size_bytes()) / static_cast<double>(x.dim(0)) : 0;
  }

  static void count_bytes(const Op& op) {
    if constexpr (std::is_same_v<Op, DispatchForward>) {
      phases_->permute_bytes +=
          2 * row_bytes(op.x) *
          op.row_offsets.template data<std::int32_t>()[op.row_offsets.dim(0) - 1];
    } else if constexpr (std::is_same_v<Op, CopyRuns>) {
      for (std::int64_t i = 0; i < op.runs.dim(0); ++i)
        phases_->permute_bytes +=
            2 * row_bytes(op.y) * op.runs.template data<std::int32_t>()[3 * i + 2];
    } else if constexpr (std::is_same_v<Op, DispatchBackward>) {
      phases_->permute_bytes +=
          row_bytes(op.d_x) * (rows_in(op.slot) + 2 * static_cast<double>(op.d_x.dim(0)));
    } else if constexpr (std::is_same_v<Op, CombineForward>) {
      phases_->combine_bytes +=
          row_bytes(op.y) * (rows_in(op.slot) + static_cast<double>(op.y.dim(0)));
    } else if constexpr (std::is_same_v<Op, CombineBackward>) {
      phases_->combine_bytes +=
          row_bytes(op.d_y) * (2 * rows_in(op.slot) + static_cast<double>(op.d_y.dim(0)));
    }
  }

  static inline void (*original_)(Stream&, const Op&) = nullptr;
  static inline Phases* phases_ = nullptr;
  static inline double Phases::*phase_ = nullptr;
};

class Bench {
 public:
  Bench(const Setting& setting, Communicator& world)
      : setting_(setting),
        world_(world),
        context_(world, {.expert = world.size()}),
        stream_(device_->make_stream()),
        arena_(*device_),
        store_(context_.place()),
        layer_(store_, "moe",
               {.layers = 1,
                .hidden = setting.hidden,
                .ffn = setting.ffn,
                .moe = {.experts = setting.experts, .top_k = setting.top_k}}) {
    store_.allocate(*device_, *stream_, DType::f32);
    store_.initialise(*stream_, 1);
    dispatcher_ = ExpertDispatcher::of(*device_, *stream_, context_, setting.experts,
                                       {.overlap = Overlap::no, .chunks = setting.chunks});
    time_operations();
    memory_ = device_->allocate(static_cast<std::size_t>(2 * setting.tokens * setting.hidden) *
                                sizeof(float));
    x_ = memory_.tensor(DType::f32, {2, setting.tokens * setting.hidden});
    const CounterRandom random(3, fmt::format("rank {}", world.rank()));
    for (std::int64_t i = 0; i < x_.numel(); ++i)
      x_.data<float>()[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(i)));
    offsets_ = {0, static_cast<std::int32_t>(setting.tokens)};
    real_ = {static_cast<std::int32_t>(setting.tokens)};
  }

  void run() {
    step();
    step();
    std::vector<double> steps;
    phases_ = {};
    const double waited = all_to_all_seconds();
    for (int i = 0; i < setting_.steps; ++i) {
      world_.barrier();
      const auto start = Clock::now();
      step();
      steps.push_back(slowest(seconds_since(start)));
    }
    const double n = setting_.steps, dispatch = (all_to_all_seconds() - waited) / n;
    print("layer", {{"seconds", median(steps)},
                    {"router_seconds", slowest(phases_.router / n)},
                    {"permute_seconds", slowest(phases_.permute / n)},
                    {"dispatch_seconds", slowest(dispatch)},
                    {"experts_seconds", slowest(phases_.experts / n)},
                    {"combine_seconds", slowest(phases_.combine / n)}});
    const double copy = copy_bandwidth();
    const auto print_bandwidth = [&](const char* name, double bytes, double seconds) {
      print(name, {{"gb_per_s", bytes / seconds * 1e-9},
                   {"copy_gb_per_s", copy * 1e-9},
                   {"ratio", bytes / seconds / copy}});
    };
    print_bandwidth("permute", phases_.permute_bytes, phases_.permute);
    print_bandwidth("combine", phases_.combine_bytes, phases_.combine);
    if (world_.size() > 1) contest();
  }

 private:
  void time_operations() {
    OperationTable& table = device_->operations();
    Timed<Gemm>::install(table, phases_, &Phases::router);
    Timed<RouterForward>::install(table, phases_, &Phases::router);
    Timed<RouterBackward>::install(table, phases_, &Phases::router);
    Timed<MapChoices>::install(table, phases_, &Phases::permute);
    Timed<PermutePlan>::install(table, phases_, &Phases::permute);
    Timed<DispatchForward>::install(table, phases_, &Phases::permute);
    Timed<DispatchBackward>::install(table, phases_, &Phases::permute);
    Timed<CopyRuns>::install(table, phases_, &Phases::permute);
    Timed<GroupedGemm>::install(table, phases_, &Phases::experts);
    Timed<GroupedGemmWeightGradient>::install(table, phases_, &Phases::experts);
    Timed<SwiGluForward>::install(table, phases_, &Phases::experts);
    Timed<SwiGluBackward>::install(table, phases_, &Phases::experts);
    Timed<CombineForward>::install(table, phases_, &Phases::combine);
    Timed<CombineBackward>::install(table, phases_, &Phases::combine);
  }

  double all_to_all_seconds() const {
    return context_[MeshGroup::expert_layer].statistics(CommOp::all_to_all).seconds;
  }

  void step() {
    arena_.reset(*stream_);
    const auto host = [](const std::vector<std::int32_t>& v) {
      return ConstTensor(v.data(), DType::i32, {std::ssize(v)}, DeviceKind::cpu);
    };
    const DeviceBatch batch{.rows = setting_.tokens,
                            .sequences = 1,
                            .sequence_offsets = host(offsets_),
                            .real_rows = host(real_)};
    const float balance = 0.01f, z = 0.001f;
    const auto number = [](const float& x) {
      return ConstTensor(&x, DType::f32, {1}, DeviceKind::cpu);
    };
    Pass pass{.stream = *stream_,
              .arena = arena_,
              .batch = batch,
              .scales = {.target = {}, .balance = number(balance), .z = number(z)},
              .parallel = &context_,
              .dispatcher = dispatcher_.get()};
    const Shape shape{setting_.tokens, setting_.hidden};
    const Tensor d_x = pass.allocate(DType::f32, shape);
    MixtureOfExperts::Saved saved;
    layer_.forward(pass, x_.slice(0, 1).reshape(shape), saved);
    layer_.backward_input(pass, x_.slice(1, 1).reshape(shape), saved, d_x);
    layer_.backward_weight(pass, saved);
    stream_->synchronize();
    const auto* const counts = saved.statistics.expert_counts.data<std::int32_t>();
    counts_.assign(counts + setting_.experts, counts + 2 * setting_.experts);
  }

  // Bytes read and written a second by copies too large for the caches: what main memory delivers.
  double copy_bandwidth() {
    constexpr std::size_t bytes = std::size_t{256} << 20;
    const Buffer from = device_->allocate(bytes), to = device_->allocate(bytes);
    std::memset(from.data(), 1, bytes);
    std::memset(to.data(), 1, bytes);
    std::vector<double> seconds;
    for (int i = 0; i < 10; ++i) {
      world_.barrier();
      const auto start = Clock::now();
      cpu::parallel_for(static_cast<std::int64_t>(bytes), 4096,
                        [&](std::int64_t begin, std::int64_t end) {
                          std::memcpy(to.data() + begin, from.data() + begin,
                                      static_cast<std::size_t>(end - begin));
                        });
      seconds.push_back(seconds_since(start));
    }
    return 2 * static_cast<double>(bytes) / median(seconds);
  }

  // The layer's dispatch, as the communicator does it and as MPI does.
  void contest() {
    std::vector<std::int64_t> sends(static_cast<std::size_t>(world_.size())),
        all(sends.size() * sends.size()), receives(sends.size());
    const std::int64_t local = setting_.experts / world_.size();
    for (std::int64_t e = 0; e < setting_.experts; ++e)
      sends[static_cast<std::size_t>(e / local)] += counts_[static_cast<std::size_t>(e)];
    world_.all_gather_on_host(sends, all);
    for (std::size_t r = 0; r < receives.size(); ++r)
      receives[r] = all[r * sends.size() + static_cast<std::size_t>(world_.rank())];
    const auto width = static_cast<int>(setting_.hidden);
    const auto scaled = [&](const std::vector<std::int64_t>& rows) {
      std::pair<std::vector<int>, std::vector<int>> counts_and_places;
      int place = 0;
      for (const std::int64_t n : rows) {
        counts_and_places.first.push_back(static_cast<int>(n) * width);
        counts_and_places.second.push_back(place);
        place += static_cast<int>(n) * width;
      }
      return counts_and_places;
    };
    const auto sum = [](const std::vector<std::int64_t>& rows) {
      std::int64_t n = 0;
      for (const std::int64_t r : rows) n += r;
      return n;
    };
    const Buffer out = device_->allocate(static_cast<std::size_t>(sum(sends) * width) * 4 + 4);
    const Buffer in = device_->allocate(static_cast<std::size_t>(sum(receives) * width) * 4 + 4);
    stream_->fill_zero(out.tensor(DType::f32, {sum(sends), width}));
    const auto out_counts = scaled(sends), in_counts = scaled(receives);
    Communicator& group = context_[MeshGroup::expert_layer];
    const auto time = [&](const std::function<void()>& call) {
      MPI_Barrier(MPI_COMM_WORLD);
      const auto start = Clock::now();
      call();
      return slowest(seconds_since(start));
    };
    const auto ours = [&] {
      group
          .all_to_all(*stream_, {.send = out.tensor(DType::f32, {sum(sends), width}),
                                 .receive = in.tensor(DType::f32, {sum(receives), width}),
                                 .send_rows = sends,
                                 .receive_rows = receives})
          .wait(*stream_);
    };
    const auto bare = [&] {
      MPI_Alltoallv(out.data(), out_counts.first.data(), out_counts.second.data(), MPI_FLOAT,
                    in.data(), in_counts.first.data(), in_counts.second.data(), MPI_FLOAT,
                    MPI_COMM_WORLD);
    };
    time(ours);
    time(bare);
    std::vector<double> our_seconds, bare_seconds, ratios;
    for (int pair = 0; pair < setting_.pairs; ++pair) {
      if (pair % 2 == 0) our_seconds.push_back(time(ours));
      bare_seconds.push_back(time(bare));
      if (pair % 2 == 1) our_seconds.push_back(time(ours));
      ratios.push_back(our_seconds.back() / bare_seconds.back());
    }
    print("all-to-all", {{"bytes", static_cast<double>(sum(sends) * width) * 4},
                         {"seconds", median(our_seconds)},
                         {"mpi_seconds", median(bare_seconds)},
                         {"ratio", median(ratios)}});
  }

  void print(const char* name, const std::vector<std::pair<const char*, double>>& numbers) const {
    if (world_.rank() != 0) return;
    if (setting_.json) {
      nlohmann::ordered_json line{{"name", name},
                                  {"ep", world_.size()},
                                  {"threads", cpu::thread_count()},
                                  {"tokens", setting_.tokens},
                                  {"hidden", setting_.hidden},
                                  {"ffn", setting_.ffn},
                                  {"experts", setting_.experts},
                                  {"top_k", setting_.top_k}};
      for (const auto& [key, value] : numbers) line[key] = value;
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{:<12} ep {}", name, world_.size());
      for (const auto& [key, value] : numbers) fmt::print("  {} {:.4g}", key, value);
      fmt::print("\n");
    }
    std::fflush(stdout);
  }

  Setting setting_;
  Communicator& world_;
  ParallelContext context_;
  std::unique_ptr<Device> device_ = make_cpu_device();
  std::unique_ptr<Stream> stream_;
  Arena arena_;
  ParameterStore store_;
  MixtureOfExperts layer_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
  Phases phases_;
  Buffer memory_;
  Tensor x_;  // [2, tokens · hidden]: x and d_y
  std::vector<std::int32_t> offsets_, real_, counts_;
};

// Nothing where only the help was asked for.
std::optional<Setting> parse(int argc, char** argv) {
  Setting setting;
  bench::CommandLine options("One mixture-of-experts layer over the ranks of mpirun");
  options.option("tokens", setting.tokens, "of each rank");
  options.option("hidden", setting.hidden, "hidden size");
  options.option("ffn", setting.ffn, "of an expert");
  options.option("experts", setting.experts, "of the layer");
  options.option("top-k", setting.top_k, "experts of a token");
  options.option("chunks", setting.chunks, "parts that rows are sent in");
  options.option("steps", setting.steps, "that are measured");
  options.option("pairs", setting.pairs, "of all-to-alls, interleaved");
  options.flag("json", setting.json, "print JSON lines");
  if (!options.parse(argc, argv)) return {};
  require(setting.steps > 0 && setting.pairs > 0 && setting.chunks > 0 && setting.tokens > 0,
          "--steps, --pairs, --chunks and --tokens are at least 1");
  return setting;
}

}  // namespace
}  // namespace orchard

int main(int argc, char** argv) {
  try {
    const auto setting = orchard::parse(argc, argv);
    if (!setting) return 0;
    const orchard::MpiSession session(argc, argv);
    const auto world = session.world();
    orchard::Bench(*setting, *world).run();
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_moe_layer: {}\n", error.what());
    return 1;
  }
}
