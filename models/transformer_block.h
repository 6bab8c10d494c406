// A pre-norm transformer block over any norm, attention and feed-forward that keep the layer
// contract:
//   s1 = sum + delta;  a = attention(norm1(s1));  s2 = s1 + a;  m = feed_forward(norm2(s2));
//   returns (s2, m)
// The last addition is pending, for the next block's norm (see Residual). Since s2 and m enter it
// as a plain sum, one tensor g is the gradient of both.
#pragma once

#include <utility>

#include "models/attention.h"
#include "models/norms.h"

namespace orchard {

template <class Norm, class FeedForward>
class TransformerBlock {
 public:
  template <class Config>
  TransformerBlock(ParameterStore& store, const std::string& name, const AttentionConfig& attention,
                   const Config& config, Recompute recompute)
      : recompute_(recompute),
        first_declared_(store.catalogue().size()),
        attention_norm_(store, name + ".attention_norm", attention.width),
        attention_(store, attention),
        feed_forward_norm_(store, name + ".feed_forward_norm", attention.width),
        feed_forward_(store, name + ".feed_forward", config) {}

  struct Saved {
    Residual input;  // kept for recomputation
    typename Norm::Saved attention_norm, feed_forward_norm;
    Attention::Saved attention;
    typename FeedForward::Saved feed_forward;
    Tensor d_attention;  // gradient of s2, read again by the weight half
  };

  Residual forward(Pass& pass, const Residual& x, Saved& saved) const {
    saved.input = x;
    // Before the block, so that the step's report survives recomputation.
    if constexpr (requires { feed_forward_.allocate_statistics(pass); })
      saved.feed_forward.statistics = feed_forward_.allocate_statistics(pass);
    if (recompute_ == Recompute::none) return run_forward(pass, x, saved);
    const Tensor sum = pass.allocate_like(x.sum);
    const Tensor delta = pass.allocate_like(x.sum);
    const ArenaScope scope(pass.arena);
    const Residual y = run_forward(pass, x, saved);
    pass.stream.copy(sum, y.sum);
    pass.stream.copy(delta, y.delta);
    return {sum, delta};
  }

  // g is the gradient of both outputs; d_x that of both inputs.
  void backward_input(Pass& pass, ConstTensor g, Saved& saved, Tensor d_x) const {
    if (recompute_ == Recompute::blocks) run_forward(pass, saved.input, saved);
    const Tensor d_normed = pass.allocate_like(g);
    feed_forward_.backward_input(pass, g, saved.feed_forward, d_normed);
    saved.d_attention = pass.allocate_like(g);
    feed_forward_norm_.backward(pass, d_normed, g, saved.feed_forward_norm, saved.d_attention);
    attention_.backward_input(pass, saved.d_attention, saved.attention, d_normed);
    attention_norm_.backward(pass, d_normed, saved.d_attention, saved.attention_norm, d_x);
  }

  void backward_weight(Pass& pass, Saved& saved) const {
    feed_forward_.backward_weight(pass, saved.feed_forward);
    attention_.backward_weight(pass, saved.attention);
  }

  // How many parameters were declared before those of the block.
  std::size_t first_declared() const { return first_declared_; }
  const Norm& attention_norm() const { return attention_norm_; }
  const Attention& attention() const { return attention_; }
  const Norm& feed_forward_norm() const { return feed_forward_norm_; }
  const FeedForward& feed_forward() const { return feed_forward_; }

 private:
  Residual run_forward(Pass& pass, const Residual& x, Saved& saved) const {
    const Tensor attended = attention_.forward(
        pass, attention_norm_.forward(pass, x, saved.attention_norm), saved.attention);
    const Residual middle{saved.attention_norm.sum, attended};
    const Tensor delta = feed_forward_.forward(
        pass, feed_forward_norm_.forward(pass, middle, saved.feed_forward_norm),
        saved.feed_forward);
    return {saved.feed_forward_norm.sum, delta};
  }

  Recompute recompute_;
  std::size_t first_declared_;
  Norm attention_norm_;
  Attention attention_;
  Norm feed_forward_norm_;
  FeedForward feed_forward_;
};

}  // namespace orchard
