// A case of an operation that memory bounds, beside a plain copy that moves as many bytes.
#pragma once

#include "bench/gpu/gpu_bench.h"

namespace orchard::bench {

// `make` fills a params struct with operands. The operation moves `bytes`.
template <class Make>
GpuCase row_case(const std::string& name, double bytes, const Make& make) {
  return {.name = name, .bytes = bytes, .prepare = [=](GpuBench& bench) -> GpuCase::Calls {
            const auto op = make(bench);
            const auto half = static_cast<std::int64_t>(bytes / 2);
            const Tensor from = bench.bytes(half), to = bench.bytes(half);
            return {.ours = [&bench, op] { run(bench.stream(), op); },
                    .reference = [&bench, from, to] { bench.stream().copy(to, from); },
                    .reference_name = "copy"};
          }};
}

}  // namespace orchard::bench
