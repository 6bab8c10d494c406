#include "train/timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>

#include "train/chart.h"
#include "train/html.h"

namespace orchard {
namespace {

constexpr double page_width = 1120, left = 74, right = 206, top = 84, bottom = 46;  // pixels
constexpr double between = 12;                                                      // panels
constexpr double digit = 6.4;  // of the numbers in the cells, pixels

// Classes are prefixed: within a page, styles of one SVG reach all others.
constexpr const char* style = R"svg(<style>
.tl { --card: #ffffff; --ink: #1c1e21; --soft: #63686e; --line: #e1e1dd; --idle: #f4f4f1;
  --hatch: #c9c9c3; --forward: #2f6fb4; --input: #2a8f78; --weight: #d58a1c; }
@media (prefers-color-scheme: dark) {
  .tl { --card: #1c1f22; --ink: #e4e6e8; --soft: #989fa6; --line: #30353a; --idle: #24282c;
    --hatch: #4a5158; --forward: #4f8fd6; --input: #35a68c; --weight: #d9952f; }
}
.tl text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  fill: var(--soft); }
.tl .tl-title { font-size: 15px; font-weight: 600; fill: var(--ink); }
.tl .tl-rank { font-size: 12px; fill: var(--ink); }
.tl .tl-number { font-size: 12px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.tl .tl-dark { fill: #ffffff; }
.tl .tl-light { fill: var(--ink); }
.tl-card { fill: var(--card); stroke: var(--line); }
.tl-under { fill: var(--card); }
.tl-idle { fill: var(--idle); }
.tl-grid { stroke: var(--line); fill: none; }
.tl-hatch { stroke: var(--hatch); stroke-width: 1.2; }
.tl-bubble { fill: url(#tl-bubble); }
.tl-track { fill: var(--idle); }
.tl-bar { fill: var(--soft); }
.tl-forward { fill: var(--forward); } .tl-input { fill: var(--input); }
.tl-weight { fill: var(--weight); }
</style>
<defs><pattern id="tl-bubble" width="6" height="6" patternUnits="userSpaceOnUse"
  patternTransform="rotate(45)"><path class="tl-hatch" d="M0 0V6"/></pattern></defs>
)svg";

const char* style_of(PipelineOp op) {
  switch (op) {
    case PipelineOp::forward:
      return "tl-forward";
    case PipelineOp::backward_weight:
      return "tl-weight";
    case PipelineOp::backward_input:
    case PipelineOp::backward:
      break;
  }
  return "tl-input";
}

const char* label_of(PipelineOp op) {
  switch (op) {
    case PipelineOp::forward:
      return "forward";
    case PipelineOp::backward_input:
      return "backward, input half";
    case PipelineOp::backward_weight:
      return "backward, weight half";
    case PipelineOp::backward:
      return "backward";
  }
  return "";
}

// Later chunks are paler.
double opacity_of(int chunk) {
  constexpr double values[] = {1, 0.54, 0.4, 0.3};
  return values[std::min<std::size_t>(static_cast<std::size_t>(chunk), std::size(values) - 1)];
}

std::string number(double value) {
  return fmt::format("{:.4g}", std::abs(value) < 1e-9 ? 0.0 : value);
}

// What fills the width of rows and of bars: the most among all panels.
struct Extent {
  double time = 0, saved = 0;
};

class PanelDrawing {
 public:
  PanelDrawing(const TimelinePanel& panel, const Extent& extent)
      : panel_(panel),
        schedule_(*panel.schedule),
        timeline_(*panel.timeline),
        row_(schedule_.ranks > 8 ? 24 : 34),
        gap_(schedule_.ranks > 8 ? 4 : 7),
        extent_(extent),
        scale_((page_width - left - right) / extent.time) {}

  double height() const { return top + plot_height() + bottom; }

  std::string draw() {
    add("<rect class=\"tl-card\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
        page_width - 1, height() - 1);
    add("<text class=\"tl-title\" x=\"18\" y=\"27\">{}</text>\n", html_escape(panel_.title));
    add("<text x=\"{}\" y=\"27\" text-anchor=\"end\">{}</text>\n", page_width - 18,
        html_escape(panel_.note));
    draw_legend();
    draw_axis();
    for (int rank = 0; rank < schedule_.ranks; ++rank) draw_idle(rank);
    draw_cells();
    draw_figures();
    return std::move(svg_);
  }

 private:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(svg_), format, std::forward<Args>(args)...);
  }

  double plot_height() const { return schedule_.ranks * (row_ + gap_) - gap_; }
  double x(double time) const { return left + time * scale_; }
  double y(int rank) const { return top + rank * (row_ + gap_); }
  double middle(int rank) const { return y(rank) + row_ / 2 + 4; }

  void draw_key(double& at, const std::string& swatch, const std::string& text) {
    add("<g transform=\"translate({:.1f} 40)\">{}<text x=\"19\" y=\"11\">{}</text></g>\n", at,
        swatch, text);
    at += 19 + 6.1 * static_cast<double>(text.size()) + 18;
  }

  void draw_legend() {
    const auto swatch = [](const std::string& attributes) {
      return fmt::format("<rect {} width=\"13\" height=\"13\" rx=\"2\"/>", attributes);
    };
    double at = 18;
    std::map<PipelineOp, int> kinds;
    for (const TimedAction& a : timeline_.ranks[0].actions) ++kinds[a.action.op];
    for (const auto& [op, count] : kinds)
      draw_key(at, swatch(fmt::format("class=\"{}\"", style_of(op))), label_of(op));
    if (schedule_.chunks > 1) {
      draw_key(at, swatch("class=\"tl-forward\" fill-opacity=\".5\""), "paler: later chunk");
    }
    draw_key(at, swatch("class=\"tl-idle\"") + swatch("class=\"tl-bubble\""), "bubble");
    draw_key(at, swatch("class=\"tl-idle\""), "before first, after last action");
  }

  void draw_axis() {
    const double base = top + plot_height();
    for (const double tick : nice_ticks(0, extent_.time, 10)) {
      if (tick > timeline_.makespan()) break;
      add("<path class=\"tl-grid\" d=\"M{:.1f} {}V{}\"/><text x=\"{:.1f}\" y=\"{}\" "
          "text-anchor=\"middle\">{}</text>\n",
          x(tick), top - 6, base + 6, x(tick), base + 20, number(tick));
    }
    add("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">time</text>\n",
        (left + page_width - right) / 2, base + 35);
  }

  // The whole row, and hatched what idles between two actions.
  void draw_idle(int rank) {
    const RankTimeline& r = timeline_.ranks[static_cast<std::size_t>(rank)];
    std::string gaps;
    for (std::size_t i = 1; i < r.actions.size(); ++i) {
      const double from = r.actions[i - 1].end, width = (r.actions[i].start - from) * scale_;
      if (width > 1e-6)
        fmt::format_to(std::back_inserter(gaps), "M{:.2f} {}h{:.2f}v{}h-{:.2f}z", x(from), y(rank),
                       width, row_, width);
    }
    add("<rect class=\"tl-idle\" x=\"{}\" y=\"{}\" width=\"{:.2f}\" height=\"{}\" rx=\"3\"/>"
        "<path class=\"tl-bubble\" d=\"{}\"/>"
        "<text class=\"tl-rank\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">rank {}</text>\n",
        left, y(rank), timeline_.makespan() * scale_, row_, gaps, left - 12, middle(rank), rank);
  }

  // All cells of one colour are one path, which keeps thousands of them small.
  void draw_cells() {
    std::map<std::pair<PipelineOp, int>, std::pair<std::string, std::string>> layers;
    for (int rank = 0; rank < schedule_.ranks; ++rank) {
      for (const TimedAction& a : timeline_.ranks[static_cast<std::size_t>(rank)].actions) {
        const double from = x(a.start), width = x(a.end) - from, line = std::min(1.0, width * 0.12);
        auto& [cells, texts] = layers[{a.action.op, a.action.chunk}];
        fmt::format_to(std::back_inserter(cells), "M{:.2f} {}h{:.2f}v{}h{:.2f}z", from, y(rank),
                       width - line, row_, line - width);
        const std::string text = std::to_string(a.action.micro_batch);
        if (width < digit * static_cast<double>(text.size()) + 3) continue;
        fmt::format_to(std::back_inserter(texts),
                       "<text class=\"{}\" x=\"{:.2f}\" y=\"{:.1f}\">{}</text>",
                       a.action.chunk == 0 ? "tl-dark" : "tl-light", from + (width - line) / 2,
                       middle(rank), text);
      }
    }
    for (const auto& [layer, drawn] : layers) {
      // What lies below a pale cell must not shine through.
      if (layer.second > 0) add("<path class=\"tl-under\" d=\"{}\"/>", drawn.first);
      add("<path class=\"{}\" fill-opacity=\"{}\" d=\"{}\"/><g text-anchor=\"middle\">{}</g>\n",
          style_of(layer.first), opacity_of(layer.second), drawn.first, drawn.second);
    }
  }

  // Numbers to the right of the rows.
  void draw_figures() {
    const double bubble = page_width - right + 62, saved = page_width - 76, bar = 50;
    add("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">bubble</text><text x=\"{}\" y=\"{}\" "
        "text-anchor=\"end\">peak saved</text>\n",
        bubble, top - 10, saved + bar + 8, top - 10);
    for (int rank = 0; rank < schedule_.ranks; ++rank) {
      const RankTimeline& r = timeline_.ranks[static_cast<std::size_t>(rank)];
      add("<text class=\"tl-number\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>"
          "<text class=\"tl-number\" x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
          bubble, middle(rank), number(r.bubble()), saved, middle(rank), number(r.peak_saved));
      add("<rect class=\"tl-track\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"6\" rx=\"2\"/>"
          "<rect class=\"tl-bar\" x=\"{}\" y=\"{}\" width=\"{:.1f}\" height=\"6\" rx=\"2\"/>\n",
          saved + 8, middle(rank) - 7, bar, saved + 8, middle(rank) - 7,
          extent_.saved > 0 ? bar * r.peak_saved / extent_.saved : 0);
    }
  }

  const TimelinePanel& panel_;
  const PipelineSchedule& schedule_;
  const PipelineTimeline& timeline_;
  double row_, gap_;
  Extent extent_;
  double scale_;
  std::string svg_;
};

}  // namespace

std::string timeline_svg(std::span<const TimelinePanel> panels) {
  Extent extent;
  for (const TimelinePanel& panel : panels) {
    extent.time = std::max(extent.time, panel.timeline->makespan());
    for (const RankTimeline& rank : panel.timeline->ranks)
      extent.saved = std::max(extent.saved, rank.peak_saved);
  }
  std::string body;
  double height = 0;
  for (const TimelinePanel& panel : panels) {
    PanelDrawing drawing(panel, extent);
    if (height > 0) height += between;
    body += fmt::format("<g transform=\"translate(0 {})\">\n{}</g>\n", height, drawing.draw());
    height += drawing.height();
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"tl\" viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"Timeline of a pipeline's step\">\n{}{}</svg>\n",
      page_width, height, style, body);
}

}  // namespace orchard
