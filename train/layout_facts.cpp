#include "train/layout_facts.h"

namespace orchard {

LayoutFacts layout_facts(const RunConfig& run, const StageConfig& stage, const ModelConfig& model) {
  const DecoderConfig& d = model.decoder;
  LayoutFacts facts{.heads = d.heads,
                    .kv_heads = d.kv_heads,
                    .ffn = d.ffn,
                    .vocabulary = d.vocabulary,
                    .experts = d.moe.experts,
                    .expert_ffn = d.moe.experts > 0 ? d.ffn : 0,
                    .blocks = link_count(model),
                    .chunks = run.pipeline.chunks_of_rank(),
                    .global_batch = stage.global_batch,
                    .micro_batch = run.micro_batch,
                    .rows = run.micro_batch * stage.sequence_length};
  if (model.has_vision()) {
    facts.vision_heads = model.vision.heads;
    facts.vision_mlp = model.vision.mlp_width;
  }
  return facts;
}

}  // namespace orchard
