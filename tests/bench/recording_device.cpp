#include "tests/bench/recording_device.h"

#include <cxxabi.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <type_traits>

#include "kernels/activation/activation.h"
#include "kernels/attention/attention.h"
#include "kernels/collective/rank_sum.h"
#include "kernels/convolution/convolution.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"
#include "kernels/image/image.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"
#include "kernels/optimizer/gradient_norm.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/permute/exchange.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace orchard::testing {
namespace {

class RecordingStream final : public Stream {
 public:
  explicit RecordingStream(Device& device) : Stream(device) {}
  void fill_zero(Tensor) override {}
  void wait(Event&) override {}

 private:
  void finish() override {}
  void queue_copy(Tensor, ConstTensor) override {}
};

class RecordingEvent final : public Event {
 public:
  explicit RecordingEvent(Device& device) : Event(device) {}
  void record(Stream&) override {}
  bool is_done() override { return true; }

 private:
  void finish() override {}
};

template <class Operation>
std::string name_of_type() {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(typeid(Operation).name(), nullptr, nullptr, &status), &std::free);
  const std::string full = name.get();
  return full.substr(full.rfind(':') + 1);
}

template <class Operation, class... Others>
constexpr bool is_one_of = (std::is_same_v<Operation, Others> || ...);

// Elements one after the other: how many there are is all that their shape says.
template <class Operation>
constexpr bool is_flat = is_one_of<Operation, Add, Scale, SumOfSquares>;

template <class Operation>
std::string shape_of(const Operation& op) {
  std::string text;
  const auto add = [&](const ConstTensor& operand) {
    if (operand) text += fmt::format("{} {}; ", name_of(operand.dtype()), operand.shape());
  };
  if constexpr (is_flat<Operation>) return text;
  if constexpr (requires { op.x; }) add(op.x);
  if constexpr (requires { op.y; }) add(op.y);
  if constexpr (requires { op.d_y; }) add(op.d_y);
  if constexpr (requires { op.d_x; }) add(op.d_x);
  if constexpr (requires { op.logits; }) add(op.logits);
  if constexpr (requires { op.d_logits; }) add(op.d_logits);
  if constexpr (requires { op.gradients; }) add(op.gradients);
  if constexpr (requires { op.experts; }) add(op.experts);
  if constexpr (requires { op.q; }) add(op.q);
  if constexpr (requires { op.k.shape(); }) add(op.k);
  return text;
}

// A pointwise function and a conversion run at one rate, whatever the rows.
std::string shape_of(const ActivationForward& op) {
  return op.kind == Activation::silu ? "silu" : "quick_gelu";
}
std::string shape_of(const ActivationBackward& op) {
  return op.kind == Activation::silu ? "silu" : "quick_gelu";
}
std::string shape_of(const Convert& op) {
  return fmt::format("{} to {}", name_of(op.x.dtype()), name_of(op.y.dtype()));
}

std::string form_of(Transpose a, Transpose b) {
  return fmt::format("{}{}", a == Transpose::yes ? 't' : 'n', b == Transpose::yes ? 't' : 'n');
}
std::string shape_of(const Gemm& op) {
  const GemmSizes s = sizes_of(op);
  return fmt::format("{} x {}x{}x{} {} {} to {}, epilogue {}", s.batch, s.m, s.n, s.k,
                     form_of(op.transpose_a, op.transpose_b), name_of(op.a.dtype()),
                     name_of(op.c.dtype()), static_cast<int>(op.epilogue.kind));
}
// How many rows there are is the routing's.
std::string shape_of(const GroupedGemm& op) {
  return fmt::format("{} {} {}, {}, epilogue {}", op.b.shape(),
                     form_of(Transpose::no, op.transpose_b), name_of(op.c.dtype()),
                     op.source ? "gathered" : "in order", static_cast<int>(op.epilogue.kind));
}
std::string shape_of(const GroupedGemmWeightGradient& op) {
  return fmt::format("{}, {}", op.d_b.shape(), op.source ? "gathered" : "in order");
}

