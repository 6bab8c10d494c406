// Runs one rank's list of a pipeline schedule: computes, sends, receives.
//
// The engine owns what crosses stages: received inputs, gradients and input gradients lie in its
// buffers. They come from a pool whose size follows from the schedule alone, so that later steps of
// the same shapes allocate nothing. Outputs belong to the model until the weight half has ended.
//
// Receives are posted one action ahead, in the order in which the list needs them; sends are posted
// as soon as their data exists and waited for only where the schedule proves that they have been
// received. So the engine ends whenever `simulate` does.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "kernels/device/device.h"
#include "parallel/pipeline_schedule.h"

namespace orchard {

// A model that is cut into stages, of which this rank holds one a chunk.
class PipelineModel {
 public:
  virtual ~PipelineModel() = default;

  struct Message {
    DType dtype = DType::f32;
    Shape shape = {0};  // without elements: nothing passes, and both sides know
  };
  // What stage `stage` hands to the next for this micro-batch. Its gradient has the same form. The
  // same on every rank.
  virtual Message output_of(int stage, int micro_batch) const = 0;

  // `input` is absent at the first stage, and what it returns is ignored at the last. Both stay
  // valid until backward_weight of the same chunk and micro-batch has returned.
  virtual ConstTensor forward(int chunk, int micro_batch, ConstTensor input) = 0;
  // Writes d_input, absent at the first stage. `d_output` is absent at the last; it stays valid as
  // `input` does.
  virtual void backward_input(int chunk, int micro_batch, ConstTensor d_output, Tensor d_input) = 0;
  virtual void backward_weight(int chunk, int micro_batch) = 0;
};

class PipelineEngine {
 public:
  // Two groups of the pipeline's ranks, in pipeline order, that nobody else uses: activations may
  // overtake gradients. Throws as check_schedule does. The groups and the device must outlive the
  // engine.
  PipelineEngine(Device& device, PipelineSchedule schedule, Communicator& activations,
                 Communicator& gradients);

  // Runs the whole list. When it returns all of this rank's work is queued on the stream and its
  // messages are done.
  void run(Stream& stream, PipelineModel& model);

  const PipelineSchedule& schedule() const { return schedule_; }

 private:
  // A chunk and a micro-batch.
  using Place = std::pair<int, int>;

  // Buffers for what one stage hands to the next, or for its gradients, each as large as the largest
  // message of a step: as many as are out at once, whichever micro-batches these are.
  class Pool {
   public:
    Tensor take(Device& device, const PipelineModel::Message& message, std::size_t largest);
    void give_back(const Tensor& tensor);

   private:
    struct Slot {
      Buffer buffer;
      bool taken = false;
    };
    std::deque<Slot> slots_;
  };

  // What has crossed, or is about to, for one kind of message.
  struct Arrivals {
    std::map<Place, Tensor> tensors;
    std::map<Place, Pending> receives;  // posted, not waited for
  };

  // A buffer for the message that crosses from `stage` to the next, or its gradient.
  Tensor take(const PipelineModel& model, int stage, int micro_batch);
  void give_back(int stage, const Tensor& tensor);
  int stage_of(const PipelineAction& action) const;
  void post_receive(Stream& stream, const PipelineModel& model, const PipelineAction& action);
  Tensor arrived(Stream& stream, Arrivals& arrivals, Place place);
  void forward(Stream& stream, PipelineModel& model, const PipelineAction& action);
  void backward_input(Stream& stream, PipelineModel& model, const PipelineAction& action);
  void backward_weight(PipelineModel& model, const PipelineAction& action);
  void release(Arrivals& arrivals, int stage, Place place);

  Device& device_;
  PipelineSchedule schedule_;
  Communicator& activations_;
  Communicator& gradients_;
  std::vector<Pool> pools_;           // by the stage that hands over
  std::vector<std::size_t> largest_;  // bytes, of this step's messages
  // Of each of the rank's chunks: the most micro-batches that the stage before has begun and whose
  // gradient it has not used. By the time that this chunk has the input of a micro-batch that much
  // later, an earlier gradient has been received.
  std::vector<std::size_t> gradients_under_way_;

  Arrivals inputs_, d_outputs_;
  std::map<Place, Pending> output_sends_;
  struct GradientSend {
    Tensor tensor;
    Pending pending;
  };
  std::vector<std::deque<GradientSend>> gradient_sends_;  // of each chunk, oldest first
};

}  // namespace orchard
