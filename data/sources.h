// Where samples come from: the files of a corpus folder.
//
//   clipart.jsonl   {"image": "clipart/animals/cat.png", "category": "animals", "title": "Cat",
//                    "keywords": [...]}
//   pages.jsonl     {"image": "pages/handbook-017.png", "document": "handbook", "page": 17,
//                    "width": W, "height": H, "lines": [{"text", "box", "words": [{"text",
//                    "box"}]}]}
//                   Boxes [x1, y1, x2, y2] in pixels of the page, x2 and y2 exclusive.
//   text/*.txt      one paragraph a line, a blank line between documents
//   conversations.jsonl, conversations.json
//                   LLaVA's form: {"id", "image" or "images", "category" (default "general"),
//                   "conversations": [{"from": "human" or "gpt", "value"}]}; <image> marks a
//                   picture's place
//
// Images are paths relative to the folder. A missing file, a line that is not JSON or lacks a field
// is an Error with file and line; a picture that cannot be decoded, or a record that makes no
// sense, is reported to the sink and left out.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat.h"
#include "data/draft.h"
#include "data/selection.h"
#include "data/split.h"

namespace orchard {

// All categories, in the order in which training sets list them.
const std::vector<std::string>& category_names();

// What all sources of a training set share. Outlives them.
struct SourceContext {
  Splitter splitter;
  Chat chat;
};

class Sink {
 public:
  virtual ~Sink() = default;
  virtual void draft(Draft draft) = 0;
  // `place`: file and line. What depended on it is left out.
  virtual void bad(const std::string& place, const std::string& reason) = 0;
};

class Source {
 public:
  virtual ~Source() = default;

  // Texts of the train split, without newlines, for the tokenizer to learn from.
  virtual void texts(const std::function<void(std::string)>& take) const = 0;

  // Asks the selection for every sample it could make, in a fixed order, and makes those granted.
  virtual void drafts(Selection& selection, Sink& sink) const = 0;
};

// `name` opens the ids of samples. Each reads its file whole and checks that its pictures exist.
std::unique_ptr<Source> open_clipart(const std::filesystem::path& file, const std::string& name,
                                     const SourceContext& context);
std::unique_ptr<Source> open_pages(const std::filesystem::path& file, const std::string& name,
                                   const SourceContext& context);
std::unique_ptr<Source> open_text(const std::filesystem::path& file, const std::string& name,
                                  const SourceContext& context);
std::unique_ptr<Source> open_conversations(const std::filesystem::path& file,
                                           const std::string& name, const SourceContext& context);

// All sources of a corpus: a folder, or one .json or .jsonl file of conversations.
std::vector<std::unique_ptr<Source>> open_corpus(const std::filesystem::path& corpus,
                                                 const SourceContext& context);

}  // namespace orchard