double bytes_of(std::initializer_list<ConstTensor> operands) {
  double bytes = 0;
  for (const ConstTensor& operand : operands) bytes += static_cast<double>(operand.size_bytes());
  return bytes;
}

template <class Operation>
void count(const Operation&, Recorded&) {}
void count(const Gemm& op, Recorded& into) {
  const GemmSizes s = sizes_of(op);
  into.flops = 2.0 * static_cast<double>(s.batch * s.m) * static_cast<double>(s.n * s.k);
  into.bytes = bytes_of({op.a, op.b, op.c, op.bias, op.epilogue.other, op.epilogue.pre});
  if (op.accumulate == Accumulate::add) into.bytes += bytes_of({op.c});
}
void count(const GroupedGemm& op, Recorded& into) {
  into.flops = 2.0 * static_cast<double>(op.c.numel()) * static_cast<double>(op.a.dim(1));
  into.bytes = bytes_of({op.a, op.b, op.c, op.source, op.epilogue.other, op.epilogue.pre});
}
void count(const GroupedGemmWeightGradient& op, Recorded& into) {
  into.flops = 2.0 * static_cast<double>(op.a.numel()) * static_cast<double>(op.b.dim(1));
  into.bytes = bytes_of({op.a, op.b, op.source, op.d_b, op.d_b});
}

}  // namespace

template <class Operation>
void RecordingDevice::learn() {
  operations().add<Operation>([](Stream& stream, const Operation& op) {
    Recorded recorded{.operation = name_of_type<Operation>(), .shape = shape_of(op)};
    count(op, recorded);
    static_cast<RecordingDevice&>(stream.device()).recorded_.push_back(std::move(recorded));
  });
}

// All operations that the kernels register; gpu_cases_test finds one that is missing.
RecordingDevice::RecordingDevice() : Device(DeviceKind::cuda) {
  learn_all<ActivationForward, ActivationBackward, SwiGluForward, SwiGluBackward, ExciteForward,
            ExciteBackward>();
  learn_all<AttentionForward, AttentionBackward>();
  learn_all<RankSum>();
  learn_all<DepthwiseConv3x3Forward, DepthwiseConv3x3BackwardInput, DepthwiseConv3x3BackwardWeight,
            AdaptiveAveragePoolForward, AdaptiveAveragePoolBackward>();
  learn_all<Add, Convert, Scale, ColumnSum, SumOfSquares>();
  learn_all<EmbeddingForward, EmbeddingBackward, GatherRows, ScatterRows, PrependClassForward,
            PrependClassBackward, DropClassForward, DropClassBackward>();
  learn_all<Gemm, GroupedGemm, GroupedGemmWeightGradient>();
  learn_all<ResizeBicubic, NormalisePatchify>();
  learn_all<CrossEntropy, SoftmaxOfShard, CrossEntropyOfShards>();
  learn_all<RmsNormForward, RmsNormBackward, LayerNormForward, LayerNormBackward, QkNormRopeForward,
            QkNormRopeBackward>();
  learn_all<SumInOrder, ClipByNorm, AdamW, AdaFactor, AdaFactorSums, AdaFactorMeasure,
            AdaFactorApply>();
  learn_all<PermutePlan, DispatchForward, DispatchBackward, CombineForward, CombineBackward>();
  learn_all<MapChoices, CopyRuns, PackRows, UnpackRows>();
  learn_all<RouterForward, RouterBackward>();
}

std::unique_ptr<Stream> RecordingDevice::make_stream() {
  return std::make_unique<RecordingStream>(*this);
}
std::unique_ptr<Event> RecordingDevice::make_event() {
  return std::make_unique<RecordingEvent>(*this);
}
std::unique_ptr<Graph> RecordingDevice::capture(Stream&, std::function<void()>) {
  fail("what is recorded cannot be captured");
}

std::byte* RecordingDevice::allocate_bytes(std::size_t bytes) {
  void* const data =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(data);
}
void RecordingDevice::free_bytes(std::byte* data, std::size_t bytes) noexcept {
  munmap(data, bytes);
}

}  // namespace orchard::testing
