// Slices, and the sharding of a store's parameters: whatever the layout, the slices put together
// are the parameters of one rank, and every element is counted once.
#include "parallel/sharding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "parallel/parameter.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using ::testing::HasSubstr;

std::vector<float> ascending(std::int64_t n) {
  std::vector<float> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

TEST(Slice, CutsAndPastesTheElementsOfItsIndices) {
  const Shape shape{3, 5, 2};
  const std::vector<float> whole = ascending(30);
  for (int dim = 0; dim < 3; ++dim) {
    for (std::int64_t begin = 0; begin <= shape[dim]; ++begin) {
      for (std::int64_t count = 0; begin + count <= shape[dim]; ++count) {
        const Slice slice{dim, begin, count};
        std::vector<float> expected, pasted(30), expected_paste(30);
        for (std::int64_t i = 0; i < 30; ++i) {
          const std::int64_t index[] = {i / 10, i / 2 % 5, i % 2};
          if (index[dim] < begin || index[dim] >= begin + count) continue;
          expected.push_back(whole[static_cast<std::size_t>(i)]);
          expected_paste[static_cast<std::size_t>(i)] = expected.back();
        }
        ASSERT_EQ(shape_of(slice, shape).numel(), static_cast<std::int64_t>(expected.size()));
        std::vector<float> local(expected.size());
        cut(shape, slice, whole, local);
        EXPECT_EQ(local, expected);
        paste(shape, slice, local, pasted);
        EXPECT_EQ(pasted, expected_paste);
        const SliceIndex positions(shape, slice);
        for (std::size_t i = 0; i < local.size(); ++i) {
          const auto global = positions.to_global(static_cast<std::int64_t>(i));
          ASSERT_EQ(whole[static_cast<std::size_t>(global)], local[i]);
        }
      }
    }
  }
}

TEST(Slice, RefusesWhatLiesOutside) {
  const std::vector<float> whole(6);
  std::vector<float> local(4);
  EXPECT_THAT(message_of([&] { cut({2, 3}, {1, 2, 2}, whole, local); }), HasSubstr("[2, 4)"));
  EXPECT_THAT(message_of([&] { cut({2, 3}, {1, 0, 1}, whole, local); }), HasSubstr("[2, 3]"));
}

TEST(Shard, RanksBeyondThePartsHoldTheSame) {
  const Sharding kv{.tensor_dim = 0, .parts = 2, .gradient = GradientOf::local_heads};
  for (int rank = 0; rank < 8; ++rank) {
    const Shard shard = shard_of({6, 5}, kv, {.tensor = {rank, 8}});
    EXPECT_EQ(shard.slice, (Slice{0, rank / 4 * 3, 3}));
    EXPECT_EQ(shard.reduction, (Reduction{ParameterClass::dense_sharded, 4, true}));
    EXPECT_EQ(shard.replica, rank % 4);
  }
  // As many ranks as parts: nothing is held twice, and nobody else has a part of the gradient.
  EXPECT_EQ(shard_of({6, 5}, kv, {.tensor = {1, 2}}).reduction,
            (Reduction{ParameterClass::dense_sharded, 1, false}));
}

TEST(Shard, RowsShareAGradientUnderSequenceParallelismAlone) {
  const Sharding norm{.gradient = GradientOf::local_rows};
  for (const SequenceParallel rows : {SequenceParallel::no, SequenceParallel::yes}) {
    const Shard shard = shard_of({6}, norm, {.tensor = {1, 2}, .sequence_parallel = rows});
    EXPECT_EQ(shard.slice, whole({6}));
    EXPECT_EQ(shard.reduction,
              (Reduction{ParameterClass::dense_replicated, 2, rows == SequenceParallel::yes}));
    // Alone there is nothing to add.
    EXPECT_FALSE(shard_of({6}, norm, {.sequence_parallel = rows}).reduction.partial);
  }
}

TEST(Shard, ExpertsFollowTheirOwnFactorisation) {
  for (int expert = 0; expert < 8; ++expert) {
    const Sharding w{.tensor_dim = 1, .expert = expert, .experts = 8};
    for (int rank = 0; rank < 4; ++rank) {
      const Shard shard =
          shard_of({5, 6}, w, {.tensor = {1, 2}, .expert = {rank, 4}, .expert_tensor = {1, 2}});
      const bool here = expert / 2 == rank;
      EXPECT_EQ(shard.slice, here ? (Slice{1, 3, 3}) : (Slice{1, 0, 0}));
      EXPECT_EQ(shard.reduction, (Reduction{ParameterClass::expert, 1, false}));
    }
  }
}

TEST(Shard, RefusesUnequalParts) {
  const auto shard = [](const Sharding& sharding, const ShardingPlace& place) {
    return message_of([&] { shard_of({6, 5}, sharding, place); });
  };
  EXPECT_THAT(shard({.tensor_dim = 1}, {.tensor = {0, 2}}), HasSubstr("dimension 1 of [6, 5]"));
  EXPECT_THAT(shard({.tensor_dim = 0, .parts = 2}, {.tensor = {0, 3}}), HasSubstr("3 ranks"));
  EXPECT_THAT(shard({.expert = 0, .experts = 3}, {.expert = {0, 2}}), HasSubstr("2 ranks"));
  ParameterStore store({.tensor = {0, 4}});
  EXPECT_THAT(message_of([&] {
                store.declare({.name = "odd", .shape = {6}, .sharding = {.tensor_dim = 0}});
              }),
              HasSubstr("parameter odd"));
}

// Every kind of sharding that layers declare.
void declare_all(ParameterStore& store) {
  store.declare({.name = "column", .shape = {16, 5}, .sharding = {.tensor_dim = 0}});
  store.declare({.name = "norm", .shape = {7}, .sharding = {.gradient = GradientOf::local_rows}});
  store.declare({.name = "row", .shape = {5, 16}, .sharding = {.tensor_dim = 1}});
  store.declare({.name = "key",
                 .shape = {6, 5},
                 .sharding = {.tensor_dim = 0, .parts = 2, .gradient = GradientOf::local_heads}});
  for (const char* matrix : {"up", "down"}) {
    for (int e = 0; e < 8; ++e) {
      store.declare(
          {.name = fmt::format("experts.{}.{}", e, matrix),
           .shape = {8, 64},
           .initializer = Initializer::truncated_normal,
           .sharding = {.tensor_dim = *matrix == 'u' ? 0 : 1, .expert = e, .experts = 8}});
    }
  }
  store.declare({.name = "bias", .shape = {16}, .sharding = {.tensor_dim = 0}});
}

TEST(ParameterStore, TheSameSeedGivesTheSameModelOnEveryLayout) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  ParameterStore reference;
  declare_all(reference);
  reference.allocate(*device, *stream, DType::f32);
  reference.initialise(*stream, 5);
  for (const auto& [tensor, expert, expert_tensor] :
       {std::tuple{1, 1, 1}, {2, 1, 1}, {4, 1, 1}, {1, 4, 1}, {2, 2, 1}, {1, 2, 2}, {4, 2, 4}}) {
    const Mesh mesh(8, {.tensor = tensor, .expert = expert, .expert_tensor = expert_tensor});
    std::map<std::string, std::vector<float>> together;
    std::map<std::string, std::vector<int>> times;  // that an element was counted
    for (int rank = 0; rank < 8; ++rank) {
      ParameterStore store(sharding_place(mesh, rank, SequenceParallel::yes));
      declare_all(store);
      store.allocate(*device, *stream, DType::f32);
      store.initialise(*stream, 5);
      EXPECT_EQ(store.count(), reference.count());
      const MeshCoordinates at = mesh.coordinates(rank);
      for (const Parameter* p : store.catalogue()) {
        if (!p->is_here()) {
          EXPECT_FALSE(p->value || p->master || p->gradient) << p->spec.name;
          continue;
        }
        EXPECT_EQ(p->value.shape(), p->shape());
        const auto n = static_cast<std::size_t>(p->spec.shape.numel());
        std::vector<float>& whole = together[p->spec.name];
        whole.resize(n);
        std::vector<int>& counted = times[p->spec.name];
        counted.resize(n);
        const float* const values = p->value.data<float>();
        paste(p->spec.shape, p->shard.slice, {values, static_cast<std::size_t>(p->value.numel())},
              whole);
        const bool copy =
            p->spec.sharding.expert >= 0 ? at.expert_data > 0 : at.data > 0 || p->shard.replica > 0;
        const SliceIndex slice(p->spec.shape, p->shard.slice);
        for (std::int64_t i = 0; i < slice.elements(); ++i)
          counted[static_cast<std::size_t>(slice.to_global(i))] += !copy;
      }
    }
    for (const Parameter* p : reference.catalogue()) {
      const float* const values = p->value.data<float>();
      EXPECT_EQ(together[p->spec.name], std::vector<float>(values, values + p->value.numel()))
          << p->spec.name << " of " << mesh.layout().to_string();
      for (const int n : times[p->spec.name]) ASSERT_EQ(n, 1) << p->spec.name;
    }
  }
}

