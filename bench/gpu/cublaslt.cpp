#include "bench/gpu/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <memory>

#include "kernels/cuda/cuda_stream.h"

namespace orchard::bench {
namespace {

// The functions that are used, by the types of the header.
struct Library {
  std::string absence;
  cublasLtHandle_t handle = nullptr;
  decltype(&cublasLtMatmulDescCreate) make_operation = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) make_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) make_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) recommend = nullptr;
  decltype(&cublasLtMatmul) multiply = nullptr;

  Library() {
    void* found = nullptr;
    for (const char* const name :
         {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"}) {
      if (!found) found = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (!found) {
      absence = fmt::format("no cuBLASLt to compare with: {}", dlerror());
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(found, name));
      if (!function) absence = fmt::format("libcublasLt.so.13 has no {}", name);
    };
    decltype(&cublasLtCreate) create = nullptr;
    find(create, "cublasLtCreate");
    find(make_operation, "cublasLtMatmulDescCreate");
    find(set_operation, "cublasLtMatmulDescSetAttribute");
    find(make_layout, "cublasLtMatrixLayoutCreate");
    find(make_preference, "cublasLtMatmulPreferenceCreate");
    find(set_preference, "cublasLtMatmulPreferenceSetAttribute");
    find(recommend, "cublasLtMatmulAlgoGetHeuristic");
    find(multiply, "cublasLtMatmul");
    if (absence.empty() && create(&handle) != CUBLAS_STATUS_SUCCESS) {
      absence = "cublasLtCreate failed";
    }
  }
};

const Library& library() {
  static const Library found;
  return found;
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

void require_success(cublasStatus_t status, const char* call) {
  require(status == CUBLAS_STATUS_SUCCESS, "{} failed with status {}", call,
          static_cast<int>(status));
}

// A prepared product. Descriptors live as long as the program.
struct Product {
  const void *a, *b;
  void* c;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a_layout = nullptr, b_layout = nullptr, c_layout = nullptr;
  cublasLtMatmulHeuristicResult_t algorithm{};
  float beta;
  Buffer workspace;
};

}  // namespace

const std::string& cublaslt_absence() {
  return library().absence;
}

std::function<void()> cublaslt_call(Stream& stream, const Gemm& op) {
  const Library& lt = library();
  if (!lt.absence.empty()) return {};
  const auto product = std::make_shared<Product>();
  product->c = op.c.raw();
  product->beta = op.accumulate == Accumulate::add ? 1.0f : 0.0f;
  // cuBLAS counts columns first, so that it sees the transpose of every matrix of ours: it is asked
  // for c^T = op(b)^T · op(a)^T.
  product->a = op.b.raw();
  product->b = op.a.raw();
  require_success(lt.make_operation(&product->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                  "cublasLtMatmulDescCreate");
  const auto set_transpose = [&](cublasLtMatmulDescAttributes_t attribute, Transpose transpose) {
    const cublasOperation_t value = transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
    require_success(lt.set_operation(product->operation, attribute, &value, sizeof value),
                    "cublasLtMatmulDescSetAttribute");
  };
  set_transpose(CUBLASLT_MATMUL_DESC_TRANSA, op.transpose_b);
  set_transpose(CUBLASLT_MATMUL_DESC_TRANSB, op.transpose_a);
  const auto make_layout = [&](cublasLtMatrixLayout_t& layout, const ConstTensor& x) {
    require_success(
        lt.make_layout(&layout, type_of(x.dtype()), static_cast<std::uint64_t>(x.dim(1)),
                       static_cast<std::uint64_t>(x.dim(0)), x.dim(1)),
        "cublasLtMatrixLayoutCreate");
  };
  make_layout(product->a_layout, op.b);
  make_layout(product->b_layout, op.a);
  make_layout(product->c_layout, op.c);
  constexpr std::size_t workspace_bytes = std::size_t{32} << 20;
  product->workspace = stream.device().allocate(workspace_bytes);
  cublasLtMatmulPreference_t preference = nullptr;
  require_success(lt.make_preference(&preference), "cublasLtMatmulPreferenceCreate");
  require_success(lt.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                    &workspace_bytes, sizeof workspace_bytes),
                  "cublasLtMatmulPreferenceSetAttribute");
  int count = 0;
  const cublasStatus_t status = lt.recommend(
      lt.handle, product->operation, product->a_layout, product->b_layout, product->c_layout,
      product->c_layout, preference, 1, &product->algorithm, &count);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) return {};
  return [&lt, product, native = cuda::native_stream(stream)] {
    const float alpha = 1;
    require_success(
        lt.multiply(lt.handle, product->operation, &alpha, product->a, product->a_layout,
                    product->b, product->b_layout, &product->beta, product->c, product->c_layout,
                    product->c, product->c_layout, &product->algorithm.algo,
                    product->workspace.data(), product->workspace.size_bytes(), native),
        "cublasLtMatmul");
  };
}

}  // namespace orchard::bench
