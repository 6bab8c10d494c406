// A group of one: every collective is the identity.
#include "comm/communicator.h"

namespace orchard {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce_sum(Stream&, Tensor) override {}
  void broadcast(Stream&, Tensor, int) override {}
  void barrier() override {}
  void sum_on_host(std::span<double>) override {}
  void max_on_host(std::span<double>) override {}
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<SingleCommunicator>();
}

}  // namespace orchard
