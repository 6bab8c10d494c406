// Copies of the copy engine: plain bytes, boxes, and copies across a cluster.
#include "kernels/ptx/bulk_copy.h"
#include "kernels/ptx/cluster.h"
#include "kernels/ptx/fence.h"
#include "kernels/ptx/mbarrier.h"
#include "kernels/ptx/tma.h"
#include "tests/kernels/device_test.h"
#include "tests/kernels/fault_corpus.h"

namespace orchard::simt {
namespace {

// ---- copies of plain bytes -------------------------------------------------------------------

enum class InRoundTrip : std::uint8_t {
  correct,
  initialisation_not_fenced,
  initialisation_not_handed_over,
  not_waited_for,
  odd_size,
  misaligned,
  result_not_fenced,
  result_not_handed_over,
  result_overwritten,
  store_left_in_flight,
};

struct Piece {
  alignas(128) float value[128];
  std::uint64_t arrived;
};

// out = in + 1 by way of shared memory, 128 floats.
__global__ void add_one(const float* in, float* out, InRoundTrip fault) {
  auto& piece = shared_storage<Piece>();
  const unsigned i = threadIdx.x;
  const bool leads = i == 0;
  if (leads) {
    mbarrier_init(&piece.arrived, 1);
    if (fault != InRoundTrip::initialisation_not_fenced) mbarrier_fence_init();
  }
  if (fault != InRoundTrip::initialisation_not_handed_over) __syncthreads();
  if (leads) {
    const unsigned bytes = fault == InRoundTrip::odd_size ? 504 : 512;
    mbarrier_arrive_expect(&piece.arrived, bytes);
    bulk_load(piece.value, in + (fault == InRoundTrip::misaligned ? 1 : 0), bytes, &piece.arrived);
  }
  if (fault != InRoundTrip::not_waited_for || leads) mbarrier_wait(&piece.arrived, 0);
  store_shared(piece.value + i, load_shared(piece.value + i) + 1);
  if (fault != InRoundTrip::result_not_fenced) fence_proxy_async();
  if (fault != InRoundTrip::result_not_handed_over) __syncthreads();
  if (leads) {
    bulk_store(out, piece.value, 512);
    bulk_commit();
    if (fault != InRoundTrip::store_left_in_flight && fault != InRoundTrip::result_overwritten) {
      bulk_wait_read<0>();
    }
  }
  __syncthreads();
  if (fault != InRoundTrip::store_left_in_flight) store_shared(piece.value + i, 0.0f);
  if (leads && fault == InRoundTrip::result_overwritten) bulk_wait<0>();
}

// ---- one box ---------------------------------------------------------------------------------

struct Shared {
  alignas(1024) bf16 box[64 * 64];
  std::uint64_t full, empty;
};

__global__ void load_box(const __grid_constant__ TensorMap map, bool waits) {
  auto& shared = shared_storage<Shared>();
  if (threadIdx.x != 0) return;
  mbarrier_init(&shared.full, 1);
  mbarrier_fence_init();
  mbarrier_arrive_expect(&shared.full, sizeof shared.box);
  tma_load(shared.box, map, 0, 0, 0, &shared.full);
  if (waits) mbarrier_wait(&shared.full, 0);
}

// ---- across a cluster ------------------------------------------------------------------------

enum class InMulticast : std::uint8_t {
  correct,
  peer_not_asked,
  peer_does_not_answer,
  wrong_ranks
};

// The first of two blocks loads box after box for both.
__global__ void multicast(const __grid_constant__ TensorMap map, int* out, InMulticast fault) {
  auto& shared = shared_storage<Shared>();
  const bool leads = threadIdx.x == 0;
  const unsigned rank = cluster_rank();
  const unsigned owners = fault == InMulticast::peer_not_asked ? 1 : 2;
  if (leads) {
    mbarrier_init(&shared.full, 1);
    mbarrier_init(&shared.empty, owners);
    mbarrier_fence_init();
  }
  cluster_barrier_arrive();
  cluster_barrier_wait();
  int sum = 0;
  for (unsigned step = 0; step < 4; ++step) {
    if (leads) mbarrier_arrive_expect(&shared.full, sizeof shared.box);
    if (leads && rank == 0) {
      mbarrier_wait(&shared.empty, step % 2 ^ 1);
      tma_load_multicast(shared.box, map, 0, static_cast<int>(64 * step), 0, &shared.full,
                         fault == InMulticast::wrong_ranks ? 7 : 3);
    }
    mbarrier_wait(&shared.full, step % 2);
    sum += load_shared(reinterpret_cast<const std::uint16_t*>(shared.box) + threadIdx.x);
    __syncthreads();
    const bool answers = rank == 0 || (fault != InMulticast::peer_not_asked &&
                                       fault != InMulticast::peer_does_not_answer);
    if (leads && answers) mbarrier_arrive_in_block(&shared.empty, 0);
  }
  store(out + blockIdx.x * 32 + threadIdx.x, sum);
  cluster_barrier_arrive();
  cluster_barrier_wait();
}

enum class InSending : std::uint8_t { correct, peer_has_ended, peer_does_not_wait };

// The first of two blocks loads one box for both.
__global__ void send_box(const __grid_constant__ TensorMap map, InSending fault) {
  auto& shared = shared_storage<Shared>();
  const bool leads = threadIdx.x == 0, is_peer = cluster_rank() == 1;
  const auto meet = [] {
    cluster_barrier_arrive();
    cluster_barrier_wait();
  };
  if (leads) {
    mbarrier_init(&shared.full, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(&shared.full, sizeof shared.box);
  }
  meet();
  // Who has returned counts as having come to those that follow.
  if (is_peer && fault == InSending::peer_has_ended) return;
  meet();
  if (leads && !is_peer) tma_load_multicast(shared.box, map, 0, 0, 0, &shared.full, 3);
  meet();
  if (is_peer && fault == InSending::peer_does_not_wait) return;
  mbarrier_wait(&shared.full, 0);
  meet();
}

// Every block brings its box to the same place of the tensor.
__global__ void gather(const __grid_constant__ TensorMap map, bool add) {
  auto& shared = shared_storage<Shared>();
  for (unsigned i = threadIdx.x; i < 64 * 64; i += 32) store_shared(shared.box + i, to_bf16(1.0f));
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (add) {
      tma_add(map, shared.box, 0, 0, 0);
    } else {
      tma_store(map, shared.box, 0, 0, 0);
    }
    bulk_commit();
    bulk_wait<0>();
  }
}

}  // namespace
}  // namespace orchard::simt

