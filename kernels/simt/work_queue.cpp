#include "kernels/simt/work_queue.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "kernels/core/error.h"

namespace orchard::simt {
namespace {

using Kind = RecordedWork::Step::Kind;

// From the end to the beginning: what a queue has before a point is waited for where those who wait
// for the point are.
void require_joined(const RecordedWork& recorded) {
  std::vector<bool> is_covered(recorded.queues, false), is_awaited(recorded.points, false);
  is_covered[0] = true;
  for (auto step = recorded.steps.rbegin(); step != recorded.steps.rend(); ++step) {
    if (step->kind == Kind::point && is_awaited[step->point]) is_covered[step->queue] = true;
    if (step->kind == Kind::wait && is_covered[step->queue]) is_awaited[step->point] = true;
    require(step->kind != Kind::work || is_covered[step->queue],
            "a capture ends before its stream has waited for all that other streams do in it");
  }
}

}  // namespace

// A capture that is under way.
class WorkCapture {
 public:
  // `queue` takes part from now on.
  static void join(const std::shared_ptr<WorkCapture>& capture, WorkQueue& queue) {
    queue.capture_ = capture;
    capture->queues_.push_back(&queue);
  }
  void add(const WorkQueue& queue, RecordedWork::Step step) {
    step.queue = static_cast<std::size_t>(std::ranges::find(queues_, &queue) - queues_.begin());
    work_.steps.push_back(std::move(step));
  }
  std::size_t add_point(const WorkQueue& queue) {
    add(queue, {.kind = Kind::point, .point = work_.points, .run = {}});
    return work_.points++;
  }
  // Lets all queues go.
  void end() noexcept {
    for (WorkQueue* const queue : std::exchange(queues_, {})) queue->capture_.reset();
  }
  RecordedWork take() {
    work_.queues = queues_.size();
    require_joined(work_);
    return std::move(work_);
  }

 private:
  std::vector<WorkQueue*> queues_;  // the first is that where it began
  RecordedWork work_;
};

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

void WorkQueue::emplace_back(std::function<void()> work) {
  add_polled([work = std::move(work)] {
    work();
    return true;
  });
}

void WorkQueue::add_polled(std::function<bool()> poll) {
  if (capture_) {
    capture_->add(*this, {.kind = Kind::work, .run = std::move(poll)});
  } else {
    items_.push_back({.run = std::move(poll), .point = nullptr});
  }
}

std::shared_ptr<WorkPoint> WorkQueue::add_point() {
  if (capture_) {
    return std::make_shared<WorkPoint>(
        WorkPoint{.recorded = capture_->add_point(*this), .capture = capture_});
  }
  auto point = std::make_shared<WorkPoint>(WorkPoint{.queue = this, .recorded = {}, .capture = {}});
  items_.push_back({.run = [] { return true; }, .point = point});
  return point;
}

void WorkQueue::add_wait(std::shared_ptr<WorkPoint> point) {
  if (point->recorded) {
    const std::shared_ptr<WorkCapture> capture = point->capture.lock();
    require(capture != nullptr,
            "a stream waits for an event that was recorded inside a capture, which is over");
    if (!capture_) WorkCapture::join(capture, *this);
    require(capture_ == capture, "a stream waits inside a capture for an event of another");
    capture_->add(*this, {.kind = Kind::wait, .point = *point->recorded, .run = {}});
    return;
  }
  require(!capture_,
          "a stream waits inside a capture for an event that was recorded outside of it");
  items_.push_back(
      {.run =
           [point = std::move(point)] {
             require(!point->dropped,
                     "a stream waits for an event whose work was dropped: its own stream failed "
                     "before it, or ended without being waited for");
             return point->queue == nullptr;
           },
       .point = nullptr});
}

void WorkQueue::run() {
  require(!capture_, "Stream::synchronize inside a capture");
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

RecordedWork WorkQueue::record(const std::function<void()>& work) {
  require(!capture_, "a capture inside a capture");
  const auto capture = std::make_shared<WorkCapture>();
  WorkCapture::join(capture, *this);
  try {
    work();
    RecordedWork recorded = capture->take();
    capture->end();
    return recorded;
  } catch (...) {
    capture->end();
    throw;
  }
}

WorkGraph::WorkGraph(WorkQueues& all, RecordedWork work) : work_(std::move(work)) {
  for (std::size_t i = 1; i < work_.queues; ++i)
    queues_.push_back(std::make_unique<WorkQueue>(all));
}

void WorkGraph::replay(WorkQueue& first) {
  points_.resize(work_.points);
  for (const RecordedWork::Step& step : work_.steps) {
    WorkQueue& queue = step.queue == 0 ? first : *queues_[step.queue - 1];
    switch (step.kind) {
      case Kind::work:
        queue.add_polled(step.run);
        break;
      case Kind::point:
        points_[step.point] = queue.add_point();
        break;
      case Kind::wait:
        queue.add_wait(points_[step.point]);
        break;
    }
  }
  points_.clear();
}

}  // namespace orchard::simt
