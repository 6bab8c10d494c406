#include "train/pipeline_forward.h"

namespace orchard {
namespace {

bool is_cut(const Pass& pass) {
  return pass.parallel && pass.parallel->stages().ranks() > 1;
}

}  // namespace

ConstTensor pass_through_stages(Pass& pass, const MultimodalModel& model,
                                const ForwardLinks& forward) {
  if (!is_cut(pass)) return forward(model.chain().whole(), {});
  const PipelineStages& stages = pass.parallel->stages();
  Communicator& pipeline = (*pass.parallel)[MeshGroup::pipeline];
  const int rank = pipeline.rank();
  ConstTensor x;  // what the stage before has handed to this rank, then what this one hands on
  for (int stage = 0; stage < stages.count(); ++stage) {
    if (stages.place_of(stage).rank != rank) continue;
    const LinkRange links = stages.links(stage);
    const int before = stage > 0 ? stages.place_of(stage - 1).rank : rank;
    if (before != rank) {
      x = {};
      const Shape shape = model.chain().link(links.first - 1).output().of(pass);
      if (shape.numel() > 0) {
        const Tensor arrived = pass.allocate(model.dtype(), shape);
        const Incoming incoming[] = {{.data = arrived, .from = before}};
        pipeline.exchange(pass.stream, {}, incoming).wait(pass.stream);
        x = arrived;
      }
    }
    x = forward(links, x);
    const int after = stage + 1 < stages.count() ? stages.place_of(stage + 1).rank : rank;
    if (after == rank || x.numel() == 0) continue;
    const Outgoing outgoing[] = {{.data = x, .to = after}};
    pipeline.exchange(pass.stream, outgoing, {}).wait(pass.stream);
  }
  return x;
}

std::vector<MultimodalModel::Saved> forward_through_stages(Pass& pass,
                                                           const MultimodalModel& model) {
  std::vector<MultimodalModel::Saved> saved;
  pass_through_stages(pass, model, [&](LinkRange links, ConstTensor x) {
    return model.forward(pass, links, x, saved.emplace_back());
  });
  return saved;
}

ConstTensor from_last_stage(Pass& pass, ConstTensor own, const Shape& shape) {
  if (!is_cut(pass)) return own;
  const PipelineStages& stages = pass.parallel->stages();
  Communicator& pipeline = (*pass.parallel)[MeshGroup::pipeline];
  const int last = stages.place_of(stages.count() - 1).rank;
  const Tensor all = pass.allocate(DType::f32, shape);
  if (shape.numel() == 0) return all;
  if (pipeline.rank() == last) pass.stream.copy(all, own);
  pipeline.broadcast(pass.stream, all, last).wait(pass.stream);
  return all;
}

}  // namespace orchard
