// Every operation of a group against a plain computation. Run under mpirun; every rank knows what
// every other rank contributes, and so what each must receive. Memory of every device that there is
// must do.
#include <gmock/gmock.h>

#include <algorithm>
#include <random>

#include "comm/nccl.h"
#include "tests/comm/find_nccl.h"
#include "tests/comm/ranks_test.h"
#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

// One element, fewer than ranks, around a cache line, more than the small all-reduce takes, and an
// odd number.
constexpr std::int64_t sizes[] = {0, 1, 2, 31, 32, 33, 257, 5001, 70'001};

// What the member with this world rank contributes: every rank makes everybody's, so they are made quickly.
// The exponent varies, so that sums in another order differ.
Guarded contribution(DType dtype, std::int64_t size, int member, unsigned salt = 0) {
  Guarded values(dtype, {size});
  std::mt19937 engine(1000 * salt + static_cast<unsigned>(member) + 1);
  for (std::int64_t i = 0; i < size; ++i)
    values.set(i, dtype == DType::f32 || dtype == DType::bf16
                      ? (engine() / 4294967296.0 - 0.5) * (1 << (i + member) % 9)
                      : engine() % 100);
  return values;
}

// The sum that the interface promises: fp32, in rank order, rounded once.
Guarded expected_sum(DType dtype, std::int64_t size, const Communicator& group, unsigned salt = 0) {
  std::vector<float> sums(static_cast<std::size_t>(size));
  for (int r = 0; r < group.size(); ++r) {
    const Guarded values =
        contribution(dtype, size, group.members()[static_cast<std::size_t>(r)], salt);
    for (std::int64_t i = 0; i < size; ++i) {
      float& sum = sums[static_cast<std::size_t>(i)];
      const auto value = static_cast<float>(values.at(i));
      sum = r == 0 ? value : sum + value;
    }
  }
  Guarded expected(dtype, {size});
  for (std::int64_t i = 0; i < size; ++i) expected.set(i, sums[static_cast<std::size_t>(i)]);
  return expected;
}

int own_world_rank(const Communicator& group) {
  return group.members()[static_cast<std::size_t>(group.rank())];
}

// Elements [begin, begin + count) of a host tensor.
Tensor part(Guarded& whole, std::int64_t begin, std::int64_t count) {
  return whole.tensor().slice(begin, count);
}

bool same(const Tensor& a, const Tensor& b) {
  return a.size_bytes() == b.size_bytes() &&
         (a.size_bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.size_bytes()) == 0);
}

// Uneven, with ranks that have nothing, and each rank has the most in one of the patterns.
std::vector<std::int64_t> uneven_counts(int ranks, int pattern, std::int64_t unit) {
  std::vector<std::int64_t> counts;
  counts.reserve(static_cast<std::size_t>(ranks));
  for (int r = 0; r < ranks; ++r) counts.push_back((r + pattern) % 3 * unit + (r == pattern));
  return counts;
}

std::int64_t sum_of(std::span<const std::int64_t> counts, int up_to) {
  return std::accumulate(counts.begin(), counts.begin() + up_to, std::int64_t{0});
}

// How messages between devices travel.
enum class Transport { mpi, nccl };

struct Case {
  Transport transport = Transport::mpi;
};

class Collectives : public DeviceTest<Case> {
 protected:
  void SetUp() override {
    DeviceTest<Case>::SetUp();
    if (IsSkipped() || parameter().transport == Transport::mpi) return;
    if (world_->size() == 1) GTEST_SKIP() << "one rank has nobody to talk to";
    const auto [library, absence] = find_nccl(kind(), world_->size());
    if (!library) GTEST_SKIP() << absence;
    // Segments so small that buffers of these tests take several.
    mpi_world_ =
        std::exchange(world_, make_nccl_world(*world_, {.device = stream().device(),
                                                        .library = library,
                                                        .segment_bytes = std::size_t{1} << 20}));
  }
  int place() const override { return world_->rank(); }

  void in_every_group(const std::function<void(Communicator&)>& body) {
    for_each_group(*world_, body);
  }
  // Waits for an operation whose results are these, and brings them to their host tensors.
  void settle(Pending pending, std::initializer_list<OnDevice*> results) {
    pending.wait(stream());
    download(results);
  }
  void download(std::initializer_list<OnDevice*> results) {
    for (OnDevice* const result : results) result->download();
    stream().synchronize();
  }

