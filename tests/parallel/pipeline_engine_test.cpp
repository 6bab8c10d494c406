// Every schedule, run by real ranks, gives the gradients of a chain that one loop computes, bit for
// bit; what crosses stages stays whole as long as the engine promises. Run under mpirun.
#include "parallel/pipeline_engine.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "comm/mpi.h"

namespace orchard {
namespace {

constexpr std::int64_t width = 5;

std::unique_ptr<MpiSession> session;

// Rows of micro-batch m between stages: the first two stages stand for a tower, which some
// micro-batches have nothing for. One is long enough for a rendezvous between sender and receiver.
std::int64_t rows_after(int stage, int m) {
  if (stage < 2) return m % 3 == 0 ? 0 : 1 + m % 4;
  return m == 1 ? 20000 : 2 + m % 5;
}

float weight_of(int stage, std::int64_t column) {
  return 0.75f + 0.03125f * static_cast<float>(stage) + 0.0625f * static_cast<float>(column);
}

float source_of(int m, std::int64_t i) {
  return 0.01f * static_cast<float>((i * 7919 + m * 104729) % 211 - 105);
}

using Values = std::vector<float>;

double sum_of(const float* values, std::int64_t count) {
  return std::accumulate(values, values + count, 0.0);
}

// y = w * x by columns, fitted to the rows that the stage hands on: a stage without input starts
// from a source, and rows beyond the input repeat it. The head's gradient is its output.
struct StageMath {
  int stage;

  Values input(int m, const float* arrived) const {
    const std::int64_t have = stage == 0 ? 0 : rows_after(stage - 1, m),
                       need = rows_after(stage, m);
    Values x(static_cast<std::size_t>(need * width));
    for (std::int64_t i = 0; i < need * width; ++i)
      x[static_cast<std::size_t>(i)] = have > 0 ? arrived[i % (have * width)] : source_of(m, i);
    return x;
  }
  void forward(const Values& x, float* y) const {
    for (std::size_t i = 0; i < x.size(); ++i)
      y[i] = weight_of(stage, static_cast<std::int64_t>(i) % width) * x[i];
  }
  void backward_input(int m, const float* d_y, float* d_arrived) const {
    const std::int64_t have = rows_after(stage - 1, m), need = rows_after(stage, m);
    std::fill(d_arrived, d_arrived + have * width, 0.0f);
    for (std::int64_t i = 0; i < need * width && have > 0; ++i)
      d_arrived[i % (have * width)] += weight_of(stage, i % width) * d_y[i];
  }
  void backward_weight(const Values& x, const float* d_y, Values& d_w) const {
    for (std::size_t i = 0; i < x.size(); ++i) d_w[i % width] += d_y[i] * x[i];
  }
};

// The gradients of every stage, by one loop over micro-batches.
std::vector<Values> reference_gradients(int stages, int micro_batches) {
  std::vector<Values> gradients(static_cast<std::size_t>(stages), Values(width, 0.0f));
  for (int m = 0; m < micro_batches; ++m) {
    std::vector<Values> x, y;
    for (int s = 0; s < stages; ++s) {
      x.push_back(StageMath{s}.input(m, s ? y.back().data() : nullptr));
      y.emplace_back(x.back().size());
      StageMath{s}.forward(x.back(), y.back().data());
    }
    Values d_y = y.back();
    for (int s = stages; s-- > 0;) {
      StageMath{s}.backward_weight(x[static_cast<std::size_t>(s)], d_y.data(),
                                   gradients[static_cast<std::size_t>(s)]);
      if (s == 0) break;
      Values d_x(y[static_cast<std::size_t>(s - 1)].size());
      StageMath{s}.backward_input(m, d_y.data(), d_x.data());
      d_y = std::move(d_x);
    }
  }
  return gradients;
}

// The stages of one rank. Remembers sums of what the engine lent it, to see whether they change
// before the engine may take them back.
class ToyModel final : public PipelineModel {
 public:
  ToyModel(const PipelineSchedule& schedule, int rank) : schedule_(schedule), rank_(rank) {
    for (int c = 0; c < schedule.chunks; ++c) gradients.emplace_back(width, 0.0f);
  }

