#include "train/prompt.h"

#include "train/stage_data.h"

namespace orchard {

MicroBatch leading_rows(const MicroBatch& batch, std::int64_t rows) {
  MicroBatch prompt{.sequences = 1, .length = rows};
  prompt.sources.assign(batch.sources.begin(), batch.sources.begin() + rows);
  prompt.positions.assign(batch.positions.begin(), batch.positions.begin() + rows);
  prompt.targets.assign(static_cast<std::size_t>(rows), -1);
  prompt.document_offsets = {0, static_cast<std::int32_t>(rows)};
  prompt.real_rows = {static_cast<std::int32_t>(rows)};
  prompt.tiles = batch.tiles;
  prompt.patches = batch.patches;
  return prompt;
}

MicroBatch prompt_batch(Draft draft, const Tokenizer& tokenizer, const RunConfig& run,
                        const StageConfig& stage, Device& device) {
  // An index of this one sample: prompts then cannot be laid out otherwise than samples are.
  Sample sample = tokenize(std::move(draft), tokenizer);
  TrainingSetIndex index{.categories = {"prompt"}, .vocabulary = tokenizer.vocabulary()};
  for (const EncodedPicture& picture : sample.pictures) {
    index.pictures.push_back({picture.width, picture.height});
  }
  index.samples.push_back({.token_count = static_cast<std::int32_t>(sample.tokens.size()),
                           .picture_count = static_cast<std::int32_t>(sample.pictures.size())});

  PackingOptions options = packing_options(run, stage);
  options.targets = TargetPolicy::text;
  const TextTokenizer tokenize_text = [&](std::string_view text) { return tokenizer.encode(text); };
  const SampleLayout layout(index, options,
                            make_mark_table(stage.marks, tokenize_text, options.tiling, index));
  PackedSequence sequence;
  require(layout.extent(0).packability == Packability::whole && sequence.add(0, layout),
          "{} does not fit stage {}'s sequences of {} rows", sample.id, stage.number,
          options.length);
  const SampleSource source{
      .read = [&](std::int64_t) { return sample; },
      .decode = [](const EncodedPicture& picture) { return decode_picture(picture.bytes); }};
  BatchBuilder builder(layout, source,
                       {.patch = run.model.vision.patch,
                        .on_bad = [](const BadSample& bad) { fail("{}: {}", bad.id, bad.reason); }},
                       device);
  // The last row is the token that closes the document.
  return leading_rows(builder.build({&sequence, 1}), sequence.rows - 1);
}

}  // namespace orchard
