// Chat samples: the frame of an exchange and the questions of each kind, from the text files of
// data/templates (format there, README.md), which are built into the program and replaceable.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "data/draft.h"

namespace orchard {

// A text with places for pictures and for fields.
class Phrase {
 public:
  // `place` names the file for messages.
  Phrase(std::string_view text, const std::string& place);

  using Fields = std::map<std::string, std::string, std::less<>>;

  // Appends text and image parts. Throws Error for a field that `fields` lacks.
  void append_to(std::vector<DraftPart>& parts, Role role, const Fields& fields) const;

  // The text outside fields.
  std::string literal() const;

 private:
  enum class Kind { text, image, field };
  struct Item {
    Kind kind;
    std::string text;
  };
  std::vector<Item> items_;
  std::string place_;
};

class Chat {
 public:
  // An empty path: the built-in templates. Otherwise files in `folder` replace those of their name;
  // a file there that replaces nothing is an Error.
  explicit Chat(const std::filesystem::path& folder = {});

  // One exchange of the kind `name` ("general", "math_lines", ...). `choice` picks among the ways
  // to ask.
  void append(std::vector<DraftPart>& parts, std::string_view name, std::uint64_t choice,
              const Phrase::Fields& fields) const;

  // One exchange with a question in which `<image>` marks pictures, and any answer.
  void append(std::vector<DraftPart>& parts, std::string_view question,
              std::string_view answer) const;

  // The frame up to where the assistant begins: what a model is prompted with.
  void append_prompt(std::vector<DraftPart>& parts, std::string_view question) const;

  // The lines of all questions and answers, for the tokenizer to learn.
  std::vector<std::string> literals() const;

 private:
  struct Exchange {
    std::vector<Phrase> questions;
    std::vector<Phrase> answer;  // exactly one
  };

  void read_frame(std::string_view text, const std::string& place);
  void append_framed(std::vector<DraftPart>& parts, const std::vector<DraftPart>& question,
                     const std::vector<DraftPart>& answer) const;

  std::vector<DraftPart> before_user_, before_assistant_, after_assistant_;
  std::map<std::string, Exchange, std::less<>> exchanges_;
};

}  // namespace orchard
