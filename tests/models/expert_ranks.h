// Sparse layers over ranks beside the same layer on one rank: what tests of either kind of message share.
#pragma once

#include <gtest/gtest.h>

#include "tests/comm/ranks_test.h"
#include "tests/models/sparse_layer.h"

namespace orchard::testing {

// Sums of at most some hundred terms in another order, in fp32.
inline constexpr double f32_tolerance = 1e-5;
// A row of a part of an expert is rounded to bf16 before the parts are added: half a unit in the
// last place of 8 bits, of each of a few roundings on the way.
inline constexpr double bf16_tolerance = 1e-2;

inline Layout layout_of(int tp, int ep, int etp, const char* order = "tp-ep-dp-pp") {
  return {.tensor = tp, .expert = ep, .expert_tensor = etp, .order = parse_rank_order(order)};
}

// Micro-batches of four sequences of 24 rows on every data rank, with different real tokens.
inline std::vector<Tokens> alike_tokens() {
  return {{.real = {24, 17, 3, 20}, .length = 24},
          {.real = {24, 24, 24, 24}, .length = 24},
          {.real = {0, 1, 22, 24}, .length = 24},
          {.real = {9, 24, 0, 0}, .length = 24}};
}

// Every rank also runs the layer alone, and compares.
class ExpertRanks : public ::testing::Test {
 protected:
  // The first `ranks` ranks as a world of their own; nobody, where this rank is not among them.
  std::unique_ptr<Communicator> first_ranks(int ranks, int ranks_per_node = 0) {
    Communicator& world = ranks_per_node == 2 ? *in_pairs_ : *world_;
    if (world.size() < ranks || world.rank() >= ranks) return nullptr;
    std::vector<int> places(static_cast<std::size_t>(ranks));
    std::iota(places.begin(), places.end(), 0);
    return world.make_group("first", places);
  }

  // The result on this rank; nothing where the case is for fewer ranks, or for more than there are.
  std::optional<LayerResult> expect_same_as_alone(const LayerCase& c, int ranks_per_node = 0) {
    SCOPED_TRACE(c.to_string());
    const auto group = first_ranks(c.ranks, ranks_per_node);
    if (!group) return {};
    const LayerResult alone = run_alone(*device_, c, c.layout.data(c.ranks));
    const LayerResult result = run_on_ranks(*device_, c, *group, alone);
    EXPECT_EQ(differing(c, result, alone), std::vector<std::string>());
    return result;
  }

  static std::vector<std::string> differing(const LayerCase& c, const LayerResult& result,
                                            const LayerResult& alone) {
    // The rank finds its own micro-batch by what its router chose from.
    const MeshCoordinates at = Mesh(c.ranks, c.layout).coordinates(world_->rank());
    return differences(result.micro_batches[0], result,
                       alone.micro_batches[static_cast<std::size_t>(at.data)], alone, tolerance(c));
  }

  static double tolerance(const LayerCase& c) {
    if (c.dtype == DType::bf16) return bf16_tolerance;
    // The gate of an only choice is one whatever its score: what is left of the score's gradient are
    // the rounding errors of terms that cancel.
    return c.top_k == 1 ? 4 * f32_tolerance : f32_tolerance;
  }

  static void SetUpTestSuite() {
    world_ = session->world();
    in_pairs_ = session->world({.ranks_per_node = 2});
    device_ = make_cpu_device({.threads = 1});
  }
  static void TearDownTestSuite() {
    world_.reset();
    in_pairs_.reset();
    device_.reset();
  }

  static inline std::unique_ptr<Communicator> world_, in_pairs_;
  static inline std::unique_ptr<Device> device_;
};

// Faults are put into operations of one rank's device.
template <class Op>
inline void (*original)(Stream&, const Op&) = nullptr;

template <class Op>
void replace(OperationTable& table, void (*faulty)(Stream&, const Op&)) {
  original<Op> = table.find<Op>();
  table.add<Op>(faulty);
}

}  // namespace orchard::testing
