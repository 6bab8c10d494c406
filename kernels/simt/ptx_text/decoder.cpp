#include "kernels/simt/ptx_text/decoder.h"

#include <unordered_map>

#include "kernels/core/error.h"
#include "kernels/simt/ptx_text/opcodes.h"
#include "kernels/simt/ptx_text/registers.h"
#include "kernels/simt/ptx_text/statements.h"

namespace orchard::simt::ptx {
namespace {

// Thrown where an operand is not what the pattern asks for; another form of the opcode may fit.
struct Misfit {
  std::string reason;
};

class Decoder {
 public:
  Decoder(const EntryText& entry, const Opcodes& opcodes)
      : opcodes_(opcodes), reader_(entry.file, entry.text, entry.line) {
    kernel_.name = entry.name;
    // Line numbers of the emulator have 16 bits: far down a file, they count from the entry's first.
    constexpr unsigned most = 1u << 15;
    if (entry.line > most) first_line_ = entry.line;
    kernel_.file = first_line_ ? fmt::format("{}+{}", entry.file, first_line_) : entry.file;
    if (!entry.shared_memory.empty()) symbols_[entry.shared_memory] = 0;
  }

  Kernel run() {
    read_parameters();
    read_body();
    resolve_labels();
    kernel_.image = registers_.take_image();
    return std::move(kernel_);
  }

 private:
  void read_parameters();
  void read_parameter();
  void read_body();
  void read_instruction(const Statement& statement);
  void resolve_labels();

  // Append to kernel_.operands what the pattern makes of the operands.
  void fit(std::string_view pattern, const std::vector<Operand>& operands);
  void fit_one(char letter, bool is_written, const Operand& operand);
  void fit_address(const Operand& operand);
  Register value_of(char letter, bool is_written, const Operand& operand);
  void push(std::uint64_t part) { kernel_.operands.push_back(static_cast<std::uint32_t>(part)); }

