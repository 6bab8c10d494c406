// Adaptive average pooling on the CPU. Forward and backward are one gather: the outputs whose bins
// hold input i of n, for m outputs, are floor(i·m/n) ... ceil((i+1)·m/n) - 1, the bin formula with
// n and m exchanged. So no two threads write one pixel, and every sum has a fixed order. Bound by
// memory: each source pixel is read by the one to four targets that it feeds, mostly from cache, and the
// sums of a few vectors of channels stay in registers.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convolution/adaptive_pool_cpu.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
#include "hwy/highway.h"
//
#include <algorithm>

#include "kernels/convolution/convolution.h"
#include "kernels/convolution/convolution_cpu.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/device/device.h"

HWY_BEFORE_NAMESPACE();
namespace orchard::cpu::HWY_NAMESPACE {

// Where pictures shrink to a few pixels, so many channels are a task, so that threads find enough.
constexpr std::int64_t pool_chunk = 256;

struct Bin {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

// The `sources` pixels of one side that target `i` of `targets` reads.
inline Bin bin_of(std::int64_t i, std::int64_t sources, std::int64_t targets) {
  return {i * sources / targets, ((i + 1) * sources + targets - 1) / targets};
}

enum class Divisor {
  target_bin,  // forward: the mean over the target's own bin
  source_bin,  // backward: each source pixel's gradient is shared by the pixels of its bin
};

struct Pool {
  ConstTensor source, extra;
  Tensor target;
  Divisor divisor;
};

// One side of the pictures, in memory that the caller provides: the divisions for the bins of a pixel
// would take as long as its sums.
class Side {
 public:
  Side(std::int64_t sources, std::int64_t targets) : sources_(sources), targets_(targets) {}

  std::size_t size_bytes() const {
    return static_cast<std::size_t>(targets_) * sizeof(Bin) +
           static_cast<std::size_t>(sources_) * sizeof(float);
  }
  void fill(std::byte* memory) {
    bins_ = reinterpret_cast<Bin*>(memory);
    readers_ = reinterpret_cast<float*>(bins_ + targets_);
    for (std::int64_t i = 0; i < targets_; ++i) bins_[i] = bin_of(i, sources_, targets_);
    for (std::int64_t i = 0; i < sources_; ++i)
      readers_[i] = static_cast<float>(bin_of(i, targets_, sources_).size());
  }
  // The sources that each target reads.
  const Bin* bins() const { return bins_; }
  // Of each source, the number of targets that read it.
  const float* readers() const { return readers_; }

 private:
  std::int64_t sources_, targets_;
  Bin* bins_ = nullptr;
  float* readers_ = nullptr;
};

// What one target pixel reads.
template <class T>
struct Window {
  const T* image;
  std::int64_t width, channels;
  Bin rows, cols;
  float mean_weight;                       // of every source, forward
  const float *row_readers, *col_readers;  // backward; null: forward

