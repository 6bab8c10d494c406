// MPI as the bootstrap, and as the communicator of devices without a library of their own.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace orchard {

struct WorldOptions {
  int ranks_per_node = 0;  // consecutive ranks that count as one node; 0: as MPI finds them
};

// Initialises MPI for the lifetime of the object (one per process) and ends it cleanly. A program
// started without mpirun is a world of one rank.
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // All ranks of the job; of a job of one rank the single communicator. It must not outlive the
  // session.
  std::unique_ptr<Communicator> world(const WorldOptions& options = {}) const;

  // Ends every rank of the job with this exit code, at once: for a rank that failed while others
  // may wait for it inside a collective. A world of one just exits.
  [[noreturn]] static void abort(int exit_code);
};

}  // namespace orchard
