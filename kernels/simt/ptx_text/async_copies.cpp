// cp.async, the copy engine, and the mbarriers that count what it brings.
#include "kernels/simt/async_copies.h"

#include <cstdint>
#include <cstring>

#include "kernels/core/error.h"
#include "kernels/simt/ptx_text/addresses.h"
#include "kernels/simt/ptx_text/opcodes.h"
#include "kernels/simt/tensor_map.h"

namespace orchard::simt::ptx {
namespace {

// [to], [from], bytes, source bytes
void copy(Frame& frame, const Instruction& i) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): registers hold addresses as numbers.
  auto* const from = reinterpret_cast<const std::byte*>(address_value(frame, i, 3));
  issue_async_copy({shared_pointer(frame, i, 0), from, frame.operand(i, 6),
                    frame.read<std::uint32_t>(frame.operand(i, 7))},
                   frame.where(i));
}

void copy_past_l1(Frame& frame, const Instruction& i) {
  if (frame.operand(i, 6) != 16) {
    fail("{}:{}: cp.async.cg copies 16 bytes, not {}", frame.kernel.file, i.line,
         frame.operand(i, 6));
  }
  copy(frame, i);
}

void commit(Frame&, const Instruction&) {
  commit_async_copies();
}

void wait_for_groups(Frame& frame, const Instruction& i) {
  wait_async_copies(frame.operand(i, 0));
}

void wait_for_all(Frame&, const Instruction&) {
  commit_async_copies();
  wait_async_copies(0);
}

std::uint64_t* mbarrier(const Frame& frame, const Instruction& i, std::size_t n) {
  return reinterpret_cast<std::uint64_t*>(shared_pointer(frame, i, n));
}

void initialise(Frame& frame, const Instruction& i) {
  initialise_mbarrier(mbarrier(frame, i, 0), frame.read<std::uint32_t>(frame.operand(i, 3)),
                      frame.where(i));
}

void arrive(Frame& frame, const Instruction& i) {
  arrive_at_mbarrier(mbarrier(frame, i, 0), 0, frame.where(i));
}

void arrive_expecting(Frame& frame, const Instruction& i) {
  arrive_at_mbarrier(mbarrier(frame, i, 0), frame.read<std::uint32_t>(frame.operand(i, 3)),
                     frame.where(i));
}

// Waits for as long as it takes, so that it never says no.
void try_wait(Frame& frame, const Instruction& i) {
  wait_for_mbarrier(mbarrier(frame, i, 1), frame.read<std::uint32_t>(frame.operand(i, 4)),
                    frame.where(i));
  frame.write(frame.operand(i, 0), std::uint32_t{1});
}

// Tensor maps are parameters.
TensorMap tensor_map(const Frame& frame, const Instruction& i, std::uint64_t address) {
  const std::uint64_t offset = address - reinterpret_cast<std::uintptr_t>(frame.parameters);
  if (offset >= frame.kernel.parameter_bytes || offset % alignof(TensorMap) ||
      offset + sizeof(TensorMap) > frame.kernel.parameter_bytes) {
    fail("{}:{}: the tensor map is not one of the kernel's parameters", frame.kernel.file, i.line);
  }
  TensorMap map;
  std::memcpy(&map, frame.parameters + offset, sizeof map);
  return map;
}

// [to], [map, {col, row, matrix}], [mbarrier]
void load_box(Frame& frame, const Instruction& i) {
  const auto coordinate = [&](std::size_t n) {
    return frame.read<std::int32_t>(frame.operand(i, n));
  };
  const TensorMap map = tensor_map(frame, i, frame.read<std::uint64_t>(frame.operand(i, 3)));
  issue_tensor_load({map.box, shared_pointer(frame, i, 0), coordinate(4), coordinate(5),
                     coordinate(6), mbarrier(frame, i, 7)},
                    frame.where(i));
}

// [map, {col, row, matrix}], [from]
template <Combine combine>
void store_box(Frame& frame, const Instruction& i) {
  const auto coordinate = [&](std::size_t n) {
    return frame.read<std::int32_t>(frame.operand(i, n));
  };
  const TensorMap map = tensor_map(frame, i, frame.read<std::uint64_t>(frame.operand(i, 0)));
  issue_tensor_store(
      {map.box, shared_pointer(frame, i, 4), coordinate(1), coordinate(2), coordinate(3), combine},
      frame.where(i));
}

void commit_stores(Frame&, const Instruction&) {
  commit_bulk();
}

template <bool only_read>
void wait_for_stores(Frame& frame, const Instruction& i) {
  wait_bulk(frame.operand(i, 0), only_read);
}

void prefetch_map(Frame& frame, const Instruction& i) {
  static_cast<void>(tensor_map(frame, i, address_value(frame, i, 0)));
}

// [map, {col, row, matrix}]
void prefetch_box(Frame& frame, const Instruction& i) {
  static_cast<void>(tensor_map(frame, i, frame.read<std::uint64_t>(frame.operand(i, 0))));
}

void fence_from_generic_proxy(Frame&, const Instruction&) {
  fence_proxy();
}

void fence_initialisation(Frame&, const Instruction&) {
  fence_mbarrier_init();
}

}  // namespace

void add_async_copies(Opcodes& to) {
  to.add("cp.async.cg.shared.global.L2::128B", "aaiw", copy_past_l1);
  to.add("cp.async.ca.shared.global", "aaiw", copy);
  to.add("cp.async.commit_group", "", commit);
  to.add("cp.async.wait_group", "i", wait_for_groups);
  to.add("cp.async.wait_all", "", wait_for_all);

  to.add("mbarrier.init.shared::cta.b64", "aw", initialise);
  to.add("mbarrier.arrive.shared::cta.b64", "_a", arrive);
  to.add("mbarrier.arrive.expect_tx.shared::cta.b64", "_aw", arrive_expecting);
  to.add("mbarrier.try_wait.parity.shared::cta.b64", "=paw", try_wait);

  to.add("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes", "ata",
         load_box);
  to.add("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group", "ta",
         store_box<Combine::replace>);
  to.add("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group", "ta",
         store_box<Combine::add>);
  to.add("cp.async.bulk.commit_group", "", commit_stores);
  to.add("cp.async.bulk.wait_group", "i", wait_for_stores<false>);
  to.add("cp.async.bulk.wait_group.read", "i", wait_for_stores<true>);
  to.add("cp.async.bulk.prefetch.tensor.3d.L2.global.tile", "t", prefetch_box);
  to.add("prefetch.tensormap", "a", prefetch_map);
  to.add("fence.mbarrier_init.release.cluster", "", fence_initialisation);
  to.add("fence.proxy.async.shared::cta", "", fence_from_generic_proxy);
}

}  // namespace orchard::simt::ptx
