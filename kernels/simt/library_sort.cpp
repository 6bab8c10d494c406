// The emulator has no CUB: the host sorts in its place.
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/gpu/sort_pairs.h"
#include "kernels/simt/library_call.h"

namespace orchard::simt {
namespace {

using Words = std::vector<std::int32_t>;

std::size_t bytes_of(const Words& words) {
  return words.size() * sizeof(std::int32_t);
}

void sort_on_host(SimtDevice& device, const SortPairs& sort, std::byte* scratch) {
  Words keys(static_cast<std::size_t>(sort.items)), values = keys;
  // CUB writes there before it has read everything: an overlap shall show.
  const std::vector<std::byte> poison(sort_scratch_bytes(sort.items, sort.bits), std::byte{0xff});
  device.write(scratch, poison.data(), poison.size());
  device.write(sort.sorted_keys, poison.data(), bytes_of(keys));
  device.write(sort.sorted_values, poison.data(), bytes_of(values));

  device.read(keys.data(), sort.keys, bytes_of(keys));
  device.read(values.data(), sort.values, bytes_of(values));
  for (std::size_t i = 0; i < keys.size(); ++i) {
    require(keys[i] >= 0 && keys[i] >> sort.bits == 0,
            "sort_pairs: key {} is {}, which is negative or has more than {} bits", i, keys[i],
            sort.bits);
  }
  std::vector<std::size_t> order(keys.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return keys[i]; });
  Words sorted_keys, sorted_values;
  for (const std::size_t i : order) {
    sorted_keys.push_back(keys[i]);
    sorted_values.push_back(values[i]);
  }
  device.write(sort.sorted_keys, sorted_keys.data(), bytes_of(sorted_keys));
  device.write(sort.sorted_values, sorted_values.data(), bytes_of(sorted_values));
}

}  // namespace

// As CUB, which keeps a list of keys and one of values there.
std::size_t sort_scratch_bytes(int items, int) {
  return 2 * sizeof(std::int32_t) * static_cast<std::size_t>(items);
}

void sort_pairs(Stream& stream, const SortPairs& sort, std::byte* scratch) {
  require(sort.bits >= 1 && sort.bits <= 31, "sort_pairs: keys of {} bits", sort.bits);
  enqueue_library_call(
      stream, [sort, scratch](SimtDevice& device) { sort_on_host(device, sort, scratch); });
}

}  // namespace orchard::simt
