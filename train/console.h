// The run on the console: a line a step, a table a validation.
#pragma once

#include "train/observer.h"
#include "train/progress.h"
#include "train/terminal.h"

namespace orchard {

// "stage 1 step  120/2000 loss 3.4512 balance 1.021 z 12.3 norm 0.83 lr 6.75e-04 5.21k tok/s
// 1.93 s (2% data) eta 1:02:13 load 1.31 1.52 dropped 0.4%", on one line. `load` is the busiest
// expert's share over the mean share, of each sparse layer, or the span of many; the part about
// experts is absent from dense models, bad samples where there are none.
std::string step_line(const StepEvent& event, double eta_seconds);

// Several lines, the last without its line break: the loss, each category's, and right against
// swapped pictures where they were compared.
std::string validation_table(const ValidationEvent& event);

class Console : public Observer {
 public:
  // On a live terminal every step updates one line and each `permanent_every`-th stays, as do the
  // first and the last of a stage; on a plain one each step is a line. `terminal` must outlive it.
  explicit Console(Terminal& terminal, std::int64_t permanent_every = 50)
      : terminal_(terminal), permanent_every_(permanent_every) {}

  void on_step(const StepEvent& event) override;
  void on_validation(const ValidationEvent& event) override;
  void on_message(const std::string& text) override { terminal_.print(text); }
  void on_progress(const ProgressEvent& event) override;

 private:
  Terminal& terminal_;
  std::int64_t permanent_every_;
  int stage_ = 0;                // of the step before
  std::int64_t heard_ = 0;       // steps of it
  double seconds_per_step_ = 0;  // smoothed
  std::string doing_;            // what `progress_` is of
  ProgressHook progress_;
};

}  // namespace orchard
