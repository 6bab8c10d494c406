// The streams of an emulated device: queues of work that runs when somebody waits.
//
// Work runs in the order of its queue, and only as far as the waiting needs: other queues go on only
// while the one that is waited for cannot, because it waits for an event of theirs or for another
// rank. So a wait that the host code forgot shows as data that is not there.
//
// What a capture records is replayed on queues of the replay's own, but for the queue where it began:
// as on a GPU, nothing orders it with what other queues of the device have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/gpu/launch_log.h"
#include "kernels/simt/heap.h"

namespace orchard::simt {

class WorkCapture;
class WorkQueue;

// What several queues had in a capture, in the order in which it came.
struct RecordedWork {
  struct Step {
    enum class Kind : std::uint8_t { work, point, wait };
    Kind kind = Kind::work;
    std::size_t queue = 0;      // 0: that where the capture began
    std::size_t point = 0;      // of a point, and of who waits for it
    std::function<bool()> run;  // of work
  };
  std::vector<Step> steps;
  std::size_t queues = 1, points = 0;
};

// A point in a queue, as events know it.
struct WorkPoint {
  WorkQueue* queue = nullptr;  // while the point lies ahead
  bool dropped = false;        // the queue failed, or ended, before it
  // Of a point inside a capture, which nothing passes but its replays: its number there.
  std::optional<std::size_t> recorded;
  std::weak_ptr<WorkCapture> capture;  // until it is over
};

// All queues of a device.
class WorkQueues {
 public:
  explicit WorkQueues(Heap& heap) : heap_(heap) {}

  // Runs what can run without waiting: one piece of work of each queue. False when none could.
  bool advance();
  // Runs work until `done()`, that of `first` before others'.
  void run_until(WorkQueue& first, const std::function<bool()>& done);

 private:
  friend class WorkQueue;
  bool run_one_of_each(const WorkQueue* but = nullptr);

  Heap& heap_;
  std::vector<WorkQueue*> all_;
};

class WorkQueue {
 public:
  explicit WorkQueue(WorkQueues& all);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // The device's memory can be touched while work runs.
  void emplace_back(std::function<void()> work);
  // Work that needs others to act, too: called again and again until it returns true, and then, in a
  // graph, from its beginning.
  void add_polled(std::function<bool()> poll);

  std::shared_ptr<WorkPoint> add_point();
  void add_wait(std::shared_ptr<WorkPoint> point);

  // Returns when everything queued so far has run. An error drops the rest.
  void run();

  // What `work` adds, which does not run then: to this queue, and to those that wait for a point of
  // the capture. This one must wait for all that those have. What waits for a point from outside, or
  // for one of the capture when it is over, is an error.
  RecordedWork record(const std::function<void()>& work);

  // Of the kernels that have begun.
  LaunchLog& launches() { return launches_; }

 private:
  friend class WorkCapture;
  friend class WorkQueues;
  struct Item {
    std::function<bool()> run;         // true when done
    std::shared_ptr<WorkPoint> point;  // that is passed then
  };
  // False when there is nothing, or the first piece of work cannot go on now.
  bool run_one();
  void drop_all() noexcept;

  WorkQueues& all_;
  std::deque<Item> items_;
  std::shared_ptr<WorkCapture> capture_;  // that it takes part in
  LaunchLog launches_;
};

// Recorded work as a graph, with the queues that it runs on.
class WorkGraph {
 public:
  WorkGraph(WorkQueues& all, RecordedWork work);
  // Adds all of it to `first`, and to queues of its own.
  void replay(WorkQueue& first);

 private:
  RecordedWork work_;
  std::vector<std::unique_ptr<WorkQueue>> queues_;  // all but the first
  std::vector<std::shared_ptr<WorkPoint>> points_;  // of the replay that is being added
};

}  // namespace orchard::simt
