// Training speed of a recipe's decoder on text alone: tokens/s, model FLOP/s beside the machine's own
// GEMM peak measured in the same process, peak memory, and where the time goes.
//
//   bench_train_step [--model tiny|tiny-moe|1b|...] [--dtype f32|bf16] [--sequence 512]
//                    [--micro-batch 8] [--recompute none|blocks] [--steps 10] [--threads 2]
//                    [--device cpu|cuda] [--graphs no|yes] [--json]
//   mpirun -n 2 bench_train_step --threads 1 --tp 2 ...
//   mpirun -n 2 bench_train_step --threads 1 --pp 2 --schedule zb-h1 --micro-batches 8 ...
//
// Layouts and graphs have the options of `orchard train`. Of a pipeline it also says what share of the step the
// ranks have nothing to do: by the schedule and the costs of the stages, as the simulator has it,
// and measured, as the time that forward, backward and optimizer leave: waiting for other ranks,
// moving what crosses stages, adding gradients and their squares. "Without bubble" is what the ranks
// would do if only the first of the two were saved.
//
// Tokens are random and every sequence is one document, so nothing but the model's arithmetic is
// measured. The first two steps warm up. Model FLOPs count what the mathematics needs
// (models/flops.h), not what is executed. Of several ranks tokens and peak are those of all
// together, memory and phases those of the worst.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "bench/command_line.h"
#include "comm/mpi.h"
#include "kernels/gemm/peak.h"
#include "launch/device.h"
#include "launch/options.h"
#include "models/flops.h"
#include "parallel/random.h"
#include "train/layout_facts.h"
#include "train/link_timer.h"
#include "train/step.h"

