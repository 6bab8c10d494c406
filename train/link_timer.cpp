#include "train/link_timer.h"

#include <algorithm>
#include <limits>

#include "models/multimodal.h"
#include "train/step_scales.h"
#include "train/stopwatch.h"
#include "train/upload.h"

namespace orchard {
namespace {

// After one to warm up. What disturbs a machine only ever adds time, so the fastest counts.
constexpr int repetitions = 3;

static_assert(sizeof(LinkCost) == 2 * sizeof(double), "a pair of doubles, shared by ranks as such");

// The least model that has a link of every kind of `model`'s.
ModelConfig one_of_each(ModelConfig model) {
  if (model.has_vision()) model.vision.layers -= model.vision.active_layers() - 1;
  DecoderConfig& decoder = model.decoder;
  const bool has_both = decoder.moe.experts > 0 && decoder.moe.every > 1;
  decoder.layers = decoder.moe.every = has_both ? 2 : 1;
  return model;
}

Layout without_pipeline(Layout layout) {
  layout.pipeline = 1;
  return layout;
}

class LinkTimer {
 public:
  LinkTimer(Device& device, Communicator& world, const ModelConfig& model,
            const LinkSetting& setting)
      : ranks_(world, without_pipeline(setting.layout), setting.sequence_parallel),
        kinds_(link_kinds(model)),
        stream_(device.make_stream()),
        store_(ranks_.place()),
        model_(store_, model),
        arena_(device),
        uploader_(device, model, setting.dtype),
        scales_(device) {
    store_.allocate(device, *stream_, setting.dtype, ParameterUse::training);
    store_.initialise(*stream_, /*seed=*/1);
    model_.prepare(device, *stream_);
    dispatcher_ =
        ExpertDispatcher::of(device, *stream_, ranks_, model.decoder.moe.experts, setting.experts);
  }

  // One forward and one backward of the chain, link by link. Of several links of a kind the last one
  // counts.
  CostByKind pass_through(const MicroBatch& micro_batch) {
    arena_.reset(*stream_);
    uploader_.begin();
    const DeviceBatch batch = uploader_.upload(*stream_, arena_, micro_batch);
    Pass pass{.stream = *stream_,
              .arena = arena_,
              .batch = batch,
              .scales = scales_.upload(*stream_, {.targets = batch.targets}, MoeConfig{}),
              .sizes = MicroBatchSizes::alike,
              .parallel = &ranks_,
              .dispatcher = dispatcher_.get()};
    CostByKind seconds;
    std::vector<MultimodalModel::Saved> saved(kinds_.size());
    std::vector<Tensor> gradients = boundaries(pass);
    ConstTensor x;
    for (int i = 0; i < model_.chain().size(); ++i) {
      if (!runs(pass, i)) continue;
      timed(seconds[kind(i)].forward, [&] {
        x = model_.forward(pass, {i, i + 1}, x, saved[index(i)]);
      });
    }
    for (int i = model_.chain().size(); i-- > 0;) {
      if (!runs(pass, i)) continue;
      timed(seconds[kind(i)].backward, [&] {
        model_.backward(pass, gradients[index(i)], saved[index(i)],
                        i > 0 ? gradients[index(i - 1)] : Tensor());
      });
    }
    return seconds;
  }

 private:
  static std::size_t index(int link) { return static_cast<std::size_t>(link); }
  LinkKind kind(int link) const { return kinds_[index(link)]; }

  bool runs(const Pass& pass, int link) const {
    const ChainShape& output = model_.chain().link(link).output();
    return output.kind == ChainRows::none || output.of(pass).numel() > 0;
  }

  // The gradient of what each link hands on; absent where it hands on nothing.
  std::vector<Tensor> boundaries(const Pass& pass) const {
    std::vector<Tensor> gradients;
    for (int i = 0; i < model_.chain().size(); ++i) {
      const Shape shape = model_.chain().link(i).output().of(pass);
      gradients.push_back(shape.numel() > 0 ? pass.allocate(model_.dtype(), shape) : Tensor());
    }
    return gradients;
  }

  void timed(double& seconds, const auto& work) {
    stream_->synchronize();
    seconds = 0;
    const Stopwatch watch(seconds);
    work();
    stream_->synchronize();
  }

  ParallelContext ranks_;
  std::vector<LinkKind> kinds_;
  std::unique_ptr<Stream> stream_;
  ParameterStore store_;
  MultimodalModel model_;
  std::unique_ptr<ExpertDispatcher> dispatcher_;
  Arena arena_;
  BatchUploader uploader_;
  StepScales scales_;
};

}  // namespace

CostByKind time_links(Device& device, Communicator& world, const ModelConfig& model,
                      const LinkSetting& setting, MicroBatch batch) {
  const ModelConfig small = one_of_each(model);
  if (batch.tiles > 0)
    batch.patches.assign(static_cast<std::size_t>(batch.tiles * small.vision.patches() *
                                                  small.vision.patch_values()),
                         0.0f);
  LinkTimer timer(device, world, small, setting);
  CostByKind fastest = timer.pass_through(batch);
  for (auto& [kind, cost] : fastest) {
    constexpr double never = std::numeric_limits<double>::max();
    cost = {.forward = never, .backward = never};
  }
  for (int i = 0; i < repetitions; ++i) {
    for (const auto& [kind, cost] : timer.pass_through(batch)) {
      LinkCost& best = fastest[kind];
      best.forward = std::min(best.forward, cost.forward);
      best.backward = std::min(best.backward, cost.backward);
    }
  }
  for (auto& [kind, cost] : fastest) world.max_on_host({&cost.forward, 2});
  return fastest;
}

}  // namespace orchard
