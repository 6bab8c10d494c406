// Which kernel computes a matrix product on a GPU.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "kernels/gemm/gemm_gpu.h"
#include "kernels/gemm/schedule.h"
#include "kernels/gpu/gpu_properties.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

constexpr std::int64_t tiles_128(std::int64_t m, std::int64_t n) {
  return std::int64_t{tiles_in(m, 128)} * tiles_in(n, 128);
}

// c as the tiles of sm_90a see it: tiles of m rows in all groups, and n.
struct Extents {
  std::int64_t tile_rows, n;
};
Extents extents(const Gemm& op) {
  return {tiles_in(op.c.dim(0), 128), op.c.dim(1)};
}
// About half of a tile a group is left empty.
Extents extents(const GroupedGemm& op) {
  return {tiles_in(op.c.dim(0), 128) + op.b.dim(0) / 2, op.c.dim(1)};
}
Extents extents(const GroupedGemmWeightGradient& op) {
  return {op.d_b.dim(0) * tiles_in(op.d_b.dim(1), 128), op.d_b.dim(2)};
}

// A kernel for bf16.
enum class Kernel : std::uint8_t { sm80_64, sm80_128, sm90_128, sm90_256 };

// ORCHARD_GPU_GEMM, read once a device.
struct Forced {
  std::optional<Kernel> kernel;

  Forced() {
    const char* const value = std::getenv("ORCHARD_GPU_GEMM");
    const std::string_view name = value ? value : "auto";
    constexpr std::array names{"sm80_64", "sm80_128", "sm90_128", "sm90_256"};
    const auto found = std::find(names.begin(), names.end(), name);
    require(name == "auto" || found != names.end(),
            "ORCHARD_GPU_GEMM is {}; it may be auto, {}, {}, {} or {}", name, names[0], names[1],
            names[2], names[3]);
    if (found != names.end()) kernel = static_cast<Kernel>(found - names.begin());
  }
};

template <class Operation>
Kernel choose(const GpuProperties& gpu, const Operation& op) {
  const auto [tile_rows, n] = extents(op);
  if (gpu.compute_capability == 90 && fills_sm90(tile_rows, n, gpu.multiprocessors)) {
    return choose_wide_tile(tile_rows, n, gpu.multiprocessors) == WideTile::n_256
               ? Kernel::sm90_256
               : Kernel::sm90_128;
  }
  return choose_tile(op) == Tile::side_64 ? Kernel::sm80_64 : Kernel::sm80_128;
}

template <class Operation>
void run_any(Stream& stream, const Operation& op) {
  if (op.a.dtype() == DType::f32) return run_f32(stream, op);
  const GpuProperties& gpu = gpu_properties(stream);
  Kernel kernel = stream.device().extension<Forced>().kernel.value_or(choose(gpu, op));
  // What sm_90a's kernels do not take runs on those of sm_80.
  if (kernel >= Kernel::sm90_128 && !(gpu.compute_capability == 90 && takes_sm90(op.a, op.b))) {
    kernel = choose_tile(op) == Tile::side_64 ? Kernel::sm80_64 : Kernel::sm80_128;
  }
  switch (kernel) {
    case Kernel::sm80_64:
      return run_bf16(stream, op, Tile::side_64);
    case Kernel::sm80_128:
      return run_bf16(stream, op, Tile::side_128);
    case Kernel::sm90_128:
      return run_sm90(stream, op, WideTile::n_128);
    case Kernel::sm90_256:
      return run_sm90(stream, op, WideTile::n_256);
  }
}

}  // namespace

Tile choose_tile(const Gemm& op) {
  return choose_tile(tiles_128(op.c.dim(0), op.c.dim(1)));
}

// Groups of fewer than 128 rows would leave tiles of 128 half empty.
Tile choose_tile(const GroupedGemm& op) {
  const std::int64_t rows = op.c.dim(0), groups = op.b.dim(0);
  return rows < 128 * groups ? Tile::side_64 : choose_tile(tiles_128(rows, op.c.dim(1)));
}

Tile choose_tile(const GroupedGemmWeightGradient& op) {
  return choose_tile(op.d_b.dim(0) * tiles_128(op.d_b.dim(1), op.d_b.dim(2)));
}

void register_gemm(OperationTable& table) {
  table.add<Gemm>(run_any);
  table.add<GroupedGemm>(run_any);
  table.add<GroupedGemmWeightGradient>(run_any);
}

}  // namespace orchard::GPU_NAMESPACE
