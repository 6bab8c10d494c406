#include "data/chat.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <utility>

#include "data/atomic_file.h"
#include "kernels/core/error.h"
#include "templates.h"

namespace orchard {
namespace {

constexpr std::string_view image_mark = "<image>";
constexpr std::array<std::pair<std::string_view, SpecialToken>, 3> frame_marks{
    {{"<|user|>", token_user}, {"<|assistant|>", token_assistant}, {"<|end|>", token_turn_end}}};

// Splits the text of a frame between its fields into texts and special tokens.
std::vector<DraftPart> frame_parts(std::string_view text) {
  std::vector<DraftPart> parts;
  while (!text.empty()) {
    std::size_t next = text.size(), length = 0;
    std::int32_t special = -1;
    for (const auto& [mark, token] : frame_marks) {
      const std::size_t at = text.find(mark);
      if (at < next) next = at, length = mark.size(), special = token;
    }
    if (next > 0) parts.push_back({Role::user, -1, std::string(text.substr(0, next))});
    if (special >= 0) parts.push_back({Role::user, special, {}});
    text.remove_prefix(next + length);
  }
  return parts;
}

// Text as it stands, with `<image>` marks: what people write in conversations.
std::vector<DraftPart> question_parts(std::string_view text) {
  std::vector<DraftPart> parts;
  for (;;) {
    const std::size_t at = text.find(image_mark);
    if (at > 0 && !text.empty()) parts.push_back({Role::user, -1, std::string(text.substr(0, at))});
    if (at == text.npos) return parts;
    parts.push_back({Role::user, token_image, {}});
    text.remove_prefix(at + image_mark.size());
  }
}

std::string unescape(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool newline = text.substr(i, 2) == "\\n";
    result.push_back(newline ? '\n' : text[i]);
    i += newline;
  }
  return result;
}

}  // namespace

Phrase::Phrase(std::string_view text, const std::string& place) : place_(place) {
  std::string literal;
  const auto flush = [&] {
    if (!literal.empty()) items_.push_back({Kind::text, std::exchange(literal, {})});
  };
  const std::string plain = unescape(text);
  for (std::string_view rest = plain; !rest.empty();) {
    const std::size_t close = rest[0] == '{' ? rest.find('}') : rest.npos;
    if (rest.starts_with(image_mark)) {
      flush();
      items_.push_back({Kind::image, {}});
      rest.remove_prefix(image_mark.size());
    } else if (close != rest.npos) {
      flush();
      items_.push_back({Kind::field, std::string(rest.substr(1, close - 1))});
      rest.remove_prefix(close + 1);
    } else {
      literal.push_back(rest[0]);
      rest.remove_prefix(1);
    }
  }
  flush();
}

void Phrase::append_to(std::vector<DraftPart>& parts, Role role, const Fields& fields) const {
  for (const Item& item : items_) {
    if (item.kind == Kind::image) {
      parts.push_back({role, token_image, {}});
      continue;
    }
    if (item.kind == Kind::text) {
      parts.push_back({role, -1, item.text});
      continue;
    }
    const auto field = fields.find(item.text);
    if (field == fields.end()) {
      std::string known;
      for (const auto& [name, value] : fields) known.append(known.empty() ? "" : ", ").append(name);
      fail("{} uses {{{}}}; samples of this kind have: {}", place_, item.text, known);
    }
    parts.push_back({role, -1, field->second});
  }
}

std::string Phrase::literal() const {
  std::string text;
  for (const Item& item : items_)
    if (item.kind == Kind::text) text += item.text;
  return text;
}

