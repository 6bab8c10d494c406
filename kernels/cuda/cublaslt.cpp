#include "kernels/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <bit>
#include <map>

#include "kernels/cuda/call.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/device/device.h"

namespace orchard::cuda {
namespace {

// The functions that are used, by the types of the header.
struct Library {
  std::string absence;
  cublasLtHandle_t handle = nullptr;
  decltype(&cublasLtMatmulDescCreate) make_operation = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) make_layout = nullptr;
  decltype(&cublasLtMatrixLayoutSetAttribute) set_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) make_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) recommend = nullptr;
  decltype(&cublasLtMatmul) multiply = nullptr;

  Library() {
    void* found = nullptr;
    for (const char* const name :
         {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"}) {
      if (!found) found = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (!found) {
      absence = fmt::format("cuBLASLt is not installed here: {}", dlerror());
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
    find(set_layout, "cublasLtMatrixLayoutSetAttribute");
    find(make_preference, "cublasLtMatmulPreferenceCreate");
    find(set_preference, "cublasLtMatmulPreferenceSetAttribute");
    find(destroy_preference, "cublasLtMatmulPreferenceDestroy");
    find(recommend, "cublasLtMatmulAlgoGetHeuristic");
    find(multiply, "cublasLtMatmul");
    if (absence.empty() && create(&handle) != CUBLAS_STATUS_SUCCESS)
      absence = "cublasLtCreate failed: cuBLASLt cannot be used here";
  }
};

const Library& library() {
  static const Library found;
  return found;
}

template <class... Parameters, class... Arguments>
void call(const char* name, cublasStatus_t (*function)(Parameters...), Arguments... arguments) {
  const cublasStatus_t status = function(arguments...);
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail("{} failed: status {} of cuBLASLt", call_text(name, arguments...),
         static_cast<int>(status));
  }
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

// Bytes that an address is a multiple of, as far as cuBLASLt asks.
std::uint32_t alignment_of(const void* address) {
  const auto value = reinterpret_cast<std::uintptr_t>(address) | 256;
  return std::uint32_t{1} << std::countr_zero(value);
}

constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

// What an algorithm is recommended for.
struct Kind {
  std::int64_t m, n, k, batch;
  Transpose transpose_a, transpose_b;
  DType in, out;
  bool accumulates, has_bias;
  std::uint32_t a_alignment, b_alignment, c_alignment;
  auto operator<=>(const Kind&) const = default;
};

Kind kind_of(const Gemm& op) {
  const auto [m, n, k, batch] = sizes_of(op);
  return {.m = m,
          .n = n,
          .k = k,
          .batch = batch,
          .transpose_a = op.transpose_a,
          .transpose_b = op.transpose_b,
          .in = op.a.dtype(),
          .out = op.c.dtype(),
          .accumulates = op.accumulate == Accumulate::add,
          .has_bias = static_cast<bool>(op.bias),
          .a_alignment = alignment_of(op.a.raw()),
          .b_alignment = alignment_of(op.b.raw()),
          .c_alignment = alignment_of(op.c.raw())};
}

// A prepared product. Its descriptors live as long as the program.
//
// cuBLAS counts columns first, so that it sees the transpose of every matrix of ours: it is asked for
// c^T = op(b)^T · op(a)^T, and its a is our b.
struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulHeuristicResult_t algorithm{};
  bool usable = false;

  Plan(const Gemm& op, const Kind& kind) {
    const Library& lt = library();
    call("cublasLtMatmulDescCreate", lt.make_operation, &operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      call("cublasLtMatmulDescSetAttribute", lt.set_operation, operation, attribute,
           static_cast<const void*>(&value), sizeof value);
    };
    const auto operation_of = [](Transpose transpose) {
      return transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, operation_of(op.transpose_b));
    set(CUBLASLT_MATMUL_DESC_TRANSB, operation_of(op.transpose_a));
    if (kind.has_bias) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(kind.in));
    }
    const auto make_layout = [&](cublasLtMatrixLayout_t& layout, const ConstTensor& x) {
      call("cublasLtMatrixLayoutCreate", lt.make_layout, &layout, type_of(x.dtype()),
           static_cast<std::uint64_t>(x.dim(-1)), static_cast<std::uint64_t>(x.dim(-2)), x.dim(-1));
      if (kind.batch == 1) return;
      const auto describe = [&](cublasLtMatrixLayoutAttribute_t attribute, const auto& value) {
        call("cublasLtMatrixLayoutSetAttribute", lt.set_layout, layout, attribute,
             static_cast<const void*>(&value), sizeof value);
      };
      describe(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(kind.batch));
      describe(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, x.dim(-2) * x.dim(-1));
    };
    make_layout(a, op.b);
    make_layout(b, op.a);
    make_layout(c, op.c);
    cublasLtMatmulPreference_t preference = nullptr;
    call("cublasLtMatmulPreferenceCreate", lt.make_preference, &preference);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      call("cublasLtMatmulPreferenceSetAttribute", lt.set_preference, preference, attribute,
           static_cast<const void*>(&value), sizeof value);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kind.b_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kind.a_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kind.c_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kind.c_alignment);
    int count = 0;
    const cublasStatus_t status =
        lt.recommend(lt.handle, operation, a, b, c, c, preference, 1, &algorithm, &count);
    lt.destroy_preference(preference);
    usable = status == CUBLAS_STATUS_SUCCESS && count > 0;
  }
};

struct Plans {
  std::map<Kind, Plan> by_kind;
};

}  // namespace

const std::string& cublaslt_absence() {
  return library().absence;
}

bool run_library(Stream& stream, const Gemm& op) {
  const Library& lt = library();
  require(lt.absence.empty(), "{}", lt.absence);
  const Kind kind = kind_of(op);
  if (kind.m == 0 || kind.n == 0 || kind.k == 0 || kind.batch == 0) return false;
  auto& plans = stream.device().extension<Plans>().by_kind;
  auto found = plans.find(kind);
  if (found == plans.end()) found = plans.emplace(kind, Plan(op, kind)).first;
  const Plan& plan = found->second;
  if (!plan.usable) return false;
  if (kind.has_bias) {
    const void* const bias = op.bias.raw();
    call("cublasLtMatmulDescSetAttribute", lt.set_operation, plan.operation,
         CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(&bias), sizeof bias);
  }
  const float alpha = 1, beta = kind.accumulates ? 1.0f : 0.0f;
  void* const workspace = stream.workspace(workspace_bytes);
  call("cublasLtMatmul", lt.multiply, lt.handle, plan.operation, static_cast<const void*>(&alpha),
       op.b.raw(), plan.a, op.a.raw(), plan.b, static_cast<const void*>(&beta),
       static_cast<const void*>(op.c.raw()), plan.c, op.c.raw(), plan.c, &plan.algorithm.algo,
       workspace, workspace_bytes, native_stream(stream));
  return true;
}

}  // namespace orchard::cuda
