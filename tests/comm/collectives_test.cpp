// Every operation of a group against a plain computation. Run under mpirun; every rank knows what
// every other rank contributes, and so what each must receive.
#include <algorithm>

#include "tests/comm/ranks_test.h"
#include "tests/kernels/op_test.h"

namespace orchard::testing {
namespace {

// One element, fewer than ranks, around a cache line, more than the small all-reduce takes, and an
// odd number.
constexpr std::int64_t sizes[] = {0, 1, 2, 31, 32, 33, 257, 5001, 70'001};

// What the member with this world rank contributes. The exponent varies, so that sums in another
// order differ.
Guarded contribution(DType dtype, std::int64_t size, int member, unsigned salt = 0) {
  Guarded values = random_normal(dtype, {size}, 1000 * salt + static_cast<unsigned>(member) + 1);
  for (std::int64_t i = 0; i < size; ++i)
    values.set(i, dtype == DType::f32 || dtype == DType::bf16
                      ? std::ldexp(values.at(i), static_cast<int>((i + member) % 9))
                      : std::round(100 * std::abs(values.at(i))));
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

class Collectives : public ::testing::Test {
 protected:
  void in_every_group(const std::function<void(Communicator&)>& body) {
    for_each_group(*world_, body);
  }

  std::unique_ptr<Communicator> world_ = session->world();
  std::unique_ptr<Stream> stream_ = cpu_device().make_stream();
};

TEST_F(Collectives, AllReduceSumsInRankOrder) {
  in_every_group([&](Communicator& group) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t size : sizes) {
        Guarded buffer = contribution(dtype, size, own_world_rank(group));
        group.all_reduce_sum(*stream_, buffer).wait(*stream_);
        EXPECT_TRUE(buffer == expected_sum(dtype, size, group)) << name_of(dtype) << " " << size;
      }
    }
  });
}

// What order of summation means: a buffer reduced in two parts has the bits of one reduced whole.
TEST_F(Collectives, CuttingABufferChangesNoBit) {
  const std::int64_t size = 3'000'017;  // several segments
  Guarded whole = contribution(DType::f32, size, world_->rank()), cut = whole;
  world_->all_reduce_sum(*stream_, whole).wait(*stream_);
  Pending first = world_->all_reduce_sum(*stream_, part(cut, 0, 1'234'567));
  Pending second = world_->all_reduce_sum(*stream_, part(cut, 1'234'567, size - 1'234'567));
  second.wait(*stream_);
  first.wait(*stream_);
  EXPECT_TRUE(whole == cut);
}

TEST_F(Collectives, ReduceScatterGivesEachRankItsPartOfTheSum) {
  in_every_group([&](Communicator& group) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const std::int64_t size : sizes) {
        const std::int64_t all = size * group.size();
        Guarded in = contribution(dtype, all, own_world_rank(group)), mine(dtype, {size});
        const Guarded untouched = in;
        group.reduce_scatter_sum(*stream_, mine, in).wait(*stream_);
        Guarded expected = expected_sum(dtype, all, group);
        EXPECT_TRUE(same(mine, part(expected, size * group.rank(), size))) << size;
        EXPECT_TRUE(in == untouched);
      }
    }
  });
}

TEST_F(Collectives, UnevenReduceScatterInPlace) {
  in_every_group([&](Communicator& group) {
    for (int pattern = 0; pattern < group.size(); ++pattern) {
      for (const std::int64_t unit : {0, 1, 700}) {
        const auto counts = uneven_counts(group.size(), pattern, unit);
        const std::int64_t all = sum_of(counts, group.size()), begin = sum_of(counts, group.rank()),
                           own = counts[static_cast<std::size_t>(group.rank())];
        Guarded buffer = contribution(DType::f32, all, own_world_rank(group)), before = buffer;
        group.reduce_scatter_sum(*stream_, part(buffer, begin, own), buffer, counts).wait(*stream_);
        Guarded expected = expected_sum(DType::f32, all, group);
        EXPECT_TRUE(same(part(buffer, begin, own), part(expected, begin, own)));
        EXPECT_TRUE(same(part(buffer, 0, begin), part(before, 0, begin))) << "others' parts";
      }
    }
  });
}

