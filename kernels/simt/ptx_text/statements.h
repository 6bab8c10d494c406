// PTX text as statements: the syntax alone (PTX ISA, "Syntax"), without what opcodes mean.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orchard::simt::ptx {

// Views into the module's text.
struct Operand {
  enum class Kind : std::uint8_t {
    name,     // %r1, %tid.x, p, $L__BB0_2, a parameter, _
    number,   // 12, -1, 0x10, 0f3F800000, 0d3FF0000000000000
    address,  // [name+number], [name, {members}]
    group     // {members}
  };
  Kind kind = Kind::name;
  std::string_view name;
  std::uint64_t bits = 0;  // of a number; of an address the offset, in two's complement
  std::vector<Operand> members;
};

struct Statement {
  enum class Kind : std::uint8_t {
    instruction,
    label,        // opcode is its name
    open,         // {
    close,        // }
    declaration,  // of registers: opcode is their type; a range %r<n> has n in `bits`
    end
  };
  Kind kind = Kind::end;
  unsigned line = 0;
  std::string_view opcode;  // with its modifiers
  std::string_view guard;   // the predicate of @p, or empty
  bool guard_is_negated = false;
  std::vector<Operand> operands;  // the two of d|p count as two
};

class StatementReader {
 public:
  // `text` begins in line `line` of `file`, which messages name.
  StatementReader(std::string file, std::string_view text, unsigned line)
      : file_(std::move(file)), text_(text), line_(line) {}

  // Throws Error, with file and line, for what this front end does not know.
  Statement next();
  // The next token, for the head of an entry: a name, a number or one character. Empty at the end.
  std::string_view token();
  std::string_view peek();
  void expect(std::string_view token);

  unsigned line() const { return line_; }
  [[noreturn]] void refuse(std::string_view what) const;

 private:
  void skip_blanks();
  Operand operand();
  std::vector<Operand> members();  // up to the closing brace
  std::uint64_t number(std::string_view token);
  Statement directive(Statement statement);

  std::string file_;
  std::string_view text_;
  unsigned line_;
};

}  // namespace orchard::simt::ptx
