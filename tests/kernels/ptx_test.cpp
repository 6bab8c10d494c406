// The instructions of kernels/ptx: what they do, on the emulator and on a GPU; and what the emulator
// counts of them.
#include <map>
#include <numeric>

#include "kernels/gpu/gpu_properties.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/ptx_probes.cu"

namespace orchard::testing {
namespace {

struct NoCase {};
using Ptx = DeviceTest<NoCase>;

template <class Probe>
void ask(Stream& stream, const Probe& probe) {
#ifdef ORCHARD_HAS_CUDA
  if (stream.device().kind() == DeviceKind::cuda) return cuda::run_probe(stream, probe);
#endif
  simt::run_probe(stream, probe);
}

#ifdef ORCHARD_HAS_CUDA
const auto devices = ::testing::Values(DeviceKind::simt, DeviceKind::cuda);
#else
const auto devices = ::testing::Values(DeviceKind::simt);
#endif

// Small integers: sums of 16 products of at most 8 · 8 are exact in any order.
int small(unsigned i) {
  return static_cast<int>(i * 2654435761u >> 28) - 8;
}

unsigned bits(int value) {
  return to_bf16(static_cast<float>(value)).bits;
}

TEST_P(Ptx, MmaMultipliesTheMatricesThatItsFragmentsHold) {
  const auto a = [](unsigned row, unsigned k) { return small(16 * row + k); };
  const auto b = [](unsigned k, unsigned col) { return small(1000 + 8 * k + col); };
  const auto c = [](unsigned row, unsigned col) { return small(5000 + 8 * row + col); };
  Guarded a_host(DType::i32, {32, 4}), b_host(DType::i32, {32, 2}), d(DType::f32, {32, 4});
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4, q = lane % 4;
    const auto pair = [](int low, int high) {
      return static_cast<double>(static_cast<std::int32_t>(bits(low) | bits(high) << 16));
    };
    // PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
    const unsigned row[4] = {g, g + 8, g, g + 8}, col[4] = {2 * q, 2 * q, 2 * q + 8, 2 * q + 8};
    for (unsigned r = 0; r < 4; ++r) {
      a_host.set(4 * lane + r, pair(a(row[r], col[r]), a(row[r], col[r] + 1)));
    }
    for (unsigned r = 0; r < 2; ++r) {
      b_host.set(2 * lane + r, pair(b(2 * q + 8 * r, g), b(2 * q + 8 * r + 1, g)));
    }
    for (unsigned i = 0; i < 4; ++i) d.set(4 * lane + i, c(g + i / 2 * 8, 2 * q + i % 2));
  }
  {
    OnDevice a_d(stream(), a_host), b_d(stream(), b_host), d_d(stream(), d);
    ask(stream(), MmaProbe{a_d, b_d, d_d});
    d_d.download();
    stream().synchronize();
  }
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned col = 0; col < 8; ++col) {
      int expected = c(row, col);
      for (unsigned k = 0; k < 16; ++k) expected += a(row, k) * b(k, col);
      const unsigned lane = row % 8 * 4 + col / 2;
      EXPECT_EQ(d.at(4 * lane + row / 8 * 2 + col % 2), expected) << row << ", " << col;
    }
  }
}

TEST_P(Ptx, LdmatrixGivesEachLaneItsElements) {
  // Rows in an order of their own: they need not be adjacent.
  std::vector<int> rows(32);
  for (int lane = 0; lane < 32; ++lane) rows[static_cast<std::size_t>(lane)] = lane * 13 % 32;
  for (const int matrices : {1, 2, 4}) {
    for (const bool transposed : {false, true}) {
      Guarded row_of_lane = integers({32}, rows), registers(DType::i32, {32, matrices});
      {
        OnDevice rows_d(stream(), row_of_lane), registers_d(stream(), registers);
        ask(stream(), LoadMatrixProbe{matrices, transposed, rows_d, registers_d});
        registers_d.download();
        stream().synchronize();
      }
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < matrices; ++i) {
          const auto element = [&](int row, int col) {
            return 8 * rows[static_cast<std::size_t>(8 * i + row)] + col;
          };
          const int g = lane / 4, q = 2 * (lane % 4);
          const int low = transposed ? element(q, g) : element(g, q);
          const int high = transposed ? element(q + 1, g) : element(g, q + 1);
          EXPECT_EQ(registers.at(matrices * lane + i), low | high << 16)
              << "x" << matrices << (transposed ? ".trans" : "") << " lane " << lane << " matrix "
              << i;
        }
      }
    }
  }
}

