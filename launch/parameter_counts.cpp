#include "launch/parameter_counts.h"

#include "models/multimodal.h"

namespace orchard {

ParameterCounts count_parameters(const ModelConfig& model) {
  ParameterStore store;
  const MultimodalModel declared(store, model);
  const auto below = [&](std::string_view prefix) {
    return store.count([&](const ParameterSpec& p) { return p.name.starts_with(prefix); });
  };
  ParameterCounts counts{.vision = below("vision."),
                         .connector = below("connector."),
                         .embedding = below("embedding"),
                         .decoder = below("decoder.")};
  const MoeConfig& moe = model.decoder.moe;
  if (moe.experts > 0) {
    const std::int64_t in_experts =
        store.count([](const ParameterSpec& p) { return p.sharding.expert >= 0; });
    counts.inactive = in_experts / moe.experts * (moe.experts - moe.top_k);
  }
  return counts;
}

}  // namespace orchard
