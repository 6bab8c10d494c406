// NCCL itself, as far as it goes without a GPU: it is found, or one line says what is missing, and its
// failures are told like those of CUDA.
#include "comm/nccl_library.h"

#include <gmock/gmock.h>

#include "kernels/core/error.h"
#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

TEST(NcclLibrary, IsFoundOrItsAbsenceSaidInOneLine) {
  EXPECT_THAT(message_of([] { load_nccl(); }),
              AnyOf(IsEmpty(), AllOf(StartsWith("NCCL is "), HasSubstr("libnccl.so.2"),
                                     Not(HasSubstr("\n")))));
}

TEST(NcclLibrary, AFailureSaysTheCallAndItsArguments) {
  std::shared_ptr<NcclLibrary> nccl;
  if (!message_of([&] { nccl = load_nccl(); }).empty()) GTEST_SKIP() << "NCCL is not installed";
  // Rank 3 of 2, whatever GPU there is.
  EXPECT_THAT(message_of([&] { nccl->connect({}, 3, 2); }),
              AllOf(StartsWith("ncclCommInitRank("), HasSubstr(", 2, {...}, 3) failed: "),
                    HasSubstr("(ncclResult_t ")));
}

// NCCL's functions and data types are declared by hand: on a GPU a rank alone tries all that we call.
TEST(NcclLibraryOnGpu, ARankAloneGetsWhatItSendsToItself) {
  const FoundDevice found = find_device(DeviceKind::cuda);
  if (!found.device) GTEST_SKIP() << found.absence;
  std::shared_ptr<NcclLibrary> nccl;
  if (const std::string absence = message_of([&] { nccl = load_nccl(); }); !absence.empty())
    GTEST_SKIP() << absence;
  const auto stream = found.device->make_stream();
  constexpr std::size_t bytes = 1000003;
  Guarded sent(DType::u8, {bytes});
  for (std::int64_t i = 0; i < sent.size(); ++i) sent.set(i, static_cast<double>(i * 7 % 251));
  OnDevice from(*stream, sent);
  const NcclLibrary::Lane lane{.handle = nccl->connect(nccl->make_id(), 0, 1),
                               .stream = stream.get()};
  const auto expect_arrival = [&](const char* what, auto&& move) {
    SCOPED_TRACE(what);
    Guarded received(DType::u8, {bytes});
    OnDevice to(*stream, received);
    move(to.tensor().raw());
    to.download();
    stream->synchronize();
    nccl->check(lane.handle);
    EXPECT_TRUE(received == sent);
  };
  const void* const data = from.tensor().raw();
  expect_arrival("send and receive", [&](void* to) {
    nccl->group_begin();
    nccl->send(lane, data, bytes, 0);
    nccl->receive(lane, to, bytes, 0);
    nccl->group_end();
  });
  expect_arrival("all-gather", [&](void* to) { nccl->all_gather(lane, data, to, bytes); });
  expect_arrival("broadcast", [&](void* to) {
    stream->copy({to, DType::u8, {bytes}, DeviceKind::cuda}, from);
    nccl->broadcast(lane, to, bytes, 0);
  });
  nccl->disconnect(lane.handle);
}

}  // namespace
}  // namespace orchard::testing
