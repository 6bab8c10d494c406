#include "data/shard.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace orchard {

void ShardWriter::add(const Sample& sample) {
  require(sample.roles.size() == sample.tokens.size(), "sample {} has {} tokens but {} roles",
          sample.id, sample.tokens.size(), sample.roles.size());
  const auto places = std::count(sample.tokens.begin(), sample.tokens.end(), token_image);
  require(places == static_cast<std::ptrdiff_t>(sample.pictures.size()),
          "sample {} has {} image tokens but {} pictures", sample.id, places,
          sample.pictures.size());
  tokens_.insert(tokens_.end(), sample.tokens.begin(), sample.tokens.end());
  for (const Role role : sample.roles) roles_.push_back(static_cast<std::uint8_t>(role));
  ids_.insert(ids_.end(), sample.id.begin(), sample.id.end());
  for (const EncodedPicture& picture : sample.pictures) {
    pictures_.insert(pictures_.end(), picture.bytes.begin(), picture.bytes.end());
    picture_offsets_.push_back(static_cast<std::int64_t>(pictures_.size()));
    picture_sizes_.insert(picture_sizes_.end(), {picture.width, picture.height});
  }
  token_offsets_.push_back(static_cast<std::int64_t>(tokens_.size()));
  id_offsets_.push_back(static_cast<std::int64_t>(ids_.size()));
  first_picture_.push_back(static_cast<std::int64_t>(picture_offsets_.size()) - 1);
}

std::int64_t ShardWriter::size_bytes() const {
  constexpr std::size_t token_bytes = sizeof(std::int32_t) + sizeof(std::uint8_t);
  constexpr std::size_t sample_bytes = 3 * sizeof(std::int64_t);
  constexpr std::size_t picture_bytes = sizeof(std::int64_t) + 2 * sizeof(std::int32_t);
  return static_cast<std::int64_t>(pictures_.size() + ids_.size() + tokens_.size() * token_bytes +
                                   token_offsets_.size() * sample_bytes +
                                   picture_offsets_.size() * picture_bytes);
}

void ShardWriter::finish() {
  auto file = hdf5::File::create(path_);
  file.write("tokens", tokens_);
  file.write("roles", roles_);
  file.write("token_offsets", token_offsets_);
  file.write("ids", ids_);
  file.write("id_offsets", id_offsets_);
  file.write("first_picture", first_picture_);
  file.write("pictures", pictures_);
  file.write("picture_offsets", picture_offsets_);
  file.write("picture_sizes", std::span<const std::int32_t>(picture_sizes_),
             {static_cast<std::int64_t>(picture_sizes_.size()) / 2, 2});
  file.commit();
}

ShardReader::ShardReader(const std::filesystem::path& path)
    : file_(hdf5::File::open(path)),
      tokens_(file_.dataset("tokens")),
      roles_(file_.dataset("roles")),
      ids_(file_.dataset("ids")),
      pictures_(file_.dataset("pictures")),
      token_offsets_(file_.read<std::int64_t>("token_offsets")),
      id_offsets_(file_.read<std::int64_t>("id_offsets")),
      first_picture_(file_.read<std::int64_t>("first_picture")),
      picture_offsets_(file_.read<std::int64_t>("picture_offsets")),
      picture_sizes_(file_.read<std::int32_t>("picture_sizes")) {
  const std::size_t ends = token_offsets_.size();
  require(ends > 0 && id_offsets_.size() == ends && first_picture_.size() == ends &&
              picture_sizes_.size() == 2 * static_cast<std::size_t>(first_picture_.back()) &&
              picture_offsets_.size() == static_cast<std::size_t>(first_picture_.back()) + 1,
          "{} is not a shard: its tables of offsets do not fit together", path.string());
}

Sample ShardReader::load(std::int64_t i, PictureContent pictures) const {
  require(i >= 0 && i < samples(), "a shard of {} samples has no sample {}", samples(), i);
  const auto row = static_cast<std::size_t>(i);
  const auto range = [](const hdf5::Dataset& set, const std::vector<std::int64_t>& offsets,
                        std::size_t at, auto element) {
    return set.read_range<decltype(element)>(offsets[at], offsets[at + 1] - offsets[at]);
  };
  Sample sample;
  sample.tokens = range(tokens_, token_offsets_, row, std::int32_t{});
  for (const std::uint8_t role : range(roles_, token_offsets_, row, std::uint8_t{}))
    sample.roles.push_back(static_cast<Role>(role));
  const auto id = range(ids_, id_offsets_, row, std::uint8_t{});
  sample.id.assign(id.begin(), id.end());
  for (auto p = static_cast<std::size_t>(first_picture_[row]);
       p < static_cast<std::size_t>(first_picture_[row + 1]); ++p) {
    EncodedPicture& picture = sample.pictures.emplace_back();
    if (pictures == PictureContent::whole)
      picture.bytes = range(pictures_, picture_offsets_, p, std::uint8_t{});
    picture.width = picture_sizes_[2 * p];
    picture.height = picture_sizes_[2 * p + 1];
  }
  return sample;
}

}  // namespace orchard