  std::unique_ptr<Communicator> mpi_world_, world_ = session->world();
};

INSTANTIATE_TEST_SUITE_P(Devices, Collectives,
                         ::testing::Combine(every_device(), ::testing::Values(Case{})),
                         device_test_name<Case>);
INSTANTIATE_TEST_SUITE_P(Nccl, Collectives,
                         ::testing::Combine(every_gpu(), ::testing::Values(Case{Transport::nccl})),
                         device_test_name<Case>);

TEST_P(Collectives, AllReduceSumsInRankOrder) {
  in_every_group([&](Communicator& group) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t size : sizes) {
        Guarded buffer = contribution(dtype, size, own_world_rank(group));
        OnDevice buffer_d = on_device(buffer);
        settle(group.all_reduce_sum(stream(), buffer_d), {&buffer_d});
        EXPECT_TRUE(buffer == expected_sum(dtype, size, group)) << name_of(dtype) << " " << size;
      }
    }
  });
}

// What order of summation means: a buffer reduced in two parts has the bits of one reduced whole.
TEST_P(Collectives, CuttingABufferChangesNoBit) {
  const std::int64_t size = 3'000'017;  // several segments
  Guarded whole = contribution(DType::f32, size, world_->rank()), cut = whole;
  OnDevice whole_d = on_device(whole), cut_d = on_device(cut);
  settle(world_->all_reduce_sum(stream(), whole_d), {&whole_d});
  Pending first = world_->all_reduce_sum(stream(), cut_d.tensor().slice(0, 1'234'567));
  Pending second =
      world_->all_reduce_sum(stream(), cut_d.tensor().slice(1'234'567, size - 1'234'567));
  second.wait(stream());
  first.wait(stream());
  download({&cut_d});
  EXPECT_TRUE(whole == cut);
}

TEST_P(Collectives, ReduceScatterGivesEachRankItsPartOfTheSum) {
  in_every_group([&](Communicator& group) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t size : sizes) {
        const std::int64_t all = size * group.size();
        Guarded in = contribution(dtype, all, own_world_rank(group)), mine(dtype, {size});
        const Guarded untouched = in;
        OnDevice in_d = on_device(in), mine_d = on_device(mine);
        settle(group.reduce_scatter_sum(stream(), mine_d, in_d), {&mine_d, &in_d});
        Guarded expected = expected_sum(dtype, all, group);
        EXPECT_TRUE(same(mine, part(expected, size * group.rank(), size))) << size;
        EXPECT_TRUE(in == untouched);
      }
    }
  });
}

TEST_P(Collectives, UnevenReduceScatterInPlace) {
  in_every_group([&](Communicator& group) {
    for (int pattern = 0; pattern < group.size(); ++pattern) {
      for (const std::int64_t unit : {0, 1, 700}) {
        const auto counts = uneven_counts(group.size(), pattern, unit);
        const std::int64_t all = sum_of(counts, group.size()), begin = sum_of(counts, group.rank()),
                           own = counts[static_cast<std::size_t>(group.rank())];
        Guarded buffer = contribution(DType::f32, all, own_world_rank(group)), before = buffer;
        OnDevice buffer_d = on_device(buffer);
        settle(group.reduce_scatter_sum(stream(), buffer_d.tensor().slice(begin, own), buffer_d,
                                        counts),
               {&buffer_d});
        Guarded expected = expected_sum(DType::f32, all, group);
        EXPECT_TRUE(same(part(buffer, begin, own), part(expected, begin, own)));
        EXPECT_TRUE(same(part(buffer, 0, begin), part(before, 0, begin))) << "others' parts";
      }
    }
  });
}

