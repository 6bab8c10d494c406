#include "parallel/gradient_norm.h"

#include "kernels/elementwise/elementwise.h"
#include "kernels/optimizer/gradient_norm.h"

namespace orchard {

GradientNorm::GradientNorm(Device& device, Communicator& world, std::vector<FlatRange> counted)
    : world_(world), counted_(std::move(counted)), value_(1, 0.0, HostAllocator<double>(device)) {
  const std::int64_t doubles = world.size() + 1, floats = std::ssize(counted_) + 1;
  memory_ = device.allocate(static_cast<std::size_t>(doubles) * sizeof(double) +
                            static_cast<std::size_t>(floats) * sizeof(float));
  const Tensor wide = memory_.tensor(DType::i64, {doubles});
  totals_ = wide.slice(0, world.size());
  norm_ = wide.slice(world.size(), 1);
  const Tensor narrow(memory_.data() + wide.size_bytes(), DType::f32, {floats}, device.kind());
  squares_ = narrow.slice(0, floats - 1);
  scale_ = narrow.slice(floats - 1, 1);
}

void GradientNorm::measure(Stream& stream, ConstTensor flat_gradients, double clip_norm) {
  for (std::size_t i = 0; i < counted_.size(); ++i) {
    run(stream, SumOfSquares{.x = flat_gradients.slice(counted_[i].begin, counted_[i].count),
                             .result = squares_.slice(static_cast<std::int64_t>(i), 1)});
  }
  const Tensor own = totals_.slice(world_.rank(), 1);
  run(stream, SumInOrder{.terms = squares_, .sum = own});
  world_.all_gather(stream, totals_, own).wait(stream);
  run(stream,
      ClipByNorm{.squares = totals_, .clip_norm = clip_norm, .norm = norm_, .scale = scale_});
  stream.copy(Tensor(value_.data(), DType::i64, {1}, DeviceKind::cpu), norm_);
}

}  // namespace orchard