  const T* pixel(std::int64_t r, std::int64_t s) const {
    return image + (r * width + s) * channels;
  }
  float weight(std::int64_t r, std::int64_t s) const {
    // Rounded once: the product of two quotients would be off by three half units.
    return row_readers ? 1.0f / (row_readers[r] * col_readers[s]) : mean_weight;
  }
};

// `vectors` vectors of `n` channels of a target pixel, from `c` on: the weighted sum of what it reads,
// and `extra` if given.
template <int vectors, class T>
HWY_INLINE void pool_channels(const Window<T>& window, const T* extra, T* target, std::int64_t c,
                              std::int64_t n) {
  Vector sums[vectors];
  for (int v = 0; v < vectors; ++v) sums[v] = zero();
  for (std::int64_t r = window.rows.begin; r < window.rows.end; ++r) {
    for (std::int64_t s = window.cols.begin; s < window.cols.end; ++s) {
      const T* const from = window.pixel(r, s) + c;
      const Vector weight = set(window.weight(r, s));
      for (int v = 0; v < vectors; ++v)
        sums[v] = hn::MulAdd(weight, load(from + v * lanes(), n), sums[v]);
    }
  }
  for (int v = 0; v < vectors; ++v) {
    const std::int64_t i = c + v * lanes();
    store(extra ? hn::Add(sums[v], load(extra + i, n)) : sums[v], target + i, n);
  }
}

// Channels [c, end) of a target pixel.
template <class T>
void pool_pixel(const Window<T>& window, const T* extra, T* target, std::int64_t c,
                std::int64_t end) {
  // Measured: windows of three pixels a side are quicker in long runs of channels (by 40 % in f32),
  // those of one or two pixels in short ones (by a sixth).
  constexpr int many = few_registers ? 8 : 16, some = 4;
  if (window.rows.size() * window.cols.size() > 4) {
    for (; c + many * lanes() <= end; c += many * lanes())
      pool_channels<many>(window, extra, target, c, lanes());
  }
  for (; c + some * lanes() <= end; c += some * lanes())
    pool_channels<some>(window, extra, target, c, lanes());
  for (; c < end; c += lanes())
    pool_channels<1>(window, extra, target, c, std::min(lanes(), end - c));
}

template <class T>
void pool(Stream& stream, const Pool& op) {
  const std::int64_t height = op.target.dim(1), width = op.target.dim(2);
  const std::int64_t channels = op.target.dim(3), pixels = op.target.dim(0) * height * width;
  const std::int64_t source_height = op.source.dim(1), source_width = op.source.dim(2);
  Side vertical(source_height, height), horizontal(source_width, width);
  // Rounded up to the alignment of a Bin.
  const std::size_t offset = (vertical.size_bytes() + sizeof(Bin) - 1) / sizeof(Bin) * sizeof(Bin);
  std::byte* const memory = stream.workspace(offset + horizontal.size_bytes());
  vertical.fill(memory);
  horizontal.fill(memory + offset);
  const bool is_mean = op.divisor == Divisor::target_bin;
  // Whole pixels lie one after the other in memory; a cut changes no sum.
  const std::int64_t chunk = pixels < 1024 ? pool_chunk : channels;
  const std::int64_t chunks = (channels + chunk - 1) / chunk;
  parallel_for(pixels * chunks, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t pixel = task / chunks, c = task % chunks * chunk;
      const std::int64_t row = pixel / width, image = row / height;
      const Bin rows = vertical.bins()[row % height], cols = horizontal.bins()[pixel % width];
      const Window<T> window{
          .image = op.source.data<T>() + image * source_height * source_width * channels,
          .width = source_width,
          .channels = channels,
          .rows = rows,
          .cols = cols,
          .mean_weight = 1.0f / static_cast<float>(rows.size() * cols.size()),
          .row_readers = is_mean ? nullptr : vertical.readers(),
          .col_readers = is_mean ? nullptr : horizontal.readers()};
      pool_pixel(window, op.extra ? op.extra.data<T>() + pixel * channels : nullptr,
                 op.target.data<T>() + pixel * channels, c, std::min(c + chunk, channels));
    }
  });
}

void pool_any(Stream& stream, const Pool& op) {
  if (op.target.numel() == 0) return;
  op.target.dtype() == DType::f32 ? pool<float>(stream, op) : pool<bf16>(stream, op);
}

void adaptive_pool_forward(Stream& stream, const AdaptiveAveragePoolForward& op) {
  pool_any(stream, {.source = op.x, .extra = {}, .target = op.y, .divisor = Divisor::target_bin});
}

void adaptive_pool_backward(Stream& stream, const AdaptiveAveragePoolBackward& op) {
  pool_any(
      stream,
      {.source = op.d_y, .extra = op.d_extra, .target = op.d_x, .divisor = Divisor::source_bin});
}

}  // namespace orchard::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace orchard::cpu {

HWY_EXPORT(adaptive_pool_forward);
HWY_EXPORT(adaptive_pool_backward);

void register_adaptive_pool(OperationTable& table) {
  table.add<AdaptiveAveragePoolForward>([](Stream& s, const AdaptiveAveragePoolForward& op) {
    HWY_DYNAMIC_DISPATCH(adaptive_pool_forward)(s, op);
  });
  table.add<AdaptiveAveragePoolBackward>([](Stream& s, const AdaptiveAveragePoolBackward& op) {
    HWY_DYNAMIC_DISPATCH(adaptive_pool_backward)(s, op);
  });
}

}  // namespace orchard::cpu
#endif  // HWY_ONCE
