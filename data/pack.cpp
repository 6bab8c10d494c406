#include "data/pack.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "data/atomic_file.h"
#include "data/sources.h"
#include "data/training_set.h"
#include "data/training_set_format.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

// Takes the place of `final` when it is complete; removed if it does not get there.
class NewFolder {
 public:
  NewFolder(std::filesystem::path final_path, Existing existing)
      : final_(std::move(final_path)), partial_(final_), existing_(existing) {
    if (!final_.has_filename()) partial_ = final_ = final_.parent_path();
    require(existing == Existing::replace || !std::filesystem::exists(final_),
            "{} exists already: choose another folder, or replace it (--replace)", final_.string());
    // Whatever else is there was put there by somebody who wants to keep it.
    require(!std::filesystem::exists(final_) || std::filesystem::exists(final_ / description_file),
            "{} is no training set, so it is not replaced: choose another folder", final_.string());
    partial_ += ".partial";
    std::filesystem::remove_all(partial_);
    std::error_code error;
    std::filesystem::create_directories(partial_, error);
    require(!error, "cannot make the folder {}: {}", partial_.string(), error.message());
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder() {
    std::error_code ignored;  // a destructor has nobody to tell
    std::filesystem::remove_all(partial_, ignored);
  }

  const std::filesystem::path& path() const { return partial_; }

  void commit() {
    auto old = final_;
    old += ".old";
    const bool replaces = std::filesystem::exists(final_);
    if (replaces) {
      require(existing_ == Existing::replace, "{} has appeared in the meantime", final_.string());
      std::filesystem::remove_all(old);
      std::filesystem::rename(final_, old);
    }
    std::filesystem::rename(partial_, final_);
    sync_folder(final_.parent_path());
    std::filesystem::remove_all(old);
  }

 private:
  std::filesystem::path final_, partial_;
  Existing existing_;
};

class PackingSink : public Sink {
 public:
  PackingSink(const PackOptions& options, const Tokenizer& tokenizer, TrainingSetWriter& writer,
              std::int64_t expected, PackReport& report)
      : options_(options),
        tokenizer_(tokenizer),
        writer_(writer),
        expected_(expected),
        report_(report) {}

  void draft(Draft draft) override {
    constexpr std::int64_t samples_per_report = 256;
    if (++offered_ % samples_per_report == 0 && options_.progress)
      options_.progress({PackProgress::Stage::samples, offered_, expected_});
    if (!seen_.insert(content_hash(draft)).second) {
      ++report_.duplicates;
      return;
    }
    const Split split = draft.split;
    const Sample sample = tokenize(std::move(draft), tokenizer_);
    writer_.add(sample, split);
    auto& category = *std::find_if(report_.categories.begin(), report_.categories.end(),
                                   [&](const auto& c) { return c.name == sample.category; });
    ++(split == Split::train ? category.train : category.held_out);
    category.tokens += static_cast<std::int64_t>(sample.tokens.size());
    category.pictures += static_cast<std::int64_t>(sample.pictures.size());
  }

  void bad(const std::string& place, const std::string& reason) override {
    ++report_.bad;
    if (options_.log) options_.log(fmt::format("left out: {}: {}", place, reason));
  }

 private:
  const PackOptions& options_;
  const Tokenizer& tokenizer_;
  TrainingSetWriter& writer_;
  std::int64_t expected_, offered_ = 0;
  PackReport& report_;
  std::unordered_set<std::uint64_t> seen_;
};

// While sources make notes for the selection they make no samples.
class NoSink : public Sink {
 public:
  void draft(Draft) override {}
  void bad(const std::string&, const std::string&) override {}
};

using Sources = std::vector<std::unique_ptr<Source>>;

std::vector<std::uint8_t> make_tokenizer(const PackOptions& options, const Sources& sources,
                                         const Chat& chat) {
  if (!options.tokenizer_model.empty()) return read_file(options.tokenizer_model);
  std::vector<std::string> sentences = chat.literals();
  for (const auto& source : sources)
    source->texts([&](std::string text) { sentences.push_back(std::move(text)); });
  std::erase_if(sentences, [](const std::string& sentence) { return sentence.empty(); });
  return train_tokenizer(sentences, options.tokenizer);
}

Selection make_selection(const PackOptions& options, const Sources& sources) {
  const auto& names = category_names();
  auto limits = options.limits;
  for (const auto& [name, limit] : limits) {
    require(std::find(names.begin(), names.end(), name) != names.end() && limit >= 0,
            "limit {} for the category \"{}\": categories are {}", limit, name,
            fmt::join(names, ", "));
  }
  limits.insert(default_limits().begin(), default_limits().end());
  Selection selection(limits);
  NoSink nothing;
  for (const auto& source : sources) source->drafts(selection, nothing);
  selection.decide();
  return selection;
}

}  // namespace

const std::map<std::string, std::int64_t, std::less<>>& default_limits() {
  static const std::map<std::string, std::int64_t, std::less<>> limits{
      {"caption_words", 12'000}, {"interleaved", 2'000}, {"ocr_words", 6'000},
      {"ocr_lines", 6'000},      {"ocr_regions", 4'000}, {"text_rich", 8'000},
      {"refer_ground", 5'000},   {"multi_image", 2'500}, {"math", 1'500},
      {"text_only", 2'500}};
  return limits;
}

PackReport pack(const PackOptions& options) {
  const auto report_progress = [&](PackProgress::Stage stage, std::int64_t done,
                                   std::int64_t total) {
    if (options.progress) options.progress({stage, done, total});
  };
  require(!options.corpora.empty(), "packing needs at least one corpus");
  require(options.shard_bytes > 0, "a shard of {} bytes is impossible", options.shard_bytes);
  NewFolder folder(options.folder, options.existing);

  const SourceContext context{Splitter(options.held_out_permille), Chat(options.templates)};
  Sources sources;
  const auto corpora = static_cast<std::int64_t>(options.corpora.size());
  for (std::int64_t i = 0; i < corpora; ++i) {
    report_progress(PackProgress::Stage::reading, i, corpora);
    for (auto& source : open_corpus(options.corpora[static_cast<std::size_t>(i)], context))
      sources.push_back(std::move(source));
  }
  report_progress(PackProgress::Stage::reading, corpora, corpora);
  Selection selection = make_selection(options, sources);

  report_progress(PackProgress::Stage::tokenizer, 0, 1);
  const std::vector<std::uint8_t> model = make_tokenizer(options, sources, context.chat);
  const Tokenizer tokenizer(model, options.tokenizer_model.empty()
                                       ? "the new tokenizer"
                                       : options.tokenizer_model.string());
  report_progress(PackProgress::Stage::tokenizer, 1, 1);

  PackReport report;
  std::vector<std::string> categories;
  for (const std::string& name : category_names()) {
    if (selection.granted(name) == 0) continue;
    categories.push_back(name);
    report.categories.push_back({.name = name});
  }
  TrainingSetWriter writer(folder.path(), categories, model, {.shard_bytes = options.shard_bytes});
  const std::int64_t expected = selection.granted();
  PackingSink sink(options, tokenizer, writer, expected, report);
  for (const auto& source : sources) source->drafts(selection, sink);
  require(writer.samples() > 0,
          "the corpora hold no usable sample: {} were left out, each with its reason above",
          report.bad);
  writer.finish();
  report_progress(PackProgress::Stage::samples, expected, expected);

  report.samples = writer.samples();
  report.shards = writer.shards();
  report.vocabulary = tokenizer.vocabulary();
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    report.bytes += static_cast<std::int64_t>(entry.file_size());
  folder.commit();
  return report;
}

}  // namespace orchard
