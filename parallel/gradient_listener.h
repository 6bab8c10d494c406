// Who wants to know, while backward runs, which gradients it will not touch again.
#pragma once

#include <cstddef>

namespace orchard {

class GradientListener {
 public:
  virtual ~GradientListener() = default;

  // The gradients of the parameter that was declared after `declared` others, and of all that were
  // declared after it, are final. Backward runs from the last block to the first, so that it calls
  // this with falling numbers.
  virtual void final_from(std::size_t declared) = 0;
};

}  // namespace orchard