namespace orchard {
namespace {

struct Setting {
  std::string model = "tiny";
  DType dtype = DType::f32;
  std::string recompute = "none";
  std::int64_t sequence = 512;
  std::int64_t micro_batch = 8;
  std::int64_t micro_batches = 1;  // of a step, over all ranks
  std::int64_t steps = 10;
  int threads = 2;                             // of the CPU device of a rank
  std::map<std::string, std::string> options;  // of the run, by name
  std::string device = "cpu";
  bool json = false;
};

MicroBatch random_batch(const ModelConfig& model, const Setting& setting, std::int64_t index) {
  MicroBatch batch{.sequences = setting.micro_batch, .length = setting.sequence};
  const CounterRandom random(1, fmt::format("bench_train_step {}", index));
  const auto rows = static_cast<std::uint64_t>(setting.micro_batch * setting.sequence);
  for (std::uint64_t r = 0; r < rows; ++r) {
    const auto position = static_cast<std::int64_t>(r) % setting.sequence;
    batch.sources.push_back(static_cast<std::int32_t>(
        random.uniform(r) * static_cast<double>(model.decoder.vocabulary)));
    batch.positions.push_back(static_cast<std::int32_t>(position));
    batch.category.push_back(0);
  }
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(rows); ++r) {
    const bool last = (r + 1) % setting.sequence == 0;
    batch.targets.push_back(last ? -1 : batch.sources[static_cast<std::size_t>(r + 1)]);
    batch.target_count += !last;
  }
  for (std::int64_t s = 0; s <= setting.micro_batch; ++s) {
    batch.document_offsets.push_back(static_cast<std::int32_t>(s * setting.sequence));
  }
  batch.real_rows.assign(static_cast<std::size_t>(setting.micro_batch),
                         static_cast<std::int32_t>(setting.sequence));
  return batch;
}

// Of the GPU's memory, or of the process where the model is in the host's.
double peak_memory_bytes(Device& device) {
  if (device.kind() != DeviceKind::cpu) return static_cast<double>(device.statistics().peak_bytes);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

// The largest of all ranks.
double worst(Communicator& world, double value) {
  world.max_on_host({&value, 1});
  return value;
}

// The recipe, with what the command line says of its options.
RunConfig run_of(const Setting& setting) {
  RunConfig run = load_recipe(setting.model);
  for (const auto& [name, value] : setting.options) {
    const RunOption* const option = find_run_option(name);
    require(option && option->read(run, value), "{} = {}: must be {}", name, value,
            option ? option->values : "an option of a run");
  }
  run.dtype = setting.dtype;
  // What is dealt to the replicas is micro-batches, whatever their size.
  run.micro_batch = 1;
  run.stages = {{.global_batch = setting.micro_batches}};
  run.model.vision = {};
  run.model.recompute = setting.recompute == "blocks" ? Recompute::blocks : Recompute::none;
  run.model.decoder.max_positions = std::max(run.model.decoder.max_positions, setting.sequence);
  return run;
}

// Shares of a step, of all ranks together, that a pipeline leaves without work.
struct Idle {
  std::string cut;    // "1f1b, blocks 0-4 | 5-9"
  double bubble = 0;  // as the simulator has it
  double waited = 0;  // as measured
};

PipelineStages stages_of(const RunConfig& run, std::span<const LinkCost> costs) {
  return cut_pipeline(run.model, run.pipeline, run.layout.pipeline, costs);
}

Workload micro_batch_work(const ModelConfig& model, const Setting& setting) {
  const MicroBatch batch = random_batch(model, setting, 0);
  return {.tokens = batch.sequences * batch.length,
          .document_length = static_cast<double>(batch.length),
          .targets = batch.target_count};
}

std::vector<LinkCost> link_costs(const RunConfig& run, const Setting& setting, Device& device,
                                 Communicator& world) {
  const Workload work = micro_batch_work(run.model, setting);
  if (run.layout.pipeline == 1 || !run.pipeline.is_measured())
    return counted_costs(run.model, work);
  const LinkSetting links{.layout = run.layout, .experts = run.experts, .dtype = run.dtype};
  return measured_costs(
      run.model, work,
      time_links(device, world, run.model, links, random_batch(run.model, setting, 0)));
}

// `phases` are seconds of a step.
Idle idle_of(const PipelineStages& stages, const PipelineSchedule& schedule,
             const PipelineCosts& costs, const PhaseSeconds& phases, double step_seconds,
             Communicator& world) {
  const double waiting = phases.pipeline + phases.reduce + phases.wait;
  double of_ranks[] = {waiting, phases.forward + phases.backward + waiting};
  world.sum_on_host(of_ranks);
  const double all = step_seconds * world.size();
  const PipelineTimeline timeline = simulate(schedule, costs);
  return {.cut = stages.to_string(),
          .bubble = (1 - timeline.utilisation()) * of_ranks[1] / all,
          .waited = of_ranks[0] / all};
}

void measure(const Setting& setting, Communicator& world) {
  const RunConfig run = run_of(setting);
  const ModelConfig& config = run.model;
  const std::unique_ptr<Device> device = setting.device == "cpu"
                                             ? make_cpu_device({.threads = setting.threads})
                                             : open_device({.device = DeviceKind::cuda});
  const std::unique_ptr<Stream> stream = device->make_stream();
  require_possible(world.size(), run.layout, layout_facts(run, config));
  const std::vector<LinkCost> costs = link_costs(run, setting, *device, world);
  const ParallelContext ranks(world, run.layout, run.sequence_parallel, stages_of(run, costs));
  ParameterStore store(ranks.place());
  MultimodalModel model(store, config);
  store.allocate(*device, *stream, setting.dtype, ParameterUse::training_on_shards);
  const FlatShards shards(*device, *stream, ranks, store);
  store.initialise(*stream, 1);
  model.prepare(*device, *stream);
  Optimizer optimizer(*device, *stream, store, {}, &shards);
  StepRunner runner(*device, *stream, ranks, store, model, &shards,
                    StepOptions{.graphs = run.graphs});

  const Communicator& replicas = ranks[MeshGroup::data];
  std::vector<MicroBatch> batches;
  for (std::int64_t i = replicas.rank(); i < setting.micro_batches; i += replicas.size()) {
    batches.push_back(random_batch(config, setting, i));
  }
  const std::int64_t sequences = setting.micro_batches * setting.micro_batch;
  const StepTotals totals{.targets = sequences * (setting.sequence - 1),
                          .real_rows = sequences * setting.sequence,
                          .sequences = sequences,
                          .sizes = MicroBatchSizes::alike};
  constexpr std::int64_t warm_up = 2;
  std::vector<double> seconds;
  PhaseSeconds phases;
  double loss = 0;
  for (std::int64_t step = 1; step <= warm_up + setting.steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    const StepReport report = runner.train(batches, totals, optimizer, 1e-4, step);
    if (step <= warm_up) continue;
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    phases.forward += report.seconds.forward;
    phases.backward += report.seconds.backward;
    phases.pipeline += report.seconds.pipeline;
    phases.reduce += report.seconds.reduce;
    phases.optimizer += report.seconds.optimizer;
    phases.wait += report.seconds.wait;
    loss = report.losses.loss;
  }
  const double n = static_cast<double>(setting.steps);
  double* const all_phases[] = {&phases.forward, &phases.backward,  &phases.pipeline,
                                &phases.reduce,  &phases.optimizer, &phases.wait};
  for (double* const phase : all_phases) *phase /= n;
  Idle idle;
  if (const PipelineStages& stages = ranks.stages(); stages.ranks() > 1) {
    const PipelineSchedule schedule = stages.schedule(static_cast<int>(batches.size()));
    const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / n;
    idle = idle_of(stages, schedule,
                   pipeline_costs(stages, schedule, costs,
                                  link_halves(config, micro_batch_work(config, setting))),
                   phases, mean, world);
  }
  for (double* const phase : all_phases) *phase = worst(world, *phase);
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double memory = worst(world, peak_memory_bytes(*device));

  const double tokens_per_s = static_cast<double>(totals.real_rows) / median;
  const double without_bubble = tokens_per_s / (1 - idle.bubble);
  const Workload work{.tokens = totals.real_rows,
                      .document_length = static_cast<double>(setting.sequence),
                      .targets = totals.targets};
  const double flops = count_flops(config, work).training / median;
  world.barrier();
  double peak = measure_gemm_peak(*stream, setting.dtype);
  world.sum_on_host({&peak, 1});
  if (world.rank() != 0) return;
  if (setting.json) {
    const nlohmann::json line{{"model", setting.model},
                              {"dtype", std::string(name_of(setting.dtype))},
                              {"ranks", world.size()},
                              {"layout", run.layout.to_string()},
                              {"graphs", run.graphs == Graphs::yes},
                              {"pipeline", idle.cut},
                              {"threads", setting.threads},
                              {"sequence", setting.sequence},
                              {"micro_batch", setting.micro_batch},
                              {"micro_batches", setting.micro_batches},
                              {"parameters", store.count()},
                              {"tokens_per_s", tokens_per_s},
                              {"tokens_per_s_without_bubble", without_bubble},
                              {"bubble_share", idle.bubble},
                              {"waited_share", idle.waited},
                              {"step_s_median", median},
                              {"step_s_min", seconds.front()},
                              {"model_gflop_per_s", flops / 1e9},
                              {"gemm_peak_gflop_per_s", peak / 1e9},
                              {"fraction_of_peak", flops / peak},
                              {"peak_memory_bytes", memory},
                              {"forward_s", phases.forward},
                              {"backward_s", phases.backward},
                              {"pipeline_s", phases.pipeline},
                              {"reduce_s", phases.reduce},
                              {"optimizer_s", phases.optimizer},
                              {"wait_s", phases.wait},
                              {"loss", loss}};
    fmt::print("{}\n", line.dump());
    return;
  }
  fmt::print(
      "{:9} {:4} {} x {} threads, {} x {}x{}: {:8.0f} tokens/s  {:7.1f} GFLOP/s of {:7.1f} GEMM "
      "peak = {:4.1f} %  {:5.0f} MB  forward {:.0f} backward {:.0f} pipeline {:.0f} reduce {:.0f} "
      "optimizer {:.0f} wait {:.0f} ms\n",
      setting.model, name_of(setting.dtype), world.size(), setting.threads, setting.micro_batches,
      setting.micro_batch, setting.sequence, tokens_per_s, flops / 1e9, peak / 1e9,
      100 * flops / peak, memory / 1e6, 1e3 * phases.forward, 1e3 * phases.backward,
      1e3 * phases.pipeline, 1e3 * phases.reduce, 1e3 * phases.optimizer, 1e3 * phases.wait);
  if (!idle.cut.empty()) {
    fmt::print(
        "pipeline {}: bubble {:.1f} % of the step, waited {:.1f} %; without bubble {:.0f} "
        "tokens/s\n",
        idle.cut, 100 * idle.bubble, 100 * idle.waited, without_bubble);
  }
}

// What `orchard train` calls the option, and what a run does.
constexpr std::pair<const char*, const char*> run_flags[] = {
    {"tp", "layout.tp"},
    {"pp", "layout.pp"},
    {"schedule", "layout.schedule"},
    {"pipeline-chunks", "layout.pipeline_chunks"},
    {"stage-blocks", "layout.stage_blocks"},
    {"balance", "layout.balance"},
    {"ep", "layout.ep"},
    {"graphs", "run.graphs"}};

// Nothing where only the help was asked for.
std::optional<Setting> parse(int argc, char** argv) {
  Setting setting;
  std::string dtype = "f32";
  bench::CommandLine options("Training speed of a recipe's decoder on text alone");
  options.option("model", setting.model, "a recipe, such as tiny, tiny-moe, 1b");
  options.option("dtype", dtype, "f32 | bf16");
  options.option("sequence", setting.sequence, "tokens");
  options.option("micro-batch", setting.micro_batch, "sequences");
  options.option("micro-batches", setting.micro_batches, "of a step, dealt to the replicas");
  options.option("recompute", setting.recompute, "none | blocks");
  for (const auto& [flag, name] : run_flags) {
    const RunOption& option = *find_run_option(name);
    std::string& value = setting.options[name] = option.print(default_run());
    options.option(flag, value, option.help.c_str());
  }
  options.option("device", setting.device, "cpu | cuda");
  options.option("steps", setting.steps, "timed, after two to warm up");
  options.option("threads", setting.threads, "of the CPU");
  options.flag("json", setting.json, "print a JSON line");
  if (!options.parse(argc, argv)) return {};
  require(dtype == "f32" || dtype == "bf16", "--dtype is f32 or bf16, not {}", dtype);
  require(setting.recompute == "none" || setting.recompute == "blocks",
          "--recompute is none or blocks, not {}", setting.recompute);
  require(setting.device == "cpu" || setting.device == "cuda", "--device is cpu or cuda, not {}",
          setting.device);
  setting.dtype = dtype == "f32" ? DType::f32 : DType::bf16;
  return setting;
}

}  // namespace
}  // namespace orchard

int main(int argc, char** argv) {
  try {
    const auto setting = orchard::parse(argc, argv);
    if (!setting) return 0;
    const orchard::MpiSession session(argc, argv);
    const auto world = session.world();
    orchard::measure(*setting, *world);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_train_step: {}\n", error.what());
    return 1;
  }
}
