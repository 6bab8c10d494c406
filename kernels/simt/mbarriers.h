// The mbarriers of the resident blocks (PTX ISA, "mbarrier"): 8 bytes of shared memory each, and who
// waits for them.
//
// A phase ends when all expected arrivals have come and no bytes are outstanding; the next one begins
// at once. Methods throw Error with what is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/simt/race_checker.h"

namespace orchard::simt {

struct Thread;

// Who an mbarrier is to the race checker: an actor whose epoch is the number of phases that are over.
struct MbarrierActor {
  std::uint32_t block = 0;
  std::uint32_t actor = 0;
};

class Mbarriers {
 public:
  void reset() { barriers_.clear(); }

  void initialise(std::uint64_t* barrier, unsigned arrivals, MbarrierActor actor);
  // One arrival, after `bytes` more were announced. Returns the threads whose wait is over.
  std::vector<Thread*> arrive(std::uint64_t* barrier, unsigned bytes);
  // An asynchronous copy has written `bytes`.
  std::vector<Thread*> complete(std::uint64_t* barrier, unsigned bytes);
  // The phase of this parity is over: the current one has the other parity.
  bool is_over(std::uint64_t* barrier, unsigned parity);
  // A wait for this parity by who has this knowledge can only mean the current phase or the one before.
  void require_near(std::uint64_t* barrier, unsigned parity, const Clock& known);
  // Wakes `thread` when the current phase is over.
  void add_waiter(std::uint64_t* barrier, Thread* thread);

  // The copy engine may use it: its initialisation has been fenced.
  void fence(std::uint64_t* barrier) { find(barrier).fenced = true; }
  bool is_fenced(std::uint64_t* barrier) { return find(barrier).fenced; }

  // What the arrivals of the current phase hand over, and what those of the phase before did.
  Signal& arriving(std::uint64_t* barrier) { return find(barrier).arriving; }
  const Signal& over(std::uint64_t* barrier) { return find(barrier).over; }
  MbarrierActor actor(std::uint64_t* barrier) { return find(barrier).actor; }
  Epoch phase(std::uint64_t* barrier) { return find(barrier).phase; }

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
    MbarrierActor actor;
    Epoch phase = 1;  // the current one
    bool fenced = false;
    bool seen = true;  // somebody's wait has found the phase before over
    Signal arriving, over;
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
