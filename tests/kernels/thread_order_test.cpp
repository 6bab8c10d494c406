// GPU kernels that exchange values between threads give the same bits in whatever order the emulator
// runs the threads: a forgotten barrier shows in some order, as poison or as another result.
#include <list>

#include "kernels/activation/activation.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/loss.h"
#include "kernels/norm/norm.h"
#include "kernels/optimizer/optimizer.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {
namespace {

// A device and the tensors of one run.
class Session {
 public:
  explicit Session(const SimtOptions& options)
      : device_(make_policy_device(options)), stream_(device_->make_stream()) {}

  // Random values, the same in every session.
  Tensor random(DType dtype, Shape shape) {
    return keep(random_normal(dtype, shape, static_cast<unsigned>(hosts_.size())));
  }
  Tensor bf16s(Shape shape) { return random(DType::bf16, shape); }
  Tensor floats(Shape shape) { return random(DType::f32, shape); }
  Tensor indices(std::vector<int> values) {
    return keep(integers({static_cast<std::int64_t>(values.size())}, values));
  }
  // All zero, as optimizer statistics start.
  Tensor zero(Shape shape) { return keep(zeros(DType::f32, shape)); }

  template <class Operation>
  void run_and_keep(const Operation& op) {
    run(*stream_, op);
  }

  // All tensors as they are now.
  std::list<Guarded> results() {
    for (OnDevice& tensor : tensors_) tensor.download();
    stream_->synchronize();
    return hosts_;
  }

 private:
  Tensor keep(Guarded host) {
    hosts_.push_back(std::move(host));
    return tensors_.emplace_back(*stream_, hosts_.back());
  }

  std::list<Guarded> hosts_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::list<OnDevice> tensors_;
};

template <class Body>
void expect_same_in_any_order(const Body& body) {
  using simt::ThreadOrder;
  const auto results = [&](const SimtOptions& options) {
    Session session(options);
    body(session);
    return session.results();
  };
  const std::list<Guarded> fifo = results({});
  EXPECT_TRUE(fifo == results({.order = ThreadOrder::reverse})) << "reverse";
  for (const std::uint64_t seed : {1, 2}) {
    EXPECT_TRUE(fifo == results({.order = ThreadOrder::random, .seed = seed})) << "seed " << seed;
  }
}

TEST(AnyThreadOrder, Sums) {
  expect_same_in_any_order([](Session& s) {
    s.run_and_keep(ColumnSum{.x = s.bf16s({300, 72}), .y = s.floats({72})});
    s.run_and_keep(SumOfSquares{.x = s.floats({9001}), .result = s.floats({1})});
  });
}

TEST(AnyThreadOrder, Excite) {
  expect_same_in_any_order([](Session& s) {
    const Shape shape = {2, 150, 40};
    s.run_and_keep(ExciteBackward{.x = s.bf16s(shape),
                                  .scale = s.bf16s({2, 40}),
                                  .d_y = s.bf16s(shape),
                                  .d_x = s.bf16s(shape),
                                  .d_scale = s.bf16s({2, 40})});
  });
}

// Rows of one warp, of several with several rows in a block, of one per block; and of any length.
TEST(AnyThreadOrder, Norms) {
  for (const std::int64_t cols : {512, 2048, 4096, 509}) {
    expect_same_in_any_order([&](Session& s) {
      const Shape shape = {11, cols};
      const Tensor x = s.bf16s(shape), weight = s.bf16s({cols}), d_y = s.bf16s(shape);
      const Tensor mean = s.floats({11}), inverse_std = s.floats({11});
      s.run_and_keep(LayerNormForward{.x = x,
                                      .delta = s.bf16s(shape),
                                      .weight = weight,
                                      .bias = s.bf16s({cols}),
                                      .sum = s.bf16s(shape),
                                      .y = s.bf16s(shape),
                                      .mean = mean,
                                      .inverse_std = inverse_std});
      s.run_and_keep(LayerNormBackward{.x = x,
                                       .weight = weight,
                                       .mean = mean,
                                       .inverse_std = inverse_std,
                                       .d_y = d_y,
                                       .d_x = s.bf16s(shape),
                                       .d_weight = s.floats({cols}),
                                       .d_bias = s.floats({cols})});
      s.run_and_keep(RmsNormBackward{.x = x,
                                     .weight = weight,
                                     .inverse_rms = inverse_std,
                                     .d_y = d_y,
                                     .d_sum = s.bf16s(shape),
                                     .d_x = s.bf16s(shape),
                                     .d_weight = s.floats({cols})});
    });
  }
}

TEST(AnyThreadOrder, QkNormRope) {
  expect_same_in_any_order([](Session& s) {
    const Shape shape = {5, 9, 80};
    const Tensor x = s.bf16s(shape), weight = s.bf16s({80}), rotation = s.floats({8, 80});
    const Tensor positions = s.indices({0, 1, 2, 0, 7}), inverse_rms = s.floats({5, 9});
    s.run_and_keep(QkNormRopeForward{.x = x,
                                     .weight = weight,
                                     .rotation = rotation,
                                     .positions = positions,
                                     .y = s.bf16s(shape),
                                     .inverse_rms = inverse_rms});
    s.run_and_keep(QkNormRopeBackward{.x = x,
                                      .weight = weight,
                                      .rotation = rotation,
                                      .positions = positions,
                                      .inverse_rms = inverse_rms,
                                      .d_y = s.bf16s(shape),
                                      .d_x = s.bf16s(shape),
                                      .d_weight = s.floats({80})});
  });
}

TEST(AnyThreadOrder, CrossEntropy) {
  expect_same_in_any_order([](Session& s) {
    const Tensor logits = s.floats({3, 5000});
    s.run_and_keep(CrossEntropy{.logits = logits,
                                .targets = s.indices({7, -1, 4999}),
                                .losses = s.floats({3}),
                                .d_logits = logits});
  });
}

TEST(AnyThreadOrder, AdaFactor) {
  expect_same_in_any_order([](Session& s) {
    const Shape shape = {150, 132};
    s.run_and_keep(AdaFactor{.weights = s.floats(shape),
                             .gradients = s.floats(shape),
                             .v_row = s.zero({150}),
                             .v_col = s.zero({132}),
                             .lr = 0.1f});
    s.run_and_keep(AdaFactor{
        .weights = s.floats(shape), .gradients = s.floats(shape), .v = s.zero(shape), .lr = 0.1f});
  });
}

}  // namespace
}  // namespace orchard::testing
