#include "launch/layout_options.h"

#include <optional>

#include "launch/option_fields.h"

namespace orchard {
namespace {

constexpr ChoiceNames<SequenceParallel, 2> sequence_parallels{
    {{"yes", SequenceParallel::yes}, {"no", SequenceParallel::no}}};

constexpr ChoiceNames<ExpertDispatch, 3> expert_dispatches{
    {{"automatic", ExpertDispatch::automatic},
     {"direct", ExpertDispatch::direct},
     {"by_node", ExpertDispatch::by_node}}};

constexpr ChoiceNames<ExpertMessages, 2> expert_messages{
    {{"fixed", ExpertMessages::fixed}, {"counted", ExpertMessages::counted}}};

constexpr ChoiceNames<PipelineBalance, 2> pipeline_balances{
    {{"counted", PipelineBalance::counted}, {"measured", PipelineBalance::measured}}};

using ScheduleNames = ChoiceNames<ScheduleKind, std::size(schedule_kinds)>;

ScheduleNames schedule_names() {
  ScheduleNames names;
  for (std::size_t i = 0; i < names.size(); ++i)
    names[i] = {name_of(schedule_kinds[i]), schedule_kinds[i]};
  return names;
}

constexpr std::string_view balanced = "balanced";

std::optional<std::vector<int>> parse_counts(std::string_view text) {
  std::vector<int> counts;
  if (text == balanced) return counts;
  for (std::string_view rest = text;;) {
    const std::string_view item = rest.substr(0, rest.find(','));
    if (!read_number(item, counts.emplace_back()) || counts.back() < 1) return {};
    if (item.size() == rest.size()) return counts;
    rest.remove_prefix(item.size() + 1);
  }
}

RunOption stage_blocks_option() {
  return {.name = "layout.stage_blocks",
          .help = "blocks of each pipeline stage, or balanced as layout.balance says",
          .values = "balanced, or a whole number for each stage, as in 7,8,8,6",
          .read =
              [](RunConfig& run, std::string_view text) {
                auto counts = parse_counts(text);
                if (!counts) return false;
                run.pipeline.stage_blocks = std::move(*counts);
                return true;
              },
          .print =
              [](const RunConfig& run) {
                const std::vector<int>& counts = run.pipeline.stage_blocks;
                return counts.empty() ? std::string(balanced)
                                      : fmt::format("{}", fmt::join(counts, ","));
              }};
}

RunOption order_option() {
  return {.name = "layout.order",
          .help = "of ranks, from neighbours to the farthest",
          .values = "tp, ep, dp and pp, each once, as in tp-ep-dp-pp",
          .read =
              [](RunConfig& run, std::string_view text) {
                try {
                  run.layout.order = parse_rank_order(text);
                } catch (const Error&) {
                  return false;
                }
                return true;
              },
          .print = [](const RunConfig& run) { return to_string(run.layout.order); }};
}

}  // namespace

void add_layout(std::vector<RunOption>& options) {
  constexpr IntegerBounds size{.least = 1, .most = 1 << 20};
  options.push_back(integer_option(
      {"layout.tp", "tensor parallel size: ranks that share each dense layer"}, size,
      [](auto& r) -> auto& { return r.layout.tensor; }));
  options.push_back(choice_option(
      {"layout.sequence_parallel", "tensor ranks share rows between their products"},
      sequence_parallels, [](auto& r) -> auto& { return r.sequence_parallel; }));
  options.push_back(integer_option(
      {"layout.pp", "pipeline parallel size: ranks that share the layers"}, size,
      [](auto& r) -> auto& { return r.layout.pipeline; }));
  options.push_back(choice_option(
      {"layout.schedule", "in what order pipeline ranks work"}, schedule_names(),
      [](auto& r) -> auto& { return r.pipeline.schedule; }));
  options.push_back(integer_option(
      {"layout.pipeline_chunks", "stages that a pipeline rank has; 0: as the schedule has them"},
      {.least = 0, .most = 64}, [](auto& r) -> auto& { return r.pipeline.chunks; }));
  options.push_back(choice_option(
      {"layout.balance",
       "cost by which pipeline stages are balanced: FLOPs, or times taken as a stage begins and "
       "kept "
       "in the run folder"},
      pipeline_balances, [](auto& r) -> auto& { return r.pipeline.balance; }));
  options.push_back(stage_blocks_option());
  options.push_back(integer_option(
      {"layout.ep", "expert parallel size: ranks that share the experts of a layer"}, size,
      [](auto& r) -> auto& { return r.layout.expert; }));
  options.push_back(integer_option(
      {"layout.etp", "expert tensor parallel size: ranks that share each expert"}, size,
      [](auto& r) -> auto& { return r.layout.expert_tensor; }));
  options.push_back(order_option());
  options.push_back(integer_option(
      {"layout.tp_chunks",
       "parts in which tensor ranks exchange rows, to overlap with their products"},
      {.least = 1, .most = 64}, [](auto& r) -> auto& { return r.layout.tensor_chunks; }));
  options.push_back(integer_option(
      {"layout.moe_chunks", "parts in which rows go to the experts, to overlap with their work"},
      {.least = 1, .most = 64}, [](auto& r) -> auto& { return r.experts.chunks; }));
  options.push_back(choice_option(
      {"layout.moe_dispatch", "how rows go to experts on other nodes: large messages direct"},
      expert_dispatches, [](auto& r) -> auto& { return r.experts.dispatch; }));
  options.push_back(choice_option(
      {"layout.moe_messages",
       "to experts with a capacity: fixed in size, for which nobody waits; or counted rows, fewer "
       "where a micro-batch has fewer sequences than layout.tp times layout.moe_chunks"},
      expert_messages, [](auto& r) -> auto& { return r.experts.messages; }));
}

}  // namespace orchard
