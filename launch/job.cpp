#include "launch/job.h"

#include <fmt/core.h>

#include <array>
#include <chrono>
#include <exception>
#include <thread>

#include "kernels/device/device.h"
#include "launch/command.h"

namespace orchard {
namespace {

// A failure that every rank knows of, so that all can leave without force.
class SharedFailure : public Error {
 public:
  // `text` is empty on all ranks but the one that reports.
  SharedFailure(int code, const std::string& text) : Error(text), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

void report(Job& job, const std::string& text) {
  const std::string who = job.ranks().size() == 1 ? "" : job.name() + ": ";
  fmt::print(stderr, "orchard: {}{}\n", who, text);
}

// A failure often meets every rank at once (a loss that is not finite, a folder that is gone). The
// others give the first rank time to say so for all of them before they speak up and pull the plug.
constexpr std::chrono::seconds head_start_of_rank_0{1};

}  // namespace

void Job::together(const std::function<void()>& action) {
  int code = 0;
  std::string text;
  try {
    action();
  } catch (const std::exception& error) {
    code = exit_code_of(error);
    text = message_of(error);
  }
  std::array<double, 2> worst{static_cast<double>(code),
                              code != 0 ? static_cast<double>(ranks_.size() - ranks_.rank()) : 0};
  ranks_.max_on_host(worst);
  if (worst[1] == 0) return;
  const bool reports = code != 0 && worst[1] == ranks_.size() - ranks_.rank();
  if (reports && !is_first()) text = fmt::format("{}: {}", name_, text);
  throw SharedFailure(static_cast<int>(worst[0]), reports ? text : "");
}

std::string Job::from_first(std::string text) {
  if (ranks_.size() == 1) return text;
  std::array<double, 1> size{is_first() ? static_cast<double>(text.size()) : 0};
  ranks_.max_on_host(size);
  text.resize(static_cast<std::size_t>(size[0]));
  if (text.empty()) return text;
  const std::unique_ptr<Device> host = make_cpu_device();
  const std::unique_ptr<Stream> stream = host->make_stream();
  ranks_.broadcast(*stream, Tensor(text.data(), DType::u8, {std::ssize(text)}, DeviceKind::cpu), 0)
      .wait(*stream);
  stream->synchronize();
  return text;
}

int run_job(const std::function<int(Job&)>& body) {
  int argc = 0;
  char** argv = nullptr;
  const MpiSession session(argc, argv);
  const std::unique_ptr<Communicator> ranks = session.world();
  Job job(*ranks);
  try {
    return body(job);
  } catch (const SharedFailure& failure) {
    if (*failure.what() != '\0') fmt::print(stderr, "orchard: {}\n", failure.what());
    return failure.code();
  } catch (const std::exception& error) {
    if (!job.is_first()) std::this_thread::sleep_for(head_start_of_rank_0);
    report(job, message_of(error));
    if (ranks->size() > 1) MpiSession::abort(exit_code_of(error));
    return exit_code_of(error);
  }
}

}  // namespace orchard
