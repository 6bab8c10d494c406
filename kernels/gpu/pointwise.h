// Operations whose element i depends on element i of their operands: one kernel, whatever it does
// to an element. Bound by memory.
//
// What an operation does is a Body, a copyable struct of pointers and numbers:
//
//   static constexpr int width;                     elements of an access: 16 bytes of the widest type
//   template <int n> ... read(std::int64_t i);      elements [i, i + n) of its operands, in registers
//   template <int n> void write(std::int64_t i, const ...& in);          results, from what read gave
//
// with n = width, or n = 1 at the end and where operands are not aligned. Reading and writing are
// apart so that a thread has the loads of several vectors in flight before it stores the first: the
// compiler may not move a load above a store that could alias it.
#pragma once

#include <cstdint>

#include "kernels/device/stream.h"
#include "kernels/gpu/block.h"
#include "kernels/gpu/gpu.h"
#include "kernels/gpu/values.h"

namespace orchard::GPU_NAMESPACE {

// Two vectors of one operand are 32 bytes a thread, 64 KB in flight on an SM with 2048 threads: more
// than latency × bandwidth asks for (18 KB on an H100, 40 KB on a B200).
constexpr int pointwise_threads = 256;
constexpr int pointwise_vectors = 2;

// How the elements of an operation are walked.
struct Elements {
  std::int64_t count;  // of each operand
  bool vectors;        // operands allow accesses of `width` elements
  // i32 [1] on the device: only that many leading rows of `row_size` elements count. Absent: all.
  const std::int32_t* row_count = nullptr;
  std::int64_t row_size = 0;
};

__device__ inline std::int64_t active_elements(const Elements& elements) {
  if (elements.row_count == nullptr) return elements.count;
  const std::int64_t active = load(elements.row_count) * elements.row_size;
  return active < 0 ? 0 : active < elements.count ? active : elements.count;
}

// Calls body for elements [begin, end), shared by the threads of the block. `begin` is a multiple
// of the width.
template <class Body>
__device__ void for_each_element(Body& body, std::int64_t begin, std::int64_t end, bool vectors) {
  constexpr int width = Body::width, step = pointwise_threads * width;
  const std::int64_t tail = vectors ? end - (end - begin) % width : begin;
  for (std::int64_t i = begin + threadIdx.x * width; i < tail; i += pointwise_vectors * step) {
    decltype(body.template read<width>(i)) held[pointwise_vectors];
#pragma unroll
    for (int v = 0; v < pointwise_vectors; ++v) {
      if (i + v * step < tail) held[v] = body.template read<width>(i + v * step);
    }
#pragma unroll
    for (int v = 0; v < pointwise_vectors; ++v) {
      if (i + v * step < tail) body.template write<width>(i + v * step, held[v]);
    }
  }
#pragma unroll 1  // rare, so kept small
  for (std::int64_t i = tail + threadIdx.x; i < end; i += pointwise_threads) {
    body.template write<1>(i, body.template read<1>(i));
  }
}

template <class Body>
constexpr std::int64_t pointwise_chunk =
    std::int64_t{pointwise_threads} * pointwise_vectors* Body::width;

template <class Body>
__global__ void __launch_bounds__(pointwise_threads) pointwise(Body body, Elements elements) {
  const std::int64_t active = active_elements(elements);
  const std::int64_t begin = blockIdx.x * pointwise_chunk<Body>;
  const std::int64_t end = begin + pointwise_chunk<Body>;
  for_each_element(body, begin, end < active ? end : active, elements.vectors);
}

template <class Body>
void launch_pointwise(Stream& stream, const char* name, const Body& body,
                      const Elements& elements) {
  if (elements.count == 0) return;
  const std::int64_t blocks = (elements.count + pointwise_chunk<Body> - 1) / pointwise_chunk<Body>;
  launch(stream,
         {.kernel = name, .grid = {static_cast<unsigned>(blocks)}, .block = {pointwise_threads}},
         pointwise<Body>, body, elements);
}

// A Body with a member `double total`, which its write adds to: the totals of all threads are added
// in a fixed order.
template <class Body>
__global__ void __launch_bounds__(pointwise_threads)
    pointwise_sum(Body body, Elements elements, std::int64_t chunk, double* partials) {
  const std::int64_t begin = blockIdx.x * chunk, end = begin + chunk;
  for_each_element(body, begin, end < elements.count ? end : elements.count, elements.vectors);
  auto& shared = shared_storage<BlockSum<double, pointwise_threads>>();
  const double total = block_sum<pointwise_threads>(body.total, shared);
  if (threadIdx.x == 0) store(partials + blockIdx.x, total);
}

// The cut of `count` elements into partial sums: at most 1024, enough to fill a GPU.
template <class Body>
struct SumChunks {
  explicit SumChunks(std::int64_t elements) {
    constexpr std::int64_t most = 1024, smallest = 2 * pointwise_chunk<Body>;
    const std::int64_t even = (elements + most - 1) / most;
    chunk = even <= smallest ? smallest
                             : (even + pointwise_chunk<Body> - 1) / pointwise_chunk<Body> *
                                   pointwise_chunk<Body>;
    count = (elements + chunk - 1) / chunk;
  }
  std::size_t size_bytes() const { return static_cast<std::size_t>(count) * sizeof(double); }

  std::int64_t chunk, count;
};

template <class Body>
void launch_pointwise_sum(Stream& stream, const char* name, const Body& body,
                          const Elements& elements, const SumChunks<Body>& chunks,
                          double* partials) {
  if (chunks.count == 0) return;
  launch(stream,
         {.kernel = name,
          .grid = {static_cast<unsigned>(chunks.count)},
          .block = {pointwise_threads},
          .shared_bytes = sizeof(BlockSum<double, pointwise_threads>)},
         pointwise_sum<Body>, body, elements, chunks.chunk, partials);
}

}  // namespace orchard::GPU_NAMESPACE
