// Normalises a canvas and cuts it into flattened patches on the CPU. Bound by memory: reads 12
// bytes a pixel, writes 3·e. A run of pixels of one canvas row is taken apart into three colour
// rows in a stack buffer, from which each patch receives its `patch` values at a time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/image/patchify_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>
#include <cstring>

#include "kernels/core/visit.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"
#include "kernels/image/image.h"
#include "kernels/image/image_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

constexpr std::int64_t run_pixels = 512;

// Writes (value/255 - mean) / std of `n` interleaved pixels as three rows of T.
template <class T>
void split_colours(const NormalisePatchify& op, const float* x, std::int64_t n,
                   T (&colours)[3][run_pixels]) {
  float scale[3], shift[3];
  for (std::size_t c = 0; c < 3; ++c) {
    scale[c] = 1.0f / (255.0f * op.std[c]);
    shift[c] = -op.mean[c] / op.std[c];
  }
  std::int64_t i = 0;
  for (; i + lanes() <= n; i += lanes()) {
    Vector red, green, blue;
    hn::LoadInterleaved3(Floats(), x + 3 * i, red, green, blue);
    store(hn::MulAdd(red, set(scale[0]), set(shift[0])), colours[0] + i);
    store(hn::MulAdd(green, set(scale[1]), set(shift[1])), colours[1] + i);
    store(hn::MulAdd(blue, set(scale[2]), set(shift[2])), colours[2] + i);
  }
  for (; i < n; ++i) {
    for (int c = 0; c < 3; ++c) {
      const Vector value = hn::MulAdd(set(x[3 * i + c]), set(scale[c]), set(shift[c]));
      store(value, colours[c] + i, 1);
    }
  }
}

// Canvas rows [begin, end). `fixed_patch` is op.patch or 0: pieces of a length that the compiler
// knows are copied by a few moves, twice as fast as by calls.
template <class T, std::int64_t fixed_patch>
void patchify_rows(const NormalisePatchify& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t canvas_width = op.x.dim(1), tile_cols = canvas_width / op.side;
  const std::int64_t patch_side = fixed_patch ? fixed_patch : op.patch;
  const std::int64_t grid = op.side / patch_side, area = patch_side * patch_side;
  const std::int64_t run = run_pixels / patch_side * patch_side;
  T colours[3][run_pixels];
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t tile_row = row / op.side, patch_row = row % op.side / patch_side;
    const float* const x = op.x.data<float>() + row * canvas_width * 3;
    const std::int64_t visible = row < op.height ? op.width : 0;
    for (std::int64_t start = 0; start < canvas_width; start += run) {
      const std::int64_t pixels = std::min(run, canvas_width - start);
      const std::int64_t inside = std::clamp<std::int64_t>(visible - start, 0, pixels);
      split_colours(op, x + 3 * start, inside, colours);
      for (auto& colour : colours) std::fill(colour + inside, colour + pixels, T{});
      for (std::int64_t i = 0; i < pixels; i += patch_side) {
        const std::int64_t tile = tile_row * tile_cols + (start + i) / op.side;
        const std::int64_t patch_col = (start + i) % op.side / patch_side;
        T* const patch = op.patches.data<T>() +
                         ((tile * grid + patch_row) * grid + patch_col) * 3 * area +
                         row % patch_side * patch_side;
        for (std::int64_t c = 0; c < 3; ++c) {
          std::memcpy(patch + c * area, colours[c] + i,
                      static_cast<std::size_t>(patch_side) * sizeof(T));
        }
      }
    }
  }
}

void normalise_patchify(Stream&, const NormalisePatchify& op) {
  require(op.patch <= run_pixels, "NormalisePatchify: patch is {}, at most {} is supported",
          op.patch, run_pixels);
  visit_float(op.patches.dtype(), [&]<class T>(T) {
    const auto rows_of = op.patch == 14 ? patchify_rows<T, 14> : patchify_rows<T, 0>;
    parallel_for(op.x.dim(0), op.patch,
                 [&](std::int64_t begin, std::int64_t end) { rows_of(op, begin, end); });
  });
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(normalise_patchify);

void register_patchify(OperationTable& table) {
  table.add<NormalisePatchify>([](Stream& s, const NormalisePatchify& op) {
    HWY_DYNAMIC_DISPATCH(normalise_patchify)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
