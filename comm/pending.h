// What an asynchronous operation leaves in the caller's hands.
#pragma once

#include <utility>

namespace orchard {

class Stream;

// A collective under way. Its buffers must stay where they are, and nobody may write to them, until
// it has been waited for.
//
// A handle that goes out of scope without wait() blocks the host until the operation is done, so
// that buffers stay safe; only while an exception passes through it leaves the operation alone,
// because the other ranks may never answer this one.
class [[nodiscard]] Pending {
 public:
  // A backend's operation. Exactly one of wait() and finish() is called, as the last thing that
  // ever happens to it: the backend may then use its memory for another.
  class Operation {
   public:
    // Later work on the stream sees the result.
    virtual void wait(Stream& stream) = 0;
    // Returns when the operation is done.
    virtual void finish() = 0;

   protected:
    ~Operation() = default;
  };

  Pending() = default;  // nothing to wait for
  explicit Pending(Operation* operation) : operation_(operation) {}
  Pending(Pending&& other) noexcept : operation_(std::exchange(other.operation_, nullptr)) {}
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();

  // Later work on the stream sees the result. A second call does nothing.
  void wait(Stream& stream) {
    if (Operation* const operation = std::exchange(operation_, nullptr)) operation->wait(stream);
  }

  bool is_waited_for() const { return operation_ == nullptr; }

 private:
  Operation* operation_ = nullptr;
};

}  // namespace orchard
