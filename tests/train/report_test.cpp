#include "train/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "data/atomic_file.h"
#include "data/picture.h"
#include "tests/data/scratch.h"
#include "tests/train/events.h"
#include "train/base64.h"
#include "train/chart.h"
#include "train/html.h"
#include "train/metrics.h"
#include "train/pipeline_picture.h"
#include "train/predictions.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::uint8_t> bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

TEST(Base64, MatchesTheVectorsOfTheStandard) {
  // RFC 4648, section 10.
  const std::pair<const char*, const char*> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, encoded] : vectors) {
    EXPECT_EQ(base64_encode(bytes_of(plain)), encoded);
    EXPECT_EQ(base64_decode(encoded), bytes_of(plain));
  }
  const std::vector<std::uint8_t> high{0xfb, 0xff, 0xfe};
  EXPECT_EQ(base64_encode(high), "+//+");
  EXPECT_EQ(base64_decode("+//+"), high);
}

TEST(Base64, RefusesWhatItIsNot) {
  for (const char* text : {"Zg=", "Z\"==", "Zg==Zg==", "====", "Zm9\n"})
    EXPECT_NE(message_of([&] { base64_decode(text); }), "") << text;
}

TEST(Predictions, AreReadAsWritten) {
  Scratch scratch;
  const std::vector<Prediction> written{
      {.stage = 3,
       .category = "text_rich",
       .prompt = "<image> says \"what\"?\nÄ",
       .truth = "Orchard",
       .prediction = " Orchard\n",
       .pictures = {bytes_of("one"), bytes_of(std::string("t\0o", 3))}},
      {.stage = 1, .category = "captions", .truth = "a", .prediction = "b"}};
  write_predictions(scratch / "", written);
  const std::vector<Prediction> read = read_predictions(scratch / "");
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0].stage, 3);
  EXPECT_EQ(read[0].category, written[0].category);
  EXPECT_EQ(read[0].prompt, written[0].prompt);
  EXPECT_EQ(read[0].truth, written[0].truth);
  EXPECT_EQ(read[0].prediction, written[0].prediction);
  EXPECT_EQ(read[0].pictures, written[0].pictures);
  EXPECT_TRUE(read[0].is_right());
  EXPECT_FALSE(read[1].is_right());
  EXPECT_TRUE(read[1].pictures.empty());
}

TEST(Predictions, MayHoldHalfACharacter) {
  Scratch scratch;
  const std::vector<Prediction> written{{.category = "c", .truth = "a", .prediction = "x\xc3"}};
  write_predictions(scratch / "", written);
  EXPECT_EQ(read_predictions(scratch / "").at(0).prediction, "x\xef\xbf\xbd");
}

TEST(Predictions, NameTheLineWithABadPicture) {
  Scratch scratch;
  std::ofstream(scratch / "predictions.jsonl")
      << R"({"stage":1,"category":"c","prompt":"","truth":"","prediction":"","pictures":["%"]})";
  EXPECT_THAT(message_of([&] { read_predictions(scratch / ""); }),
              HasSubstr("predictions.jsonl:1: pictures: "));
}

TEST(Chart, TicksAreRoundNumbersWithinTheRange) {
  EXPECT_THAT(nice_ticks(0, 1200, 6), ElementsAre(0, 200, 400, 600, 800, 1000, 1200));
  EXPECT_THAT(nice_ticks(2.3, 9.1, 3), ElementsAre(4, 6, 8));
  EXPECT_EQ(nice_ticks(0.00011, 0.00098, 4).size(), 4u);
  for (const double tick : nice_ticks(-0.3, 0.3, 5)) EXPECT_LE(std::abs(tick), 0.3 + 1e-12);
}

