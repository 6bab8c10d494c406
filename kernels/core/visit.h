// From a dtype known at run time to a type known to the compiler.
#pragma once

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace orchard {

// Calls body(T{}) with T = float or bf16, the types in which activations and their gradients come:
//   visit_float(x.dtype(), [&]<class T>(T) { rows<T>(op); });
template <class Body>
void visit_float(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    default:
      fail("elements of type {} are neither f32 nor bf16", name_of(dtype));
  }
}

}  // namespace orchard
