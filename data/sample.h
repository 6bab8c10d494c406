// What a training set holds. A sample is a token sequence in which a special token marks the place
// of each picture, and the encoded pictures themselves. How many visual tokens a picture becomes is
// decided when a stage packs it, not here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace orchard {

// Who speaks a token: decides, with the stage, whether it is a target.
enum class Role : std::uint8_t { document, user, assistant };

enum class Split : std::uint8_t { train, held_out };

// JPEG or PNG bytes as they came.
struct EncodedPicture {
  std::vector<std::uint8_t> bytes;
  std::int32_t width = 0;  // pixels, from the header of the file
  std::int32_t height = 0;
};

// Whether what is read or built has its pictures, or keeps no more than their places and sizes: only
// who runs the vision tower needs to look at them.
enum class PictureContent : std::uint8_t { whole, absent };

struct Sample {
  std::string id;        // stable name for messages: source file and number
  std::string category;  // "caption", "ocr_lines", "general", ...
  // Opens with token_begin, closes with token_end; one image token per picture, in order.
  std::vector<std::int32_t> tokens;
  // Of each token. Role::assistant is what is learnt in stage 3: answers and the <|end|> that closes
  // each, but not the <|assistant|> before it.
  std::vector<Role> roles;
  std::vector<EncodedPicture> pictures;
};

// What packing may know about a sample: everything that follows from here is identical on every
// rank.
struct PictureSize {
  std::int32_t width = 0;
  std::int32_t height = 0;
};

struct SampleRecord {
  std::int32_t category = 0;  // index into the training set's category names
  Split split = Split::train;
  std::int32_t token_count = 0;       // tokens, image tokens included
  std::int32_t assistant_tokens = 0;  // of these, with Role::assistant
  std::int64_t first_picture = 0;     // into TrainingSetIndex::pictures
  std::int32_t picture_count = 0;
};

// Special tokens every tokenizer of Orchard has, at these ids.
enum SpecialToken : std::int32_t {
  token_unknown = 0,
  token_begin = 1,  // opens each document
  token_end = 2,    // closes each document
  token_pad = 3,
  token_image = 4,      // place of a picture in a sample; expanded when packing
  token_user = 5,       // <|user|>
  token_assistant = 6,  // <|assistant|>
  token_turn_end = 7,   // <|end|>
};

}  // namespace orchard
