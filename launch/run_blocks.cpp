#include "launch/run_blocks.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "launch/device.h"
#include "launch/run_arguments.h"
#include "parallel/pipeline_balance.h"
#include "train/link_timer.h"
#include "train/link_times.h"
#include "train/stage_data.h"
#include "train/stage_model.h"

namespace orchard {
namespace {

const StageConfig& stage_of(const RunConfig& run, int number) {
  if (number == 0) return run.stages.front();
  const auto found = std::ranges::find(run.stages, number, &StageConfig::number);
  require_configuration(found != run.stages.end(), "--recipe-stage {}: the run has no such stage",
                        number);
  return *found;
}

// Nothing where none are kept and none are to be taken.
CostByKind times_of(const RunBlocksRequest& request, const RunConfig& run, const StageConfig& stage,
                    const ModelConfig& model, StageData& data) {
  if (request.times == RunBlocksRequest::Times::taken) {
    const std::unique_ptr<Device> device = open_device(run);
    const std::unique_ptr<Communicator> alone = make_single_communicator();
    return time_links(*device, *alone, model, {.dtype = run.dtype}, data.typical_batch());
  }
  const std::filesystem::path path = link_times_path(request.run_folder, stage.number);
  if (request.run_folder.empty() || !std::filesystem::exists(path)) return {};
  return read_link_times(path).seconds;
}

double sum_of(const std::vector<LinkCost>& costs) {
  const std::vector<double> totals = totals_of(costs);
  return std::accumulate(totals.begin(), totals.end(), 0.0);
}

double largest_share(const std::vector<LinkCost>& costs, std::span<const int> cuts) {
  return std::ranges::max(stage_costs(totals_of(costs), cuts)) / sum_of(costs);
}

std::string ranges_of(std::span<const int> cuts) {
  std::vector<std::string> ranges;
  for (std::size_t stage = 0; stage + 1 < cuts.size(); ++stage)
    ranges.push_back(fmt::format("{}-{}", cuts[stage], cuts[stage + 1] - 1));
  return fmt::format("{}", fmt::join(ranges, " | "));
}

}  // namespace

RunBlocks blocks_of_run(const RunBlocksRequest& request) {
  const RunConfig run = ResolvedRun(request.sources).config();
  require_configuration(!run.training_set.empty(),
                        "--training-set is missing: what blocks cost depends on its samples");
  const StageConfig& stage = stage_of(run, request.stage);
  const TrainingSet set = TrainingSet::open(run.training_set);
  const ModelConfig model = stage_model(run, stage, set);
  require_configuration(stage.global_batch % request.replicas == 0,
                        "stage {}: the global batch of {} does not divide among {} replicas",
                        stage.number, stage.global_batch, request.replicas);
  const std::int64_t micro_batch =
      micro_batch_of(stage.global_batch, run.micro_batch, request.replicas);
  StageData data(set, run, stage, micro_batch);
  Workload work = data.first_workload();
  const std::int64_t micro_batches = stage.global_batch / micro_batch;
  RunBlocks blocks{
      .title = fmt::format("stage {}: micro-batches of {} x {} rows, {:.1f} tiles", stage.number,
                           micro_batch, stage.sequence_length,
                           static_cast<double>(work.tiles) / static_cast<double>(micro_batches)),
      .kinds = link_kinds(model),
      .counted = counted_costs(model, work),
      .measured = {},
      .halves = link_halves(model, work)};
  for (LinkCost& cost : blocks.counted) {
    cost.forward /= static_cast<double>(micro_batches);
    cost.backward /= static_cast<double>(micro_batches);
  }
  if (const CostByKind times = times_of(request, run, stage, model, data); !times.empty())
    blocks.measured = measured_costs(model, work, times);
  return blocks;
}

std::string table_of(const RunBlocks& blocks) {
  const bool has_times = !blocks.measured.empty();
  std::string text = fmt::format("{}\n{:<14}{:>7}{:>12}{:>8}", blocks.title, "block", "number",
                                 "GFLOP each", "share");
  if (has_times) text += fmt::format("{:>12}{:>13}{:>8}", "forward ms", "backward ms", "share");
  text += '\n';
  for (const LinkKind kind : link_kind_list) {
    const auto first = std::ranges::find(blocks.kinds, kind);
    if (first == blocks.kinds.end()) continue;
    const auto at = static_cast<std::size_t>(first - blocks.kinds.begin());
    const auto number = std::ranges::count(blocks.kinds, kind);
    const auto share = [&](const std::vector<LinkCost>& costs) {
      return 100 * static_cast<double>(number) * costs[at].total() / sum_of(costs);
    };
    text += fmt::format("{:<14}{:>7}{:>12.4g}{:>7.1f}%", name_of(kind), number,
                        blocks.counted[at].total() / 1e9, share(blocks.counted));
    if (has_times) {
      const LinkCost& seconds = blocks.measured[at];
      text += fmt::format("{:>12.4g}{:>13.4g}{:>7.1f}%", 1e3 * seconds.forward,
                          1e3 * seconds.backward, share(blocks.measured));
    }
    text += '\n';
  }
  return text;
}

std::string cuts_of(const RunBlocks& blocks, int stages) {
  const std::vector<int> counted = balanced_cuts(totals_of(blocks.counted), stages);
  std::string text = fmt::format("cut by FLOPs: blocks {}; the largest stage has {:.1f} % of them",
                                 ranges_of(counted), 100 * largest_share(blocks.counted, counted));
  if (blocks.measured.empty()) return text + '\n';
  const std::vector<int> measured = balanced_cuts(totals_of(blocks.measured), stages);
  return text + fmt::format(
                    ", and {:.1f} % of the time\ncut by time:  blocks {}; the largest stage has "
                    "{:.1f} %\n",
                    100 * largest_share(blocks.measured, counted), ranges_of(measured),
                    100 * largest_share(blocks.measured, measured));
}

}  // namespace orchard
