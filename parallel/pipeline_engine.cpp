#include "parallel/pipeline_engine.h"

#include <algorithm>

#include "parallel/pipeline_simulation.h"

namespace orchard {
namespace {

using Op = PipelineOp;

bool has_input_half(Op op) {
  return op == Op::backward_input || op == Op::backward;
}
bool has_weight_half(Op op) {
  return op == Op::backward_weight || op == Op::backward;
}

// The most micro-batches of a stage between the start of forward and the input half.
std::size_t most_under_way(const PipelineSchedule& schedule, int stage) {
  const StagePlace place = schedule.place_of(stage);
  std::size_t now = 0, most = 0;
  for (const PipelineAction& action : schedule.actions[static_cast<std::size_t>(place.rank)]) {
    if (action.chunk != place.chunk) continue;
    if (action.op == Op::forward) most = std::max(most, ++now);
    if (has_input_half(action.op)) --now;
  }
  return most;
}

std::size_t bytes_of(const PipelineModel::Message& message) {
  return static_cast<std::size_t>(message.shape.numel()) * size_of(message.dtype);
}

}  // namespace

Tensor PipelineEngine::Pool::take(Device& device, const PipelineModel::Message& message,
                                  std::size_t largest) {
  Slot* slot = nullptr;
  for (Slot& s : slots_) {
    if (!s.taken) slot = &s;
  }
  if (!slot) slot = &slots_.emplace_back();
  if (slot->buffer.size_bytes() < largest) slot->buffer = device.allocate(largest);
  slot->taken = true;
  return slot->buffer.tensor(message.dtype, message.shape);
}

void PipelineEngine::Pool::give_back(const Tensor& tensor) {
  for (Slot& slot : slots_) {
    if (slot.buffer.data() == tensor.raw()) slot.taken = false;
  }
}

Tensor PipelineEngine::take(const PipelineModel& model, int stage, int micro_batch) {
  const auto s = static_cast<std::size_t>(stage);
  return pools_[s].take(device_, model.output_of(stage, micro_batch), largest_[s]);
}

void PipelineEngine::give_back(int stage, const Tensor& tensor) {
  pools_[static_cast<std::size_t>(stage)].give_back(tensor);
}

PipelineEngine::PipelineEngine(Device& device, PipelineSchedule schedule, Communicator& activations,
                               Communicator& gradients)
    : device_(device),
      schedule_((check_schedule(schedule), std::move(schedule))),
      activations_(activations),
      gradients_(gradients),
      pools_(static_cast<std::size_t>(schedule_.stages())),
      gradient_sends_(static_cast<std::size_t>(schedule_.chunks)) {
  require(activations.size() == schedule_.ranks && gradients.size() == schedule_.ranks,
          "a schedule of {} pipeline ranks cannot run on groups of {} and {}", schedule_.ranks,
          activations.size(), gradients.size());
  for (int chunk = 0; chunk < schedule_.chunks; ++chunk) {
    const int stage = schedule_.stage_at(activations.rank(), chunk);
    gradients_under_way_.push_back(stage == 0 ? 0 : most_under_way(schedule_, stage - 1));
  }
}

int PipelineEngine::stage_of(const PipelineAction& action) const {
  return schedule_.stage_at(activations_.rank(), action.chunk);
}

// What an action waits for, posted ahead. The neighbouring stage may be this rank's own (at the tip
// of a vee): then the data is handed over in place.
void PipelineEngine::post_receive(Stream& stream, const PipelineModel& model,
                                  const PipelineAction& action) {
  const int stage = stage_of(action);
  const bool forward = action.op == Op::forward;
  if (forward ? stage == 0 : !has_input_half(action.op) || stage == schedule_.stages() - 1) return;
  const int crossing = forward ? stage - 1 : stage;
  const int from = schedule_.place_of(forward ? stage - 1 : stage + 1).rank;
  if (from == activations_.rank()) return;
  if (model.output_of(crossing, action.micro_batch).shape.numel() == 0) return;
  Arrivals& arrivals = forward ? inputs_ : d_outputs_;
  const Place place{action.chunk, action.micro_batch};
  const Tensor tensor = take(model, crossing, action.micro_batch);
  const Incoming incoming[] = {{.data = tensor, .from = from}};
  arrivals.tensors[place] = tensor;
  arrivals.receives[place] = (forward ? activations_ : gradients_).exchange(stream, {}, incoming);
}

Tensor PipelineEngine::arrived(Stream& stream, Arrivals& arrivals, Place place) {
  if (const auto it = arrivals.receives.find(place); it != arrivals.receives.end()) {
    it->second.wait(stream);
    arrivals.receives.erase(it);
  }
  const auto it = arrivals.tensors.find(place);
  return it == arrivals.tensors.end() ? Tensor() : it->second;
}

void PipelineEngine::release(Arrivals& arrivals, int stage, Place place) {
  const auto it = arrivals.tensors.find(place);
  if (it == arrivals.tensors.end()) return;
  give_back(stage, it->second);
  arrivals.tensors.erase(it);
}

void PipelineEngine::forward(Stream& stream, PipelineModel& model, const PipelineAction& action) {
  const Place place{action.chunk, action.micro_batch};
  const ConstTensor output =
      model.forward(action.chunk, action.micro_batch, arrived(stream, inputs_, place));
  const int stage = stage_of(action);
  if (stage == schedule_.stages() - 1) return;
  const PipelineModel::Message message = model.output_of(stage, action.micro_batch);
  if (message.shape.numel() == 0) return;
  require(output && output.shape() == message.shape && output.dtype() == message.dtype,
          "stage {} handed over {} {} for micro-batch {}, announced was {} {}", stage,
          name_of(output.dtype()), output.shape(), action.micro_batch, name_of(message.dtype),
          message.shape);
  const StagePlace next = schedule_.place_of(stage + 1);
  if (next.rank == activations_.rank()) {
    // A copy, because this chunk may be done with the micro-batch before the next one is.
    const Tensor copy = take(model, stage, action.micro_batch);
    stream.copy(copy, output);
    inputs_.tensors[{next.chunk, action.micro_batch}] = copy;
    return;
  }
  const Outgoing outgoing[] = {{.data = output, .to = next.rank}};
  output_sends_[place] = activations_.exchange(stream, outgoing, {});
}

void PipelineEngine::backward_input(Stream& stream, PipelineModel& model,
                                    const PipelineAction& action) {
  const Place place{action.chunk, action.micro_batch};
  const int stage = stage_of(action);
  const Tensor d_output = arrived(stream, d_outputs_, place);
  // Its gradient is here, so the output has been received.
  if (const auto it = output_sends_.find(place); it != output_sends_.end()) {
    it->second.wait(stream);
    output_sends_.erase(it);
  }
  Tensor d_input;
  if (stage > 0 && model.output_of(stage - 1, action.micro_batch).shape.numel() > 0)
    d_input = take(model, stage - 1, action.micro_batch);
  model.backward_input(action.chunk, action.micro_batch, d_output, d_input);
  if (!d_input) return;
  const StagePlace before = schedule_.place_of(stage - 1);
  if (before.rank == activations_.rank()) {
    d_outputs_.tensors[{before.chunk, action.micro_batch}] = d_input;
    return;
  }
  const auto chunk = static_cast<std::size_t>(action.chunk);
  std::deque<GradientSend>& sends = gradient_sends_[chunk];
  while (sends.size() >= gradients_under_way_[chunk]) {
    sends.front().pending.wait(stream);
    give_back(stage - 1, sends.front().tensor);
    sends.pop_front();
  }
  const Outgoing outgoing[] = {{.data = d_input, .to = before.rank}};
  sends.push_back({d_input, gradients_.exchange(stream, outgoing, {})});
}

void PipelineEngine::backward_weight(PipelineModel& model, const PipelineAction& action) {
  model.backward_weight(action.chunk, action.micro_batch);
  const Place place{action.chunk, action.micro_batch};
  const int stage = stage_of(action);
  release(inputs_, stage - 1, place);
  release(d_outputs_, stage, place);
}

void PipelineEngine::run(Stream& stream, PipelineModel& model) {
  const std::vector<PipelineAction>& actions =
      schedule_.actions[static_cast<std::size_t>(activations_.rank())];
  largest_.assign(pools_.size(), 0);
  for (int stage = 0; stage + 1 < schedule_.stages(); ++stage) {
    std::size_t& largest = largest_[static_cast<std::size_t>(stage)];
    for (int m = 0; m < schedule_.micro_batches; ++m)
      largest = std::max(largest, bytes_of(model.output_of(stage, m)));
  }
  if (!actions.empty()) post_receive(stream, model, actions.front());
  for (std::size_t i = 0; i < actions.size(); ++i) {
    if (i + 1 < actions.size()) post_receive(stream, model, actions[i + 1]);
    const PipelineAction& action = actions[i];
    if (action.op == Op::forward) forward(stream, model, action);
    if (has_input_half(action.op)) backward_input(stream, model, action);
    if (has_weight_half(action.op)) backward_weight(model, action);
  }
  for (auto& [place, pending] : output_sends_) pending.wait(stream);
  output_sends_.clear();
  for (int chunk = 0; chunk < schedule_.chunks; ++chunk) {
    const int stage = schedule_.stage_at(activations_.rank(), chunk);
    std::deque<GradientSend>& sends = gradient_sends_[static_cast<std::size_t>(chunk)];
    for (GradientSend& send : sends) {
      send.pending.wait(stream);
      give_back(stage - 1, send.tensor);
    }
    sends.clear();
  }
}

}  // namespace orchard
