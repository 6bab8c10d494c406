// Parameters: what they are called, how they start, how they are optimised and sharded, where they
// live.
//
// A model declares its parameters in a ParameterStore; the store then allocates all of them in a
// few flat buffers: fp32 master weights, fp32 gradients and, in bf16 mode, bf16 values; a model
// that is only asked needs the values alone. Flat buffers make gradient reduction and AdamW one pass each. Everything that treats parameters
// generically (initialisation, checkpoints, optimizers, reductions) reads the ParameterSpec.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/device.h"

namespace orchard {

enum class Initializer : std::uint8_t {
  normal,            // N(0, std²)
  truncated_normal,  // N(0, std²) cut at two standard deviations
  ones,
  zeros,
};

enum class WeightDecay : std::uint8_t { no, yes };

// How a parameter is split over the ranks of a mesh. One rank holds everything until tensor and
// expert parallelism exist; the description is complete so that they need no other.
struct Sharding {
  int tensor_dim = -1;  // dimension cut over tensor ranks; -1: replicated
  int expert = -1;      // index of the expert it belongs to; -1: not an expert's
};

// What forward reads of a parameter: its value, or in any dtype its fp32 master.
enum class ForwardReads : std::uint8_t { value, master };

// What a store keeps memory for: what forward reads, or also the masters and gradients that
// training needs.
enum class ParameterUse : std::uint8_t { forward, training };

struct ParameterSpec {
  std::string name;  // global, e.g. "decoder.layers.3.attention.wq"
  Shape shape;       // global
  Initializer initializer = Initializer::normal;
  double std = 0.02;
  WeightDecay weight_decay = WeightDecay::no;
  Sharding sharding = {};
  ForwardReads forward_reads = ForwardReads::value;
};

struct Parameter {
  ParameterSpec spec;
  std::int64_t offset = 0;  // elements into each flat buffer
  Tensor value;             // f32 or bf16: what forward and backward read
  // f32: what the optimizer updates. The same memory as value in f32 mode; absent in bf16 mode
  // without training unless forward reads it.
  Tensor master;
  Tensor gradient;  // f32: sum over the micro-batches of a step; absent without training
};

class ParameterStore {
 public:
  // Reserves a place; the reference stays valid for the store's life. Names are unique.
  Parameter& declare(ParameterSpec spec);

  // Gives every parameter its memory, with zero gradients. Values are undefined until initialise or
  // write.
  void allocate(Device& device, Stream& stream, DType dtype,
                ParameterUse use = ParameterUse::training);

  // The values that (seed, name, element index) imply. `std_scale` multiplies every random
  // parameter's standard deviation: narrow models start better from more than 0.02.
  void initialise(Stream& stream, std::uint64_t seed, double std_scale = 1);

  // Gives a parameter of this store these elements: its master, and its value, rounded in bf16
  // mode. They are in place when it returns.
  void write(Stream& stream, const Parameter& parameter, std::span<const float> elements);
  void zero_gradients(Stream& stream);

  // One view [count, ...] over `count` parameters of equal shape declared in a row, e.g. the w_gate
  // of all experts.
  enum class Field : std::uint8_t { value, master, gradient };
  Tensor stacked(const Parameter& first, std::int64_t count, Field field) const;

  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }
  const Parameter* find(std::string_view name) const;

  // Number of elements of all parameters whose name passes the filter.
  std::int64_t count(const std::function<bool(const ParameterSpec&)>& filter = {}) const;

  DType dtype() const { return dtype_; }
  // Of all parameters: in training, or in f32 mode.
  Tensor flat_masters() const { return masters_.tensor(DType::f32, {elements_}); }
  Tensor flat_gradients() const;

 private:
  std::deque<Parameter> parameters_;
  std::int64_t elements_ = 0;  // of a flat buffer, padding between parameters included
  DType dtype_ = DType::f32;
  Buffer masters_, gradients_, values_;
};

}  // namespace orchard
