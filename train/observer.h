// What a run tells the world. The trainer calls these on rank 0 only; implementations write the
// console, metrics.jsonl and TensorBoard events.
#pragma once

#include <string>

#include "train/step.h"
#include "train/validation.h"

namespace orchard {

struct StepEvent {
  int stage = 0;
  std::int64_t step = 0;   // done, from 1
  std::int64_t steps = 0;  // of the stage
  StepReport report;
  double learning_rate = 0;
  std::int64_t tokens = 0;  // real rows of the step, all ranks
  std::int64_t targets = 0;
  std::int64_t tiles = 0;
  double step_seconds = 0;       // wall clock, data included
  double data_seconds = 0;       // of these, waiting for the loader
  std::int64_t bad_samples = 0;  // of this rank, so far
};

struct ValidationEvent {
  int stage = 0;
  std::int64_t step = 0;  // 0: before the first step
  std::int64_t steps = 0;
  ValidationReport report;
  double seconds = 0;
};

// Of what takes long between steps.
struct ProgressEvent {
  std::string doing, units;  // "validating", "micro-batches"
  std::int64_t done = 0, total = 0;
};

class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_step(const StepEvent&) = 0;
  virtual void on_validation(const ValidationEvent&) = 0;
  // A line for the log: a stage begins, a checkpoint is written, a sample is bad.
  virtual void on_message(const std::string& text) = 0;
  virtual void on_progress(const ProgressEvent&) {}
};

}  // namespace orchard
