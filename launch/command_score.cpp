#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>

#include "launch/asked_model.h"
#include "launch/command.h"
#include "launch/configuration_error.h"
#include "launch/device.h"
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
    "for visual tokens.";

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
std::vector<ScoreRequest> read_requests(std::istream& in) {
  std::vector<ScoreRequest> requests;
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

std::vector<ScoreRequest> read_requests(const std::string& path) {
  if (path.empty()) return read_requests(std::cin);
  std::ifstream file(path);
  require_configuration(file.is_open(), "--input {}: cannot be opened", path);
  return read_requests(file);
}

}  // namespace

int command_score(Arguments arguments) {
  CommandLine line(usage);
  line.options().add_options()("input", program_options::value<std::string>(),
                               "file of requests; else standard input");
  add_model_arguments(line);
  if (line.parse(arguments, run_option_names()) == CommandLine::Outcome::helped) return 0;

  const AskedModel asked = find_model(line);
  const std::vector<ScoreRequest> requests = read_requests(line.text("input"));
  std::size_t longest = 1;
  for (const ScoreRequest& request : requests) longest = std::max(longest, request.tokens.size());
  const std::unique_ptr<Device> host = make_cpu_device();  // renders pictures
  const std::unique_ptr<Device> device = open_device(asked.run);
  const std::unique_ptr<InferenceModel> model =
      load_model(asked, *device, static_cast<std::int64_t>(longest));
  TilingOptions tiling = asked.stage.tiling;
  tiling.side = model->config().vision.side;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    try {
      std::cout << answer_text(score(*model, *host, tiling, requests[i])) << "\n";
    } catch (const Error& error) {
      fail("line {} of the requests: {}", i + 1, error.what());
    }
  }
  return 0;
}

}  // namespace orchard
