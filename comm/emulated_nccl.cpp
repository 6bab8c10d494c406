#include "comm/emulated_nccl.h"

#include <mpi.h>

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "comm/mpi_engine.h"
#include "kernels/simt/simt_device.h"

namespace orchard {
namespace {

struct Message {
  enum class Way : std::uint8_t { send, receive };
  Way way;
  std::byte* device;
  std::size_t bytes;
  int peer;
};

// The messages of one group of calls, from the time when the stream gets to them: once, or in a graph
// again and again.
class Exchange {
 public:
  Exchange(MPI_Comm communicator, SimtDevice& device, std::vector<Message> messages)
      : communicator_(communicator), device_(device), messages_(std::move(messages)) {}

  // Goes on as far as the other ranks let it. True when everything has arrived.
  bool poll() {
    if (requests_.empty()) start();
    int all_done = 1;
    check_mpi(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &all_done,
                          MPI_STATUSES_IGNORE),
              "MPI_Testall");
    if (all_done == 0) return false;
    for (std::size_t i = 0; i < messages_.size(); ++i) {
      const Message& message = messages_[i];
      if (message.way != Message::Way::receive) continue;
      device_.write(message.device, host_[i].get(), message.bytes);
    }
    requests_.clear();
    host_.clear();
    return true;
  }

 private:
  void start() {
    for (const Message& message : messages_) {
      host_.push_back(std::make_unique_for_overwrite<std::byte[]>(message.bytes));
      std::byte* const host = host_.back().get();
      require(message.bytes <= std::numeric_limits<int>::max(),
              "a message of {} bytes: the emulator's are at most 2 GiB", message.bytes);
      const int count = static_cast<int>(message.bytes);
      MPI_Request& request = requests_.emplace_back();
      if (message.way == Message::Way::send) {
        device_.read(host, message.device, message.bytes);
        check_mpi(MPI_Isend(host, count, MPI_BYTE, message.peer, 0, communicator_, &request),
                  "MPI_Isend");
      } else {
        check_mpi(MPI_Irecv(host, count, MPI_BYTE, message.peer, 0, communicator_, &request),
                  "MPI_Irecv");
      }
    }
  }

