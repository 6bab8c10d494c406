// One shard: an HDF5 file of samples. Datasets, for N samples, T tokens, P pictures:
//   tokens i32 [T], roles u8 [T], token_offsets i64 [N + 1]
//   ids u8 [bytes], id_offsets i64 [N + 1]
//   pictures u8 [bytes], picture_offsets i64 [P + 1], picture_sizes i32 [P, 2] (width, height),
//   first_picture i64 [N + 1]
// Offsets are cumulative: sample i has tokens [token_offsets[i], token_offsets[i + 1]). Categories
// and splits are in the index of the training set.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/hdf5.h"
#include "data/sample.h"
#include "kernels/core/error.h"

namespace orchard {

// A file of a training set is missing or damaged: no bad sample among good ones, but the end of the
// run.
class DamagedFile : public Error {
 public:
  using Error::Error;
};

// Collects samples in memory; finish() writes the file.
class ShardWriter {
 public:
  explicit ShardWriter(std::filesystem::path path) : path_(std::move(path)) {}

  void add(const Sample& sample);
  std::int64_t samples() const { return static_cast<std::int64_t>(token_offsets_.size()) - 1; }
  // Of what has been collected.
  std::int64_t size_bytes() const;
  void finish();

 private:
  std::filesystem::path path_;
  std::vector<std::int32_t> tokens_, picture_sizes_;
  std::vector<std::uint8_t> roles_, ids_, pictures_;
  std::vector<std::int64_t> token_offsets_{0}, id_offsets_{0}, first_picture_{0},
      picture_offsets_{0};
};

// Expects the bytes that ShardWriter wrote: verify the checksum first. Keeps the offsets in memory.
class ShardReader {
 public:
  explicit ShardReader(const std::filesystem::path& path);

  std::int64_t samples() const { return static_cast<std::int64_t>(token_offsets_.size()) - 1; }
  // The category is left empty, and so are the bytes of pictures that are to be absent.
  Sample load(std::int64_t i, PictureContent pictures = PictureContent::whole) const;

 private:
  hdf5::File file_;
  hdf5::Dataset tokens_, roles_, ids_, pictures_;
  std::vector<std::int64_t> token_offsets_, id_offsets_, first_picture_, picture_offsets_;
  std::vector<std::int32_t> picture_sizes_;
};

}  // namespace orchard