TEST_P(Collectives, AllGatherPutsEveryRanksPartInItsPlace) {
  in_every_group([&](Communicator& group) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::i32, DType::i64, DType::u8}) {
      for (int pattern = 0; pattern < group.size(); ++pattern) {
        const auto counts = uneven_counts(group.size(), pattern, 100);
        const std::int64_t begin = sum_of(counts, group.rank()),
                           own = counts[static_cast<std::size_t>(group.rank())];
        Guarded all = zeros(dtype, {sum_of(counts, group.size())});
        Guarded mine = contribution(dtype, own, own_world_rank(group)), in_place = all;
        OnDevice all_d = on_device(all), mine_d = on_device(mine), in_place_d = on_device(in_place);
        settle(group.all_gather(stream(), all_d, mine_d, counts), {&all_d});
        const Tensor place = in_place_d.tensor().slice(begin, own);
        stream().copy(place, mine_d);
        settle(group.all_gather(stream(), in_place_d, place, counts), {&in_place_d});
        for (int r = 0; r < group.size(); ++r) {
          const std::int64_t count = counts[static_cast<std::size_t>(r)];
          Guarded theirs = contribution(dtype, count, group.members()[static_cast<std::size_t>(r)]);
          EXPECT_TRUE(same(part(all, sum_of(counts, r), count), theirs));
        }
        EXPECT_TRUE(all == in_place);
      }
    }
  });
}

TEST_P(Collectives, EvenAllGatherNeedsNoCounts) {
  in_every_group([&](Communicator& group) {
    for (const std::int64_t size : sizes) {
      Guarded mine = contribution(DType::f32, size, own_world_rank(group));
      Guarded all(DType::f32, {size * group.size()});
      OnDevice all_d = on_device(all), mine_d = on_device(mine);
      settle(group.all_gather(stream(), all_d, mine_d), {&all_d});
      for (int r = 0; r < group.size(); ++r) {
        Guarded theirs =
            contribution(DType::f32, size, group.members()[static_cast<std::size_t>(r)]);
        EXPECT_TRUE(same(part(all, r * size, size), theirs)) << size << " of " << r;
      }
    }
  });
}

TEST_P(Collectives, BroadcastFromEveryRoot) {
  in_every_group([&](Communicator& group) {
    for (int root = 0; root < group.size(); ++root) {
      for (const std::int64_t size : sizes) {
        Guarded buffer = contribution(DType::bf16, size, own_world_rank(group));
        OnDevice buffer_d = on_device(buffer);
        settle(group.broadcast(stream(), buffer_d, root), {&buffer_d});
        EXPECT_TRUE(buffer == contribution(DType::bf16, size,
                                           group.members()[static_cast<std::size_t>(root)]));
      }
    }
  });
}

// Rows that rank `from` of the group sends to rank `to`.
using RowRule = std::function<std::int64_t(int from, int to)>;

struct NamedRule {
  const char* name;
  RowRule rows;
};

TEST_P(Collectives, AllToAllWithUnevenRows) {
  constexpr std::int64_t width = 5;
  const NamedRule rules[] = {
      {"uneven", [](int from, int to) { return (3 * from + 5 * to) % 7; }},
      {"nobody sends", [](int, int) { return 0; }},
      {"all to the last", [](int from, int to) { return to == 0 ? 100 + from : 0; }},
      {"only to itself", [](int from, int to) { return from == to ? 4 : 0; }},
      {"many", [](int from, int to) { return 2000 + from - to; }},
  };
  in_every_group([&](Communicator& group) {
    for (const auto& [name, rows] : rules) {
      SCOPED_TRACE(name);
      std::vector<std::int64_t> sends, receives;
      for (int r = 0; r < group.size(); ++r) {
        sends.push_back(rows(group.rank(), r));
        receives.push_back(rows(r, group.rank()));
      }
      // An element says who sent it to whom, and which it is.
      const auto element = [](int from, int to, std::int64_t i) {
        return 1'000'000.0 * from + 100'000.0 * to + static_cast<double>(i);
      };
      const auto fill = [&](Guarded& tensor, std::span<const std::int64_t> counts, auto value) {
        std::int64_t next = 0;
        for (int r = 0; r < group.size(); ++r)
          for (std::int64_t i = 0; i < counts[static_cast<std::size_t>(r)] * width; ++i)
            tensor.set(next++, value(r, i));
      };
      Guarded in(DType::i32, {sum_of(sends, group.size()), width});
      Guarded out(DType::i32, {sum_of(receives, group.size()), width}), expected = out;
      fill(in, sends, [&](int to, std::int64_t i) { return element(group.rank(), to, i); });
      fill(expected, receives,
           [&](int from, std::int64_t i) { return element(from, group.rank(), i); });
      OnDevice in_d = on_device(in), out_d = on_device(out);
      settle(group.all_to_all(
                 stream(),
                 {.send = in_d, .receive = out_d, .send_rows = sends, .receive_rows = receives}),
             {&out_d});
      EXPECT_TRUE(out == expected);
    }
  });
}

