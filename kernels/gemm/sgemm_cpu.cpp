#include "kernels/gemm/sgemm_cpu.h"

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>

namespace orchard::cpu {
namespace {

// The two functions of OpenBLAS that are used, as cblas.h declares them (32-bit integers).
struct OpenBlas {
  using Multiply = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                            float alpha, const float* a, int lda, const float* b, int ldb,
                            float beta, float* c, int ldc);
  Multiply multiply = nullptr;

  OpenBlas() {
    void* const library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    const auto set_threads =
        reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
    multiply = reinterpret_cast<Multiply>(dlsym(library, "cblas_sgemm"));
    // Its threads are not OpenMP's: the two pools would fight for the cores.
    if (set_threads) set_threads(1);
  }
};

const OpenBlas& openblas() {
  static const OpenBlas library;
  return library;
}

}  // namespace

Sgemm onednn_sgemm() {
  return [](const SgemmArguments& s) {
    const auto code = [](Transpose t) { return t == Transpose::yes ? 'T' : 'N'; };
    return dnnl_sgemm(code(s.transpose_a), code(s.transpose_b), s.m, s.n, s.k, 1.0f, s.a, s.lda,
                      s.b, s.ldb, s.beta, s.c, s.ldc) == dnnl_success;
  };
}

Sgemm openblas_sgemm() {
  if (!openblas().multiply) return nullptr;
  return [](const SgemmArguments& s) {
    const auto code = [](Transpose t) { return t == Transpose::yes ? 112 : 111; };  // CblasTrans
    constexpr int row_major = 101;
    const auto narrow = [](std::int64_t i) { return static_cast<int>(i); };
    openblas().multiply(row_major, code(s.transpose_a), code(s.transpose_b), narrow(s.m),
                        narrow(s.n), narrow(s.k), 1.0f, s.a, narrow(s.lda), s.b, narrow(s.ldb),
                        s.beta, s.c, narrow(s.ldc));
    return true;
  };
}

}  // namespace orchard::cpu
