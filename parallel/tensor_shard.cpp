#include "parallel/tensor_shard.h"

#include <algorithm>

#include "kernels/device/device.h"

namespace orchard {
namespace {

// Calls f(global, local, elements) for every run that is contiguous in both.
template <class F>
void for_each_run(const TensorShard& shard, F f) {
  if (shard.count == 0) return;
  const Shape local = shape_of(shard.slice, shard.shape);
  const std::int64_t row = local.numel() / local[0];
  const std::int64_t first = shard.begin * row, last = first + shard.count * row;
  SliceIndex(shard.shape, shard.slice)
      .for_each_run([&](std::int64_t global, std::int64_t at, std::int64_t n) {
        const std::int64_t begin = std::max(at, first), end = std::min(at + n, last);
        if (begin < end) f(global + begin - at, begin - first, end - begin);
      });
}

std::int64_t elements_of(const TensorShard& shard) {
  std::int64_t n = 0;
  for_each_run(shard, [&](std::int64_t, std::int64_t, std::int64_t count) { n += count; });
  return n;
}

void paste(const TensorShard& shard, std::span<const float> local, std::span<float> whole) {
  for_each_run(shard, [&](std::int64_t global, std::int64_t at, std::int64_t n) {
    std::copy_n(local.begin() + at, n, whole.begin() + global);
  });
}

// What each rank contributes, as every rank knows it.
std::vector<TensorShard> shards_of(Communicator& group, const TensorShard& own) {
  const std::int64_t mine[] = {own.slice.dim, own.slice.begin, own.slice.count, own.begin,
                               own.count};
  std::vector<std::int64_t> all(std::size(mine) * static_cast<std::size_t>(group.size()));
  group.all_gather_on_host(mine, all);
  std::vector<TensorShard> shards;
  for (auto at = all.begin(); at != all.end(); at += std::size(mine)) {
    shards.push_back({.shape = own.shape,
                      .slice = {.dim = static_cast<int>(at[0]), .begin = at[1], .count = at[2]},
                      .begin = at[3],
                      .count = at[4]});
  }
  return shards;
}

}  // namespace

TensorShard owned_shard(const Parameter& p) {
  return {.shape = p.spec.shape,
          .slice = p.shard.slice,
          .begin = p.owned.begin,
          .count = p.is_here() ? p.owned.count : 0};
}

std::vector<float> cut(const TensorShard& shard, std::span<const float> whole) {
  std::vector<float> local(static_cast<std::size_t>(elements_of(shard)));
  for_each_run(shard, [&](std::int64_t global, std::int64_t at, std::int64_t n) {
    std::copy_n(whole.begin() + global, n, local.begin() + at);
  });
  return local;
}

std::vector<float> gather_to_first(Stream& stream, Communicator& group, const TensorShard& shard,
                                   ConstTensor local, Counted counted) {
  TensorShard own = shard;
  if (counted == Counted::no) own.count = 0;
  const std::vector<TensorShard> shards = shards_of(group, own);
  const bool first = group.rank() == 0;
  const std::int64_t n = own.count == 0 ? 0 : local.numel();
  // Pieces wait on the group's device, side by side.
  std::vector<Incoming> receives;
  Buffer memory;
  if (first) {
    std::int64_t elements = 0;
    for (const TensorShard& s : shards) elements += elements_of(s);
    require(elements == shard.shape.numel(),
            "the ranks of group {} hold {} elements of a tensor of shape {}", group.name(),
            elements, shard.shape);
    memory = stream.device().allocate(static_cast<std::size_t>(elements) * sizeof(float));
    const Tensor all = memory.tensor(DType::f32, {elements});
    std::int64_t next = 0;
    for (int r = 0; r < group.size(); ++r) {
      const std::int64_t count = elements_of(shards[static_cast<std::size_t>(r)]);
      if (count > 0) receives.push_back({all.slice(next, count), r});
      next += count;
    }
  }
  std::vector<Outgoing> sends;
  if (n > 0) sends.push_back({local, 0});
  if (!sends.empty() || !receives.empty()) group.exchange(stream, sends, receives).wait(stream);
  std::vector<float> whole;
  if (!first) return whole;
  whole.resize(static_cast<std::size_t>(shard.shape.numel()));
  std::vector<float> piece;
  for (const Incoming& message : receives) {
    piece.resize(static_cast<std::size_t>(message.data.numel()));
    stream.copy(Tensor(piece.data(), DType::f32, message.data.shape(), DeviceKind::cpu),
                message.data);
    stream.synchronize();
    paste(shards[static_cast<std::size_t>(message.from)], piece, whole);
  }
  return whole;
}

}  // namespace orchard
