// The opcodes that the front end knows: for each one its operands and what it does.
//
// Operands are given as a pattern of a letter each, which decides how Frame::operand sees them:
//
//   p h w d   predicate, 16, 32, 64 bits: a register or a constant      its slot
//   x         a register of 16, 32 or 64 bits                           its slot, its words
//   a         an address                                                slot of the base, its words,
//                                                                       offset
//   t         an address with three coordinates                         slot of the base, theirs
//   i         a number                                                  itself
//   l         a label                                                   number of the instruction
//   _         the sink _                                                nothing
//   = before a letter: written, so a register; { and } around a group, which see nothing
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/simt/ptx_text/kernel.h"

namespace orchard::simt::ptx {

struct Opcode {
  std::string operands;
  Execute execute;
};

class Opcodes {
 public:
  Opcodes();

  // The forms of an opcode, which differ in their operands; none: it is not known.
  std::span<const Opcode> find(std::string_view name) const;

  void add(const std::string& name, std::string operands, Execute execute) {
    opcodes_[name].push_back({std::move(operands), execute});
  }

  // d = function(a, b, ...), a lambda without state; the types give the operands.
  template <class Function>
  void add(const std::string& name, Function function) {
    add_function<Function>(name, +function);
  }

 private:
  template <class T>
  static constexpr char letter = std::is_same_v<T, bool> ? 'p'
                                 : sizeof(T) == 8        ? 'd'
                                 : sizeof(T) == 4        ? 'w'
                                                         : 'h';

  template <class Function, class Result, class... Arguments>
  void add_function(const std::string& name, Result (*)(Arguments...)) {
    add(name, std::string{'=', letter<Result>, letter<Arguments>...},
        [](Frame& frame, const Instruction& i) {
          apply<Function, Result, Arguments...>(frame, i,
                                                  std::index_sequence_for<Arguments...>());
        });
  }

  template <class Function, class Result, class... Arguments, std::size_t... n>
  static void apply(Frame& frame, const Instruction& i, std::index_sequence<n...>) {
    frame.write<Result>(frame.operand(i, 0),
                        Function{}(frame.read<Arguments>(frame.operand(i, n + 1))...));
  }

  std::unordered_map<std::string, std::vector<Opcode>> opcodes_;
};

// The families.
void add_integer_arithmetic(Opcodes&);
void add_float_arithmetic(Opcodes&);
void add_comparisons(Opcodes&);
void add_conversions(Opcodes&);
void add_control(Opcodes&);
void add_memory(Opcodes&);
void add_warp_operations(Opcodes&);
void add_matrix_operations(Opcodes&);
void add_async_copies(Opcodes&);
void add_warpgroup_operations(Opcodes&);

// A group of n operands.
std::string group(std::string_view letters, int n);

}  // namespace orchard::simt::ptx
