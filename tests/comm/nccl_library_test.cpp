// NCCL itself, as far as it goes without a GPU: it is found, or one line says what is missing, and its
// failures are told like those of CUDA.
#include "comm/nccl_library.h"

#include <gmock/gmock.h>

#include "kernels/core/error.h"
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

}  // namespace
}  // namespace orchard::testing
