// The contract of layers.
//
//   struct Saved;                                    what backward needs; plain tensors
//   Tensor forward(Pass&, x, Saved&) const;          returns y
//   void backward_input(Pass&, d_y, Saved&, Tensor d_x) const;    writes d_x
//   void backward_weight(Pass&, Saved&) const;       adds to the parameters' gradients
//
// There is no tape: a layer calls its parts in the order written down. Backward comes in two halves
// because zero-bubble pipelines run the weight half later. backward_input may add tensors to Saved
// that the weight half needs (every d_y of a linear layer); d_y must therefore stay alive until
// backward_weight has run.
//
// Memory: whatever a layer allocates comes from pass.arena, which works like a stack. It belongs to
// one micro-batch; whoever runs a chain of layers marks it before a block's forward and rewinds to
// the mark after the block's weight half. Tensors that must survive the rewind (d_x between blocks)
// are allocated before.
#pragma once

#include <string>
#include <unordered_map>

#include "kernels/device/arena.h"
#include "kernels/device/device.h"
#include "models/batch.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/gradient_listener.h"
#include "parallel/parallel_context.h"
#include "parallel/parameter.h"

namespace orchard {

// Choices of experts [rows, top_k] to follow instead of the routers' own, by router parameter.
using RoutingReplay = std::unordered_map<const Parameter*, ConstTensor>;

// What a pass is run for: training needs gradients, evaluation only losses.
enum class Purpose : std::uint8_t { train, evaluate };

// What is known of the micro-batches that other ranks have at the same time.
enum class MicroBatchSizes : std::uint8_t {
  any,
  alike,  // all ranks' have as many sequences, of one length: messages between them may count on it
};

// What every layer needs while one micro-batch passes.
struct Pass {
  Stream& stream;
  Arena& arena;
  const DeviceBatch& batch;
  LossScales scales = {};
  Purpose purpose = Purpose::train;
  MicroBatchSizes sizes = MicroBatchSizes::any;
  const RoutingReplay* replay = nullptr;      // null: routers choose
  const ParallelContext* parallel = nullptr;  // null: this rank has all of the model
  ExpertDispatcher* dispatcher = nullptr;     // null: this rank has all experts
  GradientListener* gradients = nullptr;      // null, too, where more micro-batches follow
  Overlap overlap = Overlap::yes;             // of tensor ranks' messages with their products

  ConstTensor replay_of(const Parameter* router) const {
    if (!replay) return {};
    const auto it = replay->find(router);
    require(it != replay->end(), "the replayed routing has no choices for {}", router->spec.name);
    return it->second;
  }

  // See GradientListener::final_from.
  void gradients_final_from(std::size_t declared) const {
    if (gradients) gradients->final_from(declared);
  }

  // Between two links: messages to other ranks go on only while the host looks after them.
  void progress_messages() const {
    if (parallel) (*parallel)[MeshGroup::world].progress();
  }

  Tensor allocate(DType dtype, Shape shape) const { return arena.allocate(dtype, shape); }
  Tensor allocate_like(const ConstTensor& x) const { return arena.allocate(x.dtype(), x.shape()); }
};

// The residual stream between blocks: its value is sum + delta. The addition is left to the next
// norm, which reads both anyway. delta is absent at the start of a stack.
struct Residual {
  ConstTensor sum;    // [rows, width]
  ConstTensor delta;  // [rows, width] or absent
};

}  // namespace orchard
