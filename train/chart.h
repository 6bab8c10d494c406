// Charts as inline SVG, drawn with the style classes of html.h.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace orchard {

struct ChartPoint {
  double x = 0, y = 0;
};

struct ChartSeries {
  enum class Mark : std::uint8_t { line, faint_line, line_and_dots };
  std::string name;                     // in the legend; empty: not there
  std::string style;                    // class that gives the colour: "train", "held", "third"
  Mark mark = Mark::line;               // dots carry their values as tooltips
  std::vector<ChartPoint> points = {};  // by rising x
};

struct LineChart {
  std::string title, x_label, y_label;
  double x_end = 1;  // the x axis goes from 0 to here
  double width = 920, height = 300;
  std::vector<ChartSeries> series = {};
};

// A figure with caption, legend, axes and at most a few hundred points a line: of more, means of
// neighbours are drawn. Points that are not finite are left out.
std::string line_chart(const LineChart& chart);

struct HeatMap {
  std::string title, note, x_label, y_label;
  double x_end = 1;
  double width = 440;
  // [column][row], 1 is even and drawn as nothing, 0 and 2 (or more) in full colour. Columns have
  // equal width.
  std::vector<std::vector<double>> columns = {};
};

std::string heat_map(const HeatMap& map);

// Multiples of 1, 2 or 5 times a power of ten within [low, high], about `count` of them.
std::vector<double> nice_ticks(double low, double high, int count);

// At most `limit` points: means of equal numbers of neighbours, the last group apart.
std::vector<ChartPoint> thinned(const std::vector<ChartPoint>& points, std::size_t limit);

}  // namespace orchard
