#include "kernels/simt/runtime.h"

#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {

void warp_collective(const WarpOperation& operation, unsigned mask, void* argument, Where where) {
  running(operation.name).warp_collective(operation, mask, argument, where);
}

void block_barrier(Where where) {
  running("__syncthreads()").block_barrier(where);
}

void access(const void* address, std::size_t bytes, Access kind, Where where) {
  running(kind == Access::read ? "load()" : "store()").access(address, bytes, kind, where);
}

void shared_access(const void* address, std::size_t bytes, Access kind, Where where) {
  running("an access to shared memory").shared_access(address, bytes, kind, where);
}

void issue_async_copy(const AsyncCopy& copy, Where where) {
  running("cp.async").issue_async_copy(copy, where);
}

void commit_async_copies() {
  running("cp.async.commit_group").async_copies().commit();
}

void wait_async_copies(unsigned pending_groups) {
  running("cp.async.wait_group").async_copies().wait(pending_groups);
}

void initialise_mbarrier(std::uint64_t* barrier, unsigned arrivals, Where where) {
  running("mbarrier.init").initialise_mbarrier(barrier, arrivals, where);
}

void arrive_at_mbarrier(std::uint64_t* barrier, unsigned expected_bytes, Where where) {
  running("mbarrier.arrive").arrive_at_mbarrier(barrier, expected_bytes, where);
}

void wait_for_mbarrier(std::uint64_t* barrier, unsigned parity, Where where) {
  running("mbarrier.try_wait").wait_for_mbarrier(barrier, parity, where);
}

void issue_tensor_load(const TensorLoad& load, Where where) {
  running("cp.async.bulk.tensor").issue_tensor_load(load, where);
}

std::span<std::byte> block_shared_memory() {
  return running("an access to shared memory").block_shared_memory();
}

WgmmaQueue& wgmma_queue() {
  return running("wgmma").wgmma_queue();
}

unsigned warp_index() {
  return running("wgmma").warp_index();
}

const SimtOptions& options() {
  return running("an emulated instruction").options();
}

Counters& counters() {
  return running("a counted operation").counters();
}

void* shared_memory(std::size_t bytes, Where where) {
  return running("shared_storage()").shared_memory(bytes, where);
}

}  // namespace orchard::simt
