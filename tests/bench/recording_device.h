// A GPU that writes down what it is asked to do, and does nothing: operations are checked as on any device
// (operands, shapes, dtypes) and then recorded. Its memory is addresses alone, as much as anybody wants;
// who follows one is killed.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/device.h"

namespace orchard::testing {

struct Recorded {
  std::string operation;  // "RmsNormForward"
  // What its speed depends on, as text: extents, types and forms of the operands.
  std::string shape;
  // Of products alone, from their operands, each once (and those that are added to, twice).
  double flops = 0, bytes = 0;

  std::string text() const { return operation + " " + shape; }
};

class RecordingDevice final : public Device {
 public:
  RecordingDevice();
  std::unique_ptr<Stream> make_stream() override;
  std::unique_ptr<Event> make_event() override;
  std::unique_ptr<Graph> capture(Stream&, std::function<void()>) override;

  // What was recorded since.
  std::vector<Recorded> take() { return std::exchange(recorded_, {}); }

 private:
  template <class Operation>
  void learn();
  template <class... Operations>
  void learn_all() {
    (learn<Operations>(), ...);
  }
  std::byte* allocate_bytes(std::size_t bytes) override;
  void free_bytes(std::byte* data, std::size_t bytes) noexcept override;

  std::vector<Recorded> recorded_;
};

}  // namespace orchard::testing
