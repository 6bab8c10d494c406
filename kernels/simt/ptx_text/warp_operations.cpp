// What threads do together: barriers, shuffles, votes, matches; and the order in which a thread goes through
// its instructions.
#include <cstdint>

#include "kernels/core/error.h"
#include "kernels/simt/language.h"
#include "kernels/simt/ptx_text/opcodes.h"

namespace orchard::simt::ptx {
namespace {

void branch(Frame& frame, const Instruction& i) {
  frame.next = frame.operand(i, 0);
}

void leave(Frame& frame, const Instruction&) {
  frame.next = frame.kernel.code.size();
}

void wait_at_block_barrier(Frame& frame, const Instruction& i) {
  if (frame.operand(i, 0) != 0) {
    fail("{}:{}: barrier {} is not known, only 0", frame.kernel.file, i.line, frame.operand(i, 0));
  }
  block_barrier(frame.where(i));
}

void wait_at_named_barrier(Frame& frame, const Instruction& i) {
  barrier_sync({frame.read<std::uint32_t>(frame.operand(i, 0)),
                frame.read<std::uint32_t>(frame.operand(i, 1))},
               frame.where(i));
}

void synchronise_warp(Frame& frame, const Instruction& i) {
  warp_collective(syncwarp_operation, frame.read<std::uint32_t>(frame.operand(i, 0)), nullptr,
                  frame.where(i));
}

enum class Shuffle : std::uint8_t { up, down, butterfly, index };

// d, whether the source is in range, a, b, c, mask (PTX ISA, "shfl.sync"): the lane's section is
// between its lowest lane and the lane that c clamps to.
template <Shuffle kind>
void shuffle_lanes(Frame& frame, const Instruction& i) {
  const std::uint32_t lane = frame.read<std::uint32_t>(laneid);
  const std::uint32_t b = frame.read<std::uint32_t>(frame.operand(i, 3)) & 31;
  const std::uint32_t c = frame.read<std::uint32_t>(frame.operand(i, 4));
  const std::uint32_t segment = c >> 8 & 31;
  const std::uint32_t lowest = lane & segment, clamp = lowest | (c & 31 & ~segment);
  std::uint32_t source = 0;
  bool in_range = false;
  switch (kind) {
    case Shuffle::up:
      source = lane - b;  // wraps where there is none; the clamp is then the section's lowest lane
      in_range = static_cast<std::int32_t>(source) >= static_cast<std::int32_t>(clamp);
      break;
    case Shuffle::down:
      source = lane + b;
      in_range = source <= clamp;
      break;
    case Shuffle::butterfly:
      source = lane ^ b;
      in_range = source <= clamp;
      break;
    case Shuffle::index:
      source = lowest | (b & ~segment);
      in_range = source <= clamp;
      break;
  }
  ShuffleArguments arguments{frame.read<std::uint32_t>(frame.operand(i, 2)),
                             in_range ? source : lane, 0};
  warp_collective(shuffle_operation, frame.read<std::uint32_t>(frame.operand(i, 5)), &arguments,
                  frame.where(i));
  frame.write(frame.operand(i, 0), static_cast<std::uint32_t>(arguments.result));
  frame.write(frame.operand(i, 1), std::uint32_t{in_range});
}

void ballot(Frame& frame, const Instruction& i) {
  VoteArguments arguments{frame.read<bool>(frame.operand(i, 1)), 0};
  warp_collective(vote_operation, frame.read<std::uint32_t>(frame.operand(i, 2)), &arguments,
                  frame.where(i));
  frame.write(frame.operand(i, 0), arguments.ballot);
}

void active_lanes_of(Frame& frame, const Instruction& i) {
  frame.write(frame.operand(i, 0), active_lanes(frame.where(i)));
}

// d, a, mask
template <class Word>
void match_any(Frame& frame, const Instruction& i) {
  frame.write(frame.operand(i, 0),
              match(match_any_operation, frame.read<std::uint32_t>(frame.operand(i, 2)),
                    frame.read<Word>(frame.operand(i, 1)), frame.where(i)));
}

// d, whether all match, a, mask
template <class Word>
void match_all(Frame& frame, const Instruction& i) {
  int all = 0;
  const unsigned lanes =
      __match_all_sync(frame.read<std::uint32_t>(frame.operand(i, 3)),
                       frame.read<Word>(frame.operand(i, 2)), &all, frame.where(i));
  frame.write(frame.operand(i, 0), lanes);
  frame.write(frame.operand(i, 1), static_cast<std::uint32_t>(all));
}

// _|p, mask: the sink, whether the lane is the elected one
void elect(Frame& frame, const Instruction& i) {
  ElectArguments arguments{};
  warp_collective(elect_operation, frame.read<std::uint32_t>(frame.operand(i, 1)), &arguments,
                  frame.where(i));
  frame.write(frame.operand(i, 0), std::uint32_t{arguments.elected});
}

}  // namespace

void add_control(Opcodes& to) {
  to.add("bra", "l", branch);
  to.add("bra.uni", "l", branch);
  to.add("ret", "", leave);
  to.add("exit", "", leave);
}

void add_warp_operations(Opcodes& to) {
  to.add("bar.sync", "i", wait_at_block_barrier);
  to.add("bar.sync", "ww", wait_at_named_barrier);
  to.add("bar.warp.sync", "w", synchronise_warp);
  to.add("shfl.sync.up.b32", "=w=pwwww", shuffle_lanes<Shuffle::up>);
  to.add("shfl.sync.down.b32", "=w=pwwww", shuffle_lanes<Shuffle::down>);
  to.add("shfl.sync.bfly.b32", "=w=pwwww", shuffle_lanes<Shuffle::butterfly>);
  to.add("shfl.sync.idx.b32", "=w=pwwww", shuffle_lanes<Shuffle::index>);
  to.add("elect.sync", "_=pw", elect);
  to.add("vote.sync.ballot.b32", "=wpw", ballot);
  to.add("activemask.b32", "=w", active_lanes_of);
  to.add("match.any.sync.b32", "=www", match_any<std::uint32_t>);
  to.add("match.any.sync.b64", "=wdw", match_any<std::uint64_t>);
  to.add("match.all.sync.b32", "=w=pww", match_all<std::uint32_t>);
  to.add("match.all.sync.b64", "=w=pdw", match_all<std::uint64_t>);
}

}  // namespace orchard::simt::ptx
