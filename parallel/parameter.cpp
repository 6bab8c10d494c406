#include "parallel/parameter.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/elementwise/elementwise.h"
#include "parallel/random.h"

namespace orchard {
namespace {

// Each parameter starts on a cache line of its flat buffer (16 floats), so vector loads never
// straddle two.
constexpr std::int64_t alignment_elements = 32;

void fill(const ParameterSpec& spec, std::uint64_t seed, double std, float* values) {
  const std::int64_t n = spec.shape.numel();
  const CounterRandom random(seed, spec.name);
  cpu::parallel_for(n, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<std::uint64_t>(i);
      switch (spec.initializer) {
        case Initializer::normal:
          values[i] = static_cast<float>(std * random.normal(index));
          break;
        case Initializer::truncated_normal:
          values[i] = static_cast<float>(std * random.truncated_normal(index, 2.0));
          break;
        case Initializer::ones:
          values[i] = 1;
          break;
        case Initializer::zeros:
          values[i] = 0;
          break;
      }
    }
  });
}

}  // namespace

Parameter& ParameterStore::declare(ParameterSpec spec) {
  require(!masters_.data(), "parameter {} was declared after the store allocated its memory",
          spec.name);
  require(find(spec.name) == nullptr, "two parameters are called {}", spec.name);
  const std::int64_t numel = spec.shape.numel();
  require(numel > 0, "parameter {} has the empty shape {}", spec.name, spec.shape);
  Parameter& parameter = parameters_.emplace_back();
  parameter.spec = std::move(spec);
  parameter.offset = elements_;
  elements_ += (numel + alignment_elements - 1) / alignment_elements * alignment_elements;
  return parameter;
}

void ParameterStore::allocate(Device& device, Stream& stream, DType dtype) {
  require(dtype == DType::f32 || dtype == DType::bf16, "parameters are f32 or bf16, not {}",
          name_of(dtype));
  dtype_ = dtype;
  const auto elements = static_cast<std::size_t>(elements_);
  masters_ = device.allocate(elements * sizeof(float));
  gradients_ = device.allocate(elements * sizeof(float));
  if (dtype == DType::bf16) values_ = device.allocate(elements * sizeof(bf16));
  // The padding between parameters takes part in flat reductions: it must be zero.
  stream.fill_zero(flat_masters());
  stream.fill_zero(flat_gradients());
  const Buffer& values = dtype == DType::bf16 ? values_ : masters_;
  const auto view = [](const Buffer& buffer, DType type, const Parameter& p) {
    return Tensor(buffer.data() + static_cast<std::size_t>(p.offset) * size_of(type), type,
                  p.spec.shape, buffer.tensor(type, {0}).device());
  };
  for (Parameter& p : parameters_) {
    p.master = view(masters_, DType::f32, p);
    p.gradient = view(gradients_, DType::f32, p);
    p.value = view(values, dtype, p);
  }
  if (dtype == DType::bf16) stream.fill_zero(values_.tensor(dtype, {elements_}));
}

void ParameterStore::initialise(Stream& stream, std::uint64_t seed, double std_scale) {
  std::vector<float> staging;
  for (Parameter& p : parameters_) {
    staging.resize(static_cast<std::size_t>(p.spec.shape.numel()));
    fill(p.spec, seed, std_scale * p.spec.std, staging.data());
    stream.copy(p.master, ConstTensor(staging.data(), DType::f32, p.spec.shape, DeviceKind::cpu));
    stream.synchronize();  // the staging buffer is reused
  }
  refresh_values(stream);
}

void ParameterStore::refresh_values(Stream& stream) {
  if (dtype_ == DType::f32) return;
  run(stream, Convert{.x = flat_masters(), .y = values_.tensor(dtype_, {elements_})});
}

void ParameterStore::zero_gradients(Stream& stream) {
  stream.fill_zero(flat_gradients());
}

Tensor ParameterStore::stacked(const Parameter& first, std::int64_t count, Field field) const {
  const Shape& shape = first.spec.shape;
  const std::int64_t numel = shape.numel();
  require(numel % alignment_elements == 0,
          "{} has {} elements; parameters that are used as a stack need a multiple of {}",
          first.spec.name, numel, alignment_elements);
  const auto it = std::find_if(parameters_.begin(), parameters_.end(),
                               [&](const Parameter& p) { return &p == &first; });
  for (std::int64_t i = 0; i < count; ++i) {
    require(it + i < parameters_.end() && (it + i)->spec.shape == shape &&
                (it + i)->offset == first.offset + i * numel,
            "{} is not followed by {} parameters of its shape", first.spec.name, count - 1);
  }
  const Tensor& view = field == Field::value    ? first.value
                       : field == Field::master ? first.master
                                                : first.gradient;
  Shape stack{count};
  for (int d = 0; d < shape.rank(); ++d) stack.append(shape[d]);
  return {view.raw(), view.dtype(), stack, view.device()};
}

const Parameter* ParameterStore::find(std::string_view name) const {
  const auto it = std::find_if(parameters_.begin(), parameters_.end(),
                               [&](const Parameter& p) { return p.spec.name == name; });
  return it == parameters_.end() ? nullptr : &*it;
}

std::int64_t ParameterStore::count(const std::function<bool(const ParameterSpec&)>& filter) const {
  std::int64_t n = 0;
  for (const Parameter& p : parameters_) {
    if (!filter || filter(p.spec)) n += p.spec.shape.numel();
  }
  return n;
}

}  // namespace orchard
