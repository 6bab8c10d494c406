// References that all ranks need, each computed by one of them.
#pragma once

#include <cstring>
#include <type_traits>

#include "tests/parallel/layout_harness.h"

namespace orchard::testing {

// Bytes of an outcome. One list of what there is serves both directions.
class OutcomeBytes {
 public:
  OutcomeBytes() = default;
  explicit OutcomeBytes(std::vector<std::uint8_t> bytes) : bytes_(std::move(bytes)), reads_(true) {}

  const std::vector<std::uint8_t>& bytes() const { return bytes_; }

  // Writes the outcome, or fills it. What one rank has compared is not among it.
  void pass(LayoutOutcome& outcome) {
    pass(outcome.losses);
    pass(outcome.gradient_norms);
    pass(outcome.routing);
    std::vector<std::string> names;
    for (const auto& [name, gradient] : outcome.gradients) names.push_back(name);
    pass(names);
    for (const std::string& name : names) pass(outcome.gradients[name]);
  }

 private:
  void pass(LossReport& report) {
    pass(report.loss);
    pass(report.balance_loss);
    pass(report.z_loss);
    pass(report.expert_load);
    pass(report.expert_dropped);
    pass(report.dropped);
  }
  void pass(Routing& routing) {
    pass(routing.chosen);
    pass(routing.margins);
  }
  template <class T>
  requires std::is_arithmetic_v<T>
  void pass(T& value) {
    if (!reads_) bytes_.resize(at_ + sizeof(T));
    void* const there = bytes_.data() + at_;
    std::memcpy(reads_ ? &value : there, reads_ ? there : &value, sizeof(T));
    at_ += sizeof(T);
  }
  template <class List>
  requires requires(List& list) { list.resize(1); }
  void pass(List& list) {
    std::size_t size = list.size();
    pass(size);
    list.resize(size);
    for (auto& element : list) pass(element);
  }

  std::vector<std::uint8_t> bytes_;
  std::size_t at_ = 0;
  bool reads_ = false;
};

// The outcome that `owner` has, on every rank. All call it.
inline void share(Communicator& ranks, int owner, LayoutOutcome& outcome) {
  const auto device = make_cpu_device({.threads = 1});
  const auto stream = device->make_stream();
  OutcomeBytes own;
  if (ranks.rank() == owner) own.pass(outcome);
  std::vector<std::uint8_t> bytes = own.bytes();
  double size[] = {static_cast<double>(bytes.size())};
  ranks.max_on_host(size);
  bytes.resize(static_cast<std::size_t>(size[0]));
  ranks
      .broadcast(*stream, Tensor(bytes.data(), DType::u8, {std::ssize(bytes)}, DeviceKind::cpu),
                 owner)
      .wait(*stream);
  stream->synchronize();
  if (ranks.rank() != owner) OutcomeBytes(std::move(bytes)).pass(outcome);
}

}  // namespace orchard::testing
