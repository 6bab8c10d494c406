#include "comm/nccl_library.h"

#include <dlfcn.h>

#include "kernels/device/device.h"
#include "kernels/gpu/call_text.h"

namespace orchard {
namespace {

constexpr const char* library_name = "libnccl.so.2";
constexpr int least_version = 21800;  // 2.18: major·10000 + minor·100 + patch
constexpr int bytes_type = 1;         // ncclUint8

// Declared as NCCL's public header has them: its enums are ints, its communicators and streams
// pointers.
struct Functions {
  int (*get_version)(int* version) = nullptr;
  const char* (*get_error_string)(int result) = nullptr;
  const char* (*get_last_error)(void* communicator) = nullptr;
  int (*get_unique_id)(NcclLibrary::Id* id) = nullptr;
  int (*init_rank)(void** communicator, int size, NcclLibrary::Id id, int rank) = nullptr;
  int (*destroy)(void* communicator) = nullptr;
  int (*abort)(void* communicator) = nullptr;
  int (*get_async_error)(void* communicator, int* result) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*send)(const void* data, std::size_t count, int type, int peer, void* communicator,
              void* stream) = nullptr;
  int (*receive)(void* data, std::size_t count, int type, int peer, void* communicator,
                 void* stream) = nullptr;
  int (*broadcast)(const void* source, void* destination, std::size_t count, int type, int root,
                   void* communicator, void* stream) = nullptr;
  int (*all_gather)(const void* mine, void* all, std::size_t count, int type, void* communicator,
                    void* stream) = nullptr;
};

class SharedNccl final : public NcclLibrary {
 public:
  SharedNccl() {
    void* const library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
    require(library != nullptr, "NCCL is missing: {}", library ? "" : dlerror());
    const auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      require(function != nullptr, "NCCL is too old: {} has no {}", library_name, name);
    };
    find(nccl_.get_version, "ncclGetVersion");
    find(nccl_.get_error_string, "ncclGetErrorString");
    int version = 0;
    call("ncclGetVersion", nullptr, nccl_.get_version, &version);
    require(version >= least_version, "NCCL is too old: {} is version {}, and {} is needed",
            library_name, version, least_version);
    find(nccl_.get_last_error, "ncclGetLastError");
    find(nccl_.get_unique_id, "ncclGetUniqueId");
    find(nccl_.init_rank, "ncclCommInitRank");
    find(nccl_.destroy, "ncclCommDestroy");
    find(nccl_.abort, "ncclCommAbort");
    find(nccl_.get_async_error, "ncclCommGetAsyncError");
    find(nccl_.group_start, "ncclGroupStart");
    find(nccl_.group_end, "ncclGroupEnd");
    find(nccl_.send, "ncclSend");
    find(nccl_.receive, "ncclRecv");
    find(nccl_.broadcast, "ncclBroadcast");
    find(nccl_.all_gather, "ncclAllGather");
  }

  Id make_id() override {
    Id id;
    call("ncclGetUniqueId", nullptr, nccl_.get_unique_id, &id);
    return id;
  }
  Handle connect(const Id& id, int rank, int size) override {
    Handle handle = nullptr;
    call("ncclCommInitRank", nullptr, nccl_.init_rank, &handle, size, id, rank);
    return handle;
  }
  void disconnect(Handle handle) noexcept override { nccl_.destroy(handle); }
  void abort(Handle handle) noexcept override { nccl_.abort(handle); }
  void check(Handle handle) override {
    int result = success;
    call("ncclCommGetAsyncError", handle, nccl_.get_async_error, handle, &result);
    if (result != success && result != in_progress) fail("NCCL failed: {}", text(handle, result));
  }

  void group_begin() override { call("ncclGroupStart", nullptr, nccl_.group_start); }
  void group_end() override { call("ncclGroupEnd", nullptr, nccl_.group_end); }
  void send(const Lane& lane, const void* data, std::size_t bytes, int to) override {
    call("ncclSend", lane.handle, nccl_.send, data, bytes, bytes_type, to, lane.handle,
         stream_of(lane));
  }
  void receive(const Lane& lane, void* data, std::size_t bytes, int from) override {
    call("ncclRecv", lane.handle, nccl_.receive, data, bytes, bytes_type, from, lane.handle,
         stream_of(lane));
  }
  void broadcast(const Lane& lane, void* data, std::size_t bytes, int root) override {
    call("ncclBroadcast", lane.handle, nccl_.broadcast, static_cast<const void*>(data), data, bytes,
         bytes_type, root, lane.handle, stream_of(lane));
  }
  void all_gather(const Lane& lane, const void* mine, void* all, std::size_t bytes) override {
    call("ncclAllGather", lane.handle, nccl_.all_gather, mine, all, bytes, bytes_type, lane.handle,
         stream_of(lane));
  }

 private:
  static constexpr int success = 0, in_progress = 7;

  static void* stream_of(const Lane& lane) { return lane.stream->native_handle(); }

  std::string text(Handle handle, int result) const {
    const char* const more = nccl_.get_last_error ? nccl_.get_last_error(handle) : "";
    return fmt::format("{} (ncclResult_t {}){}{}", nccl_.get_error_string(result), result,
                       more && *more ? ": " : "", more ? more : "");
  }

  template <class... Parameters, class... Arguments>
  void call(const char* name, Handle handle, int (*function)(Parameters...),
            Arguments... arguments) const {
    const int result = function(arguments...);
    if (result != success)
      fail("{} failed: {}", call_text(name, arguments...), text(handle, result));
  }

  Functions nccl_;
};

}  // namespace

std::shared_ptr<NcclLibrary> load_nccl() {
  return std::make_shared<SharedNccl>();
}

}  // namespace orchard