namespace orchard::testing {
namespace {

using simt::InMulticast;
using simt::InRoundTrip;
using simt::InSending;

simt::TensorMap map_of(const void* data, std::int64_t rows, std::int64_t cols) {
  constexpr int side = 64;
  return simt::make_tensor_map({data, cols, rows, 1, side, side});
}

template <InRoundTrip round_trip>
void run_round_trip(FaultBench& b, bool fault) {
  b.run({.kernel = "k", .block = {128}, .shared_bytes = sizeof(simt::Piece)}, simt::add_one,
        b.zeros<float>(160), b.fresh<float>(128), fault ? round_trip : InRoundTrip::correct);
}
template <InMulticast in_multicast>
void run_multicast(FaultBench& b, bool fault) {
  b.run({.kernel = "k",
         .grid = {2},
         .block = {32},
         .shared_bytes = sizeof(simt::Shared),
         .cluster = {2}},
        simt::multicast, map_of(b.zeros<bf16>(256 * 64), 256, 64), b.fresh<int>(64),
        fault ? in_multicast : InMulticast::correct);
}

template <InSending sending>
void run_sending(FaultBench& b, bool fault) {
  b.run({.kernel = "k",
         .grid = {2},
         .block = {32},
         .shared_bytes = sizeof(simt::Shared),
         .cluster = {2}},
        simt::send_box, map_of(b.zeros<bf16>(64 * 64), 64, 64),
        fault ? sending : InSending::correct);
}
constexpr LaunchShape one_block{.kernel = "k", .block = {32}, .shared_bytes = sizeof(simt::Shared)};

const std::string in_flight = ": it has not been waited for";
const std::string unordered = ": nothing orders the two";
const std::string operation = "an asynchronous operation issued by thread ";

const SeededFault faults[] = {
    {"MbarrierNotFenced",
     FoundBy::calls,
     run_round_trip<InRoundTrip::initialisation_not_fenced>,
     {"the mbarrier was initialised, and no fence made that visible to the copy engine"}},
    {"MbarrierNotHandedOver",
     FoundBy::races,
     run_round_trip<InRoundTrip::initialisation_not_handed_over>,
     {"race: thread (*) changes atomically 8 bytes at *, which thread (0, 0, 0) wrote at *" +
          unordered,
      "there is no initialised mbarrier"}},
    {"ReadsABulkCopyUnwaited",
     FoundBy::races,
     run_round_trip<InRoundTrip::not_waited_for>,
     {"race: thread (*) reads 4 bytes at *, which " + operation + "(0, 0, 0) wrote at *",
      "race: " + operation + "(0, 0, 0) writes 512 bytes at *, which thread (*)",
      "where nothing has been written"}},
    {"BulkCopyOfAnOddSize",
     FoundBy::calls,
     run_round_trip<InRoundTrip::odd_size>,
     {"cp.async.bulk at *: 504 bytes are not a multiple of 16"}},
    {"BulkCopyFromAMisalignedAddress",
     FoundBy::calls,
     run_round_trip<InRoundTrip::misaligned>,
     {"cp.async.bulk at *: an address is not aligned to 16 bytes"}},
    {"NoProxyFenceBeforeBulkStore",
     FoundBy::races,
     run_round_trip<InRoundTrip::result_not_fenced>,
     {"race between proxies: " + operation +
      "(0, 0, 0) reads 512 bytes at *, which thread (*) wrote at *: fence.proxy.async is missing"}},
    {"NoBarrierBeforeBulkStore",
     FoundBy::races,
     run_round_trip<InRoundTrip::result_not_handed_over>,
     {"race: " + operation + "(0, 0, 0) reads 512 bytes at *, which thread (*) wrote at *",
      "race: thread (*) writes 4 bytes at *, which " + operation + "(0, 0, 0) read at *",
      "race: " + operation + "(0, 0, 0) reads 512 bytes at *, which " + operation + "(*) wrote",
      "race between proxies: " + operation + "(0, 0, 0) reads 512 bytes at *"}},
    {"OverwritesTheSourceOfABulkStore",
     FoundBy::races,
     run_round_trip<InRoundTrip::result_overwritten>,
     {"race: thread (*) writes 4 bytes at *, which " + operation + "(0, 0, 0) read at *" +
      in_flight}},
    {"LeavesABulkStoreInFlight",
     FoundBy::calls,
     run_round_trip<InRoundTrip::store_left_in_flight>,
     {"thread (0, 0, 0): returns with 1 copies out of shared memory that it has not waited for, "
      "the "
      "first of them at simt_faults_copy_engine_test.cpp:*"}},

    {"LeavesABoxInFlight",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_block, simt::load_box, map_of(b.zeros<bf16>(64 * 64), 64, 64), !fault);
     },
     {"block (0, 0, 0), thread (0, 0, 0): cp.async.bulk at simt_faults_copy_engine_test.cpp:*: "
      "nobody has waited for it when block (0, 0, 0) ends"}},
    {"TensorLongerThanItsMemory",
     FoundBy::calls,
     [](FaultBench& b, bool fault) {
       b.run(one_block, simt::load_box, map_of(b.zeros<bf16>(64 * 64), fault ? 65 : 64, 64), true);
     },
     {"cp.async.bulk.tensor at simt_faults_copy_engine_test.cpp:*: the tensor of 8320 bytes is at "
      "byte 0 of an allocation of 8192 bytes"}},

