// A fault of a kernel, whose message says where: kernel, block, thread and line.
#pragma once

#include "kernels/core/error.h"

namespace orchard::simt {

class Fault final : public Error {
 public:
  using Error::Error;
};

}  // namespace orchard::simt
