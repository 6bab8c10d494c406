// Operations in flight over MPI, and what moves them on.
//
// An operation is phases of nonblocking messages; the host must look after it for the next phase to
// begin. Whoever waits for one operation therefore moves all of them: two ranks may wait for two
// operations in opposite order.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "comm/operation_log.h"
#include "comm/pending.h"

namespace orchard {

// Throws Error with MPI's text unless the call succeeded.
void check_mpi(int code, const char* call);

class MpiOperation;

class MpiEngine {
 public:
  void add(MpiOperation& operation) { active_.push_back(&operation); }
  // Moves every operation as far as it goes without waiting.
  void progress();
  void wait_for(const MpiOperation& operation);

  // What the host does while it waits, instead of sleeping inside MPI.
  void while_waiting(std::function<void()> work) { while_waiting_ = std::move(work); }

 private:
  std::function<void()> while_waiting_;
  std::vector<MpiOperation*> active_;
};

class MpiOperation : public Pending::Operation {
 public:
  struct Place {
    MPI_Comm communicator = MPI_COMM_NULL;
    int rank = 0, size = 1;
    MpiEngine* engine = nullptr;
    OperationLog* log = nullptr;
  };
  explicit MpiOperation(const Place& place) : place_(place) {}
  virtual ~MpiOperation() = default;
  MpiOperation(const MpiOperation&) = delete;
  MpiOperation& operator=(const MpiOperation&) = delete;

  void wait(Stream&) override { finish(); }
  void finish() override;

  bool is_free() const { return state_ == State::free; }

 protected:
  const Place& place() const { return place_; }
  std::vector<MPI_Request>& requests() { return requests_; }

  // Messages of any size; empty ones are not sent. The other side must expect the same.
  void send(const std::byte* data, std::size_t bytes, int to, int tag);
  void receive(std::byte* data, std::size_t bytes, int from, int tag);

  // The messages of the first phase are posted: the engine takes over.
  void launch(const OperationLog::Ticket& ticket);

  // A tag that no other collective in flight on this communicator uses, for each of two phases.
  static int tag_of(const OperationLog::Ticket& ticket, int phase);

 private:
  friend class MpiEngine;
  enum class State : std::uint8_t { free, in_flight, done };

  // All messages have arrived: posts those of the next phase, or returns false.
  virtual bool next_phase() = 0;
  // True once the operation is done.
  bool test();
  void block();
  void check_messages(int code) const;

  Place place_;
  std::vector<MPI_Request> requests_;
  OperationLog::Ticket ticket_;
  State state_ = State::free;
};

// Operations that have been used before, to be used again: a warm training step allocates none.
template <class T>
class OperationPool {
 public:
  template <class... Arguments>  // of the constructor
  T& take(const Arguments&... arguments) {
    for (const std::unique_ptr<T>& operation : all_)
      if (operation->is_free()) return *operation;
    return *all_.emplace_back(std::make_unique<T>(arguments...));
  }

 private:
  std::vector<std::unique_ptr<T>> all_;
};

}  // namespace orchard
