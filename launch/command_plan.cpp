#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "data/atomic_file.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/configuration_error.h"
#include "launch/pipeline_plan.h"
#include "launch/run_arguments.h"
#include "launch/run_blocks.h"
#include "parallel/mesh.h"
#include "train/timeline.h"

namespace orchard {
namespace {

constexpr const char* usage =
    "usage: orchard plan --stages N --micro-batches N [--schedule NAME] [options]\n\n"
    "What a pipeline schedule costs before anything runs: its bubble, what each rank saves for\n"
    "backward, and a picture. Without --schedule all are compared. Times and sizes are in units\n"
    "of your choice, and are those of one rank for one micro-batch.\n\n"
    "  orchard plan --stages 4 --micro-batches 8\n"
    "  orchard plan --schedule zb-v --stages 4 --micro-batches 8 --svg timeline.svg\n"
    "  orchard plan --stages 4 --micro-batches 8 --blocks 24x1,2,32x3,6\n"
    "  orchard plan --ranks 16 --tp 2 --ep 4 --stages 2 --micro-batches 8\n\n"
    "The blocks of a run are counted, or measured where it kept times or --measure takes them. "
    "Times\n"
    "are then in units of a rank's mean time for one direction of a micro-batch.\n\n"
    "  orchard plan --run runs/first --stages 4 --micro-batches 8\n"
    "  orchard plan --recipe nano --training-set sets/small --measure --stages 2 --micro-batches 8";

constexpr int terminal_columns = 160;
constexpr int ranks_listed = 64;

void print_comparison(std::span<const Plan> plans, double memory_limit) {
  fmt::print("{:<13}{:>7}{:>10}{:>10}{:>8}{:>12}\n", "schedule", "chunks", "step", "bubble", "busy",
             "peak saved");
  for (const Plan& plan : plans) {
    fmt::print("{:<13}{:>7}{:>10.4g}{:>10.4g}{:>7.1f}%{:>12.4g}{}\n", name_of(plan.kind),
               plan.schedule.chunks, plan.timeline.makespan(), plan.timeline.bubble(),
               100 * plan.timeline.utilisation(), plan.peak_saved(),
               memory_limit > 0 && plan.peak_saved() > memory_limit ? "  over the limit" : "");
  }
}

// "blocks 0-5, 18-23" of a rank: one range for each of its stages.
std::string blocks_of(const Plan& plan, int rank) {
  if (plan.cuts.empty()) return {};
  std::string text = "  blocks";
  for (int chunk = 0; chunk < plan.schedule.chunks; ++chunk) {
    const auto stage = static_cast<std::size_t>(plan.schedule.stage_at(rank, chunk));
    text += fmt::format("{} {}-{}", chunk ? "," : "", plan.cuts[stage], plan.cuts[stage + 1] - 1);
  }
  return text;
}

std::string title_of(const Plan& plan) {
  const PipelineSchedule& s = plan.schedule;
  return fmt::format("{}: {} stages{}, {} micro-batches", name_of(plan.kind), s.ranks,
                     s.chunks > 1 ? fmt::format(" x {} chunks", s.chunks) : "", s.micro_batches);
}

std::string summary_of(const Plan& plan) {
  return fmt::format("step {:.4g}, bubble {:.4g}, ranks busy {:.1f} %", plan.timeline.makespan(),
                     plan.timeline.bubble(), 100 * plan.timeline.utilisation());
}

void print_plan(const Plan& plan) {
  fmt::print("{}\n{}\n\n", title_of(plan), summary_of(plan));
  fmt::print("{:<6}{:>10}{:>10}{:>10}{:>12}  {}\n", "rank", "busy", "bubble", "of step",
             "peak saved", "first at");
  for (int rank = 0; rank < plan.schedule.ranks; ++rank) {
    const RankTimeline& r = plan.timeline.ranks[static_cast<std::size_t>(rank)];
    fmt::print("{:<6}{:>10.4g}{:>10.4g}{:>9.1f}%{:>12.4g}  {}{}\n", rank, r.busy, r.bubble(),
               100 * r.bubble() / plan.timeline.makespan(), r.peak_saved, r.peak_at.to_string(),
               blocks_of(plan, rank));
  }
  const std::string text = timeline_text(plan.schedule, plan.timeline, terminal_columns);
  if (!text.empty()) fmt::print("\n{}", text);
}

std::string picture_of(std::span<const Plan> plans) {
  std::vector<TimelinePanel> panels;
  for (const Plan& plan : plans) {
    panels.push_back({.title = title_of(plan),
                      .note = summary_of(plan),
                      .schedule = &plan.schedule,
                      .timeline = &plan.timeline});
  }
  return timeline_svg(panels);
}

void print_mesh(int ranks, const Layout& layout) {
  const Mesh mesh(ranks, layout);
  fmt::print("{} ranks: {}; dp {}, edp {}\n", ranks, layout.to_string(), mesh.data(),
             mesh.expert_data());
  for (int rank = 0; rank < std::min(ranks, ranks_listed); ++rank)
    fmt::print("  {}\n", mesh.name(rank));
  if (ranks > ranks_listed) fmt::print("  and {} more\n", ranks - ranks_listed);
  fmt::print("\n");
}

// The blocks of a run, if the command line names one.
std::optional<RunBlocks> run_blocks(const CommandLine& line, int replicas) {
  const bool takes = line.get<bool>("measure");
  if (!line.has("run") && !line.has("recipe")) {
    require_configuration(!takes, "--measure: name the run's blocks with --run or --recipe");
    return {};
  }
  require_configuration(!line.has("blocks"), "--blocks: the blocks are those of the run");
  require_configuration(!line.has("run") || !line.has("recipe"),
                        "--recipe: the recipe is that of --run");
  RunBlocksRequest request{
      .sources = {.recipe = line.text("recipe"), .environment = {}},
      .run_folder = line.text("run"),
      .stage = line.get<int>("recipe-stage"),
      .replicas = replicas,
      .times = takes ? RunBlocksRequest::Times::taken : RunBlocksRequest::Times::kept};
  if (line.has("run")) {
    const std::filesystem::path resolved = request.run_folder / resolved_recipe_name;
    require_configuration(std::filesystem::exists(resolved), "--run {}: has no {}",
                          request.run_folder.string(), resolved_recipe_name);
    request.sources.recipe = std::filesystem::absolute(resolved).string();
  }
  if (line.has("training-set"))
    request.sources.command_line.push_back(
        {"run.training_set", line.text("training-set"), "--training-set"});
  return blocks_of_run(request);
}

void check(const PlanRequest& request) {
  const StageCost& c = request.cost;
  const std::pair<const char*, double> numbers[] = {
      {"forward", c.forward},
      {"backward-input", c.backward_input},
      {"backward-weight", c.backward_weight},
      {"message", request.message},
      {"saved-forward", c.saved_forward},
      {"saved-backward", c.saved_backward},
      {"saved-weight", c.saved_weight},
      {"memory-limit", request.memory_limit},
  };
  for (const auto& [name, value] : numbers)
    require_configuration(std::isfinite(value) && value >= 0, "--{} {}: must not be negative", name,
                          value);
  require_configuration(c.time() > 0,
                        "--forward, --backward-input and --backward-weight are all 0");
}

}  // namespace

int command_plan(Arguments arguments) {
  namespace po = program_options;
  PlanRequest request;
  Layout layout;
  int ranks = 0;
  CommandLine line(usage);
  StageCost& cost = request.cost;
  line.options().add_options()                                                           //
      ("schedule", po::value<std::string>(), "gpipe, 1f1b, interleaved, zb-h1 or zb-v")  //
      ("stages", po::value(&request.stages)->default_value(1), "ranks of the pipeline")  //
      ("chunks", po::value(&request.chunks)->default_value(0),
       "stages a rank has; 0: 2 for interleaved and zb-v, else 1")                         //
      ("micro-batches", po::value(&request.micro_batches)->default_value(1), "in a step")  //
      ("forward", po::value(&cost.forward)->default_value(1), "time")                      //
      ("backward-input", po::value(&cost.backward_input)->default_value(1),
       "time; with recomputation, that of forward included")                                //
      ("backward-weight", po::value(&cost.backward_weight)->default_value(1), "time")       //
      ("message", po::value(&request.message)->default_value(0), "time between two ranks")  //
      ("saved-forward", po::value(&cost.saved_forward)->default_value(1),
       "activations saved between forward and backward")  //
      ("saved-backward", po::value(&cost.saved_backward)->default_value(1),
       "activations while the input half of backward runs")  //
      ("saved-weight", po::value(&cost.saved_weight)->default_value(1),
       "activations saved between the halves of backward")  //
      ("blocks", po::value<std::string>(),
       "chain of blocks to cut into stages, COST or COUNTxCOST each: 24x1,2,32x3. A block's times "
       "and sizes are COST times those above")  //
      ("run", po::value<std::string>(),
       "folder of a run: its recipe's blocks, and the times that it kept")                       //
      ("recipe", po::value<std::string>(), "recipe whose blocks to cut, before there is a run")  //
      ("training-set", po::value<std::string>(), "whose samples fill the micro-batches")         //
      ("recipe-stage", po::value<int>()->default_value(0), "of the run; 0: the first")           //
      ("measure", po::bool_switch(),
       "take the times now, on this machine, of whole blocks on one rank")  //
      ("memory-limit", po::value(&request.memory_limit)->default_value(0),
       "mark schedules that save more on a rank, fail where --schedule does; 0: none")  //
      ("svg", po::value<std::string>(), "write the timeline to this file")              //
      ("ranks", po::value(&ranks)->default_value(0),
       "name every rank of a job of this size in its mesh; 0: no mesh")                           //
      ("tp", po::value(&layout.tensor)->default_value(1), "tensor parallel size")                 //
      ("ep", po::value(&layout.expert)->default_value(1), "expert parallel size")                 //
      ("etp", po::value(&layout.expert_tensor)->default_value(1), "expert tensor parallel size")  //
      ("order", po::value<std::string>()->default_value(to_string(default_rank_order)),
       "of ranks, from neighbours to the farthest");
  if (line.parse(arguments) == CommandLine::Outcome::helped) return 0;
  check(request);
  if (line.has("blocks")) request.blocks = parse_blocks(line.text("blocks"));
  try {
    if (ranks != 0) {
      layout.pipeline = request.stages;
      layout.order = parse_rank_order(line.text("order"));
      print_mesh(ranks, layout);
    }
    if (const std::optional<RunBlocks> blocks =
            run_blocks(line, ranks > 0 ? layout.data(ranks) : 1)) {
      const ScheduleKind kind = line.has("schedule") ? parse_schedule(line.text("schedule"))
                                                     : ScheduleKind::one_forward_one_backward;
      const int chunks = request.chunks > 0 ? request.chunks : default_chunks(kind);
      fmt::print("{}\n{}\n", table_of(*blocks), cuts_of(*blocks, request.stages * chunks));
      request.links = blocks->best();
      request.halves = blocks->halves;
    }
    std::vector<Plan> plans;
    if (line.has("schedule")) {
      plans.push_back(make_plan(parse_schedule(line.text("schedule")), request));
      print_plan(plans.front());
    } else {
      plans = all_plans(request);
      print_comparison(plans, request.memory_limit);
    }
    if (line.has("svg")) write_file(line.text("svg"), picture_of(plans));
    if (line.has("schedule") && request.memory_limit > 0)
      require_within(plans.front().timeline, request.memory_limit);
  } catch (const Error& error) {
    // All of it is asked for: nothing runs that could fail by itself.
    throw ConfigurationError(error.what());
  }
  return 0;
}

}  // namespace orchard
