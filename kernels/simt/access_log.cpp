#include "kernels/simt/access_log.h"

#include <algorithm>
#include <cstddef>

namespace orchard::simt {
namespace {

constexpr std::uintptr_t sector_bytes = 32;

void count_request(std::span<const LoggedAccess> request, Counters& counters) {
  std::array<std::uintptr_t, 32> sectors;  // an access is aligned and at most 16 bytes: in one
  std::size_t count = 0;
  std::uint64_t bytes = 0;
  for (const LoggedAccess& access : request) {
    bytes += access.bytes;
    sectors[count++] = access.address / sector_bytes;
  }
  std::sort(sectors.begin(), sectors.begin() + count);
  AccessCounters& total = request.front().kind == Access::read ? counters.loads : counters.stores;
  ++total.requests;
  total.bytes += bytes;
  total.ideal_sectors += (bytes + sector_bytes - 1) / sector_bytes;
  total.sectors += static_cast<std::uint64_t>(
      std::unique(sectors.begin(), sectors.begin() + count) - sectors.begin());
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
