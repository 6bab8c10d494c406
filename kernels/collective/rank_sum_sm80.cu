// The sum over ranks on GPUs, from sm_80 on: one pass over the parts. Bytes (ranks + 1)·e for elements
// of e bytes, ranks FLOPs: bound by HBM bandwidth.
#include "kernels/collective/rank_sum.h"
#include "kernels/core/visit.h"
#include "kernels/gpu/pointwise.h"
#include "kernels/gpu/register.h"

namespace orchard::GPU_NAMESPACE {
namespace {

template <class T>
struct RankSumElements {
  static constexpr int width = per_vector<T>;
  const T* parts;
  std::int64_t stride;
  const T* own;
  int own_rank, ranks;
  T* result;

  template <int n>
  __device__ Values<n> read(std::int64_t i) const {
    Values<n> sum = part<n>(0, i);
    for (int r = 1; r < ranks; ++r) {
      sum = map([](float left, float right) { return left + right; }, sum, part<n>(r, i));
    }
    return sum;
  }
  template <int n>
  __device__ Values<n> part(int rank, std::int64_t i) const {
    return load_values<n>(rank == own_rank ? own + i : parts + rank * stride + i);
  }
  template <int n>
  __device__ void write(std::int64_t i, const Values<n>& sum) const {
    store_values(result + i, sum);
  }
};

template <class T>
void rank_sum(Stream& stream, const RankSum& op) {
  const RankSumElements<T> body{.parts = op.parts.data<T>(),
                                .stride = op.parts.dim(1),
                                .own = op.own.data<T>(),
                                .own_rank = op.own_rank,
                                .ranks = static_cast<int>(op.parts.dim(0)),
                                .result = op.result.data<T>()};
  const bool vectors =
      body.stride % body.width == 0 && all_aligned(16, {body.parts, body.own, body.result});
  launch_pointwise(stream, "rank_sum", body, {.count = op.result.numel(), .vectors = vectors});
}

}  // namespace

void register_collective(OperationTable& table) {
  table.add<RankSum>([](Stream& stream, const RankSum& op) {
    visit_float(op.result.dtype(), [&]<class T>(T) { rank_sum<T>(stream, op); });
  });
}

}  // namespace orchard::GPU_NAMESPACE
