#include "comm/mpi.h"

#include <mpi.h>

#include <cstdlib>

#include "comm/mpi_communicator.h"
#include "kernels/core/error.h"

namespace orchard {

MpiSession::MpiSession(int& argc, char**& argv) {
  // For a process that no mpirun started Open MPI would start a daemon, with whose help it could start
  // others: it never will, and need not wait (docs/notes/start-up.md).
  ::setenv("OMPI_MCA_ess_singleton_isolated", "1", /*overwrite=*/0);
  int provided = 0;
  // FUNNELED: only the main thread communicates; the loader's thread and OpenMP's do not.
  check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  require(provided >= MPI_THREAD_FUNNELED,
          "this MPI offers thread level {}, MPI_THREAD_FUNNELED is needed", provided);
}

MpiSession::~MpiSession() {
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world(const WorldOptions& options) const {
  int ranks = 1;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &ranks), "MPI_Comm_size");
  if (ranks == 1) return make_single_communicator();
  return MpiCommunicator::world(options.ranks_per_node);
}

void MpiSession::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::abort();  // MPI_Abort does not return
}

}  // namespace orchard