  MPI_Comm communicator_;
  SimtDevice& device_;
  std::vector<Message> messages_;
  std::vector<std::unique_ptr<std::byte[]>> host_;
  std::vector<MPI_Request> requests_;
};

// The bytes of an id: who made it, and its number among those that he made.
struct Origin {
  int world_rank = 0;
  int number = 0;
};

class EmulatedNccl final : public NcclLibrary {
 public:
  EmulatedNccl() {
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world_), "MPI_Comm_dup");
    MPI_Comm_rank(world_, &world_rank_);
  }
  ~EmulatedNccl() override { MPI_Comm_free(&world_); }

  Id make_id() override {
    Id id;
    const Origin origin{.world_rank = world_rank_, .number = ids_++};
    std::memcpy(id.bytes.data(), &origin, sizeof origin);
    return id;
  }

  // Whoever made the id, rank 0, tells everybody who the others are.
  Handle connect(const Id& id, int rank, int size) override {
    Origin origin;
    std::memcpy(&origin, id.bytes.data(), sizeof origin);
    const int tag = origin.number % 32'000;  // MPI promises tags up to 32767
    std::vector<int> members(static_cast<std::size_t>(size));
    if (rank == 0) {
      members[0] = world_rank_;
      for (int r = 1; r < size; ++r) {
        int introduction[2] = {};  // rank of the connection, of the world
        check_mpi(
            MPI_Recv(introduction, 2, MPI_INT, MPI_ANY_SOURCE, tag, world_, MPI_STATUS_IGNORE),
            "MPI_Recv");
        members[static_cast<std::size_t>(introduction[0])] = introduction[1];
      }
      for (int r = 1; r < size; ++r) {
        check_mpi(MPI_Send(members.data(), size, MPI_INT, members[static_cast<std::size_t>(r)], tag,
                           world_),
                  "MPI_Send");
      }
    } else {
      const int introduction[2] = {rank, world_rank_};
      check_mpi(MPI_Send(introduction, 2, MPI_INT, origin.world_rank, tag, world_), "MPI_Send");
      check_mpi(MPI_Recv(members.data(), size, MPI_INT, origin.world_rank, tag, world_,
                         MPI_STATUS_IGNORE),
                "MPI_Recv");
    }
    return make_connection(members, tag).release();
  }
  void disconnect(Handle handle) noexcept override {
    const std::unique_ptr<Connection> connection(static_cast<Connection*>(handle));
    MPI_Comm_free(&connection->communicator);
  }
  void abort(Handle) noexcept override {}  // of use to nobody: the job ends
  void check(Handle) override {}

  void group_begin() override { in_group_ = true; }
  void group_end() override {
    in_group_ = false;
    if (!group_.empty()) queue(group_lane_, std::exchange(group_, {}));
  }

  void send(const Lane& lane, const void* data, std::size_t bytes, int to) override {
    // Sending reads alone.
    add(lane, {Message::Way::send, static_cast<std::byte*>(const_cast<void*>(data)), bytes, to});
  }
  void receive(const Lane& lane, void* data, std::size_t bytes, int from) override {
    add(lane, {Message::Way::receive, static_cast<std::byte*>(data), bytes, from});
  }

  void broadcast(const Lane& lane, void* data, std::size_t bytes, int root) override {
    const auto [rank, size] = place(lane);
    group_begin();
    if (rank != root) receive(lane, data, bytes, root);
    for (int r = 0; rank == root && r < size; ++r)
      if (r != root) send(lane, data, bytes, r);
    group_end();
  }

  void all_gather(const Lane& lane, const void* mine, void* all, std::size_t bytes) override {
    const auto [rank, size] = place(lane);
    group_begin();
    for (int r = 0; r < size; ++r) {
      std::byte* const place_in_all =
          static_cast<std::byte*>(all) + static_cast<std::size_t>(r) * bytes;
      if (r != rank || place_in_all != mine) {
        receive(lane, place_in_all, bytes, r);
        if (r == rank) send(lane, mine, bytes, rank);
      }
      if (r != rank) send(lane, mine, bytes, r);
    }
    group_end();
  }

 private:
  struct Connection {
    MPI_Comm communicator = MPI_COMM_NULL;
  };
  struct Place {
    int rank = 0, size = 1;
  };

  std::unique_ptr<Connection> make_connection(const std::vector<int>& members, int tag) const {
    auto connection = std::make_unique<Connection>();
    MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
    check_mpi(MPI_Comm_group(world_, &all), "MPI_Comm_group");
    check_mpi(MPI_Group_incl(all, static_cast<int>(members.size()), members.data(), &some),
              "MPI_Group_incl");
    check_mpi(MPI_Comm_create_group(world_, some, tag, &connection->communicator),
              "MPI_Comm_create_group");
    MPI_Group_free(&some);
    MPI_Group_free(&all);
    return connection;
  }

  static MPI_Comm communicator_of(const Lane& lane) {
    return static_cast<Connection*>(lane.handle)->communicator;
  }
  static Place place(const Lane& lane) {
    Place place;
    MPI_Comm_rank(communicator_of(lane), &place.rank);
    MPI_Comm_size(communicator_of(lane), &place.size);
    return place;
  }

  void add(const Lane& lane, const Message& message) {
    if (!in_group_) {
      queue(lane, {message});
      return;
    }
    require(group_.empty() || group_lane_.stream == lane.stream,
            "a group of emulated NCCL calls uses one stream");
    group_lane_ = lane;
    group_.push_back(message);
  }

  static void queue(const Lane& lane, std::vector<Message> messages) {
    const auto exchange = std::make_shared<Exchange>(
        communicator_of(lane), static_cast<SimtDevice&>(lane.stream->device()),
        std::move(messages));
    simt::enqueue_polled(*lane.stream, [exchange] { return exchange->poll(); });
  }

  MPI_Comm world_ = MPI_COMM_NULL;
  int world_rank_ = 0;
  int ids_ = 0;
  bool in_group_ = false;
  Lane group_lane_;
  std::vector<Message> group_;
};

}  // namespace

std::shared_ptr<NcclLibrary> make_emulated_nccl() {
  return std::make_shared<EmulatedNccl>();
}

}  // namespace orchard
