#include "data/training_set.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/json.h"
#include "data/training_set_format.h"

namespace orchard {
namespace {

// Readers kept open: enough to load from all shards of most sets, far from the limit of open files.
constexpr std::size_t max_open_shards = 64;

constexpr std::string_view cure =
    "restore it from a copy, or build the training set again with `orchard pack`";

template <class... Args>
void require_undamaged(bool ok, const std::filesystem::path& path,
                       fmt::format_string<Args...> format, Args&&... args) {
  if (ok) return;
  throw DamagedFile(fmt::format("{} {}. Cure: {}", path.string(),
                                fmt::format(format, std::forward<Args>(args)...), cure));
}

void require_present(const std::filesystem::path& path) {
  require_undamaged(std::filesystem::exists(path), path, "is missing, dataset.json lists it");
}

void verify_size(const std::filesystem::path& path, std::int64_t expected) {
  require_present(path);
  const auto found = static_cast<std::int64_t>(std::filesystem::file_size(path));
  require_undamaged(found == expected, path,
                    "is damaged or was changed: dataset.json expects {} bytes, the file has {}",
                    expected, found);
}

void verify_checksum(const std::filesystem::path& path, const std::string& expected) {
  require_present(path);
  const std::string found = hash_hex_of_file(path);
  require_undamaged(found == expected, path,
                    "is damaged or was changed: dataset.json expects the XXH3-128 checksum {}, the "
                    "file has {}",
                    expected, found);
}

struct Shard {
  std::filesystem::path path;
  std::string hash;
  std::int64_t first_sample = 0, samples = 0;
  bool verified = false;
  std::optional<ShardReader> reader;
};

TrainingSetIndex read_index(const std::filesystem::path& path,
                            std::vector<std::string> categories) {
  const auto file = hdf5::File::open(path);
  const auto category = file.read<std::int32_t>("category");
  const auto split = file.read<std::uint8_t>("split");
  const auto tokens = file.read<std::int32_t>("token_count");
  const auto assistant = file.read<std::int32_t>("assistant_tokens");
  const auto pictures = file.read<std::int32_t>("picture_count");
  const auto sizes = file.read<std::int32_t>("picture_sizes");
  const std::size_t count = category.size();
  require(split.size() == count && tokens.size() == count && assistant.size() == count &&
              pictures.size() == count,
          "{}: the columns of the index differ in length", path.string());
  TrainingSetIndex index;
  index.categories = std::move(categories);
  std::int64_t first_picture = 0;
  for (std::size_t i = 0; i < count; ++i) {
    require(category[i] >= 0 && static_cast<std::size_t>(category[i]) < index.categories.size() &&
                split[i] <= static_cast<std::uint8_t>(Split::held_out) && pictures[i] >= 0,
            "{}: sample {} has an impossible record", path.string(), i);
    index.samples.push_back({category[i], static_cast<Split>(split[i]), tokens[i], assistant[i],
                             first_picture, pictures[i]});
    first_picture += pictures[i];
  }
  require(sizes.size() == 2 * static_cast<std::size_t>(first_picture),
          "{}: the samples have {} pictures but {} sizes", path.string(), first_picture,
          sizes.size() / 2);
  for (std::size_t p = 0; p < sizes.size(); p += 2)
    index.pictures.push_back({sizes[p], sizes[p + 1]});
  return index;
}

}  // namespace

struct TrainingSet::State {
  TrainingSetIndex index;
  Tokenizer tokenizer;
  std::string hash;
  std::mutex mutex;  // guards the shards
  std::vector<Shard> shards;
  std::vector<std::size_t> open_shards;  // least recently opened first

  void verify(Shard& shard) {
    if (!shard.verified) verify_checksum(shard.path, shard.hash);
    shard.verified = true;
  }

