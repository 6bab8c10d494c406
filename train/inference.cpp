#include "train/inference.h"

#include <algorithm>

#include "train/model_json.h"
#include "train/pipeline_forward.h"
#include "train/pipeline_pictures.h"

namespace orchard {
namespace {

// Feeds rows to the model through the key-value caches, one document, `length` rows so far.
class Decoding {
 public:
  Decoding(Stream& stream, Arena& arena, const MultimodalModel& model, DType dtype,
           std::int64_t longest, const ParallelContext& ranks, ExpertDispatcher* dispatcher)
      : stream_(stream),
        arena_(arena),
        model_(model),
        ranks_(ranks),
        dispatcher_(dispatcher),
        uploader_(stream.device(), model.config(), dtype),
        caches_(model.decoder().make_caches(arena, dtype, longest)) {}

  // Returns the likeliest token after `rows`.
  std::int32_t feed(const MicroBatch& rows) {
    const ArenaScope scope(arena_);
    uploader_.begin();
    const DeviceBatch batch = uploader_.upload(stream_, arena_, rows, picture_content(ranks_));
    const std::vector<std::int32_t> keys{0, static_cast<std::int32_t>(length_ + batch.rows)};
    const Tensor key_offsets = arena_.allocate(DType::i32, {2});
    stream_.copy(key_offsets, ConstTensor(keys.data(), DType::i32, {2}, DeviceKind::cpu));
    Pass pass{.stream = stream_,
              .arena = arena_,
              .batch = batch,
              .purpose = Purpose::evaluate,
              .parallel = &ranks_,
              .dispatcher = dispatcher_};
    const ConstTensor own = pass_through_stages(pass, model_, [&](LinkRange links, ConstTensor x) {
      return model_.forward_cached(pass, links, x, caches_, key_offsets);
    });
    const ConstTensor logits = from_last_stage(pass, own, {1, model_.config().decoder.vocabulary});
    length_ += batch.rows;
    last_.resize(static_cast<std::size_t>(logits.dim(1)));
    stream_.copy(Tensor(last_.data(), DType::f32, logits.shape(), DeviceKind::cpu), logits);
    stream_.synchronize();
    return static_cast<std::int32_t>(std::max_element(last_.begin(), last_.end()) - last_.begin());
  }

  std::int64_t length() const { return length_; }

 private:
  Stream& stream_;
  Arena& arena_;
  const MultimodalModel& model_;
  const ParallelContext& ranks_;
  ExpertDispatcher* dispatcher_;
  BatchUploader uploader_;
  std::vector<KeyValueCache> caches_;
  std::vector<float> last_;  // [vocab] logits of the last row
  std::int64_t length_ = 0;
};

MicroBatch single_row(std::int32_t token, std::int64_t position) {
  return {.sequences = 1,
          .length = 1,
          .sources = {token},
          .targets = {-1},
          .positions = {static_cast<std::int32_t>(position)},
          .document_offsets = {0, 1},
          .real_rows = {1}};
}

}  // namespace

InferenceModel::InferenceModel(const std::filesystem::path& checkpoint, Device& device,
                               const ParallelContext& ranks, const InferenceOptions& options)
    : info_(read_checkpoint_info(checkpoint)),
      ranks_(ranks),
      stream_(device.make_stream()),
      store_(ranks.place()),
      arena_(device) {
  ModelConfig config = model_from_json(info_.model);
  if (options.side > 0) config.vision.side = options.side;
  config.decoder.max_positions = std::max(config.decoder.max_positions, options.longest);
  model_ = std::make_unique<MultimodalModel>(store_, config);
  store_.allocate(device, *stream_, options.dtype, ParameterUse::forward);
  load_parameters(checkpoint, *stream_, store_, PositionTables::resized);
  model_->prepare(device, *stream_);
  runner_ = std::make_unique<StepRunner>(device, *stream_, ranks, store_, *model_, nullptr,
                                         StepOptions{.experts = options.experts});
}

std::vector<std::int32_t> InferenceModel::generate(const MicroBatch& prompt, std::int64_t count,
                                                   std::span<const std::int32_t> stop) {
  require(prompt.sequences == 1 && prompt.length > 0,
          "a prompt is one sequence of at least one row");
  std::vector<std::int32_t> tokens;
  arena_.reset(*stream_);
  Decoding decoding(*stream_, arena_, *model_, store_.dtype(), prompt.length + count, ranks_,
                    runner_->dispatcher());
  std::int32_t next = decoding.feed(prompt);
  while (std::find(stop.begin(), stop.end(), next) == stop.end()) {
    tokens.push_back(next);
    if (static_cast<std::int64_t>(tokens.size()) == count) break;
    next = decoding.feed(single_row(next, decoding.length()));
  }
  return tokens;
}

}  // namespace orchard
