// Collectives of a group against the plain MPI calls that do the same.
//
// mpirun -n 2 bench_comm [--pairs 30] [--max-bytes 67108864] [--json]
//
// A line for each operation and size: median time of the slowest rank, and the median of the ratios
// of interleaved pairs, so that what else the machine does meets both alike. Bytes are those of the
// buffer that is reduced, scattered or gathered, or of what a rank sends.
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "bench/command_line.h"
#include "comm/mpi.h"
#include "kernels/device/device.h"

namespace orchard {
namespace {

struct Setting {
  int pairs = 30;
  std::int64_t max_bytes = std::int64_t{64} << 20;
  bool json = false;
};

// Both kinds of one operation on the same buffers.
struct Contest {
  const char* name;
  std::function<void(std::int64_t floats)> ours, plain;
};

class Bench {
 public:
  explicit Bench(const Setting& setting, Communicator& world)
      : setting_(setting), world_(world), stream_(device_->make_stream()) {
    const auto capacity = static_cast<std::size_t>(setting.max_bytes);
    a_ = device_->allocate(capacity + 4096 * static_cast<std::size_t>(world.size()));
    b_ = device_->allocate(capacity + 4096 * static_cast<std::size_t>(world.size()));
    stream_->fill_zero(a_.tensor(DType::u8, {static_cast<std::int64_t>(a_.size_bytes())}));
    stream_->fill_zero(b_.tensor(DType::u8, {static_cast<std::int64_t>(b_.size_bytes())}));
  }

  void run() {
    const std::int64_t ranks = world_.size();
    const Contest contests[] = {
        {"all-reduce",
         [&](std::int64_t n) { world_.all_reduce_sum(*stream_, floats(a_, n)).wait(*stream_); },
         [&](std::int64_t n) {
           MPI_Allreduce(MPI_IN_PLACE, a_.data(), int_of(n), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
         }},
        {"reduce-scatter",
         [&](std::int64_t n) {
           world_.reduce_scatter_sum(*stream_, floats(b_, n / ranks), floats(a_, n / ranks * ranks))
               .wait(*stream_);
         },
         [&](std::int64_t n) {
           MPI_Reduce_scatter_block(a_.data(), b_.data(), int_of(n / ranks), MPI_FLOAT, MPI_SUM,
                                    MPI_COMM_WORLD);
         }},
        {"all-gather",
         [&](std::int64_t n) {
           world_.all_gather(*stream_, floats(a_, n / ranks * ranks), floats(b_, n / ranks))
               .wait(*stream_);
         },
         [&](std::int64_t n) {
           MPI_Allgather(b_.data(), int_of(n / ranks), MPI_FLOAT, a_.data(), int_of(n / ranks),
                         MPI_FLOAT, MPI_COMM_WORLD);
         }},
        {"all-to-all",
         [&](std::int64_t n) {
           const std::vector<std::int64_t> rows(static_cast<std::size_t>(ranks), n / ranks);
           our_all_to_all(rows, rows);
         },
         [&](std::int64_t n) {
           MPI_Alltoall(a_.data(), int_of(n / ranks), MPI_FLOAT, b_.data(), int_of(n / ranks),
                        MPI_FLOAT, MPI_COMM_WORLD);
         }},
        {"all-to-all-v", [&](std::int64_t n) { our_all_to_all(sent(n), received(n)); },
         [&](std::int64_t n) {
           const auto [sends, send_places] = as_ints(sent(n));
           const auto [receives, receive_places] = as_ints(received(n));
           MPI_Alltoallv(a_.data(), sends.data(), send_places.data(), MPI_FLOAT, b_.data(),
                         receives.data(), receive_places.data(), MPI_FLOAT, MPI_COMM_WORLD);
         }},
    };
    for (const Contest& contest : contests) {
      for (std::int64_t bytes = 1024; bytes <= setting_.max_bytes; bytes *= 4)
        measure(contest, bytes);
    }
  }

 private:
  static Tensor floats(const Buffer& buffer, std::int64_t n) {
    return buffer.tensor(DType::f32, {n});
  }
  static int int_of(std::int64_t n) { return static_cast<int>(n); }

  // Rows of one float, so that counts are as uneven as those of experts.
  void our_all_to_all(std::span<const std::int64_t> sends, std::span<const std::int64_t> receives) {
    const auto sum = [](std::span<const std::int64_t> counts) {
      std::int64_t n = 0;
      for (const std::int64_t count : counts) n += count;
      return n;
    };
    world_
        .all_to_all(*stream_, {.send = floats(a_, sum(sends)),
                               .receive = floats(b_, sum(receives)),
                               .send_rows = sends,
                               .receive_rows = receives})
        .wait(*stream_);
  }

  // Rank i sends rank j between one half and all of an even share.
  std::int64_t rows_between(std::int64_t n, int from, int to) const {
    const std::int64_t share = n / world_.size();
    return share / 2 + share / 2 * ((5 * from + 3 * to) % 4) / 3;
  }
  std::vector<std::int64_t> sent(std::int64_t n) const {
    std::vector<std::int64_t> counts;
    counts.reserve(static_cast<std::size_t>(world_.size()));
    for (int r = 0; r < world_.size(); ++r) counts.push_back(rows_between(n, world_.rank(), r));
    return counts;
  }
  std::vector<std::int64_t> received(std::int64_t n) const {
    std::vector<std::int64_t> counts;
    counts.reserve(static_cast<std::size_t>(world_.size()));
    for (int r = 0; r < world_.size(); ++r) counts.push_back(rows_between(n, r, world_.rank()));
    return counts;
  }
  static std::pair<std::vector<int>, std::vector<int>> as_ints(
      const std::vector<std::int64_t>& counts) {
    std::vector<int> ints, places;
    int place = 0;
    for (const std::int64_t count : counts) {
      ints.push_back(int_of(count));
      places.push_back(place);
      place += ints.back();
    }
    return {ints, places};
  }

  // Seconds of one call, of the slowest rank.
  double time(const std::function<void(std::int64_t)>& operation, std::int64_t n, int calls) {
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = MPI_Wtime();
    for (int i = 0; i < calls; ++i) operation(n);
    double seconds = (MPI_Wtime() - start) / calls;
    MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return seconds;
  }

  static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t n = values.size();
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  }

