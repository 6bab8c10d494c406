#include "train/step_scales.h"

namespace orchard {

LossScales StepScales::upload(Stream& stream, const StepTotals& totals, const MoeConfig& moe) {
  const auto share = [](double weight, std::int64_t among) {
    return among > 0 ? static_cast<float>(weight / static_cast<double>(among)) : 0.0f;
  };
  host_[0] = share(1, totals.targets);
  host_[1] = share(moe.balance_weight, totals.sequences);
  host_[2] = share(moe.z_weight, totals.real_rows);
  const Shape shape{static_cast<std::int64_t>(count)};
  const Tensor all = memory_.tensor(DType::f32, shape);
  stream.copy(all, ConstTensor(host_.data(), DType::f32, shape, DeviceKind::cpu));
  return {.target = all.slice(0, 1), .balance = all.slice(1, 1), .z = all.slice(2, 1)};
}

}  // namespace orchard
