#include "kernels/cuda/cudnn.h"

#include "kernels/core/error.h"

#if __has_include(<cudnn.h>)

#include <cudnn.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <span>

#include "kernels/cuda/call.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/device/device.h"

namespace orchard::cuda {
namespace {

// The functions that are used, by the types of the header.
struct Library {
  std::string absence;
  decltype(&cudnnGetErrorString) text_of = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnCreateTensorDescriptor) make_tensor = nullptr;
  decltype(&cudnnSetTensor4dDescriptor) set_tensor = nullptr;
  decltype(&cudnnCreateFilterDescriptor) make_filter = nullptr;
  decltype(&cudnnSetFilter4dDescriptor) set_filter = nullptr;
  decltype(&cudnnCreateConvolutionDescriptor) make_convolution = nullptr;
  decltype(&cudnnSetConvolution2dDescriptor) set_convolution = nullptr;
  decltype(&cudnnSetConvolutionGroupCount) set_groups = nullptr;
  decltype(&cudnnGetConvolutionForwardAlgorithm_v7) recommend_forward = nullptr;
  decltype(&cudnnGetConvolutionBackwardDataAlgorithm_v7) recommend_backward = nullptr;
  decltype(&cudnnConvolutionForward) forward = nullptr;
  decltype(&cudnnConvolutionBackwardData) backward = nullptr;

  explicit Library(const char* file) {
    void* const found = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!found) {
      absence = fmt::format("cuDNN is not installed here: {}", dlerror());
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(found, name));
      if (!function) absence = fmt::format("{} has no {}", file, name);
    };
    find(text_of, "cudnnGetErrorString");
    find(create, "cudnnCreate");
    find(set_stream, "cudnnSetStream");
    find(make_tensor, "cudnnCreateTensorDescriptor");
    find(set_tensor, "cudnnSetTensor4dDescriptor");
    find(make_filter, "cudnnCreateFilterDescriptor");
    find(set_filter, "cudnnSetFilter4dDescriptor");
    find(make_convolution, "cudnnCreateConvolutionDescriptor");
    find(set_convolution, "cudnnSetConvolution2dDescriptor");
    find(set_groups, "cudnnSetConvolutionGroupCount");
    find(recommend_forward, "cudnnGetConvolutionForwardAlgorithm_v7");
    find(recommend_backward, "cudnnGetConvolutionBackwardDataAlgorithm_v7");
    find(forward, "cudnnConvolutionForward");
    find(backward, "cudnnConvolutionBackwardData");
  }
};

// Found or not.
const Library& searched_library() {
  static const Library found("libcudnn.so.9");
  return found;
}

const Library& library() {
  const Library& found = searched_library();
  require(found.absence.empty(), "{}", found.absence);
  return found;
}

template <class... Parameters, class... Arguments>
void call(const char* name, cudnnStatus_t (*function)(Parameters...), Arguments... arguments) {
  const cudnnStatus_t status = function(arguments...);
  if (status != CUDNN_STATUS_SUCCESS) {
    fail("{} failed: {} (cudnnStatus_t {})", call_text(name, arguments...),
         library().text_of(status), static_cast<int>(status));
  }
}

// Of the recommended algorithms the first that can be used and has one result.
template <class Performance>
const Performance* usable(std::span<const Performance> recommended) {
  for (const Performance& p : recommended)
    if (p.status == CUDNN_STATUS_SUCCESS && p.determinism == CUDNN_DETERMINISTIC) return &p;
  return nullptr;
}

// A prepared convolution, both directions. Its descriptors live as long as the program.
struct Plan {
  cudnnTensorDescriptor_t picture = nullptr;  // x, y and their gradients have one shape
  cudnnFilterDescriptor_t filter = nullptr;
  cudnnConvolutionDescriptor_t convolution = nullptr;
  const cudnnConvolutionFwdAlgoPerf_t* forward = nullptr;
  const cudnnConvolutionBwdDataAlgoPerf_t* backward = nullptr;
  std::array<cudnnConvolutionFwdAlgoPerf_t, CUDNN_CONVOLUTION_FWD_ALGO_COUNT> forwards{};
  std::array<cudnnConvolutionBwdDataAlgoPerf_t, CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT> backwards{};

