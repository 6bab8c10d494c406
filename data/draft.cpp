#include "data/draft.h"

#include "data/hash.h"

namespace orchard {

Sample tokenize(Draft draft, const Tokenizer& tokenizer) {
  Sample sample{.id = std::move(draft.id),
                .category = std::move(draft.category),
                .tokens = {},
                .roles = {},
                .pictures = std::move(draft.pictures)};
  const auto append = [&](std::int32_t token, Role role) {
    sample.tokens.push_back(token);
    sample.roles.push_back(role);
  };
  const Role outer = draft.parts.empty() || draft.parts.front().role == Role::document
                         ? Role::document
                         : Role::user;
  append(token_begin, outer);
  for (std::size_t i = 0; i < draft.parts.size(); ++i) {
    const DraftPart& part = draft.parts[i];
    if (part.special >= 0) {
      append(part.special, part.role);
      continue;
    }
    // Neighbouring texts are one text: where a template was filled must not show in the tokens.
    std::string text = part.text;
    while (i + 1 < draft.parts.size() && draft.parts[i + 1].special < 0 &&
           draft.parts[i + 1].role == part.role)
      text += draft.parts[++i].text;
    for (const std::int32_t token : tokenizer.encode(text)) append(token, part.role);
  }
  append(token_end, outer);
  return sample;
}

std::uint64_t content_hash(const Draft& draft) {
  std::uint64_t hash = hash64(draft.category);
  for (const DraftPart& part : draft.parts)
    hash = hash64(part.text, hash + static_cast<std::uint64_t>(part.special + 1) * 4 +
                                 static_cast<std::uint64_t>(part.role));
  for (const EncodedPicture& picture : draft.pictures) hash = hash64(picture.bytes, hash);
  return hash;
}

}  // namespace orchard
