#include "comm/watchdog.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "comm/diagnosis.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

using Clock = std::chrono::steady_clock;

// Where the signal handler reports; a handler has no other way to reach an object.
std::atomic<int> terminate_event = -1;

void on_terminate(int) {
  const std::uint64_t one = 1;
  if (::write(terminate_event.load(), &one, sizeof one) != sizeof one) std::_Exit(128 + SIGTERM);
}

// A number that wakes the thread: its own flag to end, and the signal.
class Event {
 public:
  Event() : descriptor_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    require(descriptor_ >= 0, "the watchdog gets no eventfd");
  }
  ~Event() { ::close(descriptor_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  int descriptor() const { return descriptor_; }
  void set() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(descriptor_, &one, sizeof one);
  }

 private:
  int descriptor_;
};

// A process that has ended may wait, as a zombie, for its parent to hear of it.
bool process_exists(int pid) {
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string text;
  if (!std::getline(in, text)) return false;
  const std::size_t name_end = text.rfind(')');  // "pid (name) state ..."
  return name_end == std::string::npos || name_end + 2 >= text.size() || text[name_end + 2] != 'Z';
}

std::string own_host() {
  char name[64] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

std::int64_t now_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

class Peer {
 public:
  explicit Peer(const std::filesystem::path& file)
      : file_(file), on_this_host_(file_.host() == own_host()) {}

  Liveness look(Clock::time_point now, Clock::duration timeout) {
    const bool running = file_.state() == FlightState::running;
    if (const std::uint64_t beats = file_.heartbeats(); beats != beats_) {
      beats_ = beats;
      last_beat_ = now;
    }
    // The state is looked at before the process: one that leaves in order says so first.
    if (!running) return Liveness::alive;
    if (on_this_host_ && !process_exists(file_.pid()))
      return file_.state() == FlightState::running ? Liveness::gone : Liveness::alive;
    return now - last_beat_ > timeout ? Liveness::silent : Liveness::alive;
  }

  // It has said why it ends the job.
  bool has_failed() const { return file_.state() == FlightState::failed; }
  FlightLog read() const { return file_.read(); }

 private:
  FlightFile file_;
  bool on_this_host_;
  std::uint64_t beats_ = 0;
  Clock::time_point last_beat_ = Clock::now();
};

std::filesystem::path verdict_file(const std::filesystem::path& folder) {
  return folder / "verdict.txt";
}

}  // namespace

class Watchdog::Thread {
 public:
  Thread(Communicator& world, const WatchdogOptions& options)
      : options_(options), rank_(world.rank()), recorder_(world.log().recorder()) {
    std::filesystem::create_directories(options.folder);
    recorder_.record_in(flight_file(options.folder, rank_), options.rank_name);
    if (rank_ == 0) std::filesystem::remove(verdict_file(options.folder));
    world.barrier();  // every ring is there
    for (int r = 0; r < world.size(); ++r) peers_.emplace_back(flight_file(options.folder, r));
    terminate_event.store(signalled_.descriptor());
    struct sigaction action {};
    action.sa_handler = on_terminate;
    ::sigaction(SIGTERM, &action, &old_action_);
    thread_ = std::thread([this] { watch(); });
  }

  ~Thread() {
    recorder_.set_state(std::uncaught_exceptions() > 0 ? FlightState::failed
                                                       : FlightState::finished);
    stop_.set();
    thread_.join();
    ::sigaction(SIGTERM, &old_action_, nullptr);
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

 private:
  // Often enough to be in time, and so seldom that nobody notices: reading the heartbeats of a
  // thousand ranks takes less than a millisecond.
  std::chrono::milliseconds interval() const {
    return std::clamp(options_.timeout / 10, std::chrono::milliseconds(10),
                      std::chrono::milliseconds(500));
  }

  void watch() {
    for (;;) {
      recorder_.beat();
      pollfd events[] = {{stop_.descriptor(), POLLIN, 0}, {signalled_.descriptor(), POLLIN, 0}};
      ::poll(events, std::size(events), static_cast<int>(interval().count()));
      if (events[0].revents != 0) return;
      const bool signalled = events[1].revents != 0;
      if (signalled) recorder_.set_state(FlightState::terminated);
      if (const auto verdict = judge()) end_with(*verdict);
      if (signalled) end_by_signal();
    }
  }

  std::optional<std::string> judge() {
    const FlightLog own = peers_[static_cast<std::size_t>(rank_)].read();
    const FlightOperation* const waits_in = own.under_way();
    const std::int64_t timeout_ns = std::chrono::nanoseconds(options_.timeout).count();
    const bool waits_too_long =
        waits_in != nullptr && now_ns() - waits_in->enqueued_ns >= timeout_ns;
    // A rank that stops is soon waited for: where a wait has become too long, half of it is enough
    // to tell a rank that stopped from one that is busy.
    const Clock::duration silence = waits_too_long ? options_.timeout / 2 : options_.timeout;
    const auto now = Clock::now();
    std::vector<Liveness> liveness;
    for (Peer& peer : peers_) liveness.push_back(peer.look(now, silence));
    liveness[static_cast<std::size_t>(rank_)] = Liveness::alive;
    const bool all_alive =
        std::ranges::all_of(liveness, [](Liveness l) { return l == Liveness::alive; });
    if (all_alive && !waits_too_long) return {};
    // Those that mpirun ends after a failed one did nothing wrong, however they go.
    if (!waits_too_long && std::ranges::any_of(peers_, &Peer::has_failed)) return {};
    std::vector<ObservedRank> ranks;
    for (std::size_t r = 0; r < peers_.size(); ++r)
      ranks.push_back({peers_[r].read(), liveness[r]});
    return diagnose(
        {.ranks = ranks, .observer = rank_, .now_ns = now_ns(), .timeout_ns = timeout_ns});
  }

  [[noreturn]] void end_with(const std::string& verdict) {
    // Whoever makes the file speaks.
    const std::string path = verdict_file(options_.folder).string();
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file >= 0) {
      const std::string text = fmt::format("orchard: {}\n", verdict);
      for (const int to : {STDERR_FILENO, file}) {
        [[maybe_unused]] const auto written = ::write(to, text.data(), text.size());
      }
      ::close(file);
    }
    recorder_.set_state(FlightState::failed);
    // Other ranks need the time to read the rings before mpirun ends them all; and destructors
    // would wait for the rank that does not answer.
    std::_Exit(options_.exit_code);
  }

  [[noreturn]] void end_by_signal() {
    std::signal(SIGTERM, SIG_DFL);
    ::kill(::getpid(), SIGTERM);
    std::_Exit(128 + SIGTERM);  // not reached unless the signal is blocked
  }

  WatchdogOptions options_;
  int rank_;
  FlightRecorder& recorder_;
  std::vector<Peer> peers_;
  Event stop_, signalled_;
  struct sigaction old_action_ {};
  std::thread thread_;
};

Watchdog::Watchdog(Communicator& world, const WatchdogOptions& options)
    : thread_(std::make_unique<Thread>(world, options)) {}

Watchdog::~Watchdog() = default;

}  // namespace orchard