// Rank r sends r + 1 elements round the ring both ways, twice, and one message to itself.
TEST_P(Collectives, ExchangeDeliversInOrder) {
  in_every_group([&](Communicator& group) {
    const int rank = group.rank(), size = group.size();
    const int left = (rank + size - 1) % size, right = (rank + 1) % size;
    const auto message = [](int from, int number) {
      return contribution(DType::f32, 3000 * from + 1, from, static_cast<unsigned>(number));
    };
    Guarded first = message(rank, 1), second = message(rank, 2), third = message(rank, 3);
    Guarded from_left(DType::f32, {3000 * left + 1}), again = from_left,
                                                      own(DType::f32, {3000 * rank + 1});
    // In a group of one or two, left and right may be the same rank, or this one.
    OnDevice first_d = on_device(first), second_d = on_device(second), third_d = on_device(third),
             from_left_d = on_device(from_left), again_d = on_device(again), own_d = on_device(own);
    const std::vector<Outgoing> sends{{first_d, right}, {second_d, right}, {third_d, rank}};
    const std::vector<Incoming> receives{{from_left_d, left}, {again_d, left}, {own_d, rank}};
    settle(group.exchange(stream(), sends, receives), {&from_left_d, &again_d, &own_d});
    EXPECT_TRUE(from_left == message(left, 1));
    EXPECT_TRUE(again == message(left, 2));
    EXPECT_TRUE(own == message(rank, 3));
  });
}

// As stages of a pipeline do: what a rank will receive is asked for ahead of what it sends before, and
// rank 0 both gives and takes, as where a pipeline goes round more than once.
TEST_P(Collectives, ReceivesAskedForAheadHoldNoSendUp) {
  in_every_group([&](Communicator& group) {
    if (group.size() == 1) return;
    constexpr std::int64_t size = 70'001;
    constexpr int messages = 3;
    const int rank = group.rank(), ranks = group.size();
    const int left = (rank + ranks - 1) % ranks, right = (rank + 1) % ranks;
    std::vector<Guarded> in, out;
    std::vector<OnDevice> in_d, out_d;
    in.reserve(messages), out.reserve(messages);
    std::vector<Pending> arrivals, departures;
    for (unsigned m = 0; m < messages; ++m) {
      in.push_back(zeros(DType::f32, {size}));
      in_d.push_back(on_device(in.back()));
      const Incoming incoming[] = {{.data = in_d.back(), .from = left}};
      arrivals.push_back(group.exchange(stream(), {}, incoming));
    }
    // Rank 0 begins; every other passes on what it got.
    for (unsigned m = 0; m < messages; ++m) {
      out.push_back(contribution(DType::f32, size, 7, m));
      out_d.push_back(on_device(out.back()));
      if (rank > 0) {
        arrivals[m].wait(stream());
        stream().copy(out_d.back(), in_d[m].tensor());
      }
      const Outgoing outgoing[] = {{.data = out_d.back(), .to = right}};
      departures.push_back(group.exchange(stream(), outgoing, {}));
    }
    for (Pending& pending : departures) pending.wait(stream());
    for (unsigned m = 0; m < messages; ++m) {
      if (rank == 0) arrivals[m].wait(stream());
      download({&in_d[m]});
      EXPECT_TRUE(in[m] == contribution(DType::f32, size, 7, m));
    }
  });
}

// Two ranks may wait for two operations in opposite order.
TEST_P(Collectives, HandlesMayBeWaitedForInAnyOrder) {
  in_every_group([&](Communicator& group) {
    constexpr std::int64_t size = 100'003;
    std::vector<Guarded> buffers;
    std::vector<OnDevice> buffers_d;
    std::vector<Pending> pending;
    buffers.reserve(6);
    for (unsigned i = 0; i < 6; ++i) {
      buffers.push_back(contribution(DType::f32, size, own_world_rank(group), i));
      buffers_d.push_back(on_device(buffers.back()));
      pending.push_back(group.all_reduce_sum(stream(), buffers_d.back()));
    }
    for (std::size_t i = 0; i < pending.size(); ++i)
      pending[group.rank() % 2 ? i : pending.size() - 1 - i].wait(stream());
    for (unsigned i = 0; i < 6; ++i) {
      download({&buffers_d[i]});
      EXPECT_TRUE(buffers[i] == expected_sum(DType::f32, size, group, i));
    }
  });
}

