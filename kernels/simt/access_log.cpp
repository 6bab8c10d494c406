#include "kernels/simt/access_log.h"

#include <algorithm>
#include <cstddef>

namespace orchard::simt {
namespace {

void count_global(std::span<const LoggedAccess> request, AccessCounters& total) {
  std::array<std::uintptr_t, 32> sectors;  // an access is aligned and at most 16 bytes: in one
  std::size_t count = 0;
  std::uint64_t bytes = 0;
  for (const LoggedAccess& access : request) {
    bytes += access.bytes;
    sectors[count++] = access.address / sector_bytes;
  }
  std::sort(sectors.begin(), sectors.begin() + count);
  ++total.requests;
  total.bytes += bytes;
  total.ideal_sectors += (bytes + sector_bytes - 1) / sector_bytes;
  total.sectors += static_cast<std::uint64_t>(
      std::unique(sectors.begin(), sectors.begin() + count) - sectors.begin());
}

// Sorts out the different words in `words`, and returns how many there are.
std::size_t keep_different(std::span<std::uintptr_t> words) {
  std::sort(words.begin(), words.end());
  return static_cast<std::size_t>(std::unique(words.begin(), words.end()) - words.begin());
}

// The hardware serves 128 bytes at a time: 32 lanes with 4 bytes each, 16 with 8, 8 with 16. Lanes
// of one pass that want different words of one bank wait for each other.
void count_shared(std::span<const LoggedAccess> request, SharedCounters& total) {
  constexpr unsigned word_bytes = 4, banks = 32;
  const unsigned words_each = std::max(request.front().bytes / word_bytes, 1u);
  const unsigned lanes_each = banks / words_each;
  std::array<std::uintptr_t, 4 * banks> all;
  std::size_t all_count = 0;
  ++total.requests;
  for (std::size_t i = 0; i < request.size();) {
    const unsigned pass = request[i].lane / lanes_each;
    std::array<std::uintptr_t, banks> words;
    std::size_t count = 0;
    for (; i < request.size() && request[i].lane / lanes_each == pass; ++i) {
      total.bytes += request[i].bytes;
      for (unsigned w = 0; w < words_each; ++w)
        words[count++] = request[i].address / word_bytes + w;
    }
    count = keep_different({words.data(), count});
    std::array<std::uint64_t, banks> load{};
    for (std::size_t w = 0; w < count; ++w) ++load[words[w] % banks];
    total.wavefronts += *std::max_element(load.begin(), load.end());
    for (std::size_t w = 0; w < count; ++w) all[all_count++] = words[w];
  }
  total.ideal_wavefronts += (keep_different({all.data(), all_count}) + banks - 1) / banks;
}

void count_request(std::span<const LoggedAccess> request, Counters& counters) {
  const bool read = request.front().kind == Access::read;
  if (request.front().space == Space::global) {
    count_global(request, read ? counters.loads : counters.stores);
  } else {
    count_shared(request, read ? counters.shared_loads : counters.shared_stores);
  }
}

}  // namespace

void count_requests(std::span<AccessLog* const> lanes, Counters& counters) {
  constexpr std::uint32_t counted = 0;   // in place of an access's bytes
  std::array<std::size_t, 32> cursor{};  // all before it are counted
  std::array<LoggedAccess, 32> request;
  for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
    for (std::size_t k = cursor[lane]; k < lanes[lane]->size(); ++k) {
      const LoggedAccess leader = (*lanes[lane])[k];
      if (leader.bytes == counted) continue;
      std::size_t size = 0;
      request[size++] = leader;
      for (std::size_t other = lane + 1; other < lanes.size(); ++other) {
        AccessLog& log = *lanes[other];
        std::size_t& first = cursor[other];
        while (first < log.size() && log[first].bytes == counted) ++first;
        // Lanes that took the same path have their access right at the cursor.
        const auto match = std::find_if(
            log.begin() + static_cast<std::ptrdiff_t>(first), log.end(),
            [&](const LoggedAccess& a) { return a.bytes != counted && a.same_place(leader); });
        if (match == log.end()) continue;
        request[size++] = *match;
        match->bytes = counted;
      }
      count_request({request.data(), size}, counters);
    }
  }
  for (AccessLog* const log : lanes) log->clear();
}

}  // namespace orchard::simt
