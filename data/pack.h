// Builds a training set from corpora: reads sources, chooses samples, trains the tokenizer, writes
// shards. The result is a pure function of the corpora and the options: equal inputs give equal
// bytes.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/sample.h"
#include "data/tokenizer.h"

namespace orchard {

struct PackProgress {
  enum class Stage { reading, tokenizer, samples };
  Stage stage = Stage::reading;
  std::int64_t done = 0, total = 0;  // corpora read; 0 or 1 tokenizer; samples made
};

// What becomes of a training set that is already there: it is kept, and packing is an Error, or it
// gives way in the moment when the new one is complete.
enum class Existing : std::uint8_t { keep, replace };

struct PackOptions {
  std::vector<std::filesystem::path> corpora;  // folders, or files of conversations: sources.h
  std::filesystem::path folder;                // the training set
  Existing existing = Existing::keep;
  std::filesystem::path templates;  // folder of chat templates that replace built-in ones, or empty
  TokenizerOptions tokenizer;
  std::filesystem::path tokenizer_model;  // use this one instead of training one; or empty
  std::int64_t shard_bytes = 64 << 20;
  int held_out_permille = 100;
  std::map<std::string, std::int64_t, std::less<>>
      limits;                                         // samples of a category; else the default
  std::function<void(const PackProgress&)> progress;  // called now and then; may be empty
  std::function<void(const std::string&)> log;        // one line for each thing left out
};

// Samples of each category where PackOptions::limits says nothing; categories not here have none.
const std::map<std::string, std::int64_t, std::less<>>& default_limits();

struct PackReport {
  struct Category {
    std::string name;
    std::int64_t train = 0, held_out = 0, tokens = 0, pictures = 0;
  };
  std::vector<Category> categories;  // those with samples
  std::int64_t samples = 0, shards = 0, bytes = 0;
  std::int64_t bad = 0;         // pictures and records left out
  std::int64_t duplicates = 0;  // samples left out because an equal one was there
  std::int32_t vocabulary = 0;
};

// Errors: see sources.h for corpora; unknown categories in `limits`; a folder that exists already;
// too little text for the vocabulary; a full disk. After one the folder is as it was.
PackReport pack(const PackOptions& options);

}  // namespace orchard