TEST(ParameterStore, WhatIsReducedAlikeLiesSideBySide) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream();
  ParameterStore store(
      {.tensor = {3, 4}, .expert = {1, 2}, .sequence_parallel = SequenceParallel::yes});
  declare_all(store);
  store.allocate(*device, *stream, DType::bf16);
  std::int64_t next = 0, parameters = 0;
  for (const ParameterSegment& segment : store.segments()) {
    EXPECT_EQ(segment.begin, next);
    next += segment.count;
    for (const Parameter& p : store.parameters()) {
      if (p.offset < segment.begin || p.offset >= segment.begin + segment.count) continue;
      ++parameters;
      EXPECT_EQ(p.shard.reduction, segment.reduction) << p.spec.name;
      EXPECT_EQ(p.shard.counts(), segment.counts) << p.spec.name;
      EXPECT_LE(p.offset + p.value.numel(), next);
      EXPECT_EQ(p.master.raw(), store.flat_masters().slice(p.offset, 1).raw());
      EXPECT_EQ(p.gradient.raw(), store.flat_gradients().slice(p.offset, 1).raw());
    }
  }
  EXPECT_EQ(next, store.flat_gradients().numel());
  EXPECT_EQ(parameters, std::ssize(store.parameters()));
  // Sharded, sharded with replicas, replicated, experts.
  EXPECT_EQ(store.segments().size(), 4u);
  // The experts of this rank are a stack.
  EXPECT_EQ(store.stacked(*store.find("experts.4.up"), 4, ParameterStore::Field::value).shape(),
            (Shape{4, 8, 64}));
  EXPECT_EQ(store.parameters().size(), 5u + 2 * 4);
}

}  // namespace
}  // namespace orchard::testing
