#include <fmt/ranges.h>
#include <unistd.h>

#include <iostream>
#include <optional>

#include "data/pack.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/configuration_error.h"
#include "launch/option_fields.h"
#include "train/progress.h"

namespace orchard {
namespace {

constexpr const char* usage =
    "usage: orchard pack CORPUS... --out FOLDER [options]\n\n"
    "Builds a training set from corpora: folders with clipart.jsonl, pages.jsonl, text/*.txt or\n"
    "conversations.jsonl, or single files of conversations. Trains the tokenizer on their texts.\n"
    "Equal inputs and options give equal bytes.";

// "caption_words=2000"
void add_limit(PackOptions& options, const std::string& text) {
  const std::size_t equals = text.find('=');
  std::int64_t limit = 0;
  require_configuration(equals != std::string::npos &&
                            read_number(std::string_view(text).substr(equals + 1), limit) &&
                            limit >= 0,
                        "--limit {}: write category=samples, like caption_words=2000", text);
  options.limits[text.substr(0, equals)] = limit;
}

// One line of progress for each part of the work.
class PackingProgress {
 public:
  explicit PackingProgress(Terminal& terminal) : terminal_(terminal) {}

  void operator()(const PackProgress& at) {
    if (!current_ || at.stage != stage_) {
      stage_ = at.stage;
      current_.reset();
      begin(at);
    }
    current_->reach(at.done);
    if (at.done == at.total) current_->finish();
  }

 private:
  void begin(const PackProgress& at) {
    switch (at.stage) {
      case PackProgress::Stage::reading:
        current_.emplace(terminal_, "reading", "corpora", at.total);
        return;
      case PackProgress::Stage::tokenizer:
        current_.emplace(terminal_, "training", "tokenizer", at.total);
        return;
      case PackProgress::Stage::samples:
        current_.emplace(terminal_, "packing", "samples", at.total);
        return;
    }
  }

  Terminal& terminal_;
  PackProgress::Stage stage_ = PackProgress::Stage::reading;
  std::optional<Progress> current_;
};

void print_report(const PackReport& report, const std::filesystem::path& folder) {
  fmt::print("{:<16}{:>10}{:>10}{:>12}{:>10}\n", "category", "train", "held out", "tokens",
             "pictures");
  for (const PackReport::Category& category : report.categories) {
    fmt::print("{:<16}{:>10}{:>10}{:>12}{:>10}\n", category.name, category.train, category.held_out,
               category.tokens, category.pictures);
  }
  fmt::print("{}: {} samples in {} shards, {:.1f} MB, vocabulary {}\n", folder.string(),
             report.samples, report.shards, static_cast<double>(report.bytes) / 1e6,
             report.vocabulary);
  if (report.bad + report.duplicates > 0) {
    fmt::print("left out: {} bad, {} duplicates\n", report.bad, report.duplicates);
  }
}

}  // namespace

int command_pack(Arguments arguments) {
  using program_options::value;
  PackOptions options;
  bool replace = false;
  CommandLine line(usage);
  line.options().add_options()                                                          //
      ("corpus", value<std::vector<std::string>>(), "a corpus; also without --corpus")  //
      ("out", value<std::string>(), "folder of the training set")                       //
      ("replace", program_options::bool_switch(&replace),
       "a training set already there gives way when the new one is complete")  //
      ("vocabulary",
       value(&options.tokenizer.vocabulary)->default_value(options.tokenizer.vocabulary),
       "tokens of the new tokenizer, 256 bytes and special tokens included")                      //
      ("tokenizer", value<std::string>(), "SentencePiece model to use instead of a new one")      //
      ("templates", value<std::string>(), "folder of chat templates that replace built-in ones")  //
      ("held-out-permille",
       value(&options.held_out_permille)->default_value(options.held_out_permille),
       "share of the samples, by content, that is never trained on")  //
      ("shard-bytes", value(&options.shard_bytes)->default_value(options.shard_bytes),
       "size at which a shard ends")  //
      ("limit", value<std::vector<std::string>>(),
       "category=samples: most samples of a category; may be repeated");
  line.collect_positional("corpus");
  std::string footer = "\nLimits without --limit:";
  for (const auto& [name, limit] : default_limits()) {
    footer += fmt::format(" {}={}", name, limit);
  }
  line.set_footer(footer + "\n");
  if (line.parse(arguments) == CommandLine::Outcome::helped) return 0;

  for (const std::string& corpus : line.list("corpus")) options.corpora.emplace_back(corpus);
  require_configuration(!options.corpora.empty(), "name at least one corpus to pack (see --help)");
  options.folder = line.required("out");
  if (replace) options.existing = Existing::replace;
  options.tokenizer_model = line.text("tokenizer");
  options.templates = line.text("templates");
  for (const std::string& limit : line.list("limit")) add_limit(options, limit);
  Terminal terminal(std::cout, Terminal::kind_of(STDOUT_FILENO),
                    Terminal::columns_of(STDOUT_FILENO));
  options.log = [&](const std::string& text) { terminal.print(text); };
  PackingProgress progress(terminal);
  options.progress = std::ref(progress);
  const PackReport report = pack(options);
  print_report(report, options.folder);
  return 0;
}

}  // namespace orchard
