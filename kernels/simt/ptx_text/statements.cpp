#include "kernels/simt/ptx_text/statements.h"

#include <cctype>
#include <charconv>

#include "kernels/core/error.h"

namespace orchard::simt::ptx {
namespace {

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' ||
         c == '.';
}

}  // namespace

void StatementReader::refuse(std::string_view what) const {
  fail("{}:{}: {}", file_, line_, what);
}

void StatementReader::skip_blanks() {
  for (;;) {
    if (text_.starts_with("//")) {
      text_.remove_prefix(std::min(text_.find('\n'), text_.size()));
    } else if (!text_.empty() && std::isspace(static_cast<unsigned char>(text_[0]))) {
      line_ += text_[0] == '\n';
      text_.remove_prefix(1);
    } else {
      return;
    }
  }
}

std::string_view StatementReader::peek() {
  skip_blanks();
  if (text_.empty()) return {};
  if (text_[0] == '"') return text_.substr(0, text_.find('"', 1) + 1);
  std::size_t length = 0;
  // "::" lies inside of modifiers, a single ":" ends a label.
  while (length < text_.size() &&
         (is_word(text_[length]) || text_.substr(length, 2) == "::" ||
          (length > 0 && text_.substr(length - 1, 2) == "::"))) {
    ++length;
  }
  return text_.substr(0, std::max(length, std::size_t{1}));
}

std::string_view StatementReader::token() {
  const std::string_view out = peek();
  text_.remove_prefix(out.size());
  return out;
}

void StatementReader::expect(std::string_view expected) {
  const std::string_view found = token();
  if (found != expected) refuse(fmt::format("\"{}\" stands where \"{}\" should", found, expected));
}

std::uint64_t StatementReader::number(std::string_view word) {
  const std::string_view whole = word;
  int base = 10;
  if (word.starts_with("0x") || word.starts_with("0f") || word.starts_with("0d")) {
    word.remove_prefix(2);
    base = 16;
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value, base);
  if (error != std::errc() || end != word.data() + word.size()) {
    refuse(fmt::format("{} is no number", whole));
  }
  return value;
}

std::vector<Operand> StatementReader::members() {
  std::vector<Operand> out;
  do {
    out.push_back(operand());
  } while (peek() == "," && !token().empty());
  expect("}");
  return out;
}

Operand StatementReader::operand() {
  const std::string_view first = token();
  Operand out;
  if (first == "{") {
    out.kind = Operand::Kind::group;
    out.members = members();
  } else if (first == "[") {
    out.kind = Operand::Kind::address;
    out.name = token();
    if (peek() == "+" && !token().empty()) out.bits = operand().bits;
    if (peek() == "," && !token().empty()) {
      expect("{");
      out.members = members();
    }
    expect("]");
  } else if (first == "-") {
    out.kind = Operand::Kind::number;
    out.bits = -number(token());
  } else if (std::isdigit(static_cast<unsigned char>(first.front()))) {
    out.kind = Operand::Kind::number;
    out.bits = number(first);
  } else {
    out.name = first;
  }
  return out;
}

// After a word that begins with a dot.
Statement StatementReader::directive(Statement statement) {
  if (statement.opcode == ".pragma") {
    while (token() != ";") {
    }
    return next();
  }
  if (statement.opcode != ".reg") {
    refuse(fmt::format("the directive {} in the body of an entry is not known", statement.opcode));
  }
  statement.kind = Statement::Kind::declaration;
  statement.opcode = token();
  do {
    Operand declared{.name = token()};
    if (peek() == "<" && !token().empty()) {
      declared.bits = number(token());
      expect(">");
    }
    statement.operands.push_back(std::move(declared));
  } while (peek() == "," && !token().empty());
  expect(";");
  return statement;
}

Statement StatementReader::next() {
  Statement statement;
  statement.opcode = token();
  statement.line = line_;
  if (statement.opcode.empty()) return statement;
  if (statement.opcode == "{" || statement.opcode == "}") {
    statement.kind = statement.opcode == "{" ? Statement::Kind::open : Statement::Kind::close;
    return statement;
  }
  if (statement.opcode.front() == '.') return directive(std::move(statement));
  if (statement.opcode == "@") {
    statement.guard_is_negated = peek() == "!" && !token().empty();
    statement.guard = token();
    statement.opcode = token();
  }
  if (peek() == ":") {
    statement.kind = Statement::Kind::label;
    token();
    return statement;
  }
  statement.kind = Statement::Kind::instruction;
  while (peek() != ";") {
    if (peek().empty()) refuse("the text ends within an instruction");
    statement.operands.push_back(operand());
    if (peek() == "," || peek() == "|") token();
  }
  expect(";");
  return statement;
}

}  // namespace orchard::simt::ptx