  const Opcodes& opcodes_;
  StatementReader reader_;
  Kernel kernel_;
  unsigned first_line_ = 0;
  Registers registers_;
  std::unordered_map<std::string_view, std::uint64_t> symbols_;  // offsets in their memory
  std::unordered_map<std::string_view, std::uint32_t> labels_;
  struct Jump {
    std::size_t operand;
    std::string_view label;
    unsigned line;
  };
  std::vector<Jump> jumps_;
};

// ---- the head ----------------------------------------------------------------------------------

// .param .u64 name   or   .param .align 8 .b8 name[24]
void Decoder::read_parameter() {
  reader_.expect(".param");
  std::uint64_t align = 0, bytes = 0;
  std::string_view word = reader_.token();
  for (; word.starts_with("."); word = reader_.token()) {
    if (word == ".align") {
      align = std::stoull(std::string(reader_.token()));
    } else if (word != ".ptr") {
      bytes = std::stoull(std::string(word.substr(word.find_first_of("0123456789")))) / 8;
    }
  }
  if (align == 0) align = bytes;
  if (reader_.peek() == "[") {
    reader_.expect("[");
    bytes = std::stoull(std::string(reader_.token()));
    reader_.expect("]");
  }
  const std::size_t offset = (kernel_.parameter_bytes + align - 1) / align * align;
  kernel_.parameters.push_back({offset, bytes});
  kernel_.parameter_bytes = offset + bytes;
  symbols_[word] = offset;
}

void Decoder::read_parameters() {
  reader_.expect("(");
  while (reader_.peek() != ")") {
    read_parameter();
    if (reader_.peek() == ",") reader_.expect(",");
  }
  reader_.expect(")");
  // .maxntid and the like bind the assembler, not us.
  while (reader_.peek() != "{") {
    if (reader_.token().empty()) reader_.refuse("the entry has no body");
  }
}

// ---- the body ----------------------------------------------------------------------------------

void Decoder::read_body() {
  const std::size_t outside = registers_.depth();
  do {
    const Statement statement = reader_.next();
    switch (statement.kind) {
      case Statement::Kind::open:
        registers_.open_scope();
        break;
      case Statement::Kind::close:
        registers_.close_scope();
        break;
      case Statement::Kind::declaration:
        for (const Operand& declared : statement.operands) {
          if (!registers_.declare(statement.opcode, declared.name, declared.bits)) {
            reader_.refuse(fmt::format("registers of type {} are not known", statement.opcode));
          }
        }
        break;
      case Statement::Kind::label:
        labels_[statement.opcode] = static_cast<std::uint32_t>(kernel_.code.size());
        break;
      case Statement::Kind::instruction:
        read_instruction(statement);
        break;
      case Statement::Kind::end:
        reader_.refuse("the text ends within an entry");
    }
  } while (registers_.depth() > outside);
}

void Decoder::read_instruction(const Statement& statement) {
  Instruction out{nullptr, static_cast<std::uint32_t>(kernel_.operands.size()),
                  statement.line - first_line_, -1, statement.guard_is_negated};
  if (!statement.guard.empty()) {
    const Register* const guard = registers_.find(statement.guard);
    if (!guard || guard->letter != 'p') {
      reader_.refuse(fmt::format("{} is no predicate", statement.guard));
    }
    out.guard = static_cast<std::int32_t>(guard->slot);
  }
  const std::span<const Opcode> forms = opcodes_.find(statement.opcode);
  if (forms.empty()) reader_.refuse(fmt::format("the opcode {} is not known", statement.opcode));
  std::string reason;
  const std::size_t jumps = jumps_.size();
  for (const Opcode& form : forms) {
    try {
      fit(form.operands, statement.operands);
      out.execute = form.execute;
      kernel_.code.push_back(out);
      return;
    } catch (const Misfit& misfit) {
      reason = misfit.reason;
      kernel_.operands.resize(out.first);
      jumps_.resize(jumps);
    }
  }
  reader_.refuse(fmt::format("the operands do not fit {}: {}", statement.opcode, reason));
}

void Decoder::resolve_labels() {
  for (const Jump& jump : jumps_) {
    const auto target = labels_.find(jump.label);
    if (target == labels_.end()) {
      fail("{}:{}: there is no label {}", kernel_.file, jump.line - first_line_, jump.label);
    }
    kernel_.operands[jump.operand] = target->second;
  }
}

// ---- operands ----------------------------------------------------------------------------------

void Decoder::fit(std::string_view pattern, const std::vector<Operand>& operands) {
  std::size_t n = 0;
  for (std::size_t at = 0; at < pattern.size(); ++at, ++n) {
    if (n == operands.size()) throw Misfit{"one is missing"};
    const bool is_written = pattern[at] == '=';
    if (is_written) ++at;
    if (pattern[at] != '{') {
      fit_one(pattern[at], is_written, operands[n]);
      continue;
    }
    const std::size_t end = pattern.find('}', at);
    if (operands[n].kind != Operand::Kind::group) throw Misfit{"one is no group"};
    fit(pattern.substr(at + 1, end - at - 1), operands[n].members);
    at = end;
  }
  if (n != operands.size()) throw Misfit{"there are too many"};
}

void Decoder::fit_one(char letter, bool is_written, const Operand& operand) {
  const bool is_name = operand.kind == Operand::Kind::name;
  switch (letter) {
    case 'a':
      return fit_address(operand);
    case 't': {
      if (operand.kind != Operand::Kind::address || operand.members.size() != 3) {
        throw Misfit{"a tensor needs three coordinates"};
      }
      push(value_of('d', false, {.name = operand.name}).slot);
      for (const Operand& coordinate : operand.members) {
        push(value_of('w', false, coordinate).slot);
      }
      return;
    }
    case 'i':
      if (operand.kind != Operand::Kind::number) throw Misfit{"one is no number"};
      return push(operand.bits);
    case 'l':
      if (!is_name) throw Misfit{"one is no label"};
      jumps_.push_back({kernel_.operands.size(), operand.name, reader_.line()});
      return push(0);
    case '_':
      if (!is_name || operand.name != "_") throw Misfit{"one is not _"};
      return;
    case 'x': {
      const Register* const found = is_name ? registers_.find(operand.name) : nullptr;
      if (!found || found->letter == 'p') throw Misfit{"one is no register"};
      push(found->slot);
      return push(found->words());
    }
    default:
      return push(value_of(letter, is_written, operand).slot);
  }
}

void Decoder::fit_address(const Operand& operand) {
  if (operand.kind != Operand::Kind::address || !operand.members.empty()) {
    throw Misfit{"one is no address"};
  }
  const Register* const found = registers_.find(operand.name);
  const Register base = found ? *found : value_of('d', false, {.name = operand.name});
  if (base.letter != 'w' && base.letter != 'd') throw Misfit{"an address is too narrow"};
  push(base.slot);
  push(base.words());
  push(operand.bits);
}

Register Decoder::value_of(char letter, bool is_written, const Operand& operand) {
  if (operand.kind == Operand::Kind::number && !is_written) {
    return registers_.constant(letter, operand.bits);
  }
  if (operand.kind != Operand::Kind::name) throw Misfit{"one is no register"};
  if (const Register* const found = registers_.find(operand.name)) {
    if (found->letter != letter) {
      throw Misfit{fmt::format("{} has another width", operand.name)};
    }
    if (is_written && found->slot < special_count) {
      throw Misfit{fmt::format("{} cannot be written", operand.name)};
    }
    return *found;
  }
  const auto symbol = symbols_.find(operand.name);
  if (symbol == symbols_.end() || is_written) {
    throw Misfit{fmt::format("{} is not declared", operand.name)};
  }
  return registers_.constant(letter, symbol->second);
}

}  // namespace

Kernel decode(const EntryText& entry, const Opcodes& opcodes) {
  return Decoder(entry, opcodes).run();
}

}  // namespace orchard::simt::ptx
