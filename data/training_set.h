// A training set is a folder:
//   dataset.json     format version, categories with their counts, shards with samples, bytes and
//                    XXH3-128, index and tokenizer with XXH3-128, vocabulary. Written last.
//   tokenizer.model  SentencePiece
//   index.h5         for N samples: category i32 [N], split u8 [N], token_count i32 [N],
//                    assistant_tokens i32 [N], picture_count i32 [N]; for all their pictures, in
//                    order, picture_sizes i32 [P, 2] (width, height)
//   shard-00000.h5   and so on, see data/shard.h; samples are numbered through all shards
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/index.h"
#include "data/shard.h"
#include "data/tokenizer.h"

namespace orchard {

class TrainingSetWriter {
 public:
  struct Options {
    std::int64_t shard_bytes = 64 << 20;  // a shard ends with the sample that reaches this
  };

  // `folder` exists and is empty.
  TrainingSetWriter(std::filesystem::path folder, std::vector<std::string> categories,
                    std::span<const std::uint8_t> tokenizer_model, const Options& options);

  // Sample::category is one of the categories.
  void add(const Sample& sample, Split split);
  std::int64_t samples() const { return static_cast<std::int64_t>(index_.samples.size()); }
  std::int64_t shards() const { return static_cast<std::int64_t>(shards_.size()); }

  // Writes the last shard, the index and dataset.json; without it the folder is not a training set.
  void finish();

 private:
  struct ShardEntry {
    std::string file, hash;
    std::int64_t samples, bytes;
  };

  void finish_shard();
  void write_index() const;

  std::filesystem::path folder_;
  Options options_;
  std::string tokenizer_hash_;
  TrainingSetIndex index_;
  ShardWriter shard_;
  std::vector<ShardEntry> shards_;
};

class TrainingSet {
 public:
  // Verifies index, tokenizer and the shards' sizes now, each shard's checksum when its first sample
  // is loaded. What is missing or damaged is a DamagedFile that names the file, what was expected and
  // found, and the cure.
  static TrainingSet open(const std::filesystem::path& folder);
  TrainingSet(TrainingSet&&) noexcept;
  ~TrainingSet();

  const TrainingSetIndex& index() const;
  const Tokenizer& tokenizer() const;
  // XXH3-128 of dataset.json, so of everything: says whether a run resumes on the same data.
  const std::string& hash() const;

  // Sample i of the index; pictures that are to be absent have no bytes. Several threads may call it;
  // they take turns.
  Sample load(std::int64_t i, PictureContent pictures = PictureContent::whole) const;

  // Verifies all shards. `progress` hears how many of how many are done.
  void verify(
      const std::function<void(std::int64_t done, std::int64_t total)>& progress = {}) const;

 private:
  struct State;
  explicit TrainingSet(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace orchard