// A group inside another, and its parent, at once.
TEST_P(Collectives, OverlappingGroupsDoNotMixTheirMessages) {
  const int rank = world_->rank(), pair = rank / 2 * 2;
  std::vector<int> places{pair};
  if (pair + 1 < world_->size()) places.push_back(pair + 1);
  const auto group = world_->make_group("pair", places);
  constexpr std::int64_t size = 40'001;
  Guarded mine = contribution(DType::f32, size, rank), ours = mine, pairs = mine;
  OnDevice ours_d = on_device(ours), pairs_d = on_device(pairs);
  Pending of_world = world_->all_reduce_sum(stream(), ours_d);
  settle(group->all_reduce_sum(stream(), pairs_d), {&pairs_d});
  settle(std::move(of_world), {&ours_d});
  EXPECT_TRUE(ours == expected_sum(DType::f32, size, *world_));
  EXPECT_TRUE(pairs == expected_sum(DType::f32, size, *group));
}

TEST_P(Collectives, AForgottenHandleWaits) {
  constexpr std::int64_t size = 50'001;
  Guarded buffer = contribution(DType::f32, size, world_->rank());
  OnDevice buffer_d = on_device(buffer);
  {
    const Pending forgotten = world_->all_reduce_sum(stream(), buffer_d);
    // One rank alone has nothing to wait for.
    EXPECT_EQ(forgotten.is_waited_for(), world_->size() == 1);
  }
  download({&buffer_d});
  EXPECT_TRUE(buffer == expected_sum(DType::f32, size, *world_));
  Pending moved;
  Guarded other = contribution(DType::f32, size, world_->rank());
  OnDevice other_d = on_device(other);
  moved = world_->all_reduce_sum(stream(), other_d);
  moved.wait(stream());
  EXPECT_TRUE(moved.is_waited_for());
  download({&other_d});
  EXPECT_TRUE(other == buffer);
}

TEST_P(Collectives, HostValues) {
  in_every_group([&](Communicator& group) {
    const int me = own_world_rank(group), ranks = group.size();
    std::vector<double> sums{0.1 * me, 1, -0x1p900}, largest{1.0 * me, -1.0 * me, -5};
    group.sum_on_host(sums);
    group.max_on_host(largest);
    double tenths = 0;
    for (int r = 0; r < ranks; ++r) {
      const double value = 0.1 * group.members()[static_cast<std::size_t>(r)];
      tenths = r == 0 ? value : tenths + value;
    }
    EXPECT_EQ(sums, (std::vector<double>{tenths, 1.0 * ranks, -0x1p900 * ranks}));
    const auto [low, high] = std::ranges::minmax(group.members());
    EXPECT_EQ(largest, (std::vector<double>{1.0 * high, -1.0 * low, -5}));
    const std::vector<std::int64_t> mine{me, -me};
    std::vector<std::int64_t> all(static_cast<std::size_t>(2 * ranks)), expected;
    for (const int member : group.members()) expected.insert(expected.end(), {member, -member});
    group.all_gather_on_host(mine, all);
    EXPECT_EQ(all, expected);
    group.barrier();
  });
}

TEST_P(Collectives, GroupsKnowTheirNamesMembersAndNodes) {
  const int ranks = world_->size();
  std::vector<int> backwards(static_cast<std::size_t>(ranks));
  std::iota(backwards.rbegin(), backwards.rend(), 0);
  const auto two_a_node = session->world({.ranks_per_node = 2});
  const auto group = two_a_node->make_group("tp", backwards);
  EXPECT_EQ(group->name(), "tp");
  EXPECT_EQ(group->rank(), ranks - 1 - world_->rank());
  const auto again = group->make_group("ep", backwards);  // places of `group`: forwards again
  for (int r = 0; r < ranks; ++r) {
    const auto i = static_cast<std::size_t>(r);
    EXPECT_EQ(group->members()[i], ranks - 1 - r);
    EXPECT_EQ(group->nodes()[i], (ranks - 1 - r) / 2);
    EXPECT_EQ(again->members()[i], r);
    EXPECT_EQ(world_->nodes()[i], 0) << "mpirun starts tests on one machine";
  }
}

