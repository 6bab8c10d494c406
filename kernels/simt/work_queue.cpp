#include "kernels/simt/work_queue.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "kernels/core/error.h"

namespace orchard::simt {

bool WorkQueues::run_one_of_each(const WorkQueue* but) {
  bool moved = false;
  for (WorkQueue* const queue : all_)
    if (queue != but) moved |= queue->run_one();
  return moved;
}

bool WorkQueues::advance() {
  if (std::ranges::all_of(all_, [](const WorkQueue* queue) { return queue->items_.empty(); }))
    return false;
  const HeapAccess access(heap_);
  return run_one_of_each();
}

void WorkQueues::run_until(WorkQueue& first, const std::function<bool()>& done) {
  if (done()) return;
  const HeapAccess access(heap_);
  while (!done()) {
    // Where no queue can go on, another rank must: events alone never close a circle, because each
    // was recorded before it was waited for.
    if (!first.run_one() && !run_one_of_each(&first)) std::this_thread::yield();
  }
}

WorkQueue::WorkQueue(WorkQueues& all) : all_(all) {
  all.all_.push_back(this);
}

WorkQueue::~WorkQueue() {
  drop_all();
  std::erase(all_.all_, this);
}

void WorkQueue::drop_all() noexcept {
  for (const Item& item : items_)
    if (item.point) *item.point = {.dropped = true};
  items_.clear();
}

void WorkQueue::add(Item item, const char* what) {
  require(recording_ == nullptr, "{} inside a capture: a graph holds kernels, copies and fills",
          what);
  items_.push_back(std::move(item));
}

void WorkQueue::emplace_back(Work work) {
  if (recording_ != nullptr) {
    recording_->push_back(std::move(work));
    return;
  }
  items_.push_back({.run =
                        [work = std::move(work)] {
                          work();
                          return true;
                        },
                    .point = nullptr});
}

void WorkQueue::add_polled(std::function<bool()> poll) {
  add({.run = std::move(poll), .point = nullptr}, "communication");
}

std::shared_ptr<WorkPoint> WorkQueue::add_point() {
  auto point = std::make_shared<WorkPoint>(WorkPoint{.queue = this});
  add({.run = [] { return true; }, .point = point}, "Event::record");
  return point;
}

void WorkQueue::add_wait(std::shared_ptr<WorkPoint> point) {
  add({.run =
           [point = std::move(point)] {
             require(!point->dropped,
                     "a stream waits for an event whose work was dropped: its own stream failed "
                     "before it, or ended without being waited for");
             return point->queue == nullptr;
           },
       .point = nullptr},
      "Stream::wait");
}

void WorkQueue::run() {
  require(recording_ == nullptr, "Stream::synchronize inside a capture");
  all_.run_until(*this, [this] { return items_.empty(); });
}

bool WorkQueue::run_one() {
  if (items_.empty()) return false;
  try {
    if (!items_.front().run()) return false;
  } catch (const Error& error) {
    drop_all();
    throw Error(error.what() + launches_.text());
  }
  if (items_.front().point) *items_.front().point = {};
  items_.pop_front();
  return true;
}

std::vector<WorkQueue::Work> WorkQueue::record(const std::function<void()>& work) {
  require(recording_ == nullptr, "a capture inside a capture");
  std::vector<Work> recorded;
  recording_ = &recorded;
  try {
    work();
  } catch (...) {
    recording_ = nullptr;
    throw;
  }
  recording_ = nullptr;
  return recorded;
}

}  // namespace orchard::simt
