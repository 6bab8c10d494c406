#include "comm/nccl_operation.h"

#include <algorithm>

#include "comm/nccl_communicator.h"

namespace orchard {

NcclOperation::NcclOperation(const Owner& owner)
    : communicator_(*owner.communicator), ready_(owner.device->make_event()) {
  for (auto& event : done_) event = owner.device->make_event();
}

void NcclOperation::begin(Stream& stream, const OperationLog::Ticket& ticket) {
  ticket_ = ticket;
  lanes_ = 0;
  state_ = {.released = false, .ended = false};
  ready_->record(stream);
}

void NcclOperation::enter(NcclLane& lane) {
  lane.stream->wait(*ready_);
}

void NcclOperation::leave(NcclLane& lane) {
  done_[lanes_++]->record(*lane.stream);
}

void NcclOperation::take(NcclLane& lane, Stream& stream) {
  done_[0]->record(*lane.stream);
  stream.wait(*done_[0]);
}

void NcclOperation::give_back(NcclLane& lane, Stream& stream) {
  done_[lanes_++]->record(stream);
  lane.stream->wait(*done_[0]);
  state_.released = true;
}

void NcclOperation::wait(Stream& stream) {
  communicator_.issue(*this);
  for (std::size_t i = 0; i < lanes_; ++i) stream.wait(*done_[i]);
  state_.released = true;
}

void NcclOperation::finish() {
  communicator_.issue(*this);
  for (std::size_t i = 0; i < lanes_; ++i) done_[i]->synchronize();
  state_.released = true;
  communicator_.settle();
}

bool NcclOperation::is_done() const {
  return is_issued() &&
         std::all_of(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(lanes_),
                     [](const auto& event) { return event->is_done(); });
}

}  // namespace orchard
