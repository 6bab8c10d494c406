// Makes the libraries use one thread: oneDNN plans a primitive for, and runs a function on, the
// number of threads that OpenMP would use.
#pragma once

#include <omp.h>

namespace orchard::cpu {

class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_ = omp_get_max_threads();
};

}  // namespace orchard::cpu
