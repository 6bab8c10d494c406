#include "parallel/parameter.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/parallel.h"
#include "parallel/random.h"

namespace orchard {
namespace {

// Each parameter starts on a cache line of its flat buffer (16 floats), so vector loads never
// straddle two.
constexpr std::int64_t alignment_elements = 32;

std::int64_t padded(std::int64_t elements) {
  return (elements + alignment_elements - 1) / alignment_elements * alignment_elements;
}

// The slice's initial values.
void fill(const Parameter& p, std::uint64_t seed, double std, float* values) {
  const ParameterSpec& spec = p.spec;
  const CounterRandom random(seed, spec.name);
  const SliceIndex slice(spec.shape, p.shard.slice);
  cpu::parallel_for(slice.elements(), 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<std::uint64_t>(slice.to_global(i));
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
  require(!masters_.data() && !values_.data(),
          "parameter {} was declared after the store allocated its memory", spec.name);
  require(find(spec.name) == nullptr, "two parameters are called {}", spec.name);
  spec.sharding.link = link_;
  const std::int64_t numel = spec.shape.numel();
  require(numel > 0, "parameter {} has the empty shape {}", spec.name, spec.shape);
  Shard shard;
  try {
    shard = shard_of(spec.shape, spec.sharding, place_);
  } catch (const Error& error) {
    fail("parameter {}: {}", spec.name, error.what());
  }
  Parameter& parameter = (shard.slice.count > 0 ? parameters_ : elsewhere_).emplace_back();
  parameter.spec = std::move(spec);
  parameter.shard = shard;
  parameter.declared = catalogue_.size();
  catalogue_.push_back(&parameter);
  return parameter;
}

// Parameters that are reduced alike come together, otherwise in the order of declaration.
std::vector<Parameter*> ParameterStore::lay_out() {
  std::vector<Parameter*> order;
  for (Parameter& p : parameters_) order.push_back(&p);
  std::ranges::stable_sort(order, {}, [](const Parameter* p) {
    const Reduction& r = p->shard.reduction;
    return std::tuple(r.parameter_class, r.replicas, r.partial, r.copy);
  });
  for (Parameter* p : order) {
    if (segments_.empty() || segments_.back().reduction != p->shard.reduction)
      segments_.push_back({p->shard.reduction, p->shard.counts(), elements_, 0});
    p->offset = elements_;
    elements_ += padded(p->shape().numel());
    segments_.back().count = elements_ - segments_.back().begin;
  }
  return order;
}

void ParameterStore::allocate(Device& device, Stream& stream, DType dtype, ParameterUse use) {
  require(dtype == DType::f32 || dtype == DType::bf16, "parameters are f32 or bf16, not {}",
          name_of(dtype));
  require(elements_ == 0, "the store allocated its memory before");
  dtype_ = dtype;
  const std::vector<Parameter*> order = lay_out();
  const auto view = [](const Buffer& buffer, DType type, std::int64_t offset, const Shape& shape) {
    return Tensor(buffer.data() + static_cast<std::size_t>(offset) * size_of(type), type, shape,
                  buffer.tensor(type, {0}).device());
  };
  // The padding between parameters takes part in flat reductions: it must be zero.
  const auto zeros = [&](DType type, std::int64_t elements) {
    Buffer buffer = device.allocate(static_cast<std::size_t>(elements) * size_of(type));
    stream.fill_zero(buffer.tensor(type, {elements}));
    return buffer;
  };
  const bool training = use != ParameterUse::forward;
  const auto has_master = [&](const Parameter& p) {
    return use == ParameterUse::training || dtype == DType::f32 ||
           p.spec.forward_reads == ForwardReads::master;
  };
  std::int64_t master_elements = 0;
  for (const Parameter& p : parameters_)
    if (has_master(p)) master_elements += padded(p.shape().numel());
  if (master_elements > 0) masters_ = zeros(DType::f32, master_elements);
  if (training) gradients_ = zeros(DType::f32, elements_);
  if (dtype == DType::bf16) values_ = zeros(DType::bf16, elements_);
  std::int64_t master_offset = 0;  // where all have masters, the same as p.offset
  for (Parameter* p : order) {
    const Shape shape = p->shape();
    if (has_master(*p)) {
      p->master = view(masters_, DType::f32, master_offset, shape);
      master_offset += padded(shape.numel());
    }
    if (training) {
      p->gradient = p->tied_gradient = view(gradients_, DType::f32, p->offset, shape);
      if (p->shard.tied_here)
        p->tied_gradient = tied_gradients_.emplace_back(zeros(DType::f32, shape.numel()))
                               .tensor(DType::f32, shape);
    }
    p->value = dtype == DType::bf16 ? view(values_, dtype, p->offset, shape) : p->master;
    if (training) {
      p->owned = {.begin = 0, .count = shape[0], .master = p->master, .gradient = p->gradient};
      if (dtype == DType::bf16) p->owned.copy = p->value;
    }
  }
}

void ParameterStore::initialise(Stream& stream, std::uint64_t seed, double std_scale) {
  std::vector<float> elements;
  for (const Parameter& p : parameters_) {
    elements.resize(static_cast<std::size_t>(p.shape().numel()));
    fill(p, seed, std_scale * p.spec.std, elements.data());
    write(stream, p, elements);
  }
}

void ParameterStore::write(Stream& stream, const Parameter& parameter,
                           std::span<const float> elements) {
  const Shape shape = parameter.shape();
  require(static_cast<std::int64_t>(elements.size()) == shape.numel(),
          "{} of shape {} was given {} elements", parameter.spec.name, shape, elements.size());
  if (parameter.master)
    stream.copy(parameter.master, ConstTensor(elements.data(), DType::f32, shape, DeviceKind::cpu));
  if (const OwnedRows& own = parameter.owned; own.master && !parameter.master) {
    const std::int64_t row = shape.numel() / shape[0];
    stream.copy(own.master, ConstTensor(elements.data() + own.begin * row, DType::f32,
                                        own.master.shape(), DeviceKind::cpu));
  }
  std::vector<bf16> rounded;
  if (dtype_ == DType::bf16) {
    rounded.resize(elements.size());
    cpu::parallel_for(shape.numel(), 4096, [&](std::int64_t begin, std::int64_t end) {
      std::transform(elements.begin() + begin, elements.begin() + end, rounded.begin() + begin,
                     to_bf16);
    });
    stream.copy(parameter.value, ConstTensor(rounded.data(), DType::bf16, shape, DeviceKind::cpu));
  }
  stream.synchronize();  // the elements are the caller's
}

void ParameterStore::zero_gradients(Stream& stream) {
  stream.fill_zero(flat_gradients());
  for (const Parameter& p : parameters_)
    if (p.shard.tied_here) stream.fill_zero(p.tied_gradient);
}

Tensor ParameterStore::flat_gradients() const {
  require(gradients_.data(), "the parameters were allocated without gradients, for forward alone");
  return gradients_.tensor(DType::f32, {elements_});
}

Tensor ParameterStore::stacked(const Parameter& first, std::int64_t count, Field field) const {
  const Shape shape = first.shape();
  const std::int64_t numel = shape.numel();
  require(numel % alignment_elements == 0,
          "{} has {} elements; parameters that are used as a stack need a multiple of {}",
          first.spec.name, numel, alignment_elements);
  const auto it = std::find_if(parameters_.begin(), parameters_.end(),
                               [&](const Parameter& p) { return &p == &first; });
  for (std::int64_t i = 0; i < count; ++i) {
    require(it + i < parameters_.end() && (it + i)->shape() == shape &&
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
  const auto it = std::ranges::find(
      catalogue_, name, [](const Parameter* p) -> std::string_view { return p->spec.name; });
  return it == catalogue_.end() ? nullptr : *it;
}

std::int64_t ParameterStore::count(const std::function<bool(const ParameterSpec&)>& filter) const {
  std::int64_t n = 0;
  for (const Parameter* p : catalogue_) {
    if (!filter || filter(p->spec)) n += p->spec.shape.numel();
  }
  return n;
}

}  // namespace orchard
