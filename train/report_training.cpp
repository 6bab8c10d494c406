// What was learnt: figures and curves of each stage.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "train/chart.h"
#include "train/html.h"
#include "train/report_sections.h"

namespace orchard {
namespace {

std::string verdict(bool met, const std::string& claim) {
  return fmt::format("<p class=\"{}\">{} {}</p>\n", met ? "met" : "missed",
                     met ? "&#10003; as claimed:" : "&#10007; not as claimed:", claim);
}

std::string loss_figures(const StageRecord& stage, const ReportClaims& claims) {
  if (stage.validated.empty())
    return "<p class=\"soft\">Never validated, so nothing is known of held-out samples.</p>\n";
  const ValidationEvent &first = stage.validated.front(), &last = stage.validated.back();
  if (first.step == last.step) {
    return fmt::format(
        "<div class=\"figure\">{:.3f}</div><p class=\"soft\">held-out loss at step {}; a second "
        "validation is to follow</p>\n",
        last.report.loss, last.step);
  }
  const double ratio = last.report.loss / first.report.loss;
  std::string html = fmt::format(
      "<div class=\"figure\">{:.3f} &rarr; {:.3f}</div><p class=\"soft\">held-out loss, steps {} "
      "to {} of {}: {:.3f} of its start</p>\n",
      first.report.loss, last.report.loss, first.step, last.step, last.steps, ratio);
  return html + verdict(ratio <= claims.loss_ratio,
                        fmt::format("at most {:.2g} of its start", claims.loss_ratio));
}

std::string swap_figures(const StageRecord& stage, const ReportClaims& claims, bool last_stage) {
  if (stage.validated.empty() || stage.validated.back().report.swap.samples == 0)
    return "<p class=\"soft\">Pictures were not swapped at the end of this stage.</p>\n";
  const SwapReport& swap = stage.validated.back().report.swap;
  std::string html = fmt::format(
      "<p>Right pictures {:.3f}, swapped {:.3f}<br><span class=\"soft\">difference {:+.4f} "
      "&plusmn; "
      "{:.4f}, z = {:.1f} over {} samples</span></p>\n",
      swap.own, swap.swapped, swap.difference, swap.standard_error, swap.z(), swap.samples);
  if (last_stage) {
    html += verdict(swap.z() > claims.swap_z,
                    fmt::format("the model looks, z above {:.2g}", claims.swap_z));
  }
  return html;
}

// An average over about `span` steps, started without bias.
std::vector<ChartPoint> smoothed(std::vector<ChartPoint> points, double span) {
  double mean = 0, weight = 0;
  for (ChartPoint& p : points) {
    const double keep = 1 - 1 / std::max(span, 1.0);
    mean = keep * mean + (1 - keep) * p.y;
    weight = keep * weight + (1 - keep);
    p.y = mean / weight;
  }
  return points;
}

template <class Events, class Value>
std::vector<ChartPoint> points_of(const Events& events, const Value& value) {
  std::vector<ChartPoint> points;
  points.reserve(events.size());
  for (const auto& event : events)
    points.push_back({static_cast<double>(event.step), value(event)});
  return points;
}

std::string stage_charts(const StageRecord& stage) {
  const double x_end = static_cast<double>(std::max<std::int64_t>(stage.steps, 1));
  const auto loss =
      points_of(stage.trained, [](const StepEvent& e) { return e.report.losses.loss; });
  const auto held =
      points_of(stage.validated, [](const ValidationEvent& e) { return e.report.loss; });
  using Mark = ChartSeries::Mark;
  std::string html = line_chart(
      {.title = fmt::format("Stage {}: loss", stage.number),
       .x_label = "step",
       .y_label = "nats per target token",
       .x_end = x_end,
       .series = {
           {.name = "", .style = "train", .mark = Mark::faint_line, .points = loss},
           {.name = "training, smoothed", .style = "train", .points = smoothed(loss, x_end / 100)},
           {.name = "held out", .style = "held", .mark = Mark::line_and_dots, .points = held}}});
  const auto small = [&](const char* title, const char* label, auto value) {
    return line_chart(
        {.title = title,
         .x_label = "step",
         .y_label = label,
         .x_end = x_end,
         .width = 440,
         .height = 180,
         .series = {{.name = "", .style = "third", .points = points_of(stage.trained, value)}}});
  };
  return html + "<div class=\"pair\">\n" +
         small("Gradient norm", "before clipping",
               [](const StepEvent& e) { return e.report.gradient_norm; }) +
         small("Learning rate", "", [](const StepEvent& e) { return e.learning_rate; }) +
         "</div>\n";
}

std::string category_table(const StageRecord& stage) {
  if (stage.validated.empty()) return {};
  const ValidationEvent &first = stage.validated.front(), &last = stage.validated.back();
  HtmlTable table{.header = {"held-out category", "targets", fmt::format("step {}", first.step),
                             fmt::format("step {}", last.step), "ratio"}};
  for (const CategoryLoss& category : last.report.categories) {
    const auto& before = first.report.categories;
    const auto same = std::find_if(before.begin(), before.end(), [&](const CategoryLoss& c) {
      return c.category == category.category;
    });
    std::vector<std::string> row{category.category, std::to_string(category.targets), "",
                                 fmt::format("{:.4f}", category.loss)};
    if (same != before.end()) {
      row[2] = fmt::format("{:.4f}", same->loss);
      row.push_back(fmt::format("{:.3f}", category.loss / same->loss));
    }
    table.rows.push_back(std::move(row));
  }
  return html_table(table);
}

}  // namespace

std::string headline_section(std::span<const StageRecord> stages, const ReportClaims& claims) {
  std::string html = "<h2>What was learnt</h2>\n<div class=\"cards\">\n";
  for (const StageRecord& stage : stages) {
    html += fmt::format("<section class=\"card\"><h3>Stage {}</h3>\n{}<hr>\n{}</section>\n",
                        stage.number, loss_figures(stage, claims),
                        swap_figures(stage, claims, &stage == &stages.back()));
  }
  return html + "</div>\n";
}

std::string curves_section(std::span<const StageRecord> stages) {
  std::string html = "<h2>Curves</h2>\n";
  for (const StageRecord& stage : stages) html += stage_charts(stage) + category_table(stage);
  return html;
}

}  // namespace orchard
