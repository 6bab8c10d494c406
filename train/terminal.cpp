#include "train/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ostream>

namespace orchard {
namespace {

constexpr std::string_view clear_line = "\r\x1b[2K";

}  // namespace

Terminal::Terminal(std::ostream& out, Kind kind, std::size_t columns)
    : out_(out), kind_(kind), columns_(columns) {}

Terminal::~Terminal() {
  if (live_line_) out_ << '\n' << std::flush;
}

Terminal::Kind Terminal::kind_of(int descriptor) {
  // mpirun puts a terminal before each rank whatever its own output is; launch/run.sh then says so.
  const char* name = std::getenv("TERM");
  const bool dumb = name == nullptr || std::string_view(name) == "dumb";
  return ::isatty(descriptor) && !dumb ? Kind::live : Kind::plain;
}

std::size_t Terminal::columns_of(int descriptor) {
  winsize size{};
  const bool known = ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

void Terminal::print(std::string_view line) {
  if (live_line_) out_ << clear_line;
  live_line_ = false;
  out_ << line << '\n' << std::flush;
}

void Terminal::update(std::string_view line) {
  if (kind_ == Kind::plain) return;
  // A line that fills the last column would wrap, and only its second half would be replaced.
  out_ << clear_line << line.substr(0, columns_ - 1) << std::flush;
  live_line_ = true;
}

std::string format_duration(double seconds) {
  const auto s = static_cast<std::int64_t>(std::lround(std::max(seconds, 0.0)));
  const std::int64_t minutes = s / 60 % 60, hours = s / 3600 % 24, days = s / 86400;
  if (days > 0) return fmt::format("{} d {:02}:{:02}", days, hours, minutes);
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, s % 60);
  if (minutes > 0) return fmt::format("{}:{:02}", minutes, s % 60);
  return fmt::format("{} s", s);
}

std::string format_count(double value) {
  constexpr std::string_view units[] = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  // 999.5 would print as a fourth digit.
  while (std::abs(value) >= 999.5 && unit + 1 < std::size(units)) {
    value /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f}", value);
  const int decimals = std::abs(value) >= 99.95 ? 0 : std::abs(value) >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", value, decimals, units[unit]);
}

}  // namespace orchard