    {"OverwritesWhatAPeerStillReads",
     FoundBy::races,
     run_multicast<InMulticast::peer_not_asked>,
     {"race: " + operation +
          "(0, 0, 0) writes 8192 bytes at *, which thread (*) of block (1, 0, 0) "
          "read at *" +
          unordered,
      "race: thread (*) reads 2 bytes at *, which " + operation + "(*) wrote at *",
      "race: " + operation + "(0, 0, 0) writes 8192 bytes at *, which " + operation + "(*) wrote",
      "where nothing has been written", "more arrivals than the 1"}},
    {"PeerDoesNotAnswer",
     FoundBy::calls,
     run_multicast<InMulticast::peer_does_not_answer>,
     {"deadlock*thread 0: in mbarrier.try_wait at *, for byte 8200 of shared memory, which expects "
      "1 of 2 arrivals and 0 bytes*block (1, 0, 0)"}},
    {"MulticastToARankThatIsNotThere",
     FoundBy::calls,
     run_multicast<InMulticast::wrong_ranks>,
     {"cp.async.bulk.tensor at *: ranks 0x7 of a cluster of 2 blocks"}},
    {"MulticastToABlockThatHasEnded",
     FoundBy::calls,
     run_sending<InSending::peer_has_ended>,
     {"block (0, 0, 0), thread (0, 0, 0): writes 8192 bytes at simt_faults_copy_engine_test.cpp:*, "
      "in the shared memory of the cluster's block 1, which has ended"}},
    {"EndsWhileAPeersBoxIsOnItsWay",
     FoundBy::calls,
     run_sending<InSending::peer_does_not_wait>,
     {"block (0, 0, 0), thread (0, 0, 0): cp.async.bulk at simt_faults_copy_engine_test.cpp:*: "
      "nobody has waited for it when block (1, 0, 0) ends"}},
    {"BlocksStoreOneBox",
     FoundBy::races,
     [](FaultBench& b, bool fault) {
       b.run({.kernel = "k", .grid = {3}, .block = {32}, .shared_bytes = sizeof(simt::Shared)},
             simt::gather, map_of(b.zeros<bf16>(64 * 64), 64, 64), !fault);
     },
     {"race: " + operation + "(0, 0, 0) writes 16 bytes at *, which " + operation +
      "(0, 0, 0) of block (*) wrote at *"}},
};

