#include "parallel/parameter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>

#include "kernels/core/dtype.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using ::testing::HasSubstr;

class ParameterStoreTest : public ::testing::Test {
 protected:
  ParameterStoreTest() : device_(make_cpu_device()), stream_(device_->make_stream()) {}

  void allocate(ParameterStore& store, DType dtype = DType::f32) {
    store.allocate(*device_, *stream_, dtype);
  }
  static std::vector<float> values_of(const ParameterStore& store, std::string_view name) {
    const ConstTensor master = store.find(name)->master;
    return {master.data<float>(), master.data<float>() + master.numel()};
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

TEST_F(ParameterStoreTest, RefusesWhatCannotBeToldApart) {
  ParameterStore store;
  store.declare({.name = "twin", .shape = {2, 3}});
  EXPECT_THAT(message_of([&] { store.declare({.name = "twin", .shape = {4}}); }),
              HasSubstr("twin"));
  EXPECT_THAT(message_of([&] {
                store.declare({.name = "hollow", .shape = {2, 0}});
              }),
              HasSubstr("hollow"));
  allocate(store);
  EXPECT_THAT(message_of([&] { store.declare({.name = "late", .shape = {4}}); }),
              HasSubstr("late"));
}

TEST_F(ParameterStoreTest, ParametersDoNotOverlap) {
  ParameterStore store;
  for (int i = 0; i < 6; ++i)
    store.declare({.name = std::to_string(i), .shape = {i % 2 ? 1 : 33, i + 1}});
  allocate(store, DType::bf16);
  float next = 1;
  const auto fill = [&](const Tensor& t) {
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      if (t.dtype() == DType::f32)
        t.data<float>()[i] = next++;
      else
        t.data<bf16>()[i] = to_bf16(1);
    }
  };
  for (Parameter& p : store.parameters()) {
    fill(p.master);
    fill(p.gradient);
    fill(p.value);
  }
  next = 1;
  for (const Parameter& p : store.parameters()) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p.master.raw()) % 64, 0u);
    for (const Tensor& t : {p.master, p.gradient}) {
      for (std::int64_t i = 0; i < t.numel(); ++i) ASSERT_EQ(t.data<float>()[i], next++);
    }
  }
}

TEST_F(ParameterStoreTest, CountsElementsWithoutPadding) {
  ParameterStore store;
  store.declare({.name = "a", .shape = {3, 5}});
  store.declare({.name = "b", .shape = {7}, .weight_decay = WeightDecay::yes});
  EXPECT_EQ(store.count(), 22);
  EXPECT_EQ(store.count([](const ParameterSpec& s) { return s.weight_decay == WeightDecay::yes; }),
            7);
  EXPECT_EQ(store.find("c"), nullptr);
}

TEST_F(ParameterStoreTest, AStackIsItsParametersInARow) {
  ParameterStore store;
  store.declare({.name = "before", .shape = {5}});
  const Parameter& first = store.declare({.name = "expert.0", .shape = {4, 8}});
  store.declare({.name = "expert.1", .shape = {4, 8}});
  store.declare({.name = "expert.2", .shape = {4, 8}});
  const Parameter& other = store.declare({.name = "other", .shape = {8, 4}});
  const Parameter& odd = store.declare({.name = "odd", .shape = {3}});
  allocate(store, DType::bf16);
  using Field = ParameterStore::Field;
  for (const Field field : {Field::value, Field::master, Field::gradient}) {
    const Tensor stack = store.stacked(first, 3, field);
    EXPECT_EQ(stack.shape(), (Shape{3, 4, 8}));
    for (int i = 0; i < 3; ++i) {
      const Parameter& p = *store.find("expert." + std::to_string(i));
      const Tensor view = field == Field::value    ? p.value
                          : field == Field::master ? p.master
                                                   : p.gradient;
      EXPECT_EQ(stack.slice(i, 1).raw(), view.raw());
      EXPECT_EQ(stack.dtype(), view.dtype());
    }
  }
  EXPECT_THAT(message_of([&] { store.stacked(first, 4, Field::value); }), HasSubstr("expert.0"));
  EXPECT_THAT(message_of([&] { store.stacked(other, 2, Field::value); }), HasSubstr("other"));
  EXPECT_THAT(message_of([&] { store.stacked(odd, 1, Field::value); }), HasSubstr("multiple"));
}

TEST_F(ParameterStoreTest, InitialValuesDependOnSeedNameAndIndexAlone) {
  const auto initialised = [&](ParameterStore& store, std::uint64_t seed) {
    allocate(store);
    store.initialise(*stream_, seed);
  };
  // Larger than one thread's share.
  const ParameterSpec w{.name = "w", .shape = {130, 97}}, v{.name = "v", .shape = {130, 97}};
  ParameterStore alone, among, renumbered, reseeded;
  alone.declare(w);
  among.declare({.name = "u", .shape = {7}});
  among.declare(v);
  among.declare(w);
  renumbered.declare({.name = "w", .shape = {97 * 130}});
  reseeded.declare(w);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  initialised(alone, 3);
  omp_set_num_threads(3);
  initialised(among, 3);
  omp_set_num_threads(threads);
  initialised(renumbered, 3);
  initialised(reseeded, 4);
  EXPECT_EQ(values_of(alone, "w"), values_of(among, "w"));
  EXPECT_EQ(values_of(alone, "w"), values_of(renumbered, "w"));
  EXPECT_NE(values_of(alone, "w"), values_of(reseeded, "w"));
  EXPECT_NE(values_of(among, "v"), values_of(among, "w"));
}

