// The mbarriers of a block (PTX ISA, "mbarrier"): 8 bytes of shared memory each, and who waits for
// them.
//
// A phase ends when all expected arrivals have come and no bytes are outstanding; the next one begins
// at once. Methods throw Error with what is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace orchard::simt {

struct Thread;

class Mbarriers {
 public:
  void reset() { barriers_.clear(); }

  void initialise(std::uint64_t* barrier, unsigned arrivals);
  // One arrival, after `bytes` more were announced. Returns the threads whose wait is over.
  std::vector<Thread*> arrive(std::uint64_t* barrier, unsigned bytes);
  // An asynchronous copy has written `bytes`.
  std::vector<Thread*> complete(std::uint64_t* barrier, unsigned bytes);
  // The phase of this parity is over: the current one has the other parity.
  bool is_over(std::uint64_t* barrier, unsigned parity);
  // Wakes `thread` when the current phase is over.
  void add_waiter(std::uint64_t* barrier, Thread* thread);

  // "expects 1 of 2 arrivals and 4096 bytes".
  std::string state(std::uint64_t* barrier);

 private:
  struct State {
    unsigned pending;
    unsigned expected;
    int bytes;
    unsigned phase;
  };
  struct Barrier {
    std::uint64_t value;  // what the 8 bytes must hold
    std::vector<Thread*> waiters;
  };

  Barrier& find(std::uint64_t* barrier);
  static std::uint64_t pack(const State& state);
  static State unpack(std::uint64_t value);
  // Stores the state, or that of the next phase if this one is over.
  std::vector<Thread*> advance(std::uint64_t* barrier, State state);

  std::map<std::uint64_t*, Barrier> barriers_;
};

}  // namespace orchard::simt