INSTANTIATE_TEST_SUITE_P(CopyEngine, FaultCorpus, ::testing::ValuesIn(faults), fault_name);

// ---- results ---------------------------------------------------------------------------------

class CopyEngineResults : public ::testing::TestWithParam<simt::AsyncCompletion> {
 protected:
  const std::unique_ptr<SimtDevice> device_ = make_simt_device({.order = simt::ThreadOrder::random,
                                                                .seed = 11,
                                                                .completion = GetParam(),
                                                                .races = simt::Races::find,
                                                                .compute_capability = 90});
  const std::unique_ptr<Stream> stream_ = device_->make_stream();
};

INSTANTIATE_TEST_SUITE_P(Completions, CopyEngineResults,
                         ::testing::Values(simt::AsyncCompletion::eager,
                                           simt::AsyncCompletion::lazy,
                                           simt::AsyncCompletion::random));

TEST_P(CopyEngineResults, BytesMakeARoundTrip) {
  Guarded in = random_normal(DType::f32, {128}, 3), out(DType::f32, {128});
  OnDevice in_d(*stream_, in), out_d(*stream_, out);
  simt::launch(*stream_, {.kernel = "k", .block = {128}, .shared_bytes = sizeof(simt::Piece)},
               simt::add_one, in_d.tensor().data<float>(), out_d.tensor().data<float>(),
               InRoundTrip::correct);
  out_d.download();
  stream_->synchronize();
  for (int i = 0; i < 128; ++i) EXPECT_EQ(out.at(i), static_cast<float>(in.at(i)) + 1.0f);
  EXPECT_EQ(device_->counters().tensor_load_bytes, 512u);
  EXPECT_EQ(device_->counters().tensor_store_bytes, 512u);
}

