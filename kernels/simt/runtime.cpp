#include "kernels/simt/runtime.h"

#include "kernels/simt/multiprocessor.h"

namespace orchard::simt {

// Accesses to memory: multiprocessor_memory.cpp.

void warp_collective(const WarpOperation& operation, unsigned mask, void* argument, Where where) {
  running(operation.name).warp_collective(operation, mask, argument, where);
}

unsigned active_lanes(Where where) {
  return running("__activemask").active_lanes(where);
}

void block_barrier(Where where) {
  running("__syncthreads()").barrier({}, true, where);
}

void barrier_sync(BarrierUse use, Where where) {
  running("bar.sync").barrier(use, true, where);
}

void barrier_arrive(BarrierUse use, Where where) {
  running("bar.arrive").barrier(use, false, where);
}

void cluster_arrive(Where where) {
  running("barrier.cluster.arrive").cluster_arrive(where);
}

void cluster_wait(Where where) {
  running("barrier.cluster.wait").cluster_wait(where);
}

void grid_barrier(Where where) {
  running("a grid barrier").grid_barrier(where);
}

unsigned cluster_rank() {
  return running("cluster_rank()").cluster_rank();
}

unsigned cluster_blocks() {
  return running("cluster_blocks()").cluster_blocks();
}

void* map_to_rank(const void* address, unsigned rank, Where where) {
  return running("mapa").map_to_rank(address, rank, where);
}

void fence_memory() {
  running("__threadfence()").fence_memory();
}

void fence_proxy() {
  running("fence.proxy.async").fence_proxy();
}

void fence_mbarrier_init() {
  running("fence.mbarrier_init").fence_mbarrier_init();
}

void issue_async_copy(const AsyncCopy& copy, Where where) {
  running("cp.async").issue_async_copy(copy, where);
}

void commit_async_copies() {
  running("cp.async.commit_group").commit_async_copies();
}

void wait_async_copies(unsigned pending_groups) {
  running("cp.async.wait_group").wait_async_copies(pending_groups);
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

void issue_bulk_load(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier,
                     Where where) {
  running("cp.async.bulk").issue_bulk_load(shared, global, bytes, barrier, where);
}

void issue_tensor_store(const TensorStore& store, Where where) {
  running("cp.async.bulk.tensor").issue_tensor_store(store, where);
}

void issue_bulk_store(void* global, const void* shared, unsigned bytes, Where where) {
  running("cp.async.bulk").issue_bulk_store(global, shared, bytes, where);
}

void commit_bulk() {
  running("cp.async.bulk.commit_group").commit_bulk();
}

void wait_bulk(unsigned pending_groups, bool only_read) {
  running("cp.async.bulk.wait_group").wait_bulk(pending_groups, only_read);
}

void change_registers(unsigned count, bool grow) {
  running("setmaxnreg").change_registers(count, grow);
}

void wait_for_registers(Where where) {
  running("setmaxnreg").wait_for_registers(where);
}

std::span<std::byte> block_shared_memory() {
  return running("an access to shared memory").block_shared_memory();
}

unsigned shared_address_of(const void* pointer) {
  return running("shared_address()").shared_address_of(pointer);
}

void record_wgmma_read(std::size_t offset) {
  running("wgmma").record_wgmma_read(offset);
}

void commit_wgmma() {
  running("wgmma.commit_group").commit_wgmma();
}

void wait_wgmma(std::size_t pending_groups) {
  running("wgmma.wait_group").wait_wgmma(pending_groups);
}

bool happens_at_once() {
  return running("an asynchronous operation").happens_at_once();
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
