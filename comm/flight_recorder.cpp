#include "comm/flight_recorder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <new>

#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr std::array<char, 8> magic = {'O', 'R', 'C', 'H', 'R', 'I', 'N', 'G'};
constexpr std::uint32_t format_version = 1;

template <std::size_t n>
void copy_text(std::array<char, n>& to, std::string_view text) {
  to.fill('\0');
  text.copy(to.data(), n - 1);
}

template <std::size_t n>
std::string text_of(const std::array<char, n>& text) {
  return {text.data(), ::strnlen(text.data(), n)};
}

}  // namespace

struct FlightRecorder::Header {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::int32_t rank, world, pid;
  std::array<char, 64> host;
  std::array<char, 128> rank_name;
  std::atomic<std::int32_t> groups;
  std::atomic<FlightState> state;
  std::atomic<std::uint64_t> heartbeats;
  std::atomic<std::int64_t> operations;
};

struct FlightRecorder::Group {
  std::array<char, 32> name;
  std::atomic<std::int64_t> collectives, exchanges;
  std::int64_t size;
  // The world ranks follow, std::int32_t each.
};

struct FlightRecorder::Record {
  std::atomic<std::int64_t> number;  // of the operation, from 1; 0 while it is being written
  std::int64_t sequence, bytes, enqueued_ns;
  std::atomic<std::int64_t> started_ns, ended_ns;
  std::int32_t group, peer;
  CommOp op;
  DType dtype;
};

std::string_view name_of(FlightState state) {
  constexpr std::string_view names[] = {"running", "finished", "failed", "terminated"};
  return names[static_cast<std::size_t>(state)];
}

std::string FlightLog::describe(const FlightOperation& operation) const {
  const std::string peer = operation.peer < 0 ? "" : fmt::format(" with rank {}", operation.peer);
  return fmt::format("{} {} of group {}{} ({} bytes {})", orchard::name_of(operation.op),
                     operation.sequence, groups[static_cast<std::size_t>(operation.group)].name,
                     peer, operation.bytes, orchard::name_of(operation.dtype));
}

const FlightOperation* FlightLog::under_way() const {
  const auto found = std::ranges::find_if(operations, &FlightOperation::is_under_way);
  return found == operations.end() ? nullptr : &*found;
}

std::size_t FlightRecorder::group_bytes(int world) {
  const std::size_t ranks = sizeof(std::int32_t) * static_cast<std::size_t>(world);
  return sizeof(Group) + (ranks + 7) / 8 * 8;
}

std::size_t FlightRecorder::total_bytes(int world) {
  return sizeof(Header) + max_groups * group_bytes(world) +
         static_cast<std::size_t>(capacity) * sizeof(Record);
}

const FlightRecorder::Header& FlightRecorder::header_of(const MappedMemory& memory) {
  return *reinterpret_cast<const Header*>(memory.data());
}

std::byte* FlightRecorder::group_at(const MappedMemory& memory, std::int32_t group) {
  return memory.data() + sizeof(Header) +
         static_cast<std::size_t>(group) * group_bytes(header_of(memory).world);
}

std::byte* FlightRecorder::record_at(const MappedMemory& memory, std::int64_t number) {
  return group_at(memory, max_groups) +
         static_cast<std::size_t>(number % capacity) * sizeof(Record);
}

FlightRecorder::FlightRecorder(int rank, int world)
    : memory_(MappedMemory::anonymous(total_bytes(world))) {
  // All fields are integers: the zeros of new memory are valid atomics.
  Header& h = header();
  h.version = format_version;
  h.rank = rank;
  h.world = world;
  h.pid = ::getpid();
  ::gethostname(h.host.data(), h.host.size() - 1);
  copy_text(h.rank_name, fmt::format("rank {}", rank));
  h.magic = magic;
}

FlightRecorder::Header& FlightRecorder::header() {
  return *reinterpret_cast<Header*>(memory_.data());
}

void FlightRecorder::record_in(const std::filesystem::path& file, std::string_view rank_name) {
  MappedMemory in_file = MappedMemory::create(file, memory_.size());
  copy_text(header().rank_name, rank_name);
  std::memcpy(in_file.data(), memory_.data(), memory_.size());
  memory_ = std::move(in_file);
}

std::int32_t FlightRecorder::add_group(std::string_view name, std::span<const int> members) {
  const std::int32_t place = header().groups.load();
  if (place == max_groups) return max_groups - 1;
  std::byte* const at = group_at(memory_, place);
  auto* const group = reinterpret_cast<Group*>(at);
  copy_text(group->name, place == max_groups - 1 ? "(others)" : name);
  group->size = static_cast<std::int64_t>(members.size());
  auto* const ranks = reinterpret_cast<std::int32_t*>(at + sizeof(Group));
  std::copy(members.begin(), members.end(), ranks);
  header().groups.store(place + 1);
  return place;
}

