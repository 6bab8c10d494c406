#include "models/multimodal.h"

namespace orchard {

MultimodalModel::MultimodalModel(ParameterStore& store, const ModelConfig& config)
    : store_(store),
      config_((config.validate(), config)),
      table_([&] {
        if (config.has_vision()) {
          vision_.emplace(store, config.vision, config.recompute);
          store.next_link();
          connector_.emplace(store, config);
          store.next_link();
        }
        // The head comes after the blocks and the final norm.
        const auto head = store.link() + static_cast<int>(config.decoder.layers) + 2;
        return &store.declare({.name = "embedding",
                               .shape = {config.decoder.vocabulary, config.decoder.hidden},
                               .weight_decay = WeightDecay::yes,
                               .sharding = {.tensor_dim = 0, .tied_link = head}});
      }()),
      embedding_(*table_),
      decoder_(store, config.decoder, config.recompute),
      head_(*table_) {
  const std::int64_t hidden = config.decoder.hidden;
  if (vision_) {
    vision_->append_to(chain_);
    chain_.add(
        *connector_,
        {.kind = ChainRows::visual, .rows_per_tile = config.connector.tokens(), .width = hidden});
  }
  lookup_ = chain_.size();
  chain_.add(embedding_, {.kind = ChainRows::tokens, .width = hidden});
  decoder_.append_to(chain_);
  chain_.add(head_, {.kind = ChainRows::none, .width = hidden});
  require(store.link() + 2 == chain_.size() && chain_.size() == link_count(config),
          "parameters were declared for {} links, and the chain has {}", store.link() + 2,
          chain_.size());
}

ConstTensor MultimodalModel::forward(Pass& pass, LinkRange range, ConstTensor x,
                                     Saved& saved) const {
  require(vision_.has_value() || pass.batch.tiles == 0,
          "the batch holds {} picture tiles, but the model has no vision tower (vision.layers = 0)",
          pass.batch.tiles);
  return chain_.forward(pass, range, x, dtype(), saved);
}

ConstTensor MultimodalModel::losses(const Saved& saved) const {
  const int head = chain_.size() - 1;
  if (saved.range.last <= head) return {};
  return LayerLink<LanguageModelHead>::state(saved.link(head)).losses;
}

Tensor MultimodalModel::forward_cached(Pass& pass, std::vector<KeyValueCache>& caches,
                                       ConstTensor key_offsets) const {
  Saved saved;
  const ConstTensor x = forward(pass, {0, lookup_ + 1}, {}, saved);
  return head_.last_logits(pass, decoder_.forward_cached(pass, x, caches, key_offsets));
}

}  // namespace orchard