TEST(Chart, ThinningKeepsTheMean) {
  std::vector<ChartPoint> points;
  for (int i = 1; i <= 1000; ++i) points.push_back({static_cast<double>(i), 2.0 * i});
  const auto thin = thinned(points, 300);
  ASSERT_EQ(thin.size(), 250u);
  EXPECT_DOUBLE_EQ(thin[0].x, 2.5);
  EXPECT_DOUBLE_EQ(thin[0].y, 5);
  EXPECT_EQ(thinned(points, 1000).size(), 1000u);
}

TEST(Chart, PutsPointsWhereTheAxesSay) {
  // 100 wide with margins of 52 and 18, 100 high with 8 and 36: the plot is 30 by 56, with a
  // twentieth of the range free above and below.
  const std::string svg =
      line_chart({.x_end = 10,
                  .width = 100,
                  .height = 100,
                  .series = {{.style = "train", .points = {{0, 0}, {5, 10}, {10, 20}}}}});
  EXPECT_THAT(svg, HasSubstr("M52.0 61.5L67.0 36.0L82.0 10.5"));
}

TEST(Chart, LeavesOutWhatIsNotFinite) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::string svg =
      line_chart({.series = {{.style = "train", .points = {{0, 1}, {1, nan}, {2, 3}}}}});
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(line_chart({.series = {{.points = {{0, nan}}}}}), HasSubstr("No values"));
}

TEST(Chart, HeatMapMergesEqualNeighboursAndLeavesEvenBlank) {
  const std::string svg = heat_map({.columns = {{1.0, 2.5}, {1.0, 2.5}, {0.6, 0.0}}});
  EXPECT_THAT(svg, AllOf(HasSubstr("class=\"over l5\" d=\"M0 1h2v1h-2z\""),
                         HasSubstr("class=\"under l2\" d=\"M2 0h1v1h-1z\""),
                         HasSubstr("class=\"under l5\" d=\"M2 1h1v1h-1z\""), Not(HasSubstr("l0"))));
}