TEST_F(Collectives, AllGatherPutsEveryRanksPartInItsPlace) {
  in_every_group([&](Communicator& group) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::i32, DType::i64, DType::u8}) {
      for (int pattern = 0; pattern < group.size(); ++pattern) {
        const auto counts = uneven_counts(group.size(), pattern, 100);
        const std::int64_t begin = sum_of(counts, group.rank()),
                           own = counts[static_cast<std::size_t>(group.rank())];
        Guarded all = zeros(dtype, {sum_of(counts, group.size())});
        Guarded mine = contribution(dtype, own, own_world_rank(group)), in_place = all;
        group.all_gather(*stream_, all, mine, counts).wait(*stream_);
        stream_->copy(part(in_place, begin, own), mine);
        group.all_gather(*stream_, in_place, part(in_place, begin, own), counts).wait(*stream_);
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

TEST_F(Collectives, EvenAllGatherNeedsNoCounts) {
  in_every_group([&](Communicator& group) {
    for (const std::int64_t size : sizes) {
      Guarded mine = contribution(DType::f32, size, own_world_rank(group));
      Guarded all(DType::f32, {size * group.size()});
      group.all_gather(*stream_, all, mine).wait(*stream_);
      for (int r = 0; r < group.size(); ++r) {
        Guarded theirs =
            contribution(DType::f32, size, group.members()[static_cast<std::size_t>(r)]);
        EXPECT_TRUE(same(part(all, r * size, size), theirs)) << size << " of " << r;
      }
    }
  });
}

TEST_F(Collectives, BroadcastFromEveryRoot) {
  in_every_group([&](Communicator& group) {
    for (int root = 0; root < group.size(); ++root) {
      for (const std::int64_t size : sizes) {
        Guarded buffer = contribution(DType::bf16, size, own_world_rank(group));
        group.broadcast(*stream_, buffer, root).wait(*stream_);
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

TEST_F(Collectives, AllToAllWithUnevenRows) {
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
      group
          .all_to_all(*stream_,
                      {.send = in, .receive = out, .send_rows = sends, .receive_rows = receives})
          .wait(*stream_);
      EXPECT_TRUE(out == expected);
    }
  });
}

// Rank r sends r + 1 elements round the ring both ways, twice, and one message to itself.
TEST_F(Collectives, ExchangeDeliversInOrder) {
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
    const std::vector<Outgoing> sends{{first, right}, {second, right}, {third, rank}};
    std::vector<Incoming> receives{{from_left, left}, {again, left}, {own, rank}};
    group.exchange(*stream_, sends, receives).wait(*stream_);
    EXPECT_TRUE(from_left == message(left, 1));
    EXPECT_TRUE(again == message(left, 2));
    EXPECT_TRUE(own == message(rank, 3));
  });
}

// Two ranks may wait for two operations in opposite order.
TEST_F(Collectives, HandlesMayBeWaitedForInAnyOrder) {
  in_every_group([&](Communicator& group) {
    constexpr std::int64_t size = 100'003;
    std::vector<Guarded> buffers;
    std::vector<Pending> pending;
    buffers.reserve(6);
    for (unsigned i = 0; i < 6; ++i) {
      buffers.push_back(contribution(DType::f32, size, own_world_rank(group), i));
      pending.push_back(group.all_reduce_sum(*stream_, buffers.back()));
    }
    for (std::size_t i = 0; i < pending.size(); ++i)
      pending[group.rank() % 2 ? i : pending.size() - 1 - i].wait(*stream_);
    for (unsigned i = 0; i < 6; ++i)
      EXPECT_TRUE(buffers[i] == expected_sum(DType::f32, size, group, i));
  });
}

// A group inside another, and its parent, at once.
TEST_F(Collectives, OverlappingGroupsDoNotMixTheirMessages) {
  const int rank = world_->rank(), pair = rank / 2 * 2;
  std::vector<int> places{pair};
  if (pair + 1 < world_->size()) places.push_back(pair + 1);
  const auto group = world_->make_group("pair", places);
  constexpr std::int64_t size = 40'001;
  Guarded mine = contribution(DType::f32, size, rank), ours = mine, pairs = mine;
  Pending of_world = world_->all_reduce_sum(*stream_, ours);
  group->all_reduce_sum(*stream_, pairs).wait(*stream_);
  of_world.wait(*stream_);
  EXPECT_TRUE(ours == expected_sum(DType::f32, size, *world_));
  EXPECT_TRUE(pairs == expected_sum(DType::f32, size, *group));
}

TEST_F(Collectives, AForgottenHandleWaits) {
  constexpr std::int64_t size = 50'001;
  Guarded buffer = contribution(DType::f32, size, world_->rank());
  {
    const Pending forgotten = world_->all_reduce_sum(*stream_, buffer);
    EXPECT_FALSE(forgotten.is_waited_for());
  }
  EXPECT_TRUE(buffer == expected_sum(DType::f32, size, *world_));
  Pending moved;
  Guarded other = contribution(DType::f32, size, world_->rank());
  moved = world_->all_reduce_sum(*stream_, other);
  moved.wait(*stream_);
  EXPECT_TRUE(moved.is_waited_for());
  EXPECT_TRUE(other == buffer);
}

TEST_F(Collectives, HostValues) {
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

TEST_F(Collectives, GroupsKnowTheirNamesMembersAndNodes) {
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

// MPI counts are ints. Off by default: it wants 3 GB a rank.
TEST_F(Collectives, DISABLED_MovesMoreThanTwoGigabytes) {
  constexpr std::int64_t size = (std::int64_t{5} << 29) + 3;  // two and a half pieces
  const auto value = [](int rank, std::int64_t i) {
    return static_cast<std::uint8_t>(i * 7 + i / 1'000'003 + rank);
  };
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i)
    bytes[static_cast<std::size_t>(i)] = value(world_->rank(), i);
  const Tensor all(bytes.data(), DType::u8, {size}, DeviceKind::cpu);
  world_->broadcast(*stream_, all, world_->size() - 1).wait(*stream_);
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
      ->all_gather(*stream_, all,
                   all.slice(begin, counts[static_cast<std::size_t>(world_->rank())]), counts)
      .wait(*stream_);
  for (int r = 0; r < world_->size(); ++r)
    for (std::int64_t i = sum_of(counts, r); i < sum_of(counts, r + 1); ++i)
      wrong += bytes[static_cast<std::size_t>(i)] != value(r, i);
  EXPECT_EQ(wrong, 0);
}

TEST_F(Collectives, CountsCallsAndBytes) {
  Guarded buffer = zeros(DType::f32, {100});
  const auto before = world_->statistics(CommOp::all_reduce);
  world_->all_reduce_sum(*stream_, buffer).wait(*stream_);
  world_->all_reduce_sum(*stream_, part(buffer, 0, 7)).wait(*stream_);
  const auto after = world_->statistics(CommOp::all_reduce);
  EXPECT_EQ(after.calls - before.calls, 2);
  EXPECT_EQ(after.bytes - before.bytes, 428);
  EXPECT_GE(after.seconds, before.seconds);
}

TEST_F(Collectives, RefuseWhatCannotBe) {
  Guarded integers(DType::i32, {4}), floats = zeros(DType::f32, {4});
  EXPECT_THROW((void)world_->all_reduce_sum(*stream_, integers), Error);
  EXPECT_THROW((void)world_->broadcast(*stream_, floats, world_->size()), Error);
  EXPECT_THROW((void)world_->all_gather(*stream_, floats, integers), Error);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(world_->size()), 3);
  EXPECT_THROW((void)world_->reduce_scatter_sum(*stream_, floats, floats, counts), Error);
  EXPECT_THROW((void)world_->make_group("none", std::vector<int>{world_->size()}), Error);
  EXPECT_THROW((void)world_->make_group("twice", std::vector<int>{world_->rank(), world_->rank()}),
               Error);
  EXPECT_THROW((void)world_->exchange(*stream_, std::vector<Outgoing>{{floats, -1}}, {}), Error);
}

}  // namespace
}  // namespace orchard::testing

int main(int argc, char** argv) {
  return orchard::testing::rank_tests_main(argc, argv);
}
