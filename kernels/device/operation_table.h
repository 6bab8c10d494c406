// Which function runs an operation on a device. Backends fill one table per device; `dispatch`
// looks the operation's params type up in the table of the stream's device, so that the floor of
// operations does not know which backends were linked.
#pragma once

#include <typeindex>
#include <unordered_map>

#include "kernels/core/error.h"

namespace orchard {

class Stream;

class OperationTable {
 public:
  template <class Operation>
  void add(void (*implementation)(Stream&, const Operation&)) {
    functions_[typeid(Operation)] = reinterpret_cast<void (*)()>(implementation);
  }

  template <class Operation>
  auto find() const -> void (*)(Stream&, const Operation&) {
    const auto it = functions_.find(typeid(Operation));
    if (it == functions_.end()) return nullptr;
    return reinterpret_cast<void (*)(Stream&, const Operation&)>(it->second);
  }

 private:
  // Any function pointer survives a round trip through another function pointer type.
  std::unordered_map<std::type_index, void (*)()> functions_;
};

}  // namespace orchard