// MPI counts are ints. In host memory; off by default: it wants 3 GB a rank.
TEST_P(Collectives, DISABLED_MovesMoreThanTwoGigabytes) {
  constexpr std::int64_t size = (std::int64_t{5} << 29) + 3;  // two and a half pieces
  const auto value = [](int rank, std::int64_t i) {
    return static_cast<std::uint8_t>(i * 7 + i / 1'000'003 + rank);
  };
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i)
    bytes[static_cast<std::size_t>(i)] = value(world_->rank(), i);
  const Tensor all(bytes.data(), DType::u8, {size}, DeviceKind::cpu);
  world_->broadcast(stream(), all, world_->size() - 1).wait(stream());
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < size; ++i)
    wrong += bytes[static_cast<std::size_t>(i)] != value(world_->size() - 1, i);
  EXPECT_EQ(wrong, 0);
  // The first rank has nearly everything.
  std::vector<std::int64_t> counts(static_cast<std::size_t>(world_->size()), 1);
  counts[0] = size - world_->size() + 1;
  const std::int64_t begin = sum_of(counts, world_->rank());
  for (std::int64_t i = begin; i < begin + counts[static_cast<std::size_t>(world_->rank())]; ++i)
    bytes[static_cast<std::size_t>(i)] = value(world_->rank(), i);
  world_
      ->all_gather(stream(), all,
                   all.slice(begin, counts[static_cast<std::size_t>(world_->rank())]), counts)
      .wait(stream());
  for (int r = 0; r < world_->size(); ++r)
    for (std::int64_t i = sum_of(counts, r); i < sum_of(counts, r + 1); ++i)
      wrong += bytes[static_cast<std::size_t>(i)] != value(r, i);
  EXPECT_EQ(wrong, 0);
}

TEST_P(Collectives, CountsCallsAndBytes) {
  Guarded buffer = zeros(DType::f32, {100});
  const auto before = world_->statistics(CommOp::all_reduce);
  OnDevice buffer_d = on_device(buffer);
  world_->all_reduce_sum(stream(), buffer_d).wait(stream());
  world_->all_reduce_sum(stream(), buffer_d.tensor().slice(0, 7)).wait(stream());
  const auto after = world_->statistics(CommOp::all_reduce);
  EXPECT_EQ(after.calls - before.calls, 2);
  EXPECT_EQ(after.bytes - before.bytes, 428);
  EXPECT_GE(after.seconds, before.seconds);
}

