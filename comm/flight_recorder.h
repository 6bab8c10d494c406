// A ring of the last operations of a rank, in a memory-mapped file that outlives the rank.
//
//   header    who writes, whether it is alive, how many operations it has recorded
//   groups    name and world ranks of each, and how many operations it has begun
//   records   operation n in place n mod capacity
//
// Times are nanoseconds since 1970. The rank's communicating thread writes; any process may read
// at any time. Numbers are in the byte order of the machine.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/comm_op.h"
#include "comm/mapped_memory.h"
#include "kernels/core/dtype.h"

namespace orchard {

enum class FlightState : std::uint32_t {
  running,
  finished,    // left in good order
  failed,      // threw an exception, or gave the others up
  terminated,  // was told to end by a signal
};
std::string_view name_of(FlightState state);

// One operation, as it is recorded.
struct FlightOperation {
  CommOp op = CommOp::barrier;
  DType dtype = DType::u8;
  std::int32_t group = 0;  // place among the groups of the file
  std::int32_t peer = -1;  // world rank an exchange waits for first; -1: none
  std::int64_t sequence = 0;
  std::int64_t bytes = 0;
  std::int64_t enqueued_ns = 0, started_ns = 0, ended_ns = 0;  // 0: not yet

  bool is_under_way() const { return ended_ns == 0; }
};

// What a ring holds.
struct FlightLog {
  int rank = 0, world = 1;
  int pid = 0;
  std::string host, rank_name;
  FlightState state = FlightState::running;
  std::uint64_t heartbeats = 0;

  struct Group {
    std::string name;
    std::vector<int> members;      // world ranks
    std::int64_t collectives = 0;  // begun
    std::int64_t exchanges = 0;
  };
  std::vector<Group> groups;
  std::vector<FlightOperation> operations;  // the last ones, oldest first

  // "all-reduce 17 of group dp (4096 bytes f32)".
  std::string describe(const FlightOperation& operation) const;
  // The oldest that has not ended.
  const FlightOperation* under_way() const;
};

class FlightRecorder {
 public:
  static constexpr std::int64_t capacity = 2048;
  static constexpr std::int32_t max_groups = 96;  // operations of later ones count as the last's

  // Records in memory of this process until record_in.
  FlightRecorder(int rank, int world);

  // Goes on in a file, with what has been recorded so far. `rank_name` is who messages call it:
  // "rank 5 (pp1 dp0 tp1 | ep2 etp0 edp0)".
  void record_in(const std::filesystem::path& file, std::string_view rank_name);

  std::int32_t add_group(std::string_view name, std::span<const int> members);
  // Returns the number of the record.
  std::int64_t begin(const FlightOperation& operation);
  void started(std::int64_t number, std::int64_t now_ns);
  void ended(std::int64_t number, std::int64_t now_ns);

  // These two from any thread.
  void beat();
  void set_state(FlightState state);

 private:
  friend class FlightFile;
  struct Header;
  struct Group;
  struct Record;
  static std::size_t group_bytes(int world);
  static std::size_t total_bytes(int world);
  static const Header& header_of(const MappedMemory& memory);
  static std::byte* group_at(const MappedMemory& memory, std::int32_t group);
  static std::byte* record_at(const MappedMemory& memory, std::int64_t number);

  Header& header();
  Record* record(std::int64_t number);  // null once it has been written over

  MappedMemory memory_;
};

// A ring file of any process, alive or dead.
class FlightFile {
 public:
  // Throws Error where the file is not a whole ring.
  explicit FlightFile(const std::filesystem::path& file);

  int pid() const;
  std::string host() const;
  FlightState state() const;
  std::uint64_t heartbeats() const;
  FlightLog read() const;

  static bool is_one(const std::filesystem::path& file);

 private:
  MappedMemory memory_;
};

// The ring of a rank in the folder of a run's rings.
std::filesystem::path flight_file(const std::filesystem::path& folder, int rank);

}  // namespace orchard