TEST_F(ParameterStoreTest, InitializersDoWhatTheySay) {
  ParameterStore store;
  constexpr std::int64_t n = 40000;
  store.declare({.name = "ones", .shape = {n}, .initializer = Initializer::ones});
  store.declare({.name = "zeros", .shape = {n}, .initializer = Initializer::zeros});
  store.declare({.name = "normal", .shape = {n}, .std = 0.5});
  store.declare(
      {.name = "cut", .shape = {n}, .initializer = Initializer::truncated_normal, .std = 0.5});
  allocate(store);
  store.initialise(*stream_, 1);
  EXPECT_EQ(values_of(store, "ones"), std::vector<float>(n, 1.0f));
  EXPECT_EQ(values_of(store, "zeros"), std::vector<float>(n, 0.0f));
  const auto deviation = [&](std::string_view name) {
    double square = 0;
    for (const float x : values_of(store, name)) square += static_cast<double>(x) * x;
    return std::sqrt(square / n);
  };
  // The deviation of n normal values has itself the deviation 1/sqrt(2n), relative: five of them.
  const double tolerance = 5 / std::sqrt(2.0 * n);
  EXPECT_NEAR(deviation("normal"), 0.5, 0.5 * tolerance);
  EXPECT_NEAR(deviation("cut"), 0.5 * std::sqrt(0.7737413), 0.5 * tolerance);
  for (const float x : values_of(store, "cut")) ASSERT_LE(std::abs(x), 1.0f);
}

TEST_F(ParameterStoreTest, ValuesAreRoundedMastersAndPaddingIsZero) {
  ParameterStore store;
  store.declare({.name = "a", .shape = {3}});
  store.declare({.name = "b", .shape = {5}});
  allocate(store, DType::bf16);
  store.initialise(*stream_, 9);
  double sum = 0;
  for (const Parameter& p : store.parameters()) {
    for (std::int64_t i = 0; i < p.master.numel(); ++i) {
      EXPECT_EQ(to_float(p.value.data<bf16>()[i]), to_float(to_bf16(p.master.data<float>()[i])));
      sum += std::abs(p.master.data<float>()[i]);
    }
  }
  double flat = 0;
  const ConstTensor all = store.flat_masters();
  for (std::int64_t i = 0; i < all.numel(); ++i) flat += std::abs(all.data<float>()[i]);
  EXPECT_GT(all.numel(), 8);
  EXPECT_EQ(flat, sum);
  const ConstTensor gradients = store.flat_gradients();
  for (std::int64_t i = 0; i < gradients.numel(); ++i) ASSERT_EQ(gradients.data<float>()[i], 0.0f);
}

TEST_F(ParameterStoreTest, ForwardAloneKeepsWhatItReadsAndNothingElse) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    ParameterStore trained, asked;
    for (ParameterStore* store : {&trained, &asked}) {
      store->declare({.name = "a", .shape = {3}});
      store->declare({.name = "b", .shape = {64, 7}});
      store->declare({.name = "c", .shape = {64}, .forward_reads = ForwardReads::master});
      store->declare({.name = "d", .shape = {9}});
    }
    allocate(trained, dtype);
    const std::int64_t before = device_->statistics().live_bytes;
    asked.allocate(*device_, *stream_, dtype, ParameterUse::forward);
    const std::int64_t padded = trained.flat_masters().numel();
    const std::int64_t masters = dtype == DType::bf16 ? 64 * 4 : 0;
    EXPECT_EQ(device_->statistics().live_bytes - before,
              padded * static_cast<std::int64_t>(size_of(dtype)) + masters);
    trained.initialise(*stream_, 9);
    asked.initialise(*stream_, 9);
    for (const Parameter& p : asked.parameters()) {
      const ConstTensor expected = trained.find(p.spec.name)->value;
      EXPECT_EQ(p.value.dtype(), dtype);
      EXPECT_EQ(std::memcmp(p.value.raw(), expected.raw(), expected.size_bytes()), 0);
      EXPECT_FALSE(p.gradient);
      const ConstTensor master = trained.find(p.spec.name)->master;
      EXPECT_EQ(static_cast<bool>(p.master), dtype == DType::f32 || p.spec.name == "c");
      if (p.master) {
        EXPECT_EQ(std::memcmp(p.master.raw(), master.raw(), master.size_bytes()), 0);
      }
    }
    EXPECT_THAT(message_of([&] { asked.zero_gradients(*stream_); }), HasSubstr("gradients"));
    EXPECT_THAT(message_of([&] { asked.declare({.name = "late", .shape = {4}}); }),
                HasSubstr("late"));
  }
}

TEST_F(ParameterStoreTest, RefusesElementsOfAnotherSize) {
  ParameterStore store;
  const Parameter& w = store.declare({.name = "w", .shape = {2, 3}});
  allocate(store);
  const std::vector<float> elements(5);
  EXPECT_THAT(message_of([&] { store.write(*stream_, w, elements); }), HasSubstr("[2, 3]"));
}

}  // namespace
}  // namespace orchard::testing
