#include "train/console.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tests/train/events.h"
#include "train/observers.h"
#include "train/progress.h"

namespace orchard::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(StepLine, SaysEverythingOnce) {
  EXPECT_EQ(step_line(make_step(2, 4, 120), 3733),
            "stage 2 step   4/120 loss 1.7750 balance 2.250 z 11.5 norm 0.875 lr 2.50e-04 "
            "1.78k tok/s 2.25 s (6% data) eta 1:02:13 load 1.60 1.50 dropped 2.0% bad samples 3");
}

TEST(StepLine, OfADenseModelHasNoExperts) {
  StepEvent event = make_step(1, 2);
  event.report.losses.expert_load.clear();
  event.report.losses.dropped.clear();
  event.bad_samples = 0;
  EXPECT_EQ(step_line(event, 5),
            "stage 1 step 2/8 loss 3.5500 norm 0.875 lr 5.00e-04 1.88k tok/s 2.12 s (6% data) "
            "eta 5 s");
}

TEST(StepLine, CountsExpertsWithoutAToken) {
  StepEvent event = make_step(1, 2);
  event.report.losses.expert_load = {{0.5, 0.5, 0, 0}, {0, 1, 0, 0}};
  EXPECT_THAT(step_line(event, 5), HasSubstr(" load 2.00 4.00 dead 5 dropped"));
}

TEST(StepLine, ShowsTheSpanOfManyLayers) {
  StepEvent event = make_step(1, 2);
  event.report.losses.expert_load.assign(12, {0.5, 0.5});
  event.report.losses.expert_load[7] = {0.75, 0.25};
  EXPECT_THAT(step_line(event, 5), HasSubstr(" load 1.00..1.50 in 12 layers"));
}

TEST(ValidationTable, ComparesCategoriesAndPictures) {
  EXPECT_EQ(validation_table(make_validation(2, 4, 120)),
            "stage 2 step 4/120 held-out loss 3.2500 of 400 targets (1:05)\n"
            "  captions     4.5000       100 targets\n"
            "  text_rich    2.7500       300 targets  swapped +0.1250, z = 2.0\n"
            "  right pictures 2.5000, swapped 2.7500: +0.2500 +- 0.0625, z = 4.0 over 96 samples");
}

TEST(ValidationTable, LeavesOutPicturesThatWereNotSwapped) {
  ValidationEvent event = make_validation(1, 0);
  event.report.swap = {};
  EXPECT_THAT(validation_table(event), Not(HasSubstr("pictures")));
}

TEST(Console, WritesEveryStepToAFile) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::plain);
  Console console(terminal);
  for (int step = 1; step <= 3; ++step) console.on_step(make_step(1, step));
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_THAT(text, Not(HasSubstr("\r")));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

TEST(Console, KeepsSomeStepsOnATerminal) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::live, 500);
  Console console(terminal, 4);
  std::vector<int> kept;
  for (int step = 1; step <= 10; ++step) {
    const auto lines = [&] {
      const std::string text = out.str();
      return std::count(text.begin(), text.end(), '\n');
    };
    const auto before = lines();
    console.on_step(make_step(1, step, 10));
    if (lines() > before) kept.push_back(step);
  }
  EXPECT_THAT(kept, ElementsAre(1, 4, 8, 10));
}

TEST(Console, EstimatesTheTimeLeftWithoutTheFirstStep) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::plain);
  Console console(terminal);
  StepEvent event = make_step(1, 1, 100);
  event.step_seconds = 50;
  console.on_step(event);
  EXPECT_THAT(out.str(), HasSubstr("eta 1:22:30"));
  event.step = 2;
  event.step_seconds = 1;
  console.on_step(event);
  EXPECT_THAT(out.str(), HasSubstr("eta 1:38"));
}

TEST(Console, StartsItsEstimateAnewWithEachStage) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::plain);
  Console console(terminal);
  StepEvent event = make_step(1, 1, 11);
  event.step_seconds = 9;
  console.on_step(event);
  event.stage = 2;
  event.step_seconds = 2;
  console.on_step(event);
  EXPECT_THAT(out.str(), HasSubstr("eta 1:30"));
  EXPECT_THAT(out.str(), HasSubstr("eta 20 s"));
}

TEST(Terminal, ReplacesItsLiveLineAndCutsIt) {
  std::ostringstream out;
  {
    Terminal terminal(out, Terminal::Kind::live, 8);
    terminal.update("0123456789");
    terminal.print("a line longer than eight");
    terminal.update("abc");
  }
  EXPECT_EQ(out.str(), "\r\x1b[2K0123456\r\x1b[2Ka line longer than eight\n\r\x1b[2Kabc\n");
}