Chat::Chat(const std::filesystem::path& folder) {
  if (!folder.empty()) {
    require(std::filesystem::is_directory(folder), "{} is not a folder of templates",
            folder.string());
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const auto& path = entry.path();
      const bool known =
          std::any_of(std::begin(built_in_templates), std::end(built_in_templates),
                      [&](const auto& built_in) { return path.stem().string() == built_in.first; });
      require(known || path.extension() != ".txt", "{} replaces no template; see data/templates",
              path.string());
    }
  }
  for (const auto& [name, built_in] : built_in_templates) {
    const auto path = folder / (std::string(name) + ".txt");
    const bool replaced = !folder.empty() && std::filesystem::exists(path);
    const std::string text = replaced ? read_text(path) : std::string(built_in);
    const std::string place = replaced ? path.string() : fmt::format("template {}.txt", name);
    if (name == "chat") {
      read_frame(text, place);
      continue;
    }
    Exchange exchange;
    std::size_t line_number = 0;
    for (std::string_view rest = text; !rest.empty();) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      ++line_number;
      if (line.empty() || line[0] == '#') continue;
      const std::string here = fmt::format("{}:{}", place, line_number);
      const auto after = [&](std::string_view speaker) { return line.substr(speaker.size()); };
      if (line.starts_with("user: ")) {
        exchange.questions.emplace_back(after("user: "), here);
      } else if (line.starts_with("assistant: ")) {
        exchange.answer.emplace_back(after("assistant: "), here);
      } else {
        fail("{}: expected \"user: ...\" or \"assistant: ...\"", here);
      }
    }
    require(!exchange.questions.empty() && exchange.answer.size() == 1,
            "{}: expected at least one line \"user: ...\" and exactly one \"assistant: ...\"",
            place);
    exchanges_.emplace(name, std::move(exchange));
  }
}

void Chat::read_frame(std::string_view text, const std::string& place) {
  constexpr std::string_view user = "{user}", assistant = "{assistant}";
  const std::size_t at_user = text.find(user), at_assistant = text.find(assistant);
  require(at_user != text.npos && at_assistant != text.npos && at_user < at_assistant,
          "{}: expected {{user}} and, after it, {{assistant}}", place);
  const std::size_t after_user = at_user + user.size();
  before_user_ = frame_parts(text.substr(0, at_user));
  before_assistant_ = frame_parts(text.substr(after_user, at_assistant - after_user));
  after_assistant_ = frame_parts(text.substr(at_assistant + assistant.size()));
  require(!after_assistant_.empty() && after_assistant_.front().special == token_turn_end,
          "{}: {{assistant}} must be followed by <|end|>, or the model never learns to stop",
          place);
  after_assistant_.front().role = Role::assistant;
}

void Chat::append_framed(std::vector<DraftPart>& parts, const std::vector<DraftPart>& question,
                         const std::vector<DraftPart>& answer) const {
  for (const auto* section :
       {&before_user_, &question, &before_assistant_, &answer, &after_assistant_})
    parts.insert(parts.end(), section->begin(), section->end());
}

void Chat::append(std::vector<DraftPart>& parts, std::string_view name, std::uint64_t choice,
                  const Phrase::Fields& fields) const {
  const auto exchange = exchanges_.find(name);
  require(exchange != exchanges_.end(), "there is no chat template \"{}\"", name);
  const auto& questions = exchange->second.questions;
  std::vector<DraftPart> question, answer;
  questions[choice % questions.size()].append_to(question, Role::user, fields);
  exchange->second.answer.front().append_to(answer, Role::assistant, fields);
  append_framed(parts, question, answer);
}

void Chat::append(std::vector<DraftPart>& parts, std::string_view question,
                  std::string_view answer) const {
  append_framed(parts, question_parts(question), {{Role::assistant, -1, std::string(answer)}});
}

void Chat::append_prompt(std::vector<DraftPart>& parts, std::string_view question) const {
  const std::vector<DraftPart> asked = question_parts(question);
  for (const auto* section : {&before_user_, &asked, &before_assistant_})
    parts.insert(parts.end(), section->begin(), section->end());
}

std::vector<std::string> Chat::literals() const {
  std::vector<std::string> lines;
  const auto add = [&](const Phrase& phrase) {
    std::istringstream text(phrase.literal());
    for (std::string line; std::getline(text, line);)
      if (!line.empty()) lines.push_back(line);
  };
  for (const auto& [name, exchange] : exchanges_) {
    for (const Phrase& question : exchange.questions) add(question);
    add(exchange.answer.front());
  }
  return lines;
}

}  // namespace orchard
