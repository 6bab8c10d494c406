// Which kernel computes a matrix product on a GPU.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <type_traits>

#include "kernels/device/device.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/gpu/library_calls.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// A product as the choice sees it: rows in all groups, columns, and the k that may be cut in slices: 0
// where the groups' sizes are k, or known to the device alone, or there is a batch.
struct Extents {
  std::int64_t m, n, k;
  bool thin = false;         // groups would leave tiles of 128 half empty
  bool writes_most = false;  // k is so short that c bounds
  std::int64_t batch = 1;

  constexpr std::int64_t tile_rows(int rows) const { return batch * tiles_in(m, rows); }
  constexpr std::int64_t tiles(int rows, int columns) const {
    return tile_rows(rows) * tiles_in(n, columns);
  }
};
// A batch of small matrices has tiles enough for the large ones, which each matrix would leave half empty.
Extents extents(const Gemm& op) {
  const auto [m, n, k, batch] = sizes_of(op);
  if (batch == 1) return {m, n, k};
  return {.m = m, .n = n, .k = 0, .thin = std::min(m, n) <= 64, .batch = batch};
}
// About half of a tile a group is left empty.
Extents extents(const GroupedGemm& op) {
  const std::int64_t rows = op.c.dim(0), groups = op.b.dim(0);
  return {rows + 64 * groups, op.c.dim(1), 0, rows < 128 * groups};
}
// A sum of f32 that is added to c moves 8 bytes, which an H100's HBM takes 2.7 ps for, in which its tensor
// cores do a k of 1000.
Extents extents(const GroupedGemmWeightGradient& op) {
  const std::int64_t groups = op.d_b.dim(0);
  return {groups * tiles_in(op.d_b.dim(1), 128) * 128, op.d_b.dim(2), 0, false,
          op.a.dim(0) < 1000 * groups};
}

// A kernel for bf16.
enum class Kernel : std::uint8_t { sm80_64, sm80_128, sm90_128, sm90_256 };

// ORCHARD_GPU_GEMM, read once a device.
struct Forced {
  std::optional<Kernel> kernel;
  bool library = false;

  Forced() {
    const char* const value = std::getenv("ORCHARD_GPU_GEMM");
    const std::string_view name = value ? value : "auto";
    library = name == "cublaslt";
    constexpr std::array names{"sm80_64", "sm80_128", "sm90_128", "sm90_256"};
    const auto found = std::find(names.begin(), names.end(), name);
    require(name == "auto" || library || found != names.end(),
            "ORCHARD_GPU_GEMM is {}; it may be auto, {}, {}, {}, {} or cublaslt", name, names[0],
            names[1], names[2], names[3]);
    if (found != names.end()) kernel = static_cast<Kernel>(found - names.begin());
  }
};

constexpr bool is_sm90(Kernel kernel) {
  return kernel >= Kernel::sm90_128;
}

int slices_for(Kernel kernel, const Extents& c, int multiprocessors) {
  const auto slices = [&](int rows, int columns, int blocks_per_sm) {
    return choose_slices(c.tiles(rows, columns), c.k,
                         {blocks_per_sm * multiprocessors, tensor_core_overhead});
  };
  switch (kernel) {
    case Kernel::sm80_64:
      return slices(64, 64, blocks_per_sm(Tile::side_64));
    case Kernel::sm80_128:
      return slices(128, 128, blocks_per_sm(Tile::side_128));
    case Kernel::sm90_128:
      return slices(128, 128, 1);
    case Kernel::sm90_256:
      return slices(128, 256, 1);
  }
  return 1;
}

Kernel choose_sm80(const Extents& c, int multiprocessors) {
  const int slices = slices_for(Kernel::sm80_128, c, multiprocessors);
  return c.thin || choose_tile(c.tiles(128, 128) * slices) == Tile::side_64 ? Kernel::sm80_64
                                                                            : Kernel::sm80_128;
}

Kernel choose(const GpuProperties& gpu, const Extents& c) {
  const int slices = slices_for(Kernel::sm90_128, c, gpu.multiprocessors);
  if (gpu.compute_capability != 90 ||
      !fills_sm90(c.tiles(128, 128) * slices, gpu.multiprocessors)) {
    return choose_sm80(c, gpu.multiprocessors);
  }
  // As fast as the wide tile to within 2 %, since HBM bounds; and all of it fits the boxes in shared memory
  // (tile_store.h), so that HBM has always something to do.
  if (c.writes_most) return Kernel::sm90_128;
  return choose_wide_tile(c.tile_rows(128), c.n, c.k, gpu.multiprocessors) == WideTile::n_256
             ? Kernel::sm90_256
             : Kernel::sm90_128;
}

template <class Operation, class... Slices>
void run_kernel(Stream& stream, const Operation& op, Kernel kernel, Slices... slices) {
  switch (kernel) {
    case Kernel::sm80_64:
      return run_bf16(stream, op, Tile::side_64, slices...);
    case Kernel::sm80_128:
      return run_bf16(stream, op, Tile::side_128, slices...);
    case Kernel::sm90_128:
      return run_sm90(stream, op, WideTile::n_128, slices...);
    case Kernel::sm90_256:
      return run_sm90(stream, op, WideTile::n_256, slices...);
  }
}

template <class Operation>
void run_any(Stream& stream, const Operation& op) {
  const Forced& forced = stream.device().extension<Forced>();
  if constexpr (std::is_same_v<Operation, Gemm>) {
    if (forced.library && op.epilogue.kind == EpilogueKind::none && run_library(stream, op)) {
      ++stream.device().extension<LibraryCalls>().count;
      return;
    }
  }
  if (op.a.dtype() == DType::f32) return run_f32(stream, op);
  const GpuProperties& gpu = gpu_properties(stream);
  const Extents c = extents(op);
  Kernel kernel = forced.kernel.value_or(choose(gpu, c));
  // What sm_90a's kernels do not take runs on those of sm_80.
  if (is_sm90(kernel) && !(gpu.compute_capability == 90 && takes_sm90(op))) {
    kernel = choose_sm80(c, gpu.multiprocessors);
  }
  if constexpr (std::is_same_v<Operation, Gemm>) {
    run_kernel(stream, op, kernel, slices_for(kernel, c, gpu.multiprocessors));
  } else {
    run_kernel(stream, op, kernel);
  }
}

}  // namespace

void register_gemm(OperationTable& table) {
  table.add<Gemm>(run_any);
  table.add<GroupedGemm>(run_any);
  table.add<GroupedGemmWeightGradient>(run_any);
}

}  // namespace orchard::GPU_NAMESPACE
