// Which kernel computes a matrix product on a GPU.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <type_traits>

#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

// Rows in all groups, columns, k. What groups hold is known to the device alone: about half a tile of each
// is left empty.
struct Extents : WideProduct {
  bool thin = false;         // groups would leave tiles of 128 half empty
  bool writes_most = false;  // k is so short that c bounds

  constexpr std::int64_t tiles(int rows, int columns) const {
    return std::int64_t{tiles_in(m, rows)} * tiles_in(n, columns);
  }
};
Extents extents(const Gemm& op) {
  return {{op.c.dim(0), op.c.dim(1), op.a.dim(op.transpose_a == Transpose::yes ? 0 : 1)}};
}
Extents extents(const GroupedGemm& op) {
  const std::int64_t rows = op.c.dim(0), groups = op.b.dim(0);
  return {{rows + 64 * groups, op.c.dim(1), op.a.dim(1), false}, rows < 128 * groups};
}
// A sum of f32 that is added to c moves 8 bytes, which an H100's HBM takes 2.7 ps for, in which its tensor
// cores do a k of 1000.
Extents extents(const GroupedGemmWeightGradient& op) {
  const std::int64_t groups = std::max<std::int64_t>(1, op.d_b.dim(0)), k = op.a.dim(0) / groups;
  return {{op.d_b.dim(0) * tiles_in(op.d_b.dim(1), 128) * 128, op.d_b.dim(2), k, false},
          false,
          k < 1000};
}

// A kernel for bf16.
enum class Kernel : std::uint8_t {
  sm80_64,
  sm80_128,
  sm90_128,
  sm90_256,
  sm90_128_pair,
  sm90_256_pair
};

Writing writing_named(std::string_view name) {
  if (name == "prefetched") return Writing::prefetched;
  if (name == "direct") return Writing::direct;
  require(name == "stored",
          "ORCHARD_GPU_GEMM_WRITING is {}; it may be stored, prefetched or direct", name);
  return Writing::stored;
}

// ORCHARD_GPU_GEMM and ORCHARD_GPU_GEMM_WRITING, read once a device.
struct Forced {
  std::optional<Kernel> kernel;
  bool library = false;
  Writing writing = Writing::stored;

  Forced() {
    const char* const value = std::getenv("ORCHARD_GPU_GEMM");
    const std::string_view name = value ? value : "auto";
    library = name == "cublaslt";
    constexpr std::array names{"sm80_64",  "sm80_128",      "sm90_128",
                               "sm90_256", "sm90_128_pair", "sm90_256_pair"};
    const auto found = std::find(names.begin(), names.end(), name);
    require(name == "auto" || library || found != names.end(),
            "ORCHARD_GPU_GEMM is {}; it may be auto, {}, {}, {}, {}, {}, {} or cublaslt", name,
            names[0], names[1], names[2], names[3], names[4], names[5]);
    if (found != names.end()) kernel = static_cast<Kernel>(found - names.begin());
    const char* const way = std::getenv("ORCHARD_GPU_GEMM_WRITING");
    if (way) writing = writing_named(way);
  }
};

constexpr bool is_sm90(Kernel kernel) {
  return kernel >= Kernel::sm90_128;
}

int slices_for(Kernel kernel, const Extents& c, int multiprocessors) {
  const int side = kernel == Kernel::sm80_64 ? 64 : 128;
  const int resident =
      multiprocessors * blocks_per_sm(kernel == Kernel::sm80_64 ? Tile::side_64 : Tile::side_128);
  return choose_slices(c.tiles(side, side), c.cuttable ? c.k : 0, {resident, tensor_core_overhead});
}

Kernel choose_sm80(const Extents& c, int multiprocessors) {
  const int slices = slices_for(Kernel::sm80_128, c, multiprocessors);
  return c.thin || choose_tile(c.tiles(128, 128) * slices) == Tile::side_64 ? Kernel::sm80_64
                                                                            : Kernel::sm80_128;
}

Kernel choose(const GpuProperties& gpu, const Extents& c) {
  const int multiprocessors = gpu.multiprocessors;
  if (gpu.compute_capability != 90 || !fills_sm90(c, multiprocessors)) {
    return choose_sm80(c, multiprocessors);
  }
  // All of a narrow tile fits the boxes in shared memory (tile_store.h): HBM has always something to do.
  if (c.writes_most) return Kernel::sm90_128;
  return choose_plan(c, multiprocessors).tile == WideTile::n_256 ? Kernel::sm90_256
                                                                 : Kernel::sm90_128;
}

constexpr WideKernel wide_kernel(Kernel kernel, Writing writing) {
  const bool is_wide = kernel == Kernel::sm90_256 || kernel == Kernel::sm90_256_pair;
  const bool is_pair = kernel == Kernel::sm90_128_pair || kernel == Kernel::sm90_256_pair;
  return {is_wide ? WideTile::n_256 : WideTile::n_128, is_pair ? 2 : 1, writing};
}

template <class Operation>
void run_any(Stream& stream, const Operation& op) {
  const Forced& forced = stream.device().extension<Forced>();
  if constexpr (std::is_same_v<Operation, Gemm>) {
    if (forced.library && run_library(stream, op)) return;
  }
  if (op.a.dtype() == DType::f32) return run_f32(stream, op);
  const GpuProperties& gpu = gpu_properties(stream);
  const Extents c = extents(op);
  Kernel kernel = forced.kernel.value_or(choose(gpu, c));
  // What sm_90a's kernels do not take runs on those of sm_80.
  if (is_sm90(kernel) && !(gpu.compute_capability == 90 && takes_sm90(op.a, op.b))) {
    kernel = choose_sm80(c, gpu.multiprocessors);
  }
  const Tile tile = kernel == Kernel::sm80_64 ? Tile::side_64 : Tile::side_128;
  const WideKernel wide = wide_kernel(kernel, forced.writing);
  if constexpr (std::is_same_v<Operation, Gemm>) {
    if (is_sm90(kernel)) {
      return run_sm90(stream, op, wide, plan_for(c, wide.tile, gpu.multiprocessors).cut);
    }
    run_bf16(stream, op, tile, slices_for(kernel, c, gpu.multiprocessors));
  } else {
    if (is_sm90(kernel)) return run_sm90(stream, op, wide);
    run_bf16(stream, op, tile);
  }
}

}  // namespace

void register_gemm(OperationTable& table) {
  table.add<Gemm>(run_any);
  table.add<GroupedGemm>(run_any);
  table.add<GroupedGemmWeightGradient>(run_any);
}

}  // namespace orchard::GPU_NAMESPACE