  Plan(cudnnHandle_t handle, const Shape& shape) {
    const Library& dnn = library();
    const cudnnDataType_t type = CUDNN_DATA_BFLOAT16;
    const auto extent = [&](int i) { return static_cast<int>(shape[i]); };
    const int channels = extent(3);
    call("cudnnCreateTensorDescriptor", dnn.make_tensor, &picture);
    call("cudnnSetTensor4dDescriptor", dnn.set_tensor, picture, CUDNN_TENSOR_NHWC, type, extent(0),
         channels, extent(1), extent(2));
    call("cudnnCreateFilterDescriptor", dnn.make_filter, &filter);
    // [channels, 3, 3, 1]
    call("cudnnSetFilter4dDescriptor", dnn.set_filter, filter, type, CUDNN_TENSOR_NHWC, channels, 1,
         3, 3);
    call("cudnnCreateConvolutionDescriptor", dnn.make_convolution, &convolution);
    call("cudnnSetConvolution2dDescriptor", dnn.set_convolution, convolution, 1, 1, 1, 1, 1, 1,
         CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT);
    call("cudnnSetConvolutionGroupCount", dnn.set_groups, convolution, channels);
    int count = 0;
    if (dnn.recommend_forward(handle, picture, filter, convolution, picture,
                              static_cast<int>(forwards.size()), &count,
                              forwards.data()) == CUDNN_STATUS_SUCCESS)
      forward = usable(std::span<const cudnnConvolutionFwdAlgoPerf_t>(forwards).first(count));
    if (dnn.recommend_backward(handle, filter, picture, convolution, picture,
                               static_cast<int>(backwards.size()), &count,
                               backwards.data()) == CUDNN_STATUS_SUCCESS)
      backward = usable(std::span<const cudnnConvolutionBwdDataAlgoPerf_t>(backwards).first(count));
  }
};

// cuDNN for a device: a handle is of the device that was current when it was made.
struct Connection {
  cudnnHandle_t handle = nullptr;
  std::map<std::array<std::int64_t, 4>, Plan> plans;  // by shape

  Connection() { call("cudnnCreate", library().create, &handle); }
  const Plan& plan(const Shape& s) {
    return plans.try_emplace({s[0], s[1], s[2], s[3]}, handle, s).first->second;
  }
};

Connection& connect(Stream& stream) {
  Connection& connection = stream.device().extension<Connection>();
  call("cudnnSetStream", library().set_stream, connection.handle, native_stream(stream));
  return connection;
}

constexpr float one = 1, zero = 0;

}  // namespace

const std::string& cudnn_absence() {
  return searched_library().absence;
}

std::string absence_of_cudnn(const char* file) {
  return Library(file).absence;
}

bool run_library(Stream& stream, const DepthwiseConv3x3Forward& op) {
  if (op.x.numel() == 0 || op.x.dtype() == DType::f32) return false;
  Connection& connection = connect(stream);
  const Plan& plan = connection.plan(op.x.shape());
  if (!plan.forward) return false;
  void* const workspace = stream.workspace(plan.forward->memory);
  call("cudnnConvolutionForward", library().forward, connection.handle,
       static_cast<const void*>(&one), plan.picture, op.x.raw(), plan.filter, op.weight.raw(),
       plan.convolution, plan.forward->algo, workspace, plan.forward->memory,
       static_cast<const void*>(&zero), plan.picture, op.y.raw());
  return true;
}

bool run_library(Stream& stream, const DepthwiseConv3x3BackwardInput& op) {
  if (op.d_y.numel() == 0 || op.d_y.dtype() == DType::f32) return false;
  Connection& connection = connect(stream);
  const Plan& plan = connection.plan(op.d_y.shape());
  if (!plan.backward) return false;
  void* const workspace = stream.workspace(plan.backward->memory);
  call("cudnnConvolutionBackwardData", library().backward, connection.handle,
       static_cast<const void*>(&one), plan.filter, op.weight.raw(), plan.picture, op.d_y.raw(),
       plan.convolution, plan.backward->algo, workspace, plan.backward->memory,
       static_cast<const void*>(&zero), plan.picture, op.d_x.raw());
  return true;
}

}  // namespace orchard::cuda

#else

namespace orchard::cuda {

const std::string& cudnn_absence() {
  static const std::string absence =
      "this program was built without cuDNN: <cudnn.h> was not found";
  return absence;
}

std::string absence_of_cudnn(const char*) {
  return cudnn_absence();
}

bool run_library(Stream&, const DepthwiseConv3x3Forward&) {
  fail("{}", cudnn_absence());
}

bool run_library(Stream&, const DepthwiseConv3x3BackwardInput&) {
  fail("{}", cudnn_absence());
}

}  // namespace orchard::cuda

#endif