TEST_P(CopyEngineResults, BoxesOfManyBlocksAddUpInsideTheTensorAlone) {
  Guarded sums = zeros(DType::bf16, {50, 56});
  OnDevice sums_d(*stream_, sums);
  simt::launch(*stream_,
               {.kernel = "k", .grid = {3}, .block = {32}, .shared_bytes = sizeof(simt::Shared)},
               simt::gather, map_of(sums_d.tensor().raw(), 50, 56), true);
  sums_d.download();
  stream_->synchronize();
  for (int i = 0; i < sums.size(); ++i) EXPECT_EQ(sums.at(i), 3.0);
  EXPECT_EQ(device_->counters().tensor_store_bytes, 3u * 50 * 56 * 2);
}

TEST_P(CopyEngineResults, MulticastReachesEveryBlock) {
  Guarded in(DType::bf16, {256, 64}), out(DType::i32, {2, 32});
  for (int i = 0; i < in.size(); ++i) {
    const int band = i / 64 / 64;
    in.set(i, band + i % 64);
  }
  OnDevice in_d(*stream_, in), out_d(*stream_, out);
  simt::launch(*stream_,
               {.kernel = "k",
                .grid = {2},
                .block = {32},
                .shared_bytes = sizeof(simt::Shared),
                .cluster = {2}},
               simt::multicast, map_of(in_d.tensor().raw(), 256, 64), out_d.tensor().data<int>(),
               InMulticast::correct);
  out_d.download();
  stream_->synchronize();
  for (int i = 0; i < out.size(); ++i) {
    int expected = 0;  // the bits of the first elements, whose row the swizzle leaves alone
    for (int step = 0; step < 4; ++step) {
      expected += to_bf16(static_cast<float>(step + i % 32)).bits;
    }
    EXPECT_EQ(out.at(i), expected) << i;
  }
}

TEST(TensorMaps, RefuseWhatTheDriverWould) {
  alignas(16) static const bf16 data[64 * 8] = {};
  EXPECT_NO_THROW(simt::make_tensor_map({data, 64, 8, 1, 64, 8}));
  EXPECT_THROW(simt::make_tensor_map({data + 1, 56, 8, 1, 64, 8}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 63, 8, 1, 64, 8}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, 72, 8}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, 64, 257}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 64, 0, 1, 64, 8}), Error);
  EXPECT_NO_THROW(simt::make_tensor_map({data, 4, 8, 1, 32, 8, DType::f32}));
  EXPECT_THROW(simt::make_tensor_map({data, 6, 8, 1, 32, 8, DType::f32}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 4, 8, 1, 64, 8, DType::f32}), Error);
  EXPECT_THROW(simt::make_tensor_map({data, 4, 8, 1, 32, 8, DType::i32}), Error);
  for (const auto swizzle : {Swizzle::bytes_32, Swizzle::bytes_64, Swizzle::bytes_128}) {
    const int width = 8 * static_cast<int>(swizzle);
    EXPECT_NO_THROW(simt::make_tensor_map({data, 64, 8, 1, width, 8, DType::bf16, swizzle}));
    EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, width + 8, 8, DType::bf16, swizzle}),
                 Error);
    EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, width - 8, 8, DType::bf16, swizzle}),
                 Error);
  }
  EXPECT_NO_THROW(simt::make_tensor_map({data, 64, 8, 1, 256, 8, DType::bf16, Swizzle::none}));
  EXPECT_THROW(simt::make_tensor_map({data, 64, 8, 1, 264, 8, DType::bf16, Swizzle::none}), Error);
}

}  // namespace
}  // namespace orchard::testing