  Message output_of(int stage, int m) const override {
    return {DType::f32, {rows_after(stage, m), width}};
  }
  ConstTensor forward(int chunk, int m, ConstTensor input) override {
    const StageMath math{schedule_.stage_at(rank_, chunk)};
    Work& work = works_[{chunk, m}];
    work.arrived = input;
    if (input) work.arrived_sum = sum_of(input.data<float>(), input.numel());
    work.x = math.input(m, input.data<float>());
    work.y.resize(work.x.size());
    math.forward(work.x, work.y.data());
    return ConstTensor(work.y.data(), DType::f32, {rows_after(math.stage, m), width},
                       DeviceKind::cpu);
  }
  void backward_input(int chunk, int m, ConstTensor d_output, Tensor d_input) override {
    const StageMath math{schedule_.stage_at(rank_, chunk)};
    Work& work = works_[{chunk, m}];
    const bool last = math.stage == schedule_.stages() - 1;
    work.d_y = last ? work.y.data() : d_output.data<float>();
    if (!work.x.empty()) work.d_y_sum = sum_of(work.d_y, static_cast<std::int64_t>(work.x.size()));
    EXPECT_EQ(static_cast<bool>(d_input), math.stage > 0 && rows_after(math.stage - 1, m) > 0);
    if (d_input) math.backward_input(m, work.d_y, d_input.data<float>());
  }
  void backward_weight(int chunk, int m) override {
    const StageMath math{schedule_.stage_at(rank_, chunk)};
    Work& work = works_[{chunk, m}];
    if (work.arrived) {
      EXPECT_EQ(sum_of(work.arrived.data<float>(), work.arrived.numel()), work.arrived_sum)
          << "the input of micro-batch " << m << " changed before its weight half";
    }
    if (!work.x.empty()) {
      EXPECT_EQ(sum_of(work.d_y, static_cast<std::int64_t>(work.x.size())), work.d_y_sum)
          << "the gradient of micro-batch " << m << " changed before its weight half";
      math.backward_weight(work.x, work.d_y, gradients[static_cast<std::size_t>(chunk)]);
    }
    works_.erase({chunk, m});
  }

  std::vector<Values> gradients;  // of each chunk

 private:
  struct Work {
    ConstTensor arrived;
    double arrived_sum = 0, d_y_sum = 0;
    Values x, y;
    const float* d_y = nullptr;
  };
  const PipelineSchedule& schedule_;
  int rank_;
  std::map<std::pair<int, int>, Work> works_;
};

// Groups of the first `ranks` of the world; null elsewhere.
struct Groups {
  std::unique_ptr<Communicator> activations, gradients;
};

Groups groups_of(Communicator& world, int ranks) {
  std::vector<int> places(static_cast<std::size_t>(ranks));
  std::iota(places.begin(), places.end(), 0);
  if (world.rank() >= ranks) return {};
  return {world.make_group("pp", places), world.make_group("pp gradients", places)};
}

TEST(PipelineEngine, EveryScheduleGivesTheGradientsOfOneLoop) {
  const auto world = session->world();
  const auto device = make_cpu_device({.threads = 1});
  const auto stream = device->make_stream();
  for (int ranks = 1; ranks <= world->size(); ++ranks) {
    const Groups groups = groups_of(*world, ranks);
    for (const ScheduleKind kind : schedule_kinds) {
      const bool vee = kind == ScheduleKind::zero_bubble_v;
      for (const int chunks : {1, 2, 3}) {
        if (kind == ScheduleKind::interleaved ? false : chunks != (vee ? 2 : 1)) continue;
        for (const int m : {1, 2, 7}) {
          if (!groups.activations) continue;
          const PipelineSchedule schedule =
              make_schedule({.kind = kind, .ranks = ranks, .chunks = chunks, .micro_batches = m});
          PipelineEngine engine(*device, schedule, *groups.activations, *groups.gradients);
          std::int64_t warm = 0;
          for (int step = 0; step < 3; ++step) {
            ToyModel model(engine.schedule(), world->rank());
            engine.run(*stream, model);
            const auto expected = reference_gradients(schedule.stages(), m);
            for (int c = 0; c < chunks; ++c) {
              const auto stage = static_cast<std::size_t>(schedule.stage_at(world->rank(), c));
              EXPECT_EQ(model.gradients[static_cast<std::size_t>(c)], expected[stage])
                  << name_of(kind) << ", " << ranks << " ranks, " << chunks << " chunks, " << m
                  << " micro-batches, stage " << stage << ", step " << step;
            }
            if (step == 0) warm = device->statistics().allocations;
          }
          EXPECT_EQ(device->statistics().allocations, warm) << "buffers grew after the first step";
        }
      }
    }
    world->barrier();
  }
}

TEST(PipelineEngine, GroupsOfAnotherSizeAreRefused) {
  const auto one = make_single_communicator();
  const auto device = make_cpu_device({.threads = 1});
  EXPECT_THROW(PipelineEngine(*device, make_schedule({.ranks = 2}), *one, *one), Error);
}

}  // namespace
}  // namespace orchard

int main(int argc, char** argv) {
  orchard::session = std::make_unique<orchard::MpiSession>(argc, argv);
  ::testing::InitGoogleTest(&argc, argv);
  // An exception ends this rank, and mpirun then ends those that wait for it.
  GTEST_FLAG_SET(catch_exceptions, false);
  const int result = RUN_ALL_TESTS();
  orchard::session.reset();
  return result;
}
