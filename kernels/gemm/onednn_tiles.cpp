#include "kernels/gemm/onednn_tiles.h"

#include <string_view>

#include "kernels/cpu/parallel.h"
#include "kernels/gemm/one_thread.h"

namespace orchard::cpu {
namespace {

using Desc = dnnl::memory::desc;
using Tag = dnnl::memory::format_tag;

dnnl::memory::data_type type_of(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

Tag tag_of(const TileShape& shape) {
  switch (shape.right) {
    case RightLayout::packed:
      return shape.in == DType::bf16 ? Tag::BA16a64b2a : Tag::BA16a64b;
    case RightLayout::plain:
      return Tag::ab;
    case RightLayout::plain_transposed:
      return Tag::ba;
  }
  return Tag::undef;
}

}  // namespace

TileKernel::TileKernel(const dnnl::engine& engine, const TileShape& shape)
    : engine_(engine), shape_(shape) {
  const OneThread one_thread;
  const auto in = type_of(shape.in), out = type_of(shape.out);
  right_ = Desc({shape.k, shape.n}, in, tag_of(shape));
  if (shape.bias) bias_ = Desc({1, shape.n}, in, Tag::ab);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (shape.accumulate == Accumulate::add) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  for (int i = 0; i < sizes; ++i) {
    const std::int64_t rows = std::int64_t{1} << i;
    a_[i] = Desc({rows, shape.k}, in, Tag::ab);
    c_[i] = Desc({rows, shape.n}, out, Tag::ab);
    const auto description = shape.bias ? dnnl::matmul::desc(a_[i], right_, bias_, c_[i])
                                        : dnnl::matmul::desc(a_[i], right_, c_[i]);
    const dnnl::matmul::primitive_desc primitive(description, attributes, engine,
                                                 /*allow_empty=*/true);
    // oneDNN's other implementations allocate on every call, and lose to its sgemm.
    available_ = primitive && std::string_view(primitive.impl_info_str()).starts_with("brg");
    if (!available_) return;
    primitives_[i] = dnnl::matmul(primitive);
    scratch_bytes_ = std::max(scratch_bytes_, primitive.scratchpad_desc().get_size());
  }
}

void TileKernel::reserve_threads(int threads) {
  while (available_ && static_cast<int>(threads_.size()) < threads) {
    const auto memory = [&](const Desc& desc) {
      return dnnl::memory(desc, engine_, DNNL_MEMORY_NONE);
    };
    ThreadMemory& mine = threads_.emplace_back();
    mine.stream = dnnl::stream(engine_);
    for (int i = 0; i < sizes; ++i) {
      mine.a[i] = memory(a_[i]);
      mine.c[i] = memory(c_[i]);
    }
    mine.right = memory(right_);
    if (shape_.bias) mine.bias = memory(bias_);
    mine.scratch = memory(Desc({static_cast<dnnl::memory::dim>(scratch_bytes_)},
                               dnnl::memory::data_type::u8, Tag::a));
  }
}

bool TileKernel::multiply(int thread, std::int64_t rows, const TileOperands& operands,
                          std::byte* scratch) const {
  // The C interface: dnnl.hpp would build a map of arguments on the heap, and throw.
  ThreadMemory& mine = threads_[static_cast<std::size_t>(thread)];
  bool ok = true;
  const auto point = [&](dnnl::memory& memory, const std::byte* data) {
    ok &= dnnl_memory_set_data_handle(memory.get(), const_cast<std::byte*>(data)) == dnnl_success;
    return memory.get();
  };
  std::array<dnnl_exec_arg_t, 5> arguments{};
  arguments[0] = {DNNL_ARG_WEIGHTS, point(mine.right, operands.right)};
  arguments[1] = {DNNL_ARG_SCRATCHPAD, point(mine.scratch, scratch)};
  if (shape_.bias) arguments[4] = {DNNL_ARG_BIAS, point(mine.bias, operands.bias)};
  std::int64_t done = 0;
  for (int i = sizes - 1; i >= 0; --i) {
    if (!((rows >> i) & 1)) continue;
    const auto a_offset = static_cast<std::size_t>(done * shape_.k) * size_of(shape_.in);
    const auto c_offset = static_cast<std::size_t>(done * shape_.n) * size_of(shape_.out);
    arguments[2] = {DNNL_ARG_SRC, point(mine.a[i], operands.a + a_offset)};
    arguments[3] = {DNNL_ARG_DST, point(mine.c[i], operands.c + c_offset)};
    ok &= dnnl_primitive_execute(primitives_[i].get(), mine.stream.get(), shape_.bias ? 5 : 4,
                                 arguments.data()) == dnnl_success;
    done += std::int64_t{1} << i;
  }
  return ok;
}

const TileKernel* TileKernels::find(const TileShape& shape, DeviceStatistics& statistics) {
  auto it = kernels_.find(shape);
  if (it == kernels_.end()) {
    it = kernels_.try_emplace(shape, engine_, shape).first;
    if (it->second.available()) statistics.primitive_creations += TileKernel::sizes;
  }
  it->second.reserve_threads(thread_count());
  return it->second.available() ? &it->second : nullptr;
}

}  // namespace orchard::cpu
