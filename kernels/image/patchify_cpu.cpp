// Normalises a canvas and cuts it into flattened patches on the CPU. Bound by memory: reads 12
// bytes a pixel, writes 3·e. A run of pixels of one canvas row is taken apart into three colour
// rows in a stack buffer, from which each patch receives its `patch` values at a time. The rows of a
// few patches follow each other, so that these patches stay in the L1 cache until they are complete.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/image/patchify_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <hwy/cache_control.h>

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

// Pixels of a run, if a patch is not larger: 8 patches of 14, whole vectors, and 19 KB of patches in f32.
constexpr std::int64_t run_pixels = 112;

// Writes (value/255 - mean) / std of `n` interleaved pixels as three rows of T.
template <class T>
void split_colours(const NormalisePatchify& op, const float* x, std::int64_t n,
                   T (&colours)[3][max_patch]) {
  float scale[3], shift[3];
  for (std::size_t c = 0; c < 3; ++c) {
    scale[c] = 1.0f / (255.0f * op.std[c]);
    shift[c] = -op.mean[c] / op.std[c];
  }
  std::int64_t i = 0;
  while (i + lanes() <= n) {
    Vector red, green, blue;
    hn::LoadInterleaved3(Floats(), x + 3 * i, red, green, blue);
    store(hn::MulAdd(red, set(scale[0]), set(shift[0])), colours[0] + i);
    store(hn::MulAdd(green, set(scale[1]), set(shift[1])), colours[1] + i);
    store(hn::MulAdd(blue, set(scale[2]), set(shift[2])), colours[2] + i);
    i += lanes();
    // The last vector again computes some that the one before did.
    if (i < n) i = std::min(i, n - lanes());
  }
  for (; i < n; ++i) {
    for (int c = 0; c < 3; ++c) {
      const Vector value = hn::MulAdd(set(x[3 * i + c]), set(scale[c]), set(shift[c]));
      store(value, colours[c] + i, 1);
    }
  }
}

// What the next run reads and writes: too many short pieces for the hardware to foresee them.
template <class T>
HWY_INLINE void prefetch(const T* p, std::int64_t count) {
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t i = 0; i < count; i += line) hwy::Prefetch(p + i);
}

// Canvas rows [begin, end), whole rows of patches. `fixed_patch` is op.patch or 0: pieces of a length
// that the compiler knows are copied by a few moves, twice as fast as by calls.
template <class T, std::int64_t fixed_patch>
void patchify_rows(const NormalisePatchify& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t canvas_width = op.x.dim(1), tile_cols = canvas_width / op.side;
  const std::int64_t patch_side = fixed_patch ? fixed_patch : op.patch;
  const std::int64_t grid = op.side / patch_side, area = patch_side * patch_side;
  const std::int64_t run = std::max<std::int64_t>(1, run_pixels / patch_side) * patch_side;
  T colours[3][max_patch];
  T* patches[run_pixels];
  for (std::int64_t top = begin; top < end; top += patch_side) {
    const std::int64_t tile_row = top / op.side, patch_row = top % op.side / patch_side;
    for (std::int64_t start = 0; start < canvas_width; start += run) {
      const std::int64_t pixels = std::min(run, canvas_width - start), count = pixels / patch_side;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t col = start + i * patch_side,
                           tile = tile_row * tile_cols + col / op.side;
        const std::int64_t patch = (tile * grid + patch_row) * grid + col % op.side / patch_side;
        patches[i] = op.patches.data<T>() + patch * 3 * area;
      }
      for (std::int64_t r = 0; r < patch_side; ++r) {
        const std::int64_t row = top + r, visible = row < op.height ? op.width : 0;
        const std::int64_t inside = std::clamp<std::int64_t>(visible - start, 0, pixels);
        prefetch(op.x.data<float>() + (row * canvas_width + start + run) * 3, 3 * run);
        prefetch(patches[0] + count * 3 * area + r * 3 * run, 3 * run);
        split_colours(op, op.x.data<float>() + (row * canvas_width + start) * 3, inside, colours);
        for (auto& colour : colours) std::fill(colour + inside, colour + pixels, T{});
        for (std::int64_t i = 0; i < count; ++i) {
          for (std::int64_t c = 0; c < 3; ++c) {
            std::memcpy(patches[i] + c * area + r * patch_side, colours[c] + i * patch_side,
                        static_cast<std::size_t>(patch_side) * sizeof(T));
          }
        }
      }
    }
  }
}

void normalise_patchify(Stream&, const NormalisePatchify& op) {
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
