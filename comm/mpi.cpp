#include "comm/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/device/device.h"

namespace orchard {
namespace {

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed: {}", call, std::string_view(text, static_cast<std::size_t>(length)));
}

// MPI counts are ints: larger buffers travel in pieces of this many bytes.
constexpr std::size_t piece_bytes = std::size_t{1} << 28;

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    // A private communicator: nobody else's messages can match ours.
    check(MPI_Comm_dup(MPI_COMM_WORLD, &communicator_), "MPI_Comm_dup");
    check(MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
  }
  ~MpiCommunicator() override { MPI_Comm_free(&communicator_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce_sum(Stream& stream, Tensor buffer) override {
    require(buffer.dtype() == DType::f32, "all_reduce_sum takes f32, not {}",
            name_of(buffer.dtype()));
    for_each_piece(stream, buffer, [&](std::byte* data, std::size_t bytes) {
      check(MPI_Allreduce(MPI_IN_PLACE, data, static_cast<int>(bytes / sizeof(float)), MPI_FLOAT,
                          MPI_SUM, communicator_),
            "MPI_Allreduce");
    });
  }

  void broadcast(Stream& stream, Tensor buffer, int root) override {
    for_each_piece(stream, buffer, [&](std::byte* data, std::size_t bytes) {
      check(MPI_Bcast(data, static_cast<int>(bytes), MPI_BYTE, root, communicator_), "MPI_Bcast");
    });
  }

  void barrier() override { check(MPI_Barrier(communicator_), "MPI_Barrier"); }

  void sum_on_host(std::span<double> values) override { reduce(values, MPI_SUM); }
  void max_on_host(std::span<double> values) override { reduce(values, MPI_MAX); }

 private:
  void reduce(std::span<double> values, MPI_Op operation) {
    check(MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_DOUBLE,
                        operation, communicator_),
          "MPI_Allreduce");
  }

  template <class Body>
  void for_each_piece(Stream& stream, const Tensor& buffer, const Body& body) {
    require(buffer.device() == DeviceKind::cpu,
            "the MPI communicator moves host memory, not memory of {}", name_of(buffer.device()));
    stream.synchronize();
    auto* data = static_cast<std::byte*>(buffer.raw());
    for (std::size_t left = buffer.size_bytes(); left;) {
      const std::size_t piece = std::min(left, piece_bytes);
      body(data, piece);
      data += piece;
      left -= piece;
    }
  }

  MPI_Comm communicator_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

MpiSession::MpiSession(int& argc, char**& argv) {
  int provided = 0;
  // FUNNELED: only the main thread communicates; the loader's thread and OpenMP's do not.
  check(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  require(provided >= MPI_THREAD_FUNNELED,
          "this MPI offers thread level {}, MPI_THREAD_FUNNELED is needed", provided);
}

MpiSession::~MpiSession() {
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world() const {
  return std::make_unique<MpiCommunicator>();
}

void MpiSession::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::abort();  // MPI_Abort does not return
}

}  // namespace orchard