TEST(Html, EscapesTextAndAttributes) {
  EXPECT_EQ(html_escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
}

void record_run(const std::filesystem::path& folder, double swap_difference, double last_loss) {
  MetricsFile metrics(folder, {});
  for (int stage = 1; stage <= 2; ++stage) {
    for (std::int64_t step = 0; step <= 8; ++step) {
      if (step > 0) metrics.on_step(make_step(stage, step));
      ValidationEvent validation = make_validation(stage, step);
      validation.report.loss = step == 0 ? 4 : last_loss;
      validation.report.swap.difference = swap_difference;
      if (step % 8 == 0) metrics.on_validation(validation);
    }
  }
}

std::string report_of(const std::filesystem::path& folder, const ReportInput& input = {}) {
  write_report(folder, input);
  return read_text(folder / "report.html");
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (auto at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Report, SaysWhichClaimsHold) {
  Scratch scratch;
  record_run(scratch / "", 0.25, 3.6);
  const std::string held = report_of(scratch / "");
  EXPECT_THAT(held, HasSubstr("4.000 &rarr; 3.600"));
  EXPECT_THAT(held, HasSubstr("0.900 of its start"));
  EXPECT_THAT(held, HasSubstr("z = 4.0 over 96 samples"));
  EXPECT_EQ(count(held, "class=\"met\""), 3u);  // two losses, and the pictures of the last stage
  EXPECT_EQ(count(held, "class=\"missed\""), 0u);

  record_run(scratch / "", 0.1875, 3.61);  // z = 3 is not above 3
  const std::string missed = report_of(scratch / "");
  EXPECT_EQ(count(missed, "class=\"met\""), 0u);
  EXPECT_EQ(count(missed, "class=\"missed\""), 3u);
}

TEST(Report, NeedsNothingButItself) {
  Scratch scratch;
  record_run(scratch / "", 0.25, 3.6);
  const Picture picture{.width = 1, .height = 1, .rgb = {255, 0, 0}};
  const std::vector<Prediction> predictions{{.stage = 2,
                                             .category = "captions",
                                             .truth = "red",
                                             .prediction = "red",
                                             .pictures = {encode_png(picture)}}};
  write_predictions(scratch / "", predictions);
  const std::string html = report_of(scratch / "");
  for (const char* foreign : {"http:", "https:", "<script", "<link", "url(", "@import"})
    EXPECT_THAT(html, Not(HasSubstr(foreign)));
  EXPECT_EQ(count(html, "src="), count(html, "src=\"data:image/png;base64,iVBOR"));
  EXPECT_EQ(count(html, "<img"), 1u);
}

TEST(Report, ShowsThePipelineOfEachStageThatHasOne) {
  Scratch scratch;
  record_run(scratch / "", 0.25, 3.6);
  EXPECT_THAT(report_of(scratch / ""), Not(HasSubstr("<h2>Pipeline</h2>")));
  ModelConfig model;
  model.decoder = {.layers = 3, .hidden = 8, .ffn = 8, .heads = 1, .vocabulary = 16};
  const PipelineStages stages(ScheduleKind::one_forward_one_backward, 2, 1, {0, 3, 6});
  const Workload work{.tokens = 8, .document_length = 8, .targets = 8};
  const std::vector<LinkCost> costs = counted_costs(model, work);
  const std::vector<LinkHalves> halves = link_halves(model, work);
  std::ofstream(pipeline_picture_path(scratch / "", 2))
      << pipeline_picture({.stages = stages, .costs = costs, .halves = halves, .micro_batches = 4});
  const std::string html = report_of(scratch / "");
  EXPECT_THAT(html, AllOf(HasSubstr("<h2>Pipeline</h2>"), HasSubstr("<h3>Stage 2</h3>\n<svg"),
                          HasSubstr("1f1b, blocks 0-2 | 3-5, 4 micro-batches")));
  EXPECT_EQ(count(html, "<h3>Stage 1</h3>\n<svg"), 0u);
}

TEST(Report, ShowsTextAsTextAndMarksAnswers) {
  Scratch scratch;
  const std::vector<Prediction> predictions{
      {.stage = 3, .category = "c", .prompt = "<b>&", .truth = "x", .prediction = "x "},
      {.stage = 3, .category = "c", .truth = "x", .prediction = "</dl>"},
      {.stage = 3, .category = "c", .truth = "x", .prediction = ""}};
  write_predictions(scratch / "", predictions);
  std::ofstream(scratch / "resolved.ini") << "[run]\nseed = 1 # <i>\n";
  const std::string html = report_of(scratch / "", {.title = "<u>", .samples_per_category = 2});
  EXPECT_EQ(count(html, "answer right"), 1u);
  EXPECT_EQ(count(html, "answer wrong"), 1u);  // the third is counted but not shown
  EXPECT_THAT(html, AllOf(HasSubstr("1 of 3 exactly right, the first 2 shown"),
                          HasSubstr("&lt;b&gt;&amp;"), HasSubstr("&lt;/dl&gt;"),
                          HasSubstr("seed = 1 # &lt;i&gt;"), HasSubstr("<h1>&lt;u&gt;</h1>")));
}

TEST(Report, OfAnEmptyFolderSaysWhatIsMissing) {
  Scratch scratch;
  const std::string html = report_of(scratch / "");
  EXPECT_THAT(html, AllOf(HasSubstr("no metrics.jsonl"), HasSubstr("no predictions.jsonl"),
                          HasSubstr("no resolved.ini")));
}

TEST(Report, OfARunThatJustBeganIsWritten) {
  Scratch scratch;
  {
    MetricsFile metrics(scratch / "", {});
    metrics.on_validation(make_validation(1, 0));
  }
  EXPECT_THAT(report_of(scratch / ""), HasSubstr("a second validation is to follow"));
  {
    MetricsFile metrics(scratch / "", {});
    metrics.on_step(make_step(1, 1));
  }
  EXPECT_THAT(report_of(scratch / ""), HasSubstr("Never validated"));
}

}  // namespace
}  // namespace orchard::testing
