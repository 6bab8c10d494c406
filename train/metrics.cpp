#include "train/metrics.h"

#include <algorithm>
#include <limits>

#include "data/atomic_file.h"
#include "data/json.h"

namespace orchard {
namespace {

using OrderedJson = nlohmann::ordered_json;

// One list of fields serves both directions: `visit(name, field)` writes or reads each.
template <class Event, class Visit>
void for_each_step_field(Event& event, const Visit& visit) {
  auto& losses = event.report.losses;
  auto& seconds = event.report.seconds;
  visit("stage", event.stage);
  visit("step", event.step);
  visit("steps", event.steps);
  visit("loss", losses.loss);
  visit("balance_loss", losses.balance_loss);
  visit("z_loss", losses.z_loss);
  visit("grad_norm", event.report.gradient_norm);
  visit("lr", event.learning_rate);
  visit("tokens", event.tokens);
  visit("targets", event.targets);
  visit("tiles", event.tiles);
  visit("expert_load", losses.expert_load);
  visit("expert_dropped", losses.expert_dropped);
  visit("dropped", losses.dropped);
  visit("step_seconds", event.step_seconds);
  visit("data_seconds", event.data_seconds);
  visit("forward_seconds", seconds.forward);
  visit("backward_seconds", seconds.backward);
  visit("pipeline_seconds", seconds.pipeline);
  visit("reduce_seconds", seconds.reduce);
  visit("optimizer_seconds", seconds.optimizer);
  visit("wait_seconds", seconds.wait);
  visit("bad_samples", event.bad_samples);
}

template <class Event, class Visit>
void for_each_validation_field(Event& event, const Visit& visit) {
  visit("stage", event.stage);
  visit("step", event.step);
  visit("steps", event.steps);
  visit("loss", event.report.loss);
  visit("targets", event.report.targets);
  visit("seconds", event.seconds);
}

template <class Category, class Visit>
void for_each_category_field(Category& category, const Visit& visit) {
  visit("category", category.category);
  visit("loss", category.loss);
  visit("targets", category.targets);
}

template <class Swap, class Visit>
void for_each_swap_field(Swap& swap, const Visit& visit) {
  visit("samples", swap.samples);
  visit("own", swap.own);
  visit("swapped", swap.swapped);
  visit("difference", swap.difference);
  visit("standard_error", swap.standard_error);
}

auto writer(OrderedJson& json) {
  return [&json](const char* name, const auto& field) { json[name] = field; };
}

// Fields that files of earlier versions do not have.
bool is_new(std::string_view name) {
  return name == "expert_dropped" || name == "pipeline_seconds" || name == "wait_seconds";
}

auto reader(const Json& json, const std::string& place) {
  return [&](const char* name, auto& field) {
    using Field = std::decay_t<decltype(field)>;
    if (is_new(name) && json.is_object() && !json.contains(name)) return;
    // JSON has no NaN; it is written as null.
    if (std::is_same_v<Field, double> && json.is_object() && json.contains(name) &&
        json[name].is_null()) {
      field = std::numeric_limits<Field>::quiet_NaN();
    } else {
      field = json_field<Field>(json, name, place);
    }
  };
}

StepEvent read_step(const Json& json, const std::string& place) {
  StepEvent event;
  for_each_step_field(event, reader(json, place));
  const LossReport& losses = event.report.losses;
  require(losses.dropped.size() == losses.expert_load.size(),
          "{}: expert_load has {} layers, dropped has {}", place, losses.expert_load.size(),
          losses.dropped.size());
  return event;
}

// "swap" is there when pictures were swapped.
void read_swap(SwapReport& swap, const Json& json, const std::string& place) {
  if (json.contains("swap")) for_each_swap_field(swap, reader(json["swap"], place));
}

void write_swap(OrderedJson& json, const SwapReport& swap) {
  if (swap.samples == 0) return;
  for_each_swap_field(swap, writer(json["swap"]));
  json["swap"]["z"] = swap.z();
}

ValidationEvent read_validation(const Json& json, const std::string& place) {
  ValidationEvent event;
  for_each_validation_field(event, reader(json, place));
  for (const Json& category : json_field<Json>(json, "categories", place)) {
    CategoryLoss& loss = event.report.categories.emplace_back();
    for_each_category_field(loss, reader(category, place));
    read_swap(loss.swap, category, place);
  }
  read_swap(event.report.swap, json, place);
  return event;
}

// Calls `visit(line, object, place)` for each line that ends; a line without its end was cut off by
// a crash or is being written.
template <class Visit>
void for_each_line(const std::filesystem::path& path, const Visit& visit) {
  const std::string text = read_text(path);
  std::int64_t number = 1;
  for (std::size_t at = 0, end; (end = text.find('\n', at)) != text.npos; at = end + 1, ++number) {
    const std::string_view line = std::string_view(text).substr(at, end + 1 - at);
    visit(line, parse_json(line, path, number), fmt::format("{}:{}", path.string(), number));
  }
}

void drop_lines_after(const std::filesystem::path& path, RunPosition last) {
  if (!std::filesystem::exists(path)) return;
  std::string kept;
  for_each_line(path, [&](std::string_view line, const Json& json, const std::string& place) {
    const RunPosition position{json_field<int>(json, "stage", place),
                               json_field<std::int64_t>(json, "step", place)};
    if (position <= last) kept += line;
  });
  write_file(path, kept);
}

std::filesystem::path prepared(const std::filesystem::path& run_folder, RunPosition resumed_after) {
  std::filesystem::create_directories(run_folder);
  std::filesystem::path path = metrics_path(run_folder);
  if (resumed_after == RunPosition{}) {
    std::filesystem::remove(path);
  } else {
    drop_lines_after(path, resumed_after);
  }
  return path;
}

}  // namespace

std::filesystem::path metrics_path(const std::filesystem::path& run_folder) {
  return run_folder / "metrics.jsonl";
}

MetricsFile::MetricsFile(const std::filesystem::path& run_folder, RunPosition resumed_after)
    : file_(prepared(run_folder, resumed_after)) {}

void MetricsFile::on_step(const StepEvent& event) {
  OrderedJson json{{"kind", "step"}};
  for_each_step_field(event, [&, write = writer(json)](const char* name, const auto& field) {
    if (std::string_view(name) == "step_seconds")
      json["tokens_per_s"] = static_cast<double>(event.tokens) / std::max(event.step_seconds, 1e-9);
    write(name, field);
  });
  file_.append(json.dump() + "\n");
}

void MetricsFile::on_validation(const ValidationEvent& event) {
  OrderedJson json{{"kind", "validation"}};
  for_each_validation_field(event, writer(json));
  json["categories"] = OrderedJson::array();
  for (const CategoryLoss& category : event.report.categories) {
    OrderedJson& entry = json["categories"].emplace_back();
    for_each_category_field(category, writer(entry));
    write_swap(entry, category.swap);
  }
  write_swap(json, event.report.swap);
  file_.append(json.dump() + "\n");
}

RunMetrics read_metrics(const std::filesystem::path& run_folder) {
  RunMetrics metrics;
  const std::filesystem::path path = metrics_path(run_folder);
  if (!std::filesystem::exists(path)) return metrics;
  for_each_line(path, [&](std::string_view, const Json& json, const std::string& place) {
    const auto kind = json_field<std::string>(json, "kind", place);
    if (kind == "step") metrics.steps.push_back(read_step(json, place));
    if (kind == "validation") metrics.validations.push_back(read_validation(json, place));
  });
  return metrics;
}

}  // namespace orchard
