// Streams, events, graphs, and what errors say of the kernels before them, on every device.
#include <gmock/gmock.h>

#include "kernels/device/zero_words.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gpu/call_text.h"
#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Case {};

class Streams : public DeviceTest<Case> {
 protected:
  void SetUp() override {
    DeviceTest<Case>::SetUp();
    if (!IsSkipped()) other_ = stream().device().make_stream();
  }
  Device& device() const { return stream().device(); }
  Stream& other() const { return *other_; }

 private:
  std::unique_ptr<Stream> other_;
};

INSTANTIATE_TEST_SUITE_P(Devices, Streams,
                         ::testing::Combine(every_device(), ::testing::Values(Case{})),
                         device_test_name<Case>);

TEST_P(Streams, AnEventOrdersTheWorkOfTwoStreams) {
  Guarded values = random_normal(DType::f32, {100'003}, 1), result = zeros(DType::f32, {100'003});
  OnDevice x = on_device(values), y = on_device(result);
  stream().synchronize();
  const auto event = device().make_event();
  // x is doubled on the other stream, read on this one, and doubled again.
  run(other(), Scale{.x = x, .factor = 2});
  event->record(other());
  stream().wait(*event);
  stream().copy(y, x.tensor());
  event->record(stream());
  other().wait(*event);
  run(other(), Scale{.x = x, .factor = 2});
  other().synchronize();
  y.download();
  x.download();
  stream().synchronize();
  const Guarded initial = random_normal(DType::f32, {100'003}, 1);
  for (std::int64_t i = 0; i < 100'003; ++i) {
    ASSERT_EQ(result.at(i), 2 * initial.at(i));
    ASSERT_EQ(values.at(i), 4 * initial.at(i));
  }
}

TEST_P(Streams, TheHostWaitsForAnEvent) {
  Guarded values = random_normal(DType::f32, {1000}, 1), initial = values;
  OnDevice x = on_device(values);
  const auto event = device().make_event();
  EXPECT_TRUE(event->is_done()) << "never recorded";
  event->synchronize();
  stream().wait(*event);
  run(stream(), Scale{.x = x, .factor = 2});
  x.download();
  event->record(stream());
  event->synchronize();
  EXPECT_TRUE(event->is_done());
  EXPECT_EQ(values.at(999), 2 * initial.at(999));
}

TEST_P(Streams, AGraphRepeatsItsWork) {
  Guarded values = random_normal(DType::f32, {1000}, 1), initial = values;
  Guarded totals = zeros(DType::f32, {10});
  OnDevice x = on_device(values), sums = on_device(totals);
  const auto work = [&] {
    run(stream(), Scale{.x = x, .factor = 2});
    run(stream(), ColumnSum{.x = x.tensor().reshape({100, 10}), .y = sums});
  };
  work();  // the workspace has its size from now on
  stream().synchronize();
  const auto graph = device().capture(stream(), work);
  stream().synchronize();
  x.download();
  stream().synchronize();
  EXPECT_EQ(values.at(7), 2 * initial.at(7)) << "recording does nothing";
  graph->replay(stream());
  graph->replay(stream());
  x.download();
  sums.download();
  stream().synchronize();
  double sum = 0;
  for (std::int64_t row = 0; row < 100; ++row) sum += initial.at(10 * row);
  EXPECT_EQ(values.at(7), 8 * initial.at(7));
  // Sums of 100 elements, of scale 2 + 4 + 8.
  EXPECT_NEAR(totals.at(0), 14 * sum, 14 * 100 * unit_roundoff(DType::f32) * 10);
}

// The other stream takes its turn in the middle, on what this one had before, for what it has after.
TEST_P(Streams, AGraphHoldsWhatOtherStreamsDoForIt) {
  Guarded values = random_normal(DType::f32, {1000}, 1), initial = values;
  Guarded copies = zeros(DType::f32, {1000});
  OnDevice x = on_device(values), y = on_device(copies);
  const auto there = device().make_event(), back = device().make_event();
  const auto work = [&] {
    run(stream(), Scale{.x = x, .factor = 2});
    there->record(stream());
    other().wait(*there);
    run(other(), Scale{.x = x, .factor = 4});
    back->record(other());
    stream().wait(*back);
    run(stream(), Scale{.x = x, .factor = 8});
  };
  stream().synchronize();
  const auto graph = device().capture(stream(), work);
  for (const double factor : {64., 4096.}) {
    graph->replay(stream());
    stream().copy(y, x.tensor());
    y.download();
    stream().synchronize();
    EXPECT_EQ(copies.at(7), factor * initial.at(7));
  }
  // Streams and events are what they were.
  work();
  x.download();
  stream().synchronize();
  EXPECT_EQ(values.at(7), 64 * 64 * 64 * initial.at(7));
}

TEST_P(Streams, WordsOfZeroAreNoPartOfAWorkspace) {
  const auto expect_zeros = [&](const char* when) {
    Guarded values = random_normal(DType::f32, {zero_words_count}, 1);
    const Tensor words(zero_words(stream()), DType::f32, values.shape(), stream().device().kind());
    stream().copy(values, words);
    stream().synchronize();
    EXPECT_TRUE(values == zeros(DType::f32, {zero_words_count})) << when;
  };
  expect_zeros("at first");
  const unsigned* const place = zero_words(stream());
  for (const std::size_t bytes : {std::size_t{4}, std::size_t{1} << 20}) {
    const Tensor scratch(stream().workspace(bytes), DType::u8, {static_cast<std::int64_t>(bytes)},
                         stream().device().kind());
    Guarded ones(DType::u8, scratch.shape());
    for (std::int64_t i = 0; i < ones.size(); ++i) ones.set(i, 1);
    stream().copy(scratch, ones);
    expect_zeros("when all of the workspace has been written");
  }
  EXPECT_EQ(zero_words(stream()), place);
  EXPECT_NE(zero_words(other()), zero_words(stream()));
}

TEST_P(Streams, ACaptureThatFailsLeavesTheStreamUsable) {
  Guarded values = random_normal(DType::f32, {10}, 1), initial = values;
  OnDevice x = on_device(values);
  stream().synchronize();
  const auto graph_of = [&](const std::function<void()>& work) {
    const auto graph = device().capture(stream(), work);
    graph->replay(stream());  // the CPU runs it only here
  };
  EXPECT_EQ(message_of([&] { graph_of([] { fail("no such thing"); }); }), "no such thing");
  run(stream(), Scale{.x = x, .factor = 2});
  x.download();
  stream().synchronize();
  EXPECT_EQ(values.at(9), 2 * initial.at(9));
}

// ---- what the emulator shows, and a GPU may hide ----------------------------------------------

class EmulatedStreams : public ::testing::Test {
 protected:
  std::unique_ptr<SimtDevice> device_ = make_simt_device();
  std::unique_ptr<Stream> stream_ = device_->make_stream(), other_ = device_->make_stream();
  Buffer buffer_ = device_->allocate(4000);
  Tensor x_ = buffer_.tensor(DType::f32, {1000});
};

TEST_F(EmulatedStreams, AForgottenWaitShows) {
  Guarded values = random_normal(DType::f32, {1000}, 1), result(DType::f32, {1000});
  other_->copy(x_, values);
  stream_->copy(result, x_);  // without waiting for the other stream
  stream_->synchronize();
  EXPECT_TRUE(std::isnan(result.at(0)));
}

TEST_F(EmulatedStreams, ErrorsEndInTheLastKernelsOfTheirStream) {
  stream_->fill_zero(x_);
  run(*other_, Scale{.x = x_, .factor = 3});
  for (int i = 0; i < 3; ++i) run(*stream_, Scale{.x = x_, .factor = 2});
  run(*stream_, Add{.a = x_, .b = x_, .y = x_});
  const Tensor longer(x_.raw(), DType::f32, {1001}, DeviceKind::simt);
  run(*stream_, Scale{.x = longer, .factor = 2});
  EXPECT_THAT(
      message_of([&] { stream_->synchronize(); }),
      AllOf(HasSubstr("kernel scale, block (0, 0, 0), thread"),
            HasSubstr(
                "at byte 4000 of an allocation of 4000 bytes\n"
                "  last kernel of the stream: scale, grid (1, 1, 1), block (256, 1, 1), 0 "
                "bytes of shared memory\n"
                "  before it: add, grid (1, 1, 1), block (256, 1, 1), 0 bytes of shared memory\n"
                "  before it: scale, grid")));
  // A copy fails in the same form, and the streams can be used further.
  stream_->fill_zero(longer);
  EXPECT_THAT(message_of([&] { stream_->synchronize(); }),
              AllOf(HasSubstr("copy or fill: the destination of 4004 bytes"),
                    HasSubstr("last kernel of the stream: scale")));
  stream_->fill_zero(x_);
  other_->synchronize();
  stream_->synchronize();
}

TEST_F(EmulatedStreams, WhoWaitsForAStreamThatFailedIsTold) {
  const auto event = device_->make_event();
  other_->fill_zero(Tensor(x_.raw(), DType::f32, {1001}, DeviceKind::simt));
  event->record(*other_);
  stream_->wait(*event);
  EXPECT_THAT(message_of([&] { stream_->synchronize(); }), HasSubstr("copy or fill"));
  EXPECT_THAT(message_of([&] { stream_->synchronize(); }),
              HasSubstr("waits for an event whose work was dropped"));
  EXPECT_THAT(message_of([&] { event->synchronize(); }), HasSubstr("was dropped"));
  stream_->fill_zero(x_);
  stream_->synchronize();
}

TEST_F(EmulatedStreams, ACaptureNeitherWaitsNorGrows) {
  const auto in_capture = [&](const std::function<void()>& work) {
    return message_of([&] { (void)device_->capture(*stream_, work); });
  };
  EXPECT_THAT(in_capture([&] { stream_->synchronize(); }), HasSubstr("inside a capture"));
  EXPECT_THAT(in_capture([&] { stream_->workspace(1 << 20); }), HasSubstr("inside a capture"));
  EXPECT_THAT(in_capture([&] { (void)device_->capture(*stream_, [] {}); }),
              HasSubstr("inside a capture"));
  const auto event = device_->make_event();
  EXPECT_THAT(in_capture([&] {
                event->record(*stream_);
                event->synchronize();
              }),
              HasSubstr("asks for an event of a capture"));
}

TEST_F(EmulatedStreams, ACaptureBeginsAndEndsWithItsStream) {
  const auto from = device_->make_event(), to = device_->make_event();
  const auto in_capture = [&](const std::function<void()>& work) {
    return message_of([&] { (void)device_->capture(*stream_, work); });
  };
  from->record(*other_);
  EXPECT_THAT(in_capture([&] { stream_->wait(*from); }), HasSubstr("recorded outside"));
  const auto fork = [&] {
    from->record(*stream_);
    other_->wait(*from);
    other_->fill_zero(x_);
  };
  EXPECT_THAT(in_capture(fork), HasSubstr("before its stream has waited"));
  EXPECT_THAT(in_capture([&] {
                fork();
                to->record(*other_);
                other_->fill_zero(x_);
                stream_->wait(*to);
              }),
              HasSubstr("before its stream has waited"));
  EXPECT_EQ(in_capture([&] {
              fork();
              to->record(*other_);
              stream_->wait(*to);
            }),
            "");
  EXPECT_THAT(message_of([&] { stream_->wait(*to); }), HasSubstr("capture, which is over"));
  // Both are as before.
  from->record(*other_);
  stream_->wait(*from);
  stream_->synchronize();
}

// Which a GPU's graph is in no order with.
TEST_F(EmulatedStreams, AGraphDoesNotWaitForWhatItsOtherStreamsHave) {
  Guarded values = random_normal(DType::f32, {1000}, 1), result(DType::f32, {1000});
  const auto from = device_->make_event(), to = device_->make_event();
  const auto graph = device_->capture(*stream_, [&] {
    from->record(*stream_);
    other_->wait(*from);
    other_->copy(result, x_);
    to->record(*other_);
    stream_->wait(*to);
  });
  // Far behind: a wait lets one piece of work of each stream run at a time.
  Guarded nothing(DType::f32, {1000});
  for (int i = 0; i < 10; ++i) other_->copy(nothing, x_);
  other_->copy(x_, values);
  graph->replay(*stream_);
  stream_->synchronize();
  EXPECT_TRUE(std::isnan(result.at(0)));
  other_->synchronize();
  graph->replay(*stream_);
  stream_->synchronize();
  EXPECT_EQ(result.at(0), values.at(0));
}

// ---- the text of a call -----------------------------------------------------------------------

enum class Direction { forward, backward };

TEST(CallText, ShowsArgumentsOfEveryKind) {
  const int place = 0;
  const auto address = fmt::format("{}", fmt::ptr(&place));
  EXPECT_EQ(call_text("f", 3, std::size_t{4096}, Direction::backward, "name", nullptr,
                      static_cast<void*>(nullptr), &place, std::pair(1, 2)),
            "f(3, 4096, 1, \"name\", null, null, " + address + ", {...})");
  EXPECT_EQ(call_text("g"), "g()");
}

}  // namespace
}  // namespace orchard::testing
