#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>

#include "launch/asked_model.h"
#include "launch/command.h"
#include "launch/configuration_error.h"
#include "launch/device.h"
#include "launch/error_terminal.h"
#include "launch/job.h"
#include "launch/watch.h"
#include "train/progress.h"
#include "train/score.h"

namespace orchard {
namespace {

using Json = nlohmann::json;

constexpr const char* usage =
    "usage: orchard score --run-folder FOLDER [options] < requests.jsonl > scores.jsonl\n\n"
    "Reads JSON lines {\"tokens\": [...], \"images\": [\"a.png\", ...]}. The tokens are expanded: "
    "the\n"
    "image token (4) stands once for each visual token, tile by tile. Writes for each a line\n"
    "{\"logprobs\": [...]}: entry i is ln p(token i | all before it), null for the first token "
    "and\n"
    "for visual tokens. Under mpirun the ranks share the model as the layout says, and replicas\n"
    "the requests.";

// JSON's own conversion would cut 2.5 to 2 and 2^32 + 1 to 1.
std::int32_t token_of(const Json& json) {
  require(json.is_number_integer(), "token {} is no whole number", json.dump());
  const auto value = json.get<std::int64_t>();
  require(value >= 0 && value <= std::numeric_limits<std::int32_t>::max(),
          "token {} lies outside every vocabulary", json.dump());
  return static_cast<std::int32_t>(value);
}

ScoreRequest parse_request(const std::string& text) {
  ScoreRequest request;
  try {
    const Json json = Json::parse(text);
    require(json.is_object(), "not a request {{\"tokens\": [...], \"images\": [...]}}");
    for (const auto& [name, value] : json.items()) {
      require(name == "tokens" || name == "images",
              "{} is unknown: a request has tokens and images", name);
    }
    const Json& tokens = json.at("tokens");
    require(tokens.is_array(), "tokens is no array");
    for (const Json& token : tokens) request.tokens.push_back(token_of(token));
    for (const Json& image : json.value("images", Json::array())) {
      request.pictures.emplace_back(image.get<std::string>());
    }
  } catch (const Json::exception& error) {
    fail("not a request {{\"tokens\": [...], \"images\": [...]}}: {}", error.what());
  }
  return request;
}

std::string answer_text(const std::vector<std::optional<double>>& logprobs) {
  Json values = Json::array();
  for (const std::optional<double>& value : logprobs) {
    values.push_back(value ? Json(*value) : Json());
  }
  return Json{{"logprobs", std::move(values)}}.dump();
}

// One document at a time, so the longest it may be is that of the file.
std::vector<ScoreRequest> parse_requests(const std::string& lines) {
  std::vector<ScoreRequest> requests;
  std::istringstream in(lines);
  std::string text;
  while (std::getline(in, text)) {
    try {
      requests.push_back(parse_request(text));
    } catch (const Error& error) {
      fail("line {} of the requests: {}", requests.size() + 1, error.what());
    }
  }
  return requests;
}

std::string read_all(const std::string& path) {
  std::ostringstream text;
  if (path.empty()) {
    text << std::cin.rdbuf();
  } else {
    std::ifstream file(path);
    require_configuration(file.is_open(), "--input {}: cannot be opened", path);
    text << file.rdbuf();
  }
  return text.str();
}

struct Request {
  std::string input;
  AskedModel asked;
};

// Empty when only help was wanted.
std::optional<Request> parse(Arguments arguments, int ranks) {
  CommandLine line(usage);
  line.options().add_options()("input", program_options::value<std::string>(),
                               "file of requests; else standard input");
  add_model_arguments(line);
  if (line.parse(arguments, run_option_names()) == CommandLine::Outcome::helped) return {};
  return Request{line.text("input"), find_model(line, ranks)};
}

using Logprobs = std::vector<std::optional<double>>;

// What each rank of the group has for its own request of a round, on all of them.
std::vector<Logprobs> exchange(Communicator& replicas, std::span<const ScoreRequest> round,
                               const Logprobs& own) {
  std::size_t tokens = 0;
  for (const ScoreRequest& request : round) tokens += request.tokens.size();
  std::vector<double> values(2 * tokens);  // of each token whether it has a value, and which
  const auto walk = [&](auto&& visit) {
    std::size_t at = 0;
    for (std::size_t r = 0; r < round.size(); ++r) {
      for (std::size_t i = 0; i < round[r].tokens.size(); ++i, at += 2)
        visit(r, i, values[at], values[at + 1]);
    }
  };
  walk([&](std::size_t r, std::size_t i, double& present, double& value) {
    if (r != static_cast<std::size_t>(replicas.rank()) || !own[i]) return;
    present = 1;
    value = *own[i];
  });
  replicas.sum_on_host(values);
  std::vector<Logprobs> all(round.size());
  walk([&](std::size_t r, std::size_t, double present, double value) {
    all[r].push_back(present > 0 ? std::optional(value) : std::nullopt);
  });
  return all;
}

// Requests are dealt out to the replicas in rounds. Where replicas hold experts for each other, one
// that has none left goes along with the first of the round.
void answer(InferenceModel& model, const TilingOptions& tiling,
            std::span<const ScoreRequest> requests, bool prints, const ProgressHook& progress) {
  const std::unique_ptr<Device> host = make_cpu_device();  // renders pictures
  Communicator& replicas = model.ranks()[MeshGroup::data];
  const auto size = static_cast<std::size_t>(replicas.size());
  const auto rank = static_cast<std::size_t>(replicas.rank());
  for (std::size_t first = 0; first < requests.size(); first += size) {
    if (progress) progress(static_cast<std::int64_t>(first), std::ssize(requests));
    const auto round = requests.subspan(first, std::min(size, requests.size() - first));
    const std::size_t own = rank < round.size() ? rank : 0;
    Logprobs logprobs;
    try {
      if (rank < round.size() || model.runner().evaluates_together())
        logprobs = score(model, *host, tiling, round[own]);
    } catch (const Error& error) {
      fail("line {} of the requests: {}", first + own + 1, error.what());
    }
    for (const Logprobs& answer : exchange(replicas, round, logprobs))
      if (prints) std::cout << answer_text(answer) << "\n";
  }
  if (progress) progress(std::ssize(requests), std::ssize(requests));
}

}  // namespace

int command_score(Arguments arguments) {
  return run_job([&](Job& job) {
    std::optional<Request> request;
    std::string text;
    job.together([&] {
      request = parse(arguments, job.ranks().size());
      if (request && job.is_first()) text = read_all(request->input);
    });
    if (!request) return 0;
    text = job.from_first(std::move(text));
    std::vector<ScoreRequest> requests;
    job.together([&] { requests = parse_requests(text); });
    std::size_t longest = 1;
    for (const ScoreRequest& one : requests) longest = std::max(longest, one.tokens.size());
    const AskedModel& asked = request->asked;
    const std::unique_ptr<Device> device = open_device(asked.run, rank_on_node(job.ranks()));
    job.set_name(Mesh(job.ranks().size(), asked.run.layout).name(job.ranks().rank()));
    AskingWatch watch(job, asked.run, asked.run_folder);
    const DeviceRanks connected =
        connect_devices(job.ranks(), *device, find_links(asked.run, job, *device));
    const ParallelContext ranks = context_of(asked, connected.of(job.ranks()));
    const std::unique_ptr<InferenceModel> model =
        load_model(asked, *device, ranks, static_cast<std::int64_t>(longest));
    TilingOptions tiling = asked.stage.tiling;
    tiling.side = model->config().vision.side;
    // Where answers scroll by on a terminal they are progress enough.
    Terminal terminal = error_terminal();
    const bool shows = job.is_first() && Terminal::kind_of(STDOUT_FILENO) == Terminal::Kind::plain;
    answer(*model, tiling, requests, job.is_first(),
           shows ? patient_progress(terminal, "scoring", "requests") : ProgressHook());
    watch.end();
    return 0;
  });
}

}  // namespace orchard
