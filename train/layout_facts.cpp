#include "train/layout_facts.h"

namespace orchard {

LayoutFacts layout_facts(const RunConfig& run, const ModelConfig& model) {
  const DecoderConfig& d = model.decoder;
  LayoutFacts facts{.heads = d.heads,
                    .kv_heads = d.kv_heads,
                    .ffn = d.ffn,
                    .vocabulary = d.vocabulary,
                    .experts = d.moe.experts,
                    .expert_ffn = d.moe.experts > 0 ? d.ffn : 0,
                    .blocks = link_count(model),
                    .chunks = run.pipeline.chunks_of_rank(),
                    .named_stages = static_cast<int>(std::ssize(run.pipeline.stage_blocks))};
  const bool any_chunks = run.pipeline.schedule == ScheduleKind::interleaved;
  facts.fewest_chunks = any_chunks ? 1 : facts.chunks;
  for (const StageConfig& stage : run.stages)
    facts.batches.push_back({.sequences = stage.global_batch,
                             .micro_batch = run.micro_batch,
                             .rows = stage.sequence_length});
  if (model.has_vision()) {
    facts.vision_heads = model.vision.heads;
    facts.vision_mlp = model.vision.mlp_width;
  }
  return facts;
}

std::int64_t micro_batch_of(const RunConfig& run, const StageConfig& stage, int ranks) {
  return micro_batch_of(stage.global_batch, run.micro_batch, run.layout.data(ranks));
}

}  // namespace orchard
