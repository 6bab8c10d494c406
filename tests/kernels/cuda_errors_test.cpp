// What failing calls of CUDA and missing GPUs read like. Nothing here needs a GPU or a driver.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#ifdef ORCHARD_HAS_CUDA
#include "kernels/cuda/availability.h"
#include "kernels/cuda/call.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cudnn.h"
#include "kernels/gpu/sort_pairs.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

cudaError_t give_memory(void**, std::size_t bytes, cudaStream_t) {
  return bytes > 100 ? cudaErrorMemoryAllocation : cudaSuccess;
}

TEST(CudaErrors, SayTheCallItsArgumentsAndWhatIsWrong) {
  void** const nowhere = nullptr;
  cuda::call("cudaMallocAsync", give_memory, nowhere, std::size_t{100}, cudaStream_t{});
  EXPECT_EQ(message_of([&] {
              cuda::call("cudaMallocAsync", give_memory, nowhere, std::size_t{4096},
                         cudaStream_t{});
            }),
            "cudaMallocAsync(null, 4096, null) failed: out of memory (cudaErrorMemoryAllocation)");
}

TEST(CudaErrors, EndInTheLastKernelsOfTheStream) {
  LaunchLog launches;
  for (const char* const kernel : {"first", "second", "third", "fourth", "fifth"})
    launches.note({.kernel = kernel, .grid = {7, 2}, .block = {64}, .shared_bytes = 512});
  const auto wait = +[](cudaStream_t) { return cudaErrorIllegalAddress; };
  const std::string message = message_of(
      [&] { cuda::call_after(launches, "cudaStreamSynchronize", wait, cudaStream_t{}); });
  EXPECT_THAT(message,
              StartsWith("cudaStreamSynchronize(null) failed: an illegal memory access was "
                         "encountered (cudaErrorIllegalAddress)\n"
                         "  last kernel of the stream: fifth, grid (7, 2, 1), block (64, 1, "
                         "1), 512 bytes of shared memory\n"
                         "  before it: fourth, grid"));
  EXPECT_THAT(message, HasSubstr("before it: second"));
  EXPECT_THAT(message, Not(HasSubstr("first")));
}

// Without a driver nobody knows the text of a driver's error.
TEST(CudaErrors, OfTheDriverHaveAtLeastANumber) {
  const auto encode = +[](int) { return CUDA_ERROR_INVALID_VALUE; };
  EXPECT_THAT(
      message_of([&] { cuda::call("cuTensorMapEncodeTiled", encode, 5); }),
      ::testing::AnyOf(HasSubstr("cuTensorMapEncodeTiled(5) failed: unknown error (CUresult 1)"),
                       HasSubstr("CUDA_ERROR_INVALID_VALUE")));
}

TEST(CudaErrors, OfCubNameItsFunctionAndArguments) {
  if (cuda::find_availability(0).devices > 0) GTEST_SKIP() << "there is a GPU, and no error";
  EXPECT_THAT(message_of([] { cuda::sort_scratch_bytes(1000, 9); }),
              ::testing::MatchesRegex("cub::DeviceRadixSort::SortPairs\\(null, 0x[0-9a-f]+, null, "
                                      "null, null, null, 1000, 9, null\\) failed: .*cudaError.*"));
}

constexpr cuda::Availability usable{.driver_version = 13000,
                                    .runtime_version = 13000,
                                    .devices = 2,
                                    .ordinal = 1,
                                    .compute_capability = 90};

TEST(CudaAvailability, OneLineSaysWhatIsMissing) {
  EXPECT_EQ(cuda::absence_of_gpu(usable), "");
  cuda::Availability found = usable;
  found.driver_version = 13010;  // newer
  EXPECT_EQ(cuda::absence_of_gpu(found), "");
  found.driver_version = 0;
  EXPECT_THAT(cuda::absence_of_gpu(found), StartsWith("no NVIDIA driver is installed here"));
  found.driver_version = 12040;
  EXPECT_THAT(cuda::absence_of_gpu(found),
              StartsWith("the NVIDIA driver is too old: it knows CUDA 12.4, and this program was "
                         "built with CUDA 13.0"));
  found = usable;
  found.devices = 0;
  found.error = "no CUDA-capable device is detected (cudaErrorNoDevice)";
  EXPECT_THAT(cuda::absence_of_gpu(found), HasSubstr("cudaErrorNoDevice"));
  found.error = "";
  EXPECT_THAT(cuda::absence_of_gpu(found), StartsWith("no GPU is visible"));
  found = usable;
  found.ordinal = 2;
  EXPECT_EQ(cuda::absence_of_gpu(found), "there is no GPU 2: this process sees 2");
  found = usable;
  found.compute_capability = 75;
  EXPECT_EQ(cuda::absence_of_gpu(found),
            "GPU 1 is of sm_75, and the kernels need sm_80 (Ampere) or later");
}

TEST(CudaAvailability, IsFoundWithoutAGpu) {
  const cuda::Availability found = cuda::find_availability(0);
  EXPECT_GE(found.runtime_version, 12000);
  EXPECT_EQ(found.devices == 0, cuda::absence_of_gpu(found) != "");
}

TEST(CudaAvailability, ACuBlasLtThatCannotBeUsedSaysSo) {
  const std::string& absence = cuda::cublaslt_absence();
  EXPECT_TRUE(absence.empty() || absence.find("ublasLt") != std::string::npos ||
              absence.find("cuBLASLt") != std::string::npos)
      << absence;
  EXPECT_THAT(absence, Not(HasSubstr("\n")));
}

// What ORCHARD_GPU_DEPTHWISE=cudnn ends with, and what bench_gpu says.
TEST(CudaAvailability, ACuDnnThatCannotBeUsedSaysSo) {
  const std::string missing = cuda::absence_of_cudnn("libcudnn.so.none");
  const std::string another = cuda::absence_of_cudnn("libc.so.6");
#if __has_include(<cudnn.h>)
  EXPECT_THAT(missing, StartsWith("cuDNN is not installed here: libcudnn.so.none: "));
  EXPECT_THAT(another, StartsWith("libc.so.6 has no cudnn"));
#else
  EXPECT_EQ(missing, "this program was built without cuDNN: <cudnn.h> was not found");
  EXPECT_EQ(another, missing);
#endif
  for (const std::string& line : {missing, another, cuda::cudnn_absence()})
    EXPECT_THAT(line, Not(HasSubstr("\n")));
}

}  // namespace
}  // namespace orchard::testing
#else
TEST(CudaErrors, AreOfBuildsWithCuda) {
  GTEST_SKIP() << "this build has no CUDA";
}
#endif
