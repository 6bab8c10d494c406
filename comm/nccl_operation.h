// An operation that the device carries out on a stream of its own.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "comm/nccl_library.h"
#include "comm/operation_log.h"
#include "comm/pending.h"
#include "kernels/device/device.h"

namespace orchard {

class NcclCommunicator;

// A connection with a stream to itself.
struct NcclLane {
  NcclLibrary::Lane library;
  std::unique_ptr<Stream> stream;
};

class NcclOperation final : public Pending::Operation {
 public:
  struct Message {
    enum class Way : std::uint8_t { send, receive };
    Way way;
    void* data;
    std::size_t bytes;
    int peer;
  };

  struct Owner {
    NcclCommunicator* communicator = nullptr;
    Device* device = nullptr;
  };
  explicit NcclOperation(const Owner& owner);
  virtual ~NcclOperation() = default;
  NcclOperation(const NcclOperation&) = delete;
  NcclOperation& operator=(const NcclOperation&) = delete;

  // What is on `stream` now comes before the operation.
  void begin(Stream& stream, const OperationLog::Ticket& ticket);

  // Later work of the lane comes after what begin() saw.
  void enter(NcclLane& lane);
  // What the lane has now is the operation's end.
  void leave(NcclLane& lane);

  // An operation on the stream itself, between these two, that has the lane to itself: after all that
  // the lane has, and before what it gets. Nobody waits for it but those who wait for the stream.
  void take(NcclLane& lane, Stream& stream);
  void give_back(NcclLane& lane, Stream& stream);

  // Later work of the stream sees the result.
  void wait(Stream& stream) override;
  void finish() override;

  // Messages that an exchange has still to put on a lane; by the number of the lane.
  std::vector<Message>& messages(std::size_t lane) { return messages_[lane]; }
  bool is_issued() const { return messages_[0].empty() && messages_[1].empty(); }

  const OperationLog::Ticket& ticket() const { return ticket_; }
  // The device has done all of it.
  bool is_done() const;
  void end() { state_.ended = true; }
  bool is_free() const { return state_.released && state_.ended; }

 private:
  struct State {
    bool released = true;  // nobody holds a handle
    bool ended = true;     // and the device has done it
  };
  NcclCommunicator& communicator_;
  std::unique_ptr<Event> ready_;
  std::array<std::unique_ptr<Event>, 2> done_;
  std::size_t lanes_ = 0;  // that it has left: the events of done_
  std::array<std::vector<Message>, 2> messages_;
  OperationLog::Ticket ticket_;
  State state_;
};

}  // namespace orchard