TEST(Terminal, IsSilentAboutLiveLinesInAFile) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::plain);
  terminal.update("abc");
  terminal.print("x");
  EXPECT_EQ(out.str(), "x\n");
}

TEST(Format, DurationsAndCountsAtTheirEdges) {
  EXPECT_EQ(format_duration(-1), "0 s");
  EXPECT_EQ(format_duration(59.4), "59 s");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(3599), "59:59");
  EXPECT_EQ(format_duration(86399), "23:59:59");
  EXPECT_EQ(format_duration(5 * 86400 + 3 * 3600 + 600), "5 d 03:10");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999.4), "999");
  EXPECT_EQ(format_count(999.6), "1.00k");
  EXPECT_EQ(format_count(9996), "10.0k");
  EXPECT_EQ(format_count(123456), "123k");
  EXPECT_EQ(format_count(999600), "1.00M");
}

TEST(Progress, SpeaksAtIntervalsAndAtTheEnd) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::plain);
  double now = 100;
  Progress progress(terminal, "packing", "samples", 200, [&] { return now; });
  for (int i = 0; i < 200; ++i) {
    now += 0.125;
    progress.advance();
  }
  progress.finish();
  EXPECT_EQ(out.str(),
            "packing 80/200 samples (40%), 8.0/s, 15 s left\n"
            "packing 160/200 samples (80%), 8.0/s, 5 s left\n"
            "packing: 200 samples in 25 s, 8.0/s\n");
}

// Nothing of what is over in a moment; each operation anew.
TEST(Progress, ThePatientOneSpeaksOfLongOperationsOnly) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::plain);
  double now = 0;
  const ProgressHook hook = patient_progress(terminal, "scoring", "requests", [&] { return now; });
  const auto operate = [&](double seconds) {
    hook(0, 4);
    for (int i = 1; i <= 4; ++i) {
      now += seconds;
      hook(i, 4);
    }
  };
  operate(1);
  EXPECT_EQ(out.str(), "");
  operate(5);
  EXPECT_EQ(out.str(),
            "scoring 2/4 requests (50%), 0.2/s, 10 s left\n"
            "scoring 4/4 requests (100%), 0.2/s, 0 s left\n"
            "scoring: 4 requests in 20 s, 0.2/s\n");
  operate(0.1);
  EXPECT_THAT(out.str(), ::testing::EndsWith("in 20 s, 0.2/s\n"));

  // On a live terminal too the first seconds are quiet.
  std::ostringstream live_out;
  Terminal live(live_out, Terminal::Kind::live);
  const ProgressHook live_hook = patient_progress(live, "scoring", "requests", [&] { return now; });
  live_hook(0, 2);
  now += 4;
  live_hook(1, 2);
  EXPECT_EQ(live_out.str(), "");
  now += 2;
  live_hook(1, 2);
  EXPECT_EQ(live_out.str(), "\r\x1b[2Kscoring 1/2 requests (50%), 0.2/s, 6 s left");
}

TEST(Progress, OfUnknownLengthPromisesNothing) {
  std::ostringstream out;
  Terminal terminal(out, Terminal::Kind::live);
  double now = 0;
  Progress progress(terminal, "downloading", "bytes", 0, [&] { return now; });
  now = 2;
  progress.reach(40000);
  EXPECT_EQ(out.str(), "\r\x1b[2Kdownloading 40000 bytes, 20.0k/s");
}

TEST(Observers, AllHearEverythingInOrder) {
  std::string heard;
  class Listener : public Observer {
   public:
    Listener(std::string& heard, std::string name) : heard_(heard), name_(std::move(name)) {}
    void on_step(const StepEvent& e) override { heard_ += name_ + "s" + std::to_string(e.step); }
    void on_validation(const ValidationEvent& e) override {
      heard_ += name_ + "v" + std::to_string(e.step);
    }
    void on_message(const std::string& text) override { heard_ += name_ + "m" + text; }

   private:
    std::string& heard_;
    std::string name_;
  };
  Observers observers;
  observers.add(std::make_unique<Listener>(heard, "a"));
  observers.add(std::make_unique<Listener>(heard, "b"));
  observers.on_step(make_step(1, 5));
  observers.on_validation(make_validation(1, 6));
  observers.on_message("x");
  EXPECT_EQ(heard, "as5bs5av6bv6amxbmx");
}

}  // namespace
}  // namespace orchard::testing
