// The model as a chain of links, each of which hands one residual stream to the next: what runs a
// step, alone or cut into pipeline stages.
//
// A link wraps a layer that keeps the contract of models/layer.h on the stream:
//   Residual forward(Pass&, const Residual& x, Saved&) const;
//   void backward_input(Pass&, ConstTensor d_y, Saved&, Tensor d_x) const;
//   void backward_weight(Pass&, Saved&) const;
// One tensor is the gradient of both parts of a stream.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "models/layer.h"
#include "parallel/pipeline_stages.h"

namespace orchard {

struct RouterStatistics;

// What a link hands on: so many rows, by the kind, of that width. A micro-batch without pictures
// has no rows for the links before the tokens, and these do not run.
enum class ChainRows : std::uint8_t {
  tower,   // tiles · (patches + 1), the local share of them (see tensor_parallel.h)
  visual,  // tiles · visual tokens, all of them
  tokens,  // the micro-batch's rows, the local share
  none,    // the last link: nothing
};

struct ChainShape {
  ChainRows kind = ChainRows::tokens;
  std::int64_t rows_per_tile = 0;  // of visual
  std::int64_t width = 0;

  // Follows from the counts of the batch; its tensors may be absent. `parallel` as in Pass.
  Shape of(const DeviceBatch& batch, const ParallelContext* parallel) const;
  Shape of(const Pass& pass) const { return of(pass.batch, pass.parallel); }
};

class ChainLink {
 public:
  struct Saved {
    virtual ~Saved() = default;
  };

  explicit ChainLink(const ChainShape& output) : output_(output) {}
  virtual ~ChainLink() = default;

  const ChainShape& output() const { return output_; }
  // The number of the first parameter declared for this link, if the layer says: once the link's
  // backward has run in the last micro-batch, gradients from there on are final.
  virtual std::optional<std::size_t> first_declared() const { return {}; }
  virtual std::unique_ptr<Saved> make_saved() const = 0;
  virtual Residual forward(Pass& pass, const Residual& x, Saved& saved) const = 0;
  virtual void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const = 0;
  virtual void backward_weight(Pass& pass, Saved& saved) const = 0;

 private:
  ChainShape output_;
};

// `layer` must outlive the link.
template <class Layer>
class LayerLink final : public ChainLink {
 public:
  struct LayerSaved final : Saved {
    typename Layer::Saved state;
  };

  LayerLink(const Layer& layer, const ChainShape& output) : ChainLink(output), layer_(layer) {}

  const Layer& layer() const { return layer_; }
  static typename Layer::Saved& state(Saved& saved) {
    return static_cast<LayerSaved&>(saved).state;
  }
  static const typename Layer::Saved& state(const Saved& saved) {
    return static_cast<const LayerSaved&>(saved).state;
  }

  std::optional<std::size_t> first_declared() const override {
    if constexpr (requires { layer_.first_declared(); }) return layer_.first_declared();
    return {};
  }
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<LayerSaved>(); }
  Residual forward(Pass& pass, const Residual& x, Saved& saved) const override {
    return layer_.forward(pass, x, state(saved));
  }
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const override {
    layer_.backward_input(pass, d_y, state(saved), d_x);
  }
  void backward_weight(Pass& pass, Saved& saved) const override {
    layer_.backward_weight(pass, state(saved));
  }

 private:
  const Layer& layer_;
};

// How the halves of backward come: one link after the other runs both, and its memory is given
// back; or all weight halves come later.
enum class BackwardHalves : std::uint8_t { in_turn, apart };

class Chain {
 public:
  template <class Layer>
  void add(const Layer& layer, const ChainShape& output) {
    links_.push_back(std::make_unique<LayerLink<Layer>>(layer, output));
  }

  int size() const { return static_cast<int>(links_.size()); }
  LinkRange whole() const { return {0, size()}; }
  const ChainLink& link(int i) const { return *links_[static_cast<std::size_t>(i)]; }

  // Of one micro-batch in a range of links.
  struct Saved {
    LinkRange range;
    BackwardHalves halves = BackwardHalves::in_turn;
    DType dtype = DType::f32;                              // of the stream
    std::vector<std::unique_ptr<ChainLink::Saved>> links;  // of the range
    std::vector<Arena::Mark> marks;                        // of the arena before each link
    // In turn: the gradient between two links lies in one of two buffers, which survive the rewinds.
    // [elements of the largest boundary]
    Tensor gradients[2];

    ChainLink::Saved& link(int i) const {
      return *links[static_cast<std::size_t>(i - range.first)];
    }
  };

  // `x`: what the link before the range handed on, absent where there is none or it had no rows.
  // Returns what the last link hands on, added up, or nothing. `dtype`: of the stream.
  ConstTensor forward(Pass& pass, LinkRange range, ConstTensor x, DType dtype, Saved& saved) const;

  // Both halves, as saved.halves = in_turn. d_x: shape of x, absent where x was.
  void backward(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  // The halves by themselves, as saved.halves = apart. x and d_y must stay until the weight half
  // has run.
  void backward_input(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;
  void backward_weight(Pass& pass, Saved& saved) const;

 private:
  bool runs(const Pass& pass, int i) const;
  void run_backward(Pass& pass, ConstTensor d_y, Saved& saved, Tensor d_x) const;

  std::vector<std::unique_ptr<ChainLink>> links_;
};

}  // namespace orchard