TEST_P(Ptx, CpAsyncCopiesAndFillsWithZeros) {
  for (const int bytes : {4, 8, 16}) {
    Guarded in(DType::u8, {32, bytes}), out(DType::u8, {32, bytes});
    for (int i = 0; i < 32 * bytes; ++i) in.set(i, 1 + i % 255);
    {
      OnDevice in_d(stream(), in), out_d(stream(), out);
      ask(stream(), CopyProbe{bytes, in_d, out_d});
      out_d.download();
      stream().synchronize();
    }
    for (int i = 0; i < 32 * bytes; ++i) {
      const int lane = i / bytes;
      EXPECT_EQ(out.at(i), i % bytes < lane % (bytes + 1) ? in.at(i) : 0) << bytes << ", " << i;
    }
  }
}

// Integers again. The box of a also begins outside its matrix: zeros.
TEST_P(Ptx, WgmmaMultipliesWhatTmaBrought) {
  if (stream().device().kind() == DeviceKind::cuda &&
      gpu_properties(stream()).compute_capability != 90) {
    GTEST_SKIP() << "wgmma is sm_90a's";
  }
  constexpr int m = 64, k = 64;
  for (const int n : {64, 128, 256}) {
    for (const int form : {0, 1, 2, 3}) {
      for (const int a_col : {0, -8, 16}) {
        const bool a_transposed = form % 2 == 1, b_transposed = form / 2 == 1;
        SCOPED_TRACE(
            fmt::format("n {} transposed {} {} column {}", n, a_transposed, b_transposed, a_col));
        const auto a_at = [&](int row, int col) {
          return col < 0 || col >= 64 ? 0 : small(static_cast<unsigned>(64 * row + col));
        };
        const auto b_at = [&](int row, int col) {
          return small(static_cast<unsigned>(10000 + 256 * row + col));
        };
        Guarded a(DType::bf16, {64, 64}), d(DType::f32, {m, n});
        Guarded b(DType::bf16, b_transposed ? Shape{k, n} : Shape{n, k});
        for (int i = 0; i < 64 * 64; ++i) a.set(i, a_at(i / 64, i % 64));
        const int b_cols = b_transposed ? n : k;
        for (int i = 0; i < k * n; ++i) b.set(i, b_at(i / b_cols, i % b_cols));
        for (int i = 0; i < m * n; ++i) d.set(i, i % 17);
        {
          OnDevice a_d(stream(), a), b_d(stream(), b), d_d(stream(), d);
          ask(stream(), WgmmaProbe{.n = n,
                                   .a_transposed = a_transposed,
                                   .b_transposed = b_transposed,
                                   .a = a_d,
                                   .b = b_d,
                                   .a_col = a_col,
                                   .d = d_d});
          d_d.download();
          stream().synchronize();
        }
        int wrong = 0;
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j < n; ++j) {
            int expected = (i * n + j) % 17;
            for (int l = 0; l < k; ++l) {
              expected += (a_transposed ? a_at(l, i + a_col) : a_at(i, l + a_col)) *
                          (b_transposed ? b_at(l, j) : b_at(j, l));
            }
            wrong += d.at(i * n + j) != expected;
          }
        }
        EXPECT_EQ(wrong, 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, Ptx, ::testing::Combine(devices, ::testing::Values(NoCase{})),
                         device_test_name<NoCase>);

}  // namespace
}  // namespace orchard::testing

// ---- counters ----------------------------------------------------------------------------------

