// Words of zero beside a stream's workspace, for a launch to count its blocks in.
#pragma once

#include <cstdint>

namespace orchard {

class Stream;

inline constexpr std::int64_t zero_words_count = 4096;

// All of them are zero, in stream order: a launch that counts in them leaves them so. After one that failed they
// may not be, but nothing that follows on its stream can be trusted. They move when the workspace grows: ask
// for that first.
unsigned* zero_words(Stream&);

}  // namespace orchard
