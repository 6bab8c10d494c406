#include "train/html.h"

#include <fmt/format.h>

#include <iterator>

namespace orchard {
namespace {

// Levels of the heat map are one hue on either side of even, by opacity, so that they stand on
// light and dark alike.
constexpr std::string_view style = R"css(
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --soft: #63686e; --line: #e1e1dd;
  --train: #2f6fb4; --held: #c8641b; --third: #5b7f3a;
  --good: #1d7a3e; --good-back: #e5f3e9; --bad: #b3261e; --bad-back: #fae9e7;
  --over: #c8521b; --under: #2f6fb4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #131517; --card: #1c1f22; --ink: #e4e6e8; --soft: #989fa6; --line: #30353a;
    --train: #6ea8e5; --held: #ee9a54; --third: #9cc274;
    --good: #74cc8e; --good-back: #1b3323; --bad: #f28b82; --bad-back: #3d2220;
    --over: #f08a4b; --under: #6ea8e5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .5rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft, figcaption, .label { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; color: var(--soft); margin: 0; padding: 0;
  list-style: none; }
.facts b { color: var(--ink); font-weight: 600; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 1rem 1.15rem; min-width: 0; }
.card h3 { margin: 0 0 .3rem; color: var(--soft); font-weight: 600; }
.figure { font-size: 1.75rem; line-height: 1.25; font-weight: 600; letter-spacing: -.01em; }
.card p { margin: .15rem 0; }
.card hr { border: 0; border-top: 1px solid var(--line); margin: .7rem 0; }
.met { color: var(--good); } .missed { color: var(--bad); }
figure { margin: 0 0 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .8rem 1rem .5rem; min-width: 0; }
figcaption { font-size: .85rem; margin-bottom: .2rem; display: flex; flex-wrap: wrap;
  gap: .1rem 1.1rem; }
figcaption b { color: var(--ink); font-weight: 600; }
.key::before { content: ""; display: inline-block; width: .9em; height: .2em; margin: 0 .4em .22em 0;
  background: currentColor; border-radius: 1px; }
.train { color: var(--train); } .held { color: var(--held); } .third { color: var(--third); }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
svg .faint { fill: none; stroke: currentColor; stroke-width: 1; opacity: .28; }
svg .dot { fill: currentColor; stroke: var(--card); stroke-width: 1.5; }
.over { fill: var(--over); } .under { fill: var(--under); }
.l1 { opacity: .2; } .l2 { opacity: .4; } .l3 { opacity: .6; } .l4 { opacity: .8; }
.scroll { overflow-x: auto; margin-bottom: 1.8rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child td { border-bottom: 0; }
.gallery { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; display: flex; flex-direction: column; }
.pictures { background: #fff; padding: .6rem; display: flex; gap: .5rem; flex-wrap: wrap;
  justify-content: center; align-items: center; min-height: 5.5rem;
  border-bottom: 1px solid var(--line); }
.pictures img { max-width: 100%; max-height: 11rem; }
.sample dl { margin: 0; padding: .7rem .9rem .9rem; font-size: .88rem; }
.label { font-size: .75rem; margin-top: .45rem; }
.sample dt:first-child { margin-top: 0; }
.sample dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.answer { padding: .05rem .4rem; border-radius: 4px; display: inline-block; }
.answer.right { color: var(--good); background: var(--good-back); }
.answer.wrong { color: var(--bad); background: var(--bad-back); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
  overflow-x: auto; font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; color: var(--soft); }
)css";

}  // namespace

std::string html_escape(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string html_page(std::string_view title, std::string_view body) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</"
      "html>\n",
      html_escape(title), style, body);
}

std::string html_table(const HtmlTable& table) {
  std::string html = "<div class=\"scroll\"><table>\n";
  const auto row = [&](const std::vector<std::string>& cells, const char* tag) {
    html += "<tr>";
    for (std::size_t i = 0; i < table.header.size(); ++i)
      fmt::format_to(std::back_inserter(html), "<{0}>{1}</{0}>", tag,
                     i < cells.size() ? html_escape(cells[i]) : "");
    html += "</tr>\n";
  };
  row(table.header, "th");
  for (const auto& cells : table.rows) row(cells, "td");
  return html + "</table></div>\n";
}

}  // namespace orchard
