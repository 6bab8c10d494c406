// A sample before it is tokenized: what sources make and the packer writes.
#pragma once

#include <string>
#include <vector>

#include "data/sample.h"
#include "data/tokenizer.h"

namespace orchard {

// Either a special token or a text. Text never turns into special tokens.
struct DraftPart {
  Role role = Role::document;
  std::int32_t special = -1;  // SpecialToken, or -1: text
  std::string text;
};

struct Draft {
  std::string id, category;
  Split split = Split::train;
  std::vector<DraftPart> parts;  // without token_begin and token_end
  std::vector<EncodedPicture> pictures;

  void add_picture(EncodedPicture picture, Role role = Role::document) {
    parts.push_back({role, token_image, {}});
    pictures.push_back(std::move(picture));
  }
  void add_text(std::string text, Role role = Role::document) {
    parts.push_back({role, -1, std::move(text)});
  }
};

// token_begin, the parts, token_end. The two take the role of a chat's scaffolding, Role::user, if
// the first part is the user's, else Role::document.
Sample tokenize(Draft draft, const Tokenizer& tokenizer);

// Equal for drafts of the same category with the same parts and pictures, whatever their ids.
std::uint64_t content_hash(const Draft& draft);

}  // namespace orchard
