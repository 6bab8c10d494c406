#include "train/stage_cut.h"

#include <array>
#include <optional>

namespace orchard {
namespace {

// Forward and backward of every kind; below zero where there is none.
using TimeTable = std::array<double, 2 * std::size(link_kind_list)>;

TimeTable table_of(const CostByKind& seconds) {
  TimeTable table;
  table.fill(-1);
  for (std::size_t k = 0; k < std::size(link_kind_list); ++k) {
    const auto known = seconds.find(link_kind_list[k]);
    if (known == seconds.end()) continue;
    table[2 * k] = known->second.forward;
    table[2 * k + 1] = known->second.backward;
  }
  return table;
}

CostByKind seconds_of(const TimeTable& table) {
  CostByKind seconds;
  for (std::size_t k = 0; k < std::size(link_kind_list); ++k)
    if (table[2 * k] >= 0)
      seconds[link_kind_list[k]] = {.forward = table[2 * k], .backward = table[2 * k + 1]};
  return seconds;
}

// What the first rank has; the others need none.
CostByKind from_first(const CostByKind& own, Communicator& world) {
  TimeTable table = table_of(world.rank() == 0 ? own : CostByKind{});
  world.max_on_host(table);
  return seconds_of(table);
}

struct Times {
  CostByKind seconds;
  std::string origin;
};

Times times_of(const StageCutting& cutting, Communicator& world) {
  const std::filesystem::path path = link_times_path(cutting.run.run_folder, cutting.stage.number);
  const bool is_first = world.rank() == 0;
  CostByKind recorded;
  if (is_first && std::filesystem::exists(path)) {
    const LinkTimes times = read_link_times(path);
    if (times.setting == cutting.setting) recorded = times.seconds;
  }
  if (CostByKind seconds = from_first(recorded, world); !seconds.empty())
    return {std::move(seconds), fmt::format("balanced by the times in {}", path.string())};
  Times taken{from_first(cutting.time(), world),
              fmt::format("balanced by times taken now, kept in {}", path.string())};
  if (is_first)
    write_link_times(path, {.setting = cutting.setting,
                            .device = std::string(name_of(cutting.run.device)),
                            .seconds = taken.seconds});
  return taken;
}

}  // namespace

StageCut cut_stage(const StageCutting& cutting, Communicator& world) {
  const auto& [run, stage, model, work, setting, time] = cutting;
  if (run.layout.pipeline == 1) return {};
  StageCut cut;
  if (run.pipeline.is_measured()) {
    Times times = times_of(cutting, world);
    cut.costs = measured_costs(model, work, times.seconds);
    cut.costs_are = PipelineBalance::measured;
    cut.origin = std::move(times.origin);
  } else {
    cut.costs = counted_costs(model, work);
    cut.origin = run.pipeline.stage_blocks.empty() ? "balanced by FLOPs" : "as asked for";
  }
  cut.halves = link_halves(model, work);
  cut.stages = cut_pipeline(model, run.pipeline, run.layout.pipeline, cut.costs);
  return cut;
}

}  // namespace orchard
