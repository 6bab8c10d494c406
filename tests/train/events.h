// Events of a made-up run, for the tests of what observers write.
#pragma once

#include "train/observer.h"

namespace orchard::testing {

// Every field differs from its default and from every other.
inline StepEvent make_step(int stage, std::int64_t step, std::int64_t steps = 8) {
  const double s = static_cast<double>(step);
  StepEvent event{.stage = stage,
                  .step = step,
                  .steps = steps,
                  .learning_rate = 1e-3 / s,
                  .tokens = 4000 + step,
                  .targets = 1500 + step,
                  .tiles = 10 + step,
                  .step_seconds = 2 + s / 16,
                  .data_seconds = 0.125,
                  .bad_samples = 3};
  event.report.losses = {.loss = 7.1 / s,
                         .balance_loss = 2.25,
                         .z_loss = 11.5,
                         .expert_load = {{0.4, 0.2, 0.2, 0.2}, {0.25, 0.25, 0.125, 0.375}},
                         .expert_dropped = {{0.075, 0, 0, 0}, {0.02, 0.02, 0, 0}},
                         .dropped = {0.03, 0.01}};
  event.report.gradient_norm = 0.875;
  event.report.seconds = {.forward = 0.5,
                          .backward = 1.0,
                          .pipeline = 0.125,
                          .reduce = 0.0625,
                          .optimizer = 0.25,
                          .wait = 0.03125};
  return event;
}

inline ValidationEvent make_validation(int stage, std::int64_t step, std::int64_t steps = 8) {
  ValidationEvent event{.stage = stage, .step = step, .steps = steps, .seconds = 65};
  event.report = {.loss = 3.25,
                  .targets = 400,
                  .categories = {{"captions", 4.5, 100, {}},
                                 {"text_rich", 2.75, 300, {48, 2.5, 2.625, 0.125, 0.0625}}},
                  .swap = {.samples = 96,
                           .own = 2.5,
                           .swapped = 2.75,
                           .difference = 0.25,
                           .standard_error = 0.0625}};
  return event;
}

}  // namespace orchard::testing
