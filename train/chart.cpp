#include "train/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "train/html.h"

namespace orchard {
namespace {

constexpr std::size_t points_drawn = 400;  // finer than the eye sees at this width
constexpr double left = 52, right = 18, top = 8, bottom = 36;

// A linear map of an interval onto pixels.
struct Scale {
  double low, high, from, to;
  double operator()(double value) const {
    return from + (value - low) / (high - low) * (to - from);
  }
};

struct Frame {
  Scale x, y;
};

// As short as tells ticks apart: 0.0002, 250, 1.5.
std::string tick_text(double value) {
  return fmt::format("{:.4g}", value == 0 ? 0.0 : value);  // no "-0"
}

// `legend` is HTML.
std::string open_figure(const std::string& title, const std::string& legend) {
  return fmt::format("<figure><figcaption><b>{}</b>{}</figcaption>\n", html_escape(title), legend);
}

std::string legend_of(const std::vector<ChartSeries>& series) {
  std::string html;
  for (const ChartSeries& s : series) {
    if (!s.name.empty())
      html += fmt::format("<span class=\"key {}\">{}</span>", s.style, html_escape(s.name));
  }
  return html;
}

std::string open_svg(double width, double height, const std::string& title) {
  return fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", width, height,
                     html_escape(title));
}

void append_x_axis(std::string& svg, const Scale& x, double baseline, const std::string& label) {
  const auto out = std::back_inserter(svg);
  const int count = std::max(2, static_cast<int>((x.to - x.from) / 90));
  for (const double tick : nice_ticks(x.low, x.high, count)) {
    fmt::format_to(out, "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                   x(tick), baseline + 15, tick_text(tick));
  }
  fmt::format_to(out, "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>\n",
                 (x.from + x.to) / 2, baseline + 30, html_escape(label));
}

void append_y_label(std::string& svg, double middle, const std::string& label) {
  fmt::format_to(std::back_inserter(svg),
                 "<text transform=\"translate(11 {:.1f}) rotate(-90)\" "
                 "text-anchor=\"middle\">{}</text>\n",
                 middle, html_escape(label));
}

void append_y_axis(std::string& svg, const Frame& frame, const std::string& label) {
  const Scale& y = frame.y;
  const auto out = std::back_inserter(svg);
  const int count = std::max(2, static_cast<int>((y.from - y.to) / 35));
  for (const double tick : nice_ticks(y.low, y.high, count)) {
    fmt::format_to(out,
                   "<path class=\"grid\" d=\"M{:.1f} {:.1f}H{:.1f}\"/><text x=\"{:.1f}\" "
                   "y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n",
                   frame.x.from, y(tick), frame.x.to, frame.x.from - 7, y(tick) + 4,
                   tick_text(tick));
  }
  append_y_label(svg, (y.from + y.to) / 2, label);
}

void append_series(std::string& svg, const Frame& frame, const ChartSeries& series,
                   const std::vector<ChartPoint>& points) {
  const auto out = std::back_inserter(svg);
  const bool faint = series.mark == ChartSeries::Mark::faint_line;
  fmt::format_to(out, "<g class=\"{}\"><path class=\"{}\" d=\"", series.style,
                 faint ? "faint" : "line");
  for (std::size_t i = 0; i < points.size(); ++i) {
    fmt::format_to(out, "{}{:.1f} {:.1f}", i ? 'L' : 'M', frame.x(points[i].x),
                   frame.y(points[i].y));
  }
  svg += "\"/>";
  if (series.mark == ChartSeries::Mark::line_and_dots) {
    for (const ChartPoint& p : points) {
      fmt::format_to(out,
                     "<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"><title>{}: "
                     "{:.4g}</title></circle>",
                     frame.x(p.x), frame.y(p.y), tick_text(p.x), p.y);
    }
  }
  svg += "</g>\n";
}

std::vector<ChartPoint> finite(std::vector<ChartPoint> points) {
  std::erase_if(points, [](const ChartPoint& p) { return !std::isfinite(p.y); });
  return points;
}

// Distance from even in fifths of the way to 0 or to 2. What a short column lacks is drawn as even.
int level_of(const std::vector<double>& column, std::size_t row) {
  if (row >= column.size()) return 0;
  return static_cast<int>(std::lround(std::clamp(column[row] - 1, -1.0, 1.0) * 5));
}

}  // namespace

std::string line_chart(const LineChart& chart) {
  std::vector<std::vector<ChartPoint>> drawn;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : drawn.emplace_back(thinned(finite(series.points), points_drawn))) {
      low = std::min(low, p.y);
      high = std::max(high, p.y);
    }
  }
  std::string html = open_figure(chart.title, legend_of(chart.series));
  if (low > high) return html + "<p class=\"soft\">No values.</p></figure>\n";
  const double margin = high > low ? 0.05 * (high - low) : std::max(std::abs(high), 1.0) * 0.05;
  const Frame frame{{0, chart.x_end, left, chart.width - right},
                    {low - margin, high + margin, chart.height - bottom, top}};
  html += open_svg(chart.width, chart.height, chart.title);
  append_y_axis(html, frame, chart.y_label);
  append_x_axis(html, frame.x, chart.height - bottom, chart.x_label);
  for (std::size_t i = 0; i < drawn.size(); ++i)
    append_series(html, frame, chart.series[i], drawn[i]);
  return html + "</svg></figure>\n";
}