// What a graph sends goes again with each replay, in turn with what the group sends without, before it
// and behind it: also where that is of another stream, which comes to it late on one rank.
TEST_P(Collectives, GraphsSendAgain) {
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(world_->size()), 1);
  const std::int64_t size = 5001, ranks = world_->size();
  if (!world_->is_captured_on(stream().device())) {
    EXPECT_THAT(message_of([&] { (void)world_->capture(stream(), [] {}); }),
                ::testing::HasSubstr("through host memory"));
    return;
  }
  Guarded sum(DType::f32, {size}), sent(DType::i32, {ranks, 100}), arrived = sent, spare = sent;
  Guarded before(DType::f32, {size}), behind(DType::f32, {size});
  OnDevice sum_d = on_device(sum), sent_d = on_device(sent), arrived_d = on_device(arrived);
  OnDevice spare_d = on_device(spare);
  OnDevice before_d = on_device(before), behind_d = on_device(behind);
  const auto work = [&] {
    Pending reduced = world_->all_reduce_sum(stream(), sum_d);
    world_
        ->all_to_all(stream(), {.send = sent_d.tensor(),
                                .receive = arrived_d.tensor(),
                                .send_rows = rows,
                                .receive_rows = rows})
        .wait(stream());
    reduced.wait(stream());
  };
  const auto other = stream().device().make_stream();
  const auto uploaded = stream().device().make_event();
  const auto dawdle = [&] {
    for (int i = 0; world_->rank() == 0 && i < 20; ++i) other->copy(spare_d, sent_d);
  };
  work();  // the workspaces have their sizes from now on
  const OperationStatistics logged = world_->statistics(CommOp::all_reduce);
  const std::int64_t number = world_->last_number();
  const auto graph = world_->capture(stream(), work);
  EXPECT_EQ(world_->last_number(), number) << "recording is no operation";
  for (unsigned salt = 1; salt <= 3; ++salt) {
    sum = contribution(DType::f32, size, world_->rank(), salt);
    before = contribution(DType::f32, size, world_->rank(), 10 * salt);
    behind = contribution(DType::f32, size, world_->rank(), 100 * salt);
    for (std::int64_t i = 0; i < sent.size(); ++i) {
      const std::int64_t receiver = i / 100;
      sent.set(i, static_cast<double>(1000 * salt + 100 * world_->rank() + receiver));
    }
    for (OnDevice* const x : {&sum_d, &sent_d, &before_d, &behind_d}) x->upload();
    uploaded->record(stream());
    other->wait(*uploaded);
    dawdle();
    Pending first = world_->all_reduce_sum(*other, before_d);
    graph->replay(stream());
    EXPECT_EQ(world_->last_operation(),
              fmt::format("graph {} of group world", number + 3 * salt - 1));
    dawdle();
    Pending last = world_->all_reduce_sum(*other, behind_d);
    last.wait(stream());
    first.wait(stream());
    download({&sum_d, &arrived_d, &before_d, &behind_d});
    EXPECT_TRUE(sum == expected_sum(DType::f32, size, *world_, salt)) << salt;
    EXPECT_TRUE(before == expected_sum(DType::f32, size, *world_, 10 * salt)) << salt;
    EXPECT_TRUE(behind == expected_sum(DType::f32, size, *world_, 100 * salt)) << salt;
    for (int r = 0; r < ranks; ++r)
      ASSERT_EQ(arrived.at(100 * r), 1000 * salt + 100 * r + world_->rank());
  }
  world_->barrier();  // the log has heard of all that is done
  EXPECT_EQ(world_->statistics(CommOp::all_reduce).calls - logged.calls, 6);
  EXPECT_EQ(world_->statistics(CommOp::graph).calls, 3);
  EXPECT_EQ(world_->statistics(CommOp::graph).bytes, 3 * 4 * (size + 100 * ranks));
  EXPECT_GT(world_->statistics(CommOp::graph).seconds, 0);
}

TEST_P(Collectives, AGraphHoldsNothingElse) {
  if (!world_->is_captured_on(stream().device())) GTEST_SKIP() << "no graphs";
  std::vector<int> all(static_cast<std::size_t>(world_->size()));
  std::iota(all.begin(), all.end(), 0);
  const auto other = world_->make_group("other", all);
  Guarded buffer = contribution(DType::f32, 100, world_->rank());
  OnDevice buffer_d = on_device(buffer);
  const auto in_capture = [&](const std::function<void()>& work) {
    return message_of([&] { (void)world_->capture(stream(), work); });
  };
  EXPECT_THAT(in_capture([&] { (void)other->all_reduce_sum(stream(), buffer_d); }),
              ::testing::HasSubstr("group other communicates inside a capture of group world"));
  EXPECT_THAT(in_capture([&] { world_->barrier(); }), ::testing::HasSubstr("barrier of group"));
  EXPECT_THAT(in_capture([&] { (void)world_->exchange(stream(), {}, {}); }),
              ::testing::HasSubstr("exchange of group"));
  settle(world_->all_reduce_sum(stream(), buffer_d), {&buffer_d});
  EXPECT_TRUE(buffer == expected_sum(DType::f32, 100, *world_));
}

TEST_P(Collectives, RefuseWhatCannotBe) {
  Guarded integers(DType::i32, {4}), floats = zeros(DType::f32, {4});
  EXPECT_THROW((void)world_->all_reduce_sum(stream(), integers), Error);
  EXPECT_THROW((void)world_->broadcast(stream(), floats, world_->size()), Error);
  EXPECT_THROW((void)world_->all_gather(stream(), floats, integers), Error);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(world_->size()), 3);
  EXPECT_THROW((void)world_->reduce_scatter_sum(stream(), floats, floats, counts), Error);
  EXPECT_THROW((void)world_->make_group("none", std::vector<int>{world_->size()}), Error);
  EXPECT_THROW((void)world_->make_group("twice", std::vector<int>{world_->rank(), world_->rank()}),
               Error);
  EXPECT_THROW((void)world_->exchange(stream(), std::vector<Outgoing>{{floats, -1}}, {}), Error);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