namespace orchard::simt {
namespace {

__global__ void multiply_zeros() {
  float d[4] = {};
  const unsigned a[4] = {};
  mma_m16n8k16_bf16(d, a, 0, 0);
}

struct Tile {
  alignas(16) unsigned word[32 * 32];  // 32 rows of 128 bytes
};

// Four matrices of the first 16-byte column, whose rows lie 128 bytes apart.
template <bool swizzled>
__global__ void load_column() {
  auto& tile = shared_storage<Tile>();
  for (unsigned i = threadIdx.x; i < 32 * 32; i += 32) tile.word[i] = i;
  __syncthreads();
  unsigned registers[4];
  ldmatrix(registers, tile.word + 32 * threadIdx.x + (swizzled ? threadIdx.x % 8 * 4 : 0));
}

// A lane stores one T, of `stride` apart from each other, and loads another one.
template <class T>
__global__ void exchange(int stride) {
  auto* const place = reinterpret_cast<T*>(shared_storage<Tile>().word);
  const auto lane = static_cast<int>(threadIdx.x);
  store_shared(place + lane, T{});
  __syncthreads();
  store_shared(place + stride * lane, T{});
  __syncthreads();
  load_shared(place + lane);
}

// 4 bytes by a load; by cp.async 4 bytes, and 12 of 16.
__global__ void load_and_copy(const unsigned* in) {
  auto& tile = shared_storage<Tile>();
  const unsigned lane = threadIdx.x;
  load(in + lane);
  cp_async_small<4>(tile.word + lane, in + lane);
  cp_async_16(tile.word + 32 + 4 * lane, in + 4 * lane, 12);
  cp_async_wait_all();
}

// All lanes twice, and each half of them by itself.
__global__ void shuffle_and_vote() {
  const auto lane = static_cast<int>(threadIdx.x);
  constexpr unsigned all = 0xffffffffu;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int value = __shfl_xor_sync(all, lane, 1);
  value = __shfl_down_sync(all, value, 2);
  value = __shfl_xor_sync(half, value, 4);
  __ballot_sync(all, value > 3);
  __syncwarp();
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::ThreadOrder;

class PtxCounters : public ::testing::TestWithParam<ThreadOrder> {
 protected:
  template <class... Parameters, class... Arguments>
  void run(std::size_t shared_bytes, void (*kernel)(Parameters...), Arguments... arguments) {
    simt::launch(*stream_, {.kernel = "k", .block = {32}, .shared_bytes = shared_bytes}, kernel,
                 arguments...);
    stream_->synchronize();
  }

  template <class T>
  void expect_wavefronts(const std::map<int, unsigned>& wavefronts);

  const std::unique_ptr<SimtDevice> device_ =
      make_simt_device({.order = GetParam(), .seed = 3, .counting = simt::Counting::on});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();
};

INSTANTIATE_TEST_SUITE_P(Orders, PtxCounters,
                         ::testing::Values(ThreadOrder::fifo, ThreadOrder::reverse,
                                           ThreadOrder::random));

TEST_P(PtxCounters, BankConflictsOfMatricesAreCounted) {
  using simt::SharedCounters;
  run(sizeof(simt::Tile), simt::load_column<true>);
  EXPECT_EQ(device_->counters().shared_loads,
            (SharedCounters{.requests = 1, .wavefronts = 4, .ideal_wavefronts = 4, .bytes = 512}));
  device_->reset_counters();
  run(sizeof(simt::Tile), simt::load_column<false>);
  EXPECT_EQ(device_->counters().shared_loads,
            (SharedCounters{.requests = 1, .wavefronts = 32, .ideal_wavefronts = 4, .bytes = 512}));
}

// 32 lanes with 4 bytes each are served at a time, 16 with 8, 8 with 16. `wavefronts`: of a stride.
template <class T>
void PtxCounters::expect_wavefronts(const std::map<int, unsigned>& wavefronts) {
  const unsigned packed = sizeof(T) / 4;
  for (const auto& [stride, expected] : wavefronts) {
    SCOPED_TRACE(fmt::format("{} bytes, stride {}", sizeof(T), stride));
    device_->reset_counters();
    run(sizeof(simt::Tile), simt::exchange<T>, stride);
    const simt::SharedCounters& stores = device_->counters().shared_stores;
    EXPECT_EQ(stores.wavefronts, packed + expected) << "the first store is packed";
    EXPECT_EQ(stores.ideal_wavefronts, 2 * packed);
    EXPECT_EQ(device_->counters().shared_loads.excess(), 0u);
  }
}

TEST_P(PtxCounters, BankConflictsOfEveryWidthAreCounted) {
  expect_wavefronts<unsigned>({{1, 1}, {2, 2}, {17, 1}, {32, 32}});
  expect_wavefronts<simt::uint2>({{1, 2}, {2, 4}, {3, 2}, {16, 32}});
  expect_wavefronts<simt::uint4>({{1, 4}, {2, 8}, {3, 4}, {8, 32}});
}

TEST_P(PtxCounters, TensorWorkIsCounted) {
  run(0, simt::multiply_zeros);
  EXPECT_EQ(device_->counters().tensor_flops, 4096u);
  EXPECT_EQ(device_->counters().mma_instructions, 1u);
  EXPECT_EQ(device_->counters().wgmma_instructions, 0u);
}

TEST_P(PtxCounters, AsynchronousCopiesAreToldFromLoads) {
  Buffer in = device_->allocate(512);
  stream_->fill_zero(in.tensor(DType::u8, {512}));
  run(sizeof(simt::Tile), simt::load_and_copy, reinterpret_cast<const unsigned*>(in.data()));
  EXPECT_EQ(device_->counters().async_copy_bytes, 32u * (4 + 12));
  EXPECT_EQ(device_->counters().loads.bytes, 32u * (4 + 4 + 12));
}

TEST_P(PtxCounters, ShufflesAreToldFromOtherCollectives) {
  run(0, simt::shuffle_and_vote);
  EXPECT_EQ(device_->counters().shuffles, 4u);
  EXPECT_EQ(device_->counters().warp_collectives, 6u);
}

}  // namespace
}  // namespace orchard::testing
