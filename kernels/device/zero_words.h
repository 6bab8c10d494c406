// Words of zero of a stream, for a launch to count its blocks in.
#pragma once

#include <cstdint>

namespace orchard {

class Stream;

inline constexpr std::int64_t zero_words_count = 4096;

// All of them are zero, in stream order: a launch that counts in them leaves them so. After one that failed, or
// whose offsets in memory were none, they may not be, and nothing that follows on its stream can be trusted.
// They are allocated at the first call, which is not for a capture, and never move.
unsigned* zero_words(Stream&);

}  // namespace orchard