  void measure(const Contest& contest, std::int64_t bytes) {
    const std::int64_t n = bytes / static_cast<std::int64_t>(sizeof(float));
    // Small ones many at a time: a clock tick and the barrier must not count.
    const int calls = static_cast<int>(std::clamp<std::int64_t>((1 << 20) / bytes, 1, 100));
    time(contest.ours, n, 1 + calls / 4);
    time(contest.plain, n, 1 + calls / 4);
    std::vector<double> ours, plain, ratios;
    for (int pair = 0; pair < setting_.pairs; ++pair) {
      const bool ours_first = pair % 2 == 0;
      if (ours_first) ours.push_back(time(contest.ours, n, calls));
      plain.push_back(time(contest.plain, n, calls));
      if (!ours_first) ours.push_back(time(contest.ours, n, calls));
      ratios.push_back(ours.back() / plain.back());
    }
    if (world_.rank() == 0) print(contest.name, bytes, ours, plain, ratios);
  }

  void print(const char* name, std::int64_t bytes, const std::vector<double>& ours,
             const std::vector<double>& plain, const std::vector<double>& ratios) const {
    if (setting_.json) {
      const nlohmann::json line{{"operation", name},       {"ranks", world_.size()},
                                {"bytes", bytes},          {"pairs", setting_.pairs},
                                {"seconds", median(ours)}, {"mpi_seconds", median(plain)},
                                {"ratio", median(ratios)}};
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{:<16}{:>3} ranks{:>12} bytes{:>12.1f} us{:>12.1f} us MPI{:>8.3f}\n", name,
                 world_.size(), bytes, 1e6 * median(ours), 1e6 * median(plain), median(ratios));
    }
    std::fflush(stdout);
  }

  Setting setting_;
  Communicator& world_;
  std::unique_ptr<Device> device_ = make_cpu_device({.threads = 1});
  std::unique_ptr<Stream> stream_;
  Buffer a_, b_;
};

// Nothing where only the help was asked for.
std::optional<Setting> parse(int argc, char** argv) {
  Setting setting;
  bench::CommandLine options("Collectives against plain MPI calls; run it under mpirun");
  options.option("pairs", setting.pairs, "of measurements, interleaved");
  options.option("max-bytes", setting.max_bytes, "the largest buffer");
  options.flag("json", setting.json, "print JSON lines");
  if (!options.parse(argc, argv)) return {};
  require(setting.pairs > 0 && setting.max_bytes >= 1024, "--pairs and --max-bytes are too small");
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
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_comm: {}\n", error.what());
    return 1;
  }
}