  const ShardReader& reader(std::size_t number) {
    Shard& shard = shards[number];
    if (shard.reader) return *shard.reader;
    verify(shard);
    if (open_shards.size() == max_open_shards) {
      shards[open_shards.front()].reader.reset();
      open_shards.erase(open_shards.begin());
    }
    shard.reader.emplace(shard.path);
    require_undamaged(shard.reader->samples() == shard.samples, shard.path,
                      "holds {} samples, dataset.json says {}", shard.reader->samples(),
                      shard.samples);
    open_shards.push_back(number);
    return *shard.reader;
  }
};

TrainingSet::TrainingSet(std::unique_ptr<State> state) : state_(std::move(state)) {}
TrainingSet::TrainingSet(TrainingSet&&) noexcept = default;
TrainingSet::~TrainingSet() = default;

TrainingSet TrainingSet::open(const std::filesystem::path& folder) {
  const auto path = folder / description_file;
  const std::string place = path.string();
  require(std::filesystem::exists(path),
          "{} is not a training set: it has no {}. Build one with `orchard pack`", folder.string(),
          description_file);
  const std::string text = read_text(path);
  const Json description = parse_json(text, path);
  require(json_field<std::string>(description, "format", place, "") == format_name,
          "{} does not describe a training set", place);
  const int version = json_field<int>(description, "version", place);
  require(version == format_version,
          "{} has format version {}, this program reads {}: build the training set again with "
          "`orchard pack`",
          place, version, format_version);

  const auto verified = [&](const char* part) {
    const Json entry = json_field<Json>(description, part, place);
    auto file = folder / json_field<std::string>(entry, "file", place);
    verify_checksum(file, json_field<std::string>(entry, "xxh3_128", place));
    return file;
  };
  std::vector<std::string> categories;
  for (const Json& category : json_field<Json>(description, "categories", place))
    categories.push_back(json_field<std::string>(category, "name", place));

  std::unique_ptr<State> state(
      new State{.index = read_index(verified("index"), categories),
                .tokenizer = Tokenizer::open(verified("tokenizer")),
                .hash = hash_hex({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}),
                .mutex = {},
                .shards = {},
                .open_shards = {}});
  state->index.vocabulary = json_field<std::int32_t>(description, "vocabulary", place);
  require(state->index.vocabulary == state->tokenizer.vocabulary(),
          "{} says the vocabulary has {} tokens, its tokenizer has {}", place,
          state->index.vocabulary, state->tokenizer.vocabulary());
  std::int64_t samples = 0;
  for (const Json& entry : json_field<Json>(description, "shards", place)) {
    Shard& shard = state->shards.emplace_back();
    shard.path = folder / json_field<std::string>(entry, "file", place);
    verify_size(shard.path, json_field<std::int64_t>(entry, "bytes", place));
    shard.hash = json_field<std::string>(entry, "xxh3_128", place);
    shard.samples = json_field<std::int64_t>(entry, "samples", place);
    shard.first_sample = samples;
    samples += shard.samples;
  }
  require(samples == static_cast<std::int64_t>(state->index.samples.size()),
          "{} lists {} samples in its shards, the index has {}", place, samples,
          state->index.samples.size());
  return TrainingSet(std::move(state));
}

const TrainingSetIndex& TrainingSet::index() const {
  return state_->index;
}
const Tokenizer& TrainingSet::tokenizer() const {
  return state_->tokenizer;
}
const std::string& TrainingSet::hash() const {
  return state_->hash;
}

Sample TrainingSet::load(std::int64_t i, PictureContent pictures) const {
  const auto& records = state_->index.samples;
  require(i >= 0 && i < static_cast<std::int64_t>(records.size()),
          "the training set has {} samples, none is number {}", records.size(), i);
  const SampleRecord& record = records[static_cast<std::size_t>(i)];
  const std::lock_guard lock(state_->mutex);
  const auto after = std::upper_bound(
      state_->shards.begin(), state_->shards.end(), i,
      [](std::int64_t sample, const Shard& shard) { return sample < shard.first_sample; });
  const auto number = static_cast<std::size_t>(after - state_->shards.begin()) - 1;
  Sample sample = state_->reader(number).load(i - state_->shards[number].first_sample, pictures);
  sample.category = state_->index.categories[static_cast<std::size_t>(record.category)];
  return sample;
}

void TrainingSet::verify(
    const std::function<void(std::int64_t done, std::int64_t total)>& progress) const {
  const std::lock_guard lock(state_->mutex);
  const std::int64_t total = std::ssize(state_->shards);
  std::int64_t done = 0;
  if (progress) progress(done, total);
  for (Shard& shard : state_->shards) {
    state_->verify(shard);
    if (progress) progress(++done, total);
  }
}

}  // namespace orchard
