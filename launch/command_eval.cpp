#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/asked_model.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/error_terminal.h"
#include "launch/job.h"
#include "launch/watch.h"
#include "train/evaluate.h"
#include "train/predictions.h"
#include "train/report.h"

namespace orchard {
namespace {

constexpr const char* usage =
    "usage: orchard eval --run-folder FOLDER [options]\n\n"
    "Measures a checkpoint on held-out samples: loss of each category, loss with pictures swapped\n"
    "between samples, and how many answers are exactly right. Under mpirun the ranks share the\n"
    "model as the layout says.";

const CategoryAccuracy* find(const EvaluationReport& report, const std::string& category) {
  for (const CategoryAccuracy& accuracy : report.accuracy) {
    if (accuracy.category == category) return &accuracy;
  }
  return nullptr;
}

// Line breaks would tear the listing apart.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void print_table(const EvaluationReport& report) {
  fmt::print("{:<18}{:>10}{:>10}{:>10}{:>8}{:>12}{:>10}\n", "category", "loss", "targets",
             "swapped", "z", "exact", "of");
  for (const CategoryLoss& category : report.validation.categories) {
    fmt::print("{:<18}{:>10.4f}{:>10}", category.category, category.loss, category.targets);
    if (category.swap.samples > 1) {
      fmt::print("{:>+10.4f}{:>8.1f}", category.swap.difference, category.swap.z());
    } else {
      fmt::print("{:>18}", "");
    }
    if (const CategoryAccuracy* accuracy = find(report, category.category)) {
      fmt::print("{:>12}{:>10}", accuracy->exact, accuracy->samples);
    }
    fmt::print("\n");
  }
  fmt::print("{:<18}{:>10.4f}{:>10}\n", "all", report.validation.loss, report.validation.targets);
  const SwapReport& swap = report.validation.swap;
  if (swap.samples == 0) return;
  fmt::print(
      "\n{} samples with their own pictures {:.4f}, with each other's {:.4f}: difference "
      "{:.4f}, {:.1f} standard errors\n",
      swap.samples, swap.own, swap.swapped, swap.difference, swap.z());
}

// The first few of each category, in the order of the table.
void print_answers(const EvaluationReport& report, std::int64_t each) {
  for (const CategoryAccuracy& category : report.accuracy) {
    fmt::print("\n{}\n", category.category);
    std::int64_t shown = 0;
    for (const AnsweredSample& sample : report.answers) {
      if (sample.category != category.category || shown++ >= each) continue;
      fmt::print("  {}\n    truth {}\n    model {}\n", sample.sample, one_line(sample.truth),
                 one_line(sample.answer));
    }
  }
}

void write_run_report(const EvaluationReport& report, const AskedModel& asked) {
  std::vector<Prediction> predictions;
  for (const AnsweredSample& sample : report.answers) {
    Prediction& prediction = predictions.emplace_back(Prediction{
        asked.stage.number, sample.category, sample.prompt, sample.truth, sample.answer, {}});
    for (const EncodedPicture& picture : sample.pictures) {
      prediction.pictures.push_back(picture.bytes);
    }
  }
  write_predictions(asked.run_folder, predictions);
  write_report(asked.run_folder, {.title = asked.run_folder.filename().string()});
}

std::string json_text(const EvaluationReport& report, const AskedModel& asked) {
  nlohmann::json categories = nlohmann::json::array();
  for (const CategoryLoss& category : report.validation.categories) {
    nlohmann::json entry{
        {"category", category.category}, {"loss", category.loss}, {"targets", category.targets}};
    if (const CategoryAccuracy* accuracy = find(report, category.category)) {
      entry["exact"] = accuracy->exact;
      entry["answered"] = accuracy->samples;
    }
    categories.push_back(std::move(entry));
  }
  const SwapReport& swap = report.validation.swap;
  return nlohmann::json{{"checkpoint", asked.checkpoint.string()},
                        {"stage", asked.stage.number},
                        {"loss", report.validation.loss},
                        {"targets", report.validation.targets},
                        {"categories", std::move(categories)},
                        {"swap",
                         {{"samples", swap.samples},
                          {"own", swap.own},
                          {"swapped", swap.swapped},
                          {"difference", swap.difference},
                          {"standard_error", swap.standard_error},
                          {"z", swap.z()}}}}
      .dump();
}

struct Request {
  EvaluateOptions options;
  std::int64_t shown = 2;
  bool json = false, report_wanted = false;
  AskedModel asked;
};

// Empty when only help was wanted.
std::optional<Request> parse(Arguments arguments, int ranks) {
  using program_options::value;
  Request request;
  auto& [options, shown, json, report_wanted, asked] = request;
  CommandLine line(usage);
  line.options().add_options()  //
      ("answers",
       value(&options.generated_per_category)->default_value(options.generated_per_category),
       "held-out samples of each category that are answered")  //
      ("longest-answer", value(&options.longest_answer)->default_value(options.longest_answer),
       "tokens; samples with a longer truth are not answered")                            //
      ("show", value(&shown)->default_value(shown), "answers of each category to print")  //
      ("report", program_options::bool_switch(&report_wanted),
       "write predictions.jsonl and report.html into the run folder")  //
      ("json", program_options::bool_switch(&json), "print one JSON object instead");
  add_model_arguments(line);
  if (line.parse(arguments, run_option_names()) == CommandLine::Outcome::helped) return {};
  asked = find_model(line, ranks);
  open_tokenizer(asked);  // refuses the wrong training set
  return request;
}

void tell(const Request& request, const EvaluationReport& report) {
  if (request.report_wanted) write_run_report(report, request.asked);
  if (request.json) {
    std::cout << json_text(report, request.asked) << "\n";
    return;
  }
  print_table(report);
  if (request.shown > 0) print_answers(report, request.shown);
  if (request.report_wanted)
    fmt::print("\n{}\n", (request.asked.run_folder / "report.html").string());
}

}  // namespace

int command_eval(Arguments arguments) {
  return run_job([&](Job& job) {
    std::optional<Request> request;
    job.together([&] { request = parse(arguments, job.ranks().size()); });
    if (!request) return 0;
    const AskedModel& asked = request->asked;
    const TrainingSet set = TrainingSet::open(asked.run.training_set);
    const StageData data(set, asked.run, asked.stage, asked.run.micro_batch);
    const std::unique_ptr<Device> device = open_device(asked.run, rank_on_node(job.ranks()));
    job.set_name(Mesh(job.ranks().size(), asked.run.layout).name(job.ranks().rank()));
    AskingWatch watch(job, asked.run, asked.run_folder);
    const DeviceRanks connected =
        connect_devices(job.ranks(), *device, find_links(asked.run, job, *device));
    const ParallelContext ranks = context_of(asked, connected.of(job.ranks()));
    const std::unique_ptr<InferenceModel> model = load_model(
        asked, *device, ranks, asked.stage.sequence_length + request->options.longest_answer);
    Terminal terminal = error_terminal();
    if (job.is_first()) {
      request->options.validating = patient_progress(terminal, "validating", "micro-batches");
      request->options.answering = patient_progress(terminal, "answering", "samples");
    }
    const EvaluationReport report = evaluate(*model, set, data, request->options);
    if (job.is_first()) tell(*request, report);
    watch.end();
    return 0;
  });
}

}  // namespace orchard
