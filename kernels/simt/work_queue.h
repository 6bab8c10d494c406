// The streams of an emulated device: queues of work that runs when somebody waits.
//
// Work runs in the order of its queue, and only as far as the waiting needs: other queues go on only
// while the one that is waited for cannot, because it waits for an event of theirs or for another
// rank. So a wait that the host code forgot shows as data that is not there.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/gpu/launch_log.h"
#include "kernels/simt/heap.h"

namespace orchard::simt {

class WorkQueue;

// A point in a queue, as events know it.
struct WorkPoint {
  WorkQueue* queue = nullptr;  // while the point lies ahead
  bool dropped = false;        // the queue failed, or ended, before it
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
  using Work = std::function<void()>;

  explicit WorkQueue(WorkQueues& all);
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // The device's memory can be touched while work runs.
  void emplace_back(Work work);
  // Work that needs others to act, too: called again and again until it returns true.
  void add_polled(std::function<bool()> poll);

  std::shared_ptr<WorkPoint> add_point();
  void add_wait(std::shared_ptr<WorkPoint> point);

  // Returns when everything queued so far has run. An error drops the rest.
  void run();

  // What `work` adds with emplace_back, which does not run then; adding anything else is an error.
  std::vector<Work> record(const std::function<void()>& work);

  // Of the kernels that have begun.
  LaunchLog& launches() { return launches_; }

 private:
  friend class WorkQueues;
  struct Item {
    std::function<bool()> run;         // true when done
    std::shared_ptr<WorkPoint> point;  // that is passed then
  };
  // False when there is nothing, or the first piece of work cannot go on now.
  bool run_one();
  void drop_all() noexcept;
  void add(Item item, const char* what);

  WorkQueues& all_;
  std::deque<Item> items_;
  std::vector<Work>* recording_ = nullptr;
  LaunchLog launches_;
};

}  // namespace orchard::simt
