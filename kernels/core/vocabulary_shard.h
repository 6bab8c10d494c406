// A range of a vocabulary that is cut between ranks.
#pragma once

#include <cstdint>

namespace orchard {

// The rows of a table, or columns of logits, are the ids from first_id on. The default is the whole
// vocabulary.
struct VocabularyShard {
  std::int64_t first_id = 0;
  std::int64_t vocabulary = 0;  // ids of all ranks; 0: those here

  // Whether `ids` of them fit.
  bool holds(std::int64_t ids) const {
    return vocabulary == 0 ? first_id == 0 : first_id >= 0 && first_id + ids <= vocabulary;
  }
};

}  // namespace orchard
