#include "train/predictions.h"

#include "data/atomic_file.h"
#include "data/json.h"
#include "train/base64.h"

namespace orchard {
namespace {

std::filesystem::path path_in(const std::filesystem::path& run_folder) {
  return run_folder / "predictions.jsonl";
}

// One list of fields serves both directions.
template <class Record, class Visit>
void for_each_field(Record& record, const Visit& visit) {
  visit("stage", record.stage);
  visit("category", record.category);
  visit("prompt", record.prompt);
  visit("truth", record.truth);
  visit("prediction", record.prediction);
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\r\n";
  const auto first = text.find_first_not_of(blanks);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) + 1 - first);
}

}  // namespace

bool Prediction::is_right() const {
  return trimmed(prediction) == trimmed(truth);
}

void write_predictions(const std::filesystem::path& run_folder,
                       std::span<const Prediction> predictions) {
  std::string text;
  for (const Prediction& prediction : predictions) {
    nlohmann::ordered_json json;
    for_each_field(prediction, [&](const char* name, const auto& field) { json[name] = field; });
    json["pictures"] = nlohmann::ordered_json::array();
    for (const auto& picture : prediction.pictures)
      json["pictures"].push_back(base64_encode(picture));
    // An early model's tokens need not form whole characters.
    text += json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  }
  write_file(path_in(run_folder), text);
}

std::vector<Prediction> read_predictions(const std::filesystem::path& run_folder) {
  std::vector<Prediction> predictions;
  if (!std::filesystem::exists(path_in(run_folder))) return predictions;
  for_each_record(path_in(run_folder), [&](const Json& json, const std::string& place) {
    Prediction& prediction = predictions.emplace_back();
    for_each_field(prediction, [&](const char* name, auto& field) {
      field = json_field<std::decay_t<decltype(field)>>(json, name, place);
    });
    const auto pictures = json_field<std::vector<std::string>>(json, "pictures", place);
    try {
      for (const std::string& picture : pictures)
        prediction.pictures.push_back(base64_decode(picture));
    } catch (const Error& error) {
      fail("{}: pictures: {}", place, error.what());
    }
  });
  return predictions;
}

}  // namespace orchard