std::int64_t FlightRecorder::begin(const FlightOperation& operation) {
  const std::int64_t number = header().operations.load(std::memory_order_relaxed);
  auto& r = *reinterpret_cast<Record*>(record_at(memory_, number));
  r.number.store(0, std::memory_order_release);
  r.sequence = operation.sequence;
  r.bytes = operation.bytes;
  r.enqueued_ns = operation.enqueued_ns;
  r.started_ns.store(0, std::memory_order_relaxed);
  r.ended_ns.store(0, std::memory_order_relaxed);
  r.group = operation.group;
  r.peer = operation.peer;
  r.op = operation.op;
  r.dtype = operation.dtype;
  r.number.store(number + 1, std::memory_order_release);
  header().operations.store(number + 1, std::memory_order_release);
  auto& group = *reinterpret_cast<Group*>(group_at(memory_, operation.group));
  (operation.op == CommOp::exchange ? group.exchanges : group.collectives)
      .store(operation.sequence + 1, std::memory_order_release);
  return number;
}

FlightRecorder::Record* FlightRecorder::record(std::int64_t number) {
  auto* const r = reinterpret_cast<Record*>(record_at(memory_, number));
  return r->number.load(std::memory_order_relaxed) == number + 1 ? r : nullptr;
}

void FlightRecorder::started(std::int64_t number, std::int64_t now_ns) {
  if (Record* const r = record(number)) r->started_ns.store(now_ns, std::memory_order_relaxed);
}

void FlightRecorder::ended(std::int64_t number, std::int64_t now_ns) {
  if (Record* const r = record(number)) r->ended_ns.store(now_ns, std::memory_order_relaxed);
}

void FlightRecorder::beat() {
  header().heartbeats.fetch_add(1);
}

void FlightRecorder::set_state(FlightState state) {
  header().state.store(state);
}

FlightFile::FlightFile(const std::filesystem::path& file) : memory_(MappedMemory::open(file)) {
  using Header = FlightRecorder::Header;
  require(memory_.size() >= sizeof(Header) && FlightRecorder::header_of(memory_).magic == magic,
          "{} is not a ring of communication", file.string());
  const Header& header = FlightRecorder::header_of(memory_);
  require(header.version == format_version, "{} has ring format {}, this program reads {}",
          file.string(), header.version, format_version);
  require(header.world > 0 && memory_.size() == FlightRecorder::total_bytes(header.world),
          "{} is damaged: a ring of {} ranks is not {} bytes long", file.string(), header.world,
          memory_.size());
}

int FlightFile::pid() const {
  return FlightRecorder::header_of(memory_).pid;
}

std::string FlightFile::host() const {
  return text_of(FlightRecorder::header_of(memory_).host);
}

FlightState FlightFile::state() const {
  return FlightRecorder::header_of(memory_).state.load();
}

std::uint64_t FlightFile::heartbeats() const {
  return FlightRecorder::header_of(memory_).heartbeats.load();
}

FlightLog FlightFile::read() const {
  const auto& header = FlightRecorder::header_of(memory_);
  FlightLog log{.rank = header.rank,
                .world = header.world,
                .pid = pid(),
                .host = host(),
                .rank_name = text_of(header.rank_name),
                .state = state(),
                .heartbeats = heartbeats(),
                .groups = {},
                .operations = {}};
  const std::int32_t groups = std::clamp(header.groups.load(), 0, FlightRecorder::max_groups);
  for (std::int32_t g = 0; g < groups; ++g) {
    const std::byte* const at = FlightRecorder::group_at(memory_, g);
    const auto& group = *reinterpret_cast<const FlightRecorder::Group*>(at);
    const auto* const ranks =
        reinterpret_cast<const std::int32_t*>(at + sizeof(FlightRecorder::Group));
    log.groups.push_back(
        {.name = text_of(group.name),
         .members = {ranks, ranks + std::clamp<std::int64_t>(group.size, 0, header.world)},
         .collectives = group.collectives.load(),
         .exchanges = group.exchanges.load()});
  }
  const std::int64_t end = header.operations.load(std::memory_order_acquire);
  for (std::int64_t n = std::max<std::int64_t>(0, end - FlightRecorder::capacity); n < end; ++n) {
    const auto& r =
        *reinterpret_cast<const FlightRecorder::Record*>(FlightRecorder::record_at(memory_, n));
    const FlightOperation operation{.op = r.op,
                                    .dtype = r.dtype,
                                    .group = r.group,
                                    .peer = r.peer,
                                    .sequence = r.sequence,
                                    .bytes = r.bytes,
                                    .enqueued_ns = r.enqueued_ns,
                                    .started_ns = r.started_ns.load(),
                                    .ended_ns = r.ended_ns.load()};
    // The writer may have moved on meanwhile, or, in a damaged file, never have been there.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (r.number.load(std::memory_order_relaxed) != n + 1) continue;
    if (operation.group < 0 || operation.group >= groups) continue;
    if (static_cast<std::size_t>(operation.op) >= comm_ops) continue;
    log.operations.push_back(operation);
  }
  return log;
}

bool FlightFile::is_one(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::array<char, magic.size()> start{};
  return in.read(start.data(), start.size()) && start == magic;
}

std::filesystem::path flight_file(const std::filesystem::path& folder, int rank) {
  return folder / fmt::format("rank-{:05}.ring", rank);
}

}  // namespace orchard
