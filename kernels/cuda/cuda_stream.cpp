#include "kernels/cuda/cuda_stream.h"

#include "kernels/cuda/streams.h"

namespace orchard::cuda {
namespace {

CudaStream& cuda_stream(Stream& stream, const char* what) {
  require(stream.device().kind() == DeviceKind::cuda, "{} was given a stream of device {}", what,
          name_of(stream.device().kind()));
  return static_cast<CudaStream&>(stream);
}

class CudaGraph final : public Graph {
 public:
  // Takes the template over.
  explicit CudaGraph(cudaGraph_t recorded) : recorded_(recorded) {
    call("cudaGraphInstantiate", cudaGraphInstantiate, &executable_, recorded_, 0ull);
  }
  ~CudaGraph() override {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(recorded_);
  }
  void replay(Stream& stream) override {
    CudaStream& on = cuda_stream(stream, "a graph");
    call_after(on.launches(), "cudaGraphLaunch", cudaGraphLaunch, executable_, on.handle());
  }

 private:
  cudaGraph_t recorded_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

CudaEvent::CudaEvent(Device& device) : Event(device) {
  call("cudaEventCreateWithFlags", cudaEventCreateWithFlags, &handle_,
       static_cast<unsigned>(cudaEventDisableTiming));
}

CudaEvent::~CudaEvent() {
  cudaEventDestroy(handle_);
}

void CudaEvent::record(Stream& stream) {
  call("cudaEventRecord", cudaEventRecord, handle_, native_stream(stream));
}

bool CudaEvent::is_done() {
  const cudaError_t status = cudaEventQuery(handle_);
  if (status == cudaErrorNotReady) return false;
  if (status != cudaSuccess)
    fail("{} failed: {}", call_text("cudaEventQuery", handle_), text_of(status));
  return true;
}

void CudaEvent::finish() {
  call("cudaEventSynchronize", cudaEventSynchronize, handle_);
}

CudaStream::CudaStream(Device& device, std::vector<CudaStream*>& all) : Stream(device), all_(all) {
  call("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags, &handle_,
       static_cast<unsigned>(cudaStreamNonBlocking));
  all_.push_back(this);
}

CudaStream::~CudaStream() {
  // The workspace is freed next, and queued kernels may still use it.
  cudaStreamSynchronize(handle_);
  std::erase(all_, this);
  cudaStreamDestroy(handle_);
}

void CudaStream::finish() {
  call_after(launches_, "cudaStreamSynchronize", cudaStreamSynchronize, handle_);
}

void CudaStream::queue_copy(Tensor destination, ConstTensor source) {
  call_after(launches_, "cudaMemcpyAsync", cudaMemcpyAsync, destination.raw(), source.raw(),
             source.size_bytes(), cudaMemcpyDefault, handle_);
}

void CudaStream::fill_zero(Tensor destination) {
  if (!destination.numel()) return;
  call_after(launches_, "cudaMemsetAsync", cudaMemsetAsync, destination.raw(), 0,
             destination.size_bytes(), handle_);
}

void CudaStream::wait(Event& event) {
  call_after(launches_, "cudaStreamWaitEvent", cudaStreamWaitEvent, handle_,
             static_cast<CudaEvent&>(event).handle(), 0u);
}

std::unique_ptr<Graph> CudaStream::capture(const std::function<void()>& work) {
  call_after(launches_, "cudaStreamBeginCapture", cudaStreamBeginCapture, handle_,
             cudaStreamCaptureModeThreadLocal);
  cudaGraph_t recorded = nullptr;
  try {
    work();
  } catch (...) {
    if (cudaStreamEndCapture(handle_, &recorded) == cudaSuccess) cudaGraphDestroy(recorded);
    throw;
  }
  call_after(launches_, "cudaStreamEndCapture", cudaStreamEndCapture, handle_, &recorded);
  return std::make_unique<CudaGraph>(recorded);
}

cudaStream_t native_stream(Stream& stream) {
  return cuda_stream(stream, "a CUDA kernel").handle();
}

void launched(Stream& stream, const LaunchShape& shape, cudaError_t status) {
  LaunchLog& launches = static_cast<CudaStream&>(stream).launches();
  if (status != cudaSuccess) {
    fail("cudaLaunchKernelEx of {}, {}, failed: {}{}", shape.kernel, orchard::text_of(shape),
         text_of(status), launches.text());
  }
  launches.note(shape);
}

void allow_shared_bytes(const void* kernel, const LaunchShape& shape) {
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
  if (status != cudaSuccess) {
    fail("cudaFuncSetAttribute of {}, for {} bytes of shared memory, failed: {}", shape.kernel,
         shape.shared_bytes, text_of(status));
  }
}

}  // namespace orchard::cuda
