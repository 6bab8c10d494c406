#include <algorithm>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/json.h"
#include "data/training_set.h"
#include "data/training_set_format.h"

namespace orchard {
namespace {

std::string shard_name(std::size_t number) {
  return fmt::format("shard-{:05}.h5", number);
}

}  // namespace

TrainingSetWriter::TrainingSetWriter(std::filesystem::path folder,
                                     std::vector<std::string> categories,
                                     std::span<const std::uint8_t> tokenizer_model,
                                     const Options& options)
    : folder_(std::move(folder)), options_(options), shard_(folder_ / shard_name(0)) {
  require(std::filesystem::is_empty(folder_), "{} is not empty", folder_.string());
  const Tokenizer tokenizer(tokenizer_model, "the tokenizer of a new training set");
  tokenizer_hash_ = tokenizer.hash();
  index_.categories = std::move(categories);
  index_.vocabulary = tokenizer.vocabulary();
  write_file(folder_ / tokenizer_file, tokenizer_model);
}

void TrainingSetWriter::add(const Sample& sample, Split split) {
  const auto& names = index_.categories;
  const auto category = std::find(names.begin(), names.end(), sample.category);
  require(category != names.end(), "sample {} has the unknown category \"{}\"", sample.id,
          sample.category);
  for (const std::int32_t token : sample.tokens)
    require(token >= 0 && token < index_.vocabulary,
            "sample {} has token {}, the vocabulary has {}", sample.id, token, index_.vocabulary);
  shard_.add(sample);
  index_.samples.push_back({.category = static_cast<std::int32_t>(category - names.begin()),
                            .split = split,
                            .token_count = static_cast<std::int32_t>(sample.tokens.size()),
                            .assistant_tokens = static_cast<std::int32_t>(std::count(
                                sample.roles.begin(), sample.roles.end(), Role::assistant)),
                            .first_picture = static_cast<std::int64_t>(index_.pictures.size()),
                            .picture_count = static_cast<std::int32_t>(sample.pictures.size())});
  for (const EncodedPicture& picture : sample.pictures)
    index_.pictures.push_back({picture.width, picture.height});
  if (shard_.size_bytes() >= options_.shard_bytes) finish_shard();
}

void TrainingSetWriter::finish_shard() {
  shard_.finish();
  const std::string name = shard_name(shards_.size());
  shards_.push_back({name, hash_hex_of_file(folder_ / name), shard_.samples(),
                     static_cast<std::int64_t>(std::filesystem::file_size(folder_ / name))});
  shard_ = ShardWriter(folder_ / shard_name(shards_.size()));
}

void TrainingSetWriter::write_index() const {
  const auto column = [&](auto value) {
    std::vector<decltype(value(index_.samples[0]))> values;
    for (const SampleRecord& record : index_.samples) values.push_back(value(record));
    return values;
  };
  auto file = hdf5::File::create(folder_ / index_file);
  file.write("category", column([](const SampleRecord& r) { return r.category; }));
  file.write("split",
             column([](const SampleRecord& r) { return static_cast<std::uint8_t>(r.split); }));
  file.write("token_count", column([](const SampleRecord& r) { return r.token_count; }));
  file.write("assistant_tokens", column([](const SampleRecord& r) { return r.assistant_tokens; }));
  file.write("picture_count", column([](const SampleRecord& r) { return r.picture_count; }));
  std::vector<std::int32_t> sizes;
  for (const PictureSize& size : index_.pictures)
    sizes.insert(sizes.end(), {size.width, size.height});
  file.write("picture_sizes", std::span<const std::int32_t>(sizes),
             {static_cast<std::int64_t>(index_.pictures.size()), 2});
  file.commit();
}

void TrainingSetWriter::finish() {
  if (shard_.samples() > 0) finish_shard();
  require(samples() > 0, "a training set needs at least one sample: {} has none", folder_.string());
  write_index();

  Json categories = Json::array(), shards = Json::array();
  for (std::size_t c = 0; c < index_.categories.size(); ++c) {
    const auto count = [&](Split split) {
      return std::count_if(index_.samples.begin(), index_.samples.end(), [&](const auto& record) {
        return record.category == static_cast<std::int32_t>(c) && record.split == split;
      });
    };
    categories.push_back({{"name", index_.categories[c]},
                          {"train", count(Split::train)},
                          {"held_out", count(Split::held_out)}});
  }
  for (const ShardEntry& shard : shards_) {
    shards.push_back({{"file", shard.file},
                      {"samples", shard.samples},
                      {"bytes", shard.bytes},
                      {"xxh3_128", shard.hash}});
  }
  const Json description{
      {"format", format_name},
      {"version", format_version},
      {"categories", categories},
      {"shards", shards},
      {"index", {{"file", index_file}, {"xxh3_128", hash_hex_of_file(folder_ / index_file)}}},
      {"tokenizer", {{"file", tokenizer_file}, {"xxh3_128", tokenizer_hash_}}},
      {"vocabulary", index_.vocabulary},
  };
  write_file(folder_ / description_file, description.dump(1) + "\n");
}

}  // namespace orchard
