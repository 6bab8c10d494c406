// Parameters: what they are called, how they start, how they are optimised and sharded, where they
// live.
//
// A model declares all of its parameters, by global name and shape, in the ParameterStore of every
// rank; the store keeps this rank's slice of each in a few flat buffers: fp32 master weights, fp32
// gradients and, in bf16 mode, bf16 values; a model that is only asked needs the values alone.
// Parameters whose gradients are reduced alike lie side by side there, so that a reduction is one
// pass. Everything that treats parameters generically (initialisation, checkpoints, optimizers,
// reductions) reads the ParameterSpec and the Shard.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "parallel/sharding.h"

namespace orchard {

enum class Initializer : std::uint8_t {
  normal,            // N(0, std²)
  truncated_normal,  // N(0, std²) cut at two standard deviations
  ones,
  zeros,
};

enum class WeightDecay : std::uint8_t { no, yes };

// What forward reads of a parameter: its value, or in any dtype its fp32 master.
enum class ForwardReads : std::uint8_t { value, master };

// What a store keeps memory for: what forward reads, or also the masters and gradients that
// training needs. Masters that forward does not read may be kept by the rows that each rank updates
// instead (parallel/flat_shards.h).
enum class ParameterUse : std::uint8_t { forward, training, training_on_shards };

struct ParameterSpec {
  std::string name;  // global, e.g. "decoder.layers.3.attention.wq"
  Shape shape;       // global
  Initializer initializer = Initializer::normal;
  double std = 0.02;
  WeightDecay weight_decay = WeightDecay::no;
  Sharding sharding = {};
  ForwardReads forward_reads = ForwardReads::value;
};

// The rows of a slice, indices of its first dimension, that this rank updates: all of them, or its
// share among the data ranks that hold the same.
struct OwnedRows {
  std::int64_t begin = 0, count = 0;
  Tensor master, gradient;  // f32 [count, ...]
  Tensor copy;              // bf16 [count, ...] of value in bf16 mode; absent in f32 mode
};

// This rank's slice of a parameter. The tensors have the slice's shape.
struct Parameter {
  ParameterSpec spec;
  Shard shard;
  std::int64_t offset = 0;  // elements into each flat buffer, once allocated
  Tensor value;             // f32 or bf16: what forward and backward read
  // f32: what the optimizer updates. The same memory as value in f32 mode; in bf16 mode absent,
  // unless forward reads it, without training and where masters are kept by owned rows.
  Tensor master;
  Tensor gradient;  // f32: sum over the micro-batches of a step; absent without training
  // f32: what the tied link adds to. The same memory as gradient, unless the shard is tied_here:
  // then the reduction adds it to gradient, once a step.
  Tensor tied_gradient;
  OwnedRows owned;           // in training
  std::size_t declared = 0;  // how many were declared before it

  bool is_here() const { return shard.slice.count > 0; }
  Shape shape() const { return shape_of(shard.slice, spec.shape); }
};

// A stretch of the flat buffers whose parameters are reduced alike.
struct ParameterSegment {
  Reduction reduction;
  bool counts = true;                 // see Shard::counts
  std::int64_t begin = 0, count = 0;  // elements, padding between parameters included
};

class ParameterStore {
 public:
  // The default place holds everything.
  explicit ParameterStore(const ShardingPlace& place = {}) : place_(place) {}

  // Parameters that are declared from now on belong to the next link of the model's chain; the
  // first ones belong to link 0.
  void next_link() { ++link_; }
  int link() const { return link_; }

  // Reserves a place; the reference stays valid for the store's life. Names are unique. Every rank
  // declares every parameter in the same order; those of which it holds nothing never get tensors.
  Parameter& declare(ParameterSpec spec);

  // Gives every parameter its memory, with zero gradients. Values are undefined until initialise or
  // write.
  void allocate(Device& device, Stream& stream, DType dtype,
                ParameterUse use = ParameterUse::training);

  // The values that (seed, name, global element index) imply, whatever the place. `std_scale`
  // multiplies every random parameter's standard deviation: narrow models start better from more
  // than 0.02.
  void initialise(Stream& stream, std::uint64_t seed, double std_scale = 1);

  // Gives a parameter of this store these elements of its slice (cut() takes them from the whole):
  // its master, and its value, rounded in bf16 mode. They are in place when it returns.
  void write(Stream& stream, const Parameter& parameter, std::span<const float> elements);
  void zero_gradients(Stream& stream);

  // One view [count, ...] over `count` parameters of equal shape declared in a row, e.g. the w_gate
  // of all experts.
  enum class Field : std::uint8_t { value, master, gradient };
  Tensor stacked(const Parameter& first, std::int64_t count, Field field) const;

  // What this rank holds, in the order of declaration.
  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }
  // Everything declared, in that order, the same on every rank.
  const std::vector<const Parameter*>& catalogue() const { return catalogue_; }
  // In the catalogue; null where there is none.
  const Parameter* find(std::string_view name) const;

  // Number of elements of all parameters whose spec passes the filter, over all ranks, each once.
  std::int64_t count(const std::function<bool(const ParameterSpec&)>& filter = {}) const;

  const ShardingPlace& place() const { return place_; }
  DType dtype() const { return dtype_; }
  // Of all parameters that are here: in training, or in f32 mode.
  Tensor flat_masters() const { return masters_.tensor(DType::f32, {elements_}); }
  Tensor flat_gradients() const;
  Tensor flat_values() const {
    return dtype_ == DType::f32 ? flat_masters() : values_.tensor(dtype_, {elements_});
  }
  // Of the flat buffers, once allocated.
  const std::vector<ParameterSegment>& segments() const { return segments_; }

 private:
  std::vector<Parameter*> lay_out();

  ShardingPlace place_;
  std::deque<Parameter> parameters_, elsewhere_;
  std::vector<const Parameter*> catalogue_;
  std::vector<ParameterSegment> segments_;
  int link_ = 0;
  std::int64_t elements_ = 0;  // of a flat buffer, padding between parameters included
  DType dtype_ = DType::f32;
  Buffer masters_, gradients_, values_;
  std::vector<Buffer> tied_gradients_;
};

}  // namespace orchard
