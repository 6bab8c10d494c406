#include "train/link_times.h"

#include <algorithm>
#include <cmath>

#include "data/atomic_file.h"
#include "data/json.h"

namespace orchard {
namespace {

double time_of(const Json& json, const char* name, const std::string& place) {
  const auto seconds = json_field<double>(json, name, place);
  require(std::isfinite(seconds) && seconds >= 0, "{}: {} = {} is no time", place, name, seconds);
  return seconds;
}

LinkTimes parse(const std::filesystem::path& path) {
  const std::string place = path.string();
  const Json json = parse_json(read_text(path), path);
  LinkTimes times{.setting = json_field<std::string>(json, "setting", place),
                  .device = json_field<std::string>(json, "device", place),
                  .seconds = {}};
  const auto seconds = json_field<Json>(json, "seconds", place);
  require(seconds.is_object() && !seconds.empty(), "{}: \"seconds\" has no links", place);
  for (const auto& [name, cost] : seconds.items()) {
    const auto* const kind =
        std::ranges::find(link_kind_list, name, [](LinkKind k) { return std::string(name_of(k)); });
    require(kind != std::end(link_kind_list), "{}: a model has no link \"{}\"", place, name);
    const std::string link = fmt::format("{}: {}", place, name);
    times.seconds[*kind] = {.forward = time_of(cost, "forward", link),
                            .backward = time_of(cost, "backward", link)};
  }
  return times;
}

}  // namespace

std::filesystem::path link_times_path(const std::filesystem::path& run_folder, int stage) {
  return run_folder / fmt::format("link-times-stage{}.json", stage);
}

void write_link_times(const std::filesystem::path& path, const LinkTimes& times) {
  Json json{{"setting", times.setting}, {"device", times.device}};
  for (const auto& [kind, cost] : times.seconds)
    json["seconds"][std::string(name_of(kind))] = {{"forward", cost.forward},
                                                   {"backward", cost.backward}};
  write_file(path, json.dump(2) + "\n");
}

LinkTimes read_link_times(const std::filesystem::path& path) {
  try {
    return parse(path);
  } catch (const Error& error) {
    fail(
        "{}; restore the file, or remove it: then the links are timed again, and the pipeline may "
        "be cut otherwise",
        error.what());
  }
}

}  // namespace orchard
