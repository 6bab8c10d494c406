#include "train/pass_graphs.h"

#include <algorithm>
#include <bit>
#include <span>
#include <utility>

namespace orchard {
namespace {

// Every tensor of an uploaded micro-batch.
template <class Visit>
void visit_tensors(const DeviceBatch& batch, const Visit& visit) {
  for (const ConstTensor* tensor : {&batch.sources, &batch.positions, &batch.document_offsets,
                                    &batch.sequence_offsets, &batch.real_rows, &batch.target_rows,
                                    &batch.target_ids, &batch.patches, &batch.tile_offsets})
    visit(*tensor);
}

std::int64_t address_of(const ConstTensor& tensor) {
  return std::bit_cast<std::int64_t>(tensor.raw());
}

std::int64_t plans_beside_graphs(const Pass& pass) {
  return pass.dispatcher ? pass.dispatcher->plans_beside_graphs() : 0;
}

}  // namespace

CapturedPass::CapturedPass(const MultimodalModel& model, const Pass& pass, Communicator* group)
    : model_(model),
      group_(group),
      batch_(pass.batch),
      pass_{.stream = pass.stream,
            .arena = pass.arena,
            .batch = batch_,
            .scales = pass.scales,
            .purpose = pass.purpose,
            .sizes = pass.sizes,
            .parallel = group ? pass.parallel : nullptr,
            .dispatcher = pass.dispatcher,
            .overlap = pass.overlap} {}

void CapturedPass::replay(std::unique_ptr<Graph>& graph, std::function<void()> work) {
  if (!graph) {
    graph = group_ ? group_->capture(pass_.stream, work)
                   : pass_.stream.device().capture(pass_.stream, std::move(work));
  }
  graph->replay(pass_.stream);
}

// On the CPU, whose graph is the function, each replay allocates from the arena, and at the same places:
// the arena stands after the upload.
void CapturedPass::forward() {
  replay(forward_, [this] { model_.forward(pass_, saved_); });
}

void CapturedPass::backward() {
  replay(backward_, [this] { model_.backward(pass_, saved_); });
}

PassGraphs::Numbers PassGraphs::shape_of(const Pass& pass) {
  const DeviceBatch& batch = pass.batch;
  Numbers shape{batch.rows,
                batch.sequences,
                batch.tiles,
                batch.tower_rows,
                static_cast<std::int64_t>(pass.sizes),
                static_cast<std::int64_t>(pass.overlap)};
  visit_tensors(batch, [&](const ConstTensor& tensor) { shape.push_back(tensor.numel()); });
  return shape;
}

// The arena's block moves at the first reset after it has grown. It never grows while a shape is
// captured that has run before: until then it has one block.
PassGraphs::Numbers PassGraphs::places_of(const Pass& pass) {
  Numbers places{pass.arena.growths(), pass.stream.device().statistics().workspace_growths,
                 address_of(pass.scales.target), address_of(pass.scales.balance),
                 address_of(pass.scales.z)};
  visit_tensors(pass.batch,
                [&](const ConstTensor& tensor) { places.push_back(address_of(tensor)); });
  return places;
}

// As many numbers on all ranks: one gathering.
void PassGraphs::tell_each_other(Numbers& shape, Numbers& places) const {
  if (!group_) return;
  Numbers mine = shape;
  mine.insert(mine.end(), places.begin(), places.end());
  Numbers all(mine.size() * static_cast<std::size_t>(group_->size()));
  group_->all_gather_on_host(mine, all);
  const auto cut = std::exchange(shape, {}).size();
  places.clear();
  for (std::size_t first = 0; first < all.size(); first += mine.size()) {
    const auto of_rank = std::span(all).subspan(first, mine.size());
    shape.insert(shape.end(), of_rank.begin(), of_rank.begin() + static_cast<std::ptrdiff_t>(cut));
    places.insert(places.end(), of_rank.begin() + static_cast<std::ptrdiff_t>(cut), of_rank.end());
  }
}

// A replay may be under way.
void PassGraphs::drop(Entry& entry, Stream& stream) {
  if (entry.pass) stream.synchronize();
  entry.pass.reset();
}

CapturedPass* PassGraphs::find(const Pass& pass) {
  require(pass.replay == nullptr && pass.gradients == nullptr,
          "a graph follows no choices of experts from elsewhere, and tells nobody of gradients");
  Numbers shape = shape_of(pass), places = places_of(pass);
  tell_each_other(shape, places);
  const auto found = std::ranges::find(entries_, shape, &Entry::shape);
  if (found == entries_.end()) {
    if (entries_.size() == most_shapes) {
      drop(entries_.back(), pass.stream);
      entries_.pop_back();
    }
    entries_.push_front({.shape = std::move(shape),
                         .places = {},
                         .plans_before = plans_beside_graphs(pass),
                         .pass = nullptr});
    ++counts_.plain;
    return nullptr;
  }
  entries_.splice(entries_.begin(), entries_, found);
  Entry& entry = entries_.front();
  if (!entry.is_captured) {
    ++counts_.plain;
    return nullptr;
  }
  if (entry.pass && entry.places == places) {
    ++counts_.replayed;
    return entry.pass.get();
  }
  drop(entry, pass.stream);
  entry.places = std::move(places);
  entry.pass = std::make_unique<CapturedPass>(model_, pass, group_);
  ++counts_.captured;
  return entry.pass.get();
}

void PassGraphs::ran_plain(const Pass& pass) {
  Entry& entry = entries_.front();
  if (plans_beside_graphs(pass) != entry.plans_before) entry.is_captured = false;
}

}  // namespace orchard
