// What the model says: held-out pictures with prompt, truth and prediction.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "train/base64.h"
#include "train/html.h"
#include "train/report_sections.h"

namespace orchard {
namespace {

std::string card(const Prediction& prediction) {
  std::string html = "<article class=\"sample\">";
  if (!prediction.pictures.empty()) {
    html += "<div class=\"pictures\">";
    for (const auto& picture : prediction.pictures) {
      html +=
          fmt::format("<img alt=\"\" src=\"data:image/png;base64,{}\">", base64_encode(picture));
    }
    html += "</div>";
  }
  html += "<dl>";
  const bool right = prediction.is_right();
  const auto entry = [&](std::string_view label, const std::string& text,
                         std::string_view style = {}) {
    fmt::format_to(std::back_inserter(html),
                   "<dt class=\"label\">{}</dt><dd><span class=\"{}\">{}</span></dd>", label, style,
                   html_escape(text));
  };
  if (!prediction.prompt.empty()) entry("prompt", prediction.prompt);
  entry("truth", prediction.truth);
  entry(right ? "prediction &#10003;" : "prediction &#10007;",
        prediction.prediction.empty() ? "(nothing)" : prediction.prediction,
        right ? "answer right" : "answer wrong");
  return html + "</dl></article>\n";
}

}  // namespace

std::string gallery_section(std::span<const Prediction> predictions,
                            std::size_t samples_per_category) {
  std::string html = "<h2>Predictions on held-out samples</h2>\n";
  if (predictions.empty())
    return html + "<p class=\"soft\">The run folder holds no predictions.jsonl.</p>\n";
  std::map<std::pair<int, std::string>, std::vector<const Prediction*>> groups;
  for (const Prediction& prediction : predictions)
    groups[{prediction.stage, prediction.category}].push_back(&prediction);
  for (const auto& [key, group] : groups) {
    const auto right = std::count_if(group.begin(), group.end(),
                                     [](const Prediction* p) { return p->is_right(); });
    const std::size_t shown = std::min(group.size(), samples_per_category);
    fmt::format_to(std::back_inserter(html),
                   "<h3>{}, after stage {} <span class=\"soft\">&mdash; {} of {} exactly "
                   "right{}</span></h3>\n<div class=\"gallery\">\n",
                   html_escape(key.second), key.first, right, group.size(),
                   shown < group.size() ? fmt::format(", the first {} shown", shown) : "");
    for (std::size_t i = 0; i < shown; ++i) html += card(*group[i]);
    html += "</div>\n";
  }
  return html;
}

}  // namespace orchard
