#include "train/pipeline_forward.h"

namespace orchard {

std::vector<MultimodalModel::Saved> forward_through_stages(Pass& pass,
                                                           const MultimodalModel& model) {
  const PipelineStages* stages = pass.parallel ? &pass.parallel->stages() : nullptr;
  std::vector<MultimodalModel::Saved> saved;
  if (!stages || stages->ranks() == 1) {
    model.forward(pass, saved.emplace_back());
    return saved;
  }
  Communicator& pipeline = (*pass.parallel)[MeshGroup::pipeline];
  const int rank = pipeline.rank();
  ConstTensor x;  // what the stage before has handed to this rank
  for (int stage = 0; stage < stages->count(); ++stage) {
    if (stages->place_of(stage).rank != rank) continue;
    const LinkRange links = stages->links(stage);
    if (stage > 0) {
      const int before = stages->place_of(stage - 1).rank;
      const Shape shape = model.chain().link(links.first - 1).output().of(pass);
      if (before != rank && shape.numel() > 0) {
        const Tensor arrived = pass.allocate(model.dtype(), shape);
        const Incoming incoming[] = {{.data = arrived, .from = before}};
        pipeline.exchange(pass.stream, {}, incoming).wait(pass.stream);
        x = arrived;
      }
    }
    x = model.forward(pass, links, x, saved.emplace_back());
    if (stage + 1 == stages->count()) break;
    const int after = stages->place_of(stage + 1).rank;
    if (after == rank || x.numel() == 0) continue;
    const Outgoing outgoing[] = {{.data = x, .to = after}};
    pipeline.exchange(pass.stream, outgoing, {}).wait(pass.stream);
    x = {};
  }
  return saved;
}

ConstTensor losses_on_every_stage(Pass& pass, const MultimodalModel& model,
                                  std::span<const MultimodalModel::Saved> saved) {
  ConstTensor own = model.losses(saved.back());
  const PipelineStages* stages = pass.parallel ? &pass.parallel->stages() : nullptr;
  if (!stages || stages->ranks() == 1) return own;
  const Tensor all = pass.allocate(DType::f32, {pass.batch.target_rows.dim(0)});
  if (all.numel() == 0) return all;
  if (own) pass.stream.copy(all, own);
  (*pass.parallel)[MeshGroup::pipeline]
      .broadcast(pass.stream, all, stages->place_of(stages->count() - 1).rank)
      .wait(pass.stream);
  return all;
}

}  // namespace orchard