std::string heat_map(const HeatMap& map) {
  const std::size_t columns = map.columns.size(), rows = columns ? map.columns[0].size() : 0;
  std::string html = open_figure(map.title, "<span>" + html_escape(map.note) + "</span>");
  if (rows == 0) return html + "<p class=\"soft\">No values.</p></figure>\n";
  const double cell_height = std::clamp(140.0 / static_cast<double>(rows), 4.0, 18.0);
  const double plot_height = cell_height * static_cast<double>(rows);
  const Scale x{0, map.x_end, left, map.width - right};
  html += open_svg(map.width, top + plot_height + bottom, map.title);

  // One path for each level: cells of a row that follow each other at one level are one rectangle.
  std::vector<std::string> paths(11);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t first = 0, end; first < columns; first = end) {
      const int level = level_of(map.columns[first], row);
      end = first + 1;
      while (end < columns && level_of(map.columns[end], row) == level) ++end;
      fmt::format_to(std::back_inserter(paths[static_cast<std::size_t>(level + 5)]),
                     "M{} {}h{}v1h-{}z", first, row, end - first, end - first);
    }
  }
  fmt::format_to(std::back_inserter(html),
                 "<rect class=\"grid\" x=\"{}\" y=\"{}\" width=\"{:.1f}\" height=\"{:.1f}\"/>"
                 "<g transform=\"translate({} {}) scale({:.5f} {:.5f})\" "
                 "shape-rendering=\"crispEdges\">\n",
                 left, top, x.to - x.from, plot_height, left, top,
                 (x.to - x.from) / static_cast<double>(columns), cell_height);
  for (int level = -5; level <= 5; ++level) {
    const std::string& path = paths[static_cast<std::size_t>(level + 5)];
    if (level == 0 || path.empty()) continue;
    html += fmt::format("<path class=\"{} l{}\" d=\"{}\"/>\n", level < 0 ? "under" : "over",
                        std::abs(level), path);
  }
  html += "</g>\n";
  for (const std::size_t row : {std::size_t{0}, rows - 1}) {
    html += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", left - 7,
                        top + (static_cast<double>(row) + 0.5) * cell_height + 4, row);
  }
  append_y_label(html, top + plot_height / 2, map.y_label);
  append_x_axis(html, x, top + plot_height, map.x_label);
  return html + "</svg></figure>\n";
}

std::vector<double> nice_ticks(double low, double high, int count) {
  const double raw = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  // The nearest of 1, 2, 5 and 10 by ratio.
  const double excess = raw / power;
  const double factor = excess < std::sqrt(2)    ? 1
                        : excess < std::sqrt(10) ? 2
                        : excess < std::sqrt(50) ? 5
                                                 : 10;
  const double step = factor * power;
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i)
    ticks.push_back(i * step);
  return ticks;
}

std::vector<ChartPoint> thinned(const std::vector<ChartPoint>& points, std::size_t limit) {
  const std::size_t group = (points.size() + limit - 1) / limit;
  if (group <= 1) return points;
  std::vector<ChartPoint> means;
  for (std::size_t first = 0; first < points.size(); first += group) {
    const std::size_t count = std::min(group, points.size() - first);
    ChartPoint mean;
    for (std::size_t i = first; i < first + count; ++i) {
      mean.x += points[i].x / static_cast<double>(count);
      mean.y += points[i].y / static_cast<double>(count);
    }
    means.push_back(mean);
  }
  return means;
}

}  // namespace orchard
