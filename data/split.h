// What is held out from training, by content.
//
// A key is held out when hash64(kind, seed = hash64(content)) mod 1000 < permille. Keys, by kind of
// sample:
//   word crops             the word, without punctuation around it and in lower case (ASCII), and
//   the
//                          page: train samples show train words of train pages, held-out samples
//                          show held-out words of any page
//   lines, regions, pages  the text of the whole page; a held-out line that also stands on a train
//                          page gives no sample of its own
//   clip-art, conversations  the bytes of each picture; without pictures, the first question
//   text                   the paragraph
// A sample with several keys of one kind is held out if any of them is. So no held-out key occurs
// in the train split of any category, and the same content falls the same way in every training
// set.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "data/sample.h"

namespace orchard {

// The word as a key: "“The" and "the," are "the". Empty if there is nothing but punctuation.
std::string word_key(std::string_view word);

class Splitter {
 public:
  explicit Splitter(int held_out_permille);

  Split word(std::string_view word) const;
  Split page(std::string_view text) const;
  Split picture(std::span<const std::uint8_t> bytes) const;
  Split text(std::string_view text) const;

 private:
  Split of(std::string_view kind, std::uint64_t content) const;
  std::uint64_t permille_;
};

}  // namespace orchard
