#include "train/evaluate.h"

#include <map>

#include "train/pipeline_pictures.h"
#include "train/prompt.h"

namespace orchard {
namespace {

bool closes(std::int32_t token) {
  return token == token_end || token == token_turn_end;
}

// The targets from row `first` on, up to a closing token or the end of the run.
std::vector<std::int32_t> truth_of(const MicroBatch& batch, std::size_t first) {
  std::vector<std::int32_t> truth;
  for (std::size_t row = first; row < batch.targets.size(); ++row) {
    const std::int32_t target = batch.targets[row];
    if (target < 0 || closes(target)) break;
    truth.push_back(target);
  }
  return truth;
}

// Text of the prompt's rows; a run of visual rows reads as one <image>.
std::string prompt_text(const Tokenizer& tokenizer, const MicroBatch& prompt) {
  std::string text;
  std::vector<std::int32_t> words;
  const auto flush = [&] {
    text += tokenizer.decode(words);
    words.clear();
  };
  for (std::size_t row = 0; row < prompt.sources.size(); ++row) {
    if (prompt.sources[row] >= 0) {
      words.push_back(prompt.sources[row]);
    } else if (row == 0 || prompt.sources[row - 1] >= 0) {
      flush();
      text += "<image>";
    }
  }
  flush();
  return text;
}

bool is_answered(const SampleRecord& record) {
  return record.picture_count > 0 || record.assistant_tokens > 0;
}

// Fewer where a truth is too long to be asked for.
std::int64_t most_answers(const StageData& data, std::int64_t each) {
  std::map<std::int32_t, std::int64_t> samples;
  std::int64_t most = 0;
  for (const PackedSequence& sequence : data.held_out().sequences) {
    for (const PackedSample& packed : sequence.samples) {
      const SampleRecord& record = data.layout().record(packed.sample);
      if (is_answered(record) && samples[record.category]++ < each) ++most;
    }
  }
  return most;
}

}  // namespace

EvaluationReport evaluate(InferenceModel& model, const TrainingSet& set, const StageData& data,
                          const EvaluateOptions& options) {
  EvaluationReport report;
  report.validation = validate(model.runner(), data, set.index(), model.ranks()[MeshGroup::data],
                               Swap::compare, tell_bad, options.validating);

  const std::unique_ptr<Device> device = make_cpu_device();
  const PictureContent pictures = picture_content(model.ranks());
  BatchBuilder builder = data.make_builder(*device, {}, pictures);
  const SampleLayout& layout = data.layout();
  const std::int32_t stop[] = {token_end, token_turn_end};
  std::map<std::int32_t, CategoryAccuracy> accuracy;
  const std::int64_t wanted = most_answers(data, options.generated_per_category);
  const auto tell = [&](std::int64_t done) {
    if (options.answering) options.answering(done, wanted);
  };
  for (const PackedSequence& sequence : data.held_out().sequences) {
    for (const PackedSample& packed : sequence.samples) {
      const SampleRecord& record = layout.record(packed.sample);
      if (!is_answered(record)) continue;
      CategoryAccuracy& category = accuracy[record.category];
      if (category.samples == options.generated_per_category) continue;
      tell(std::ssize(report.answers));
      PackedSequence alone_in_sequence;
      alone_in_sequence.add(packed.sample, layout);
      MicroBatch batch = builder.build({&alone_in_sequence, 1});
      share_bad_documents(model.ranks(), {&batch, 1});
      std::size_t first = 0;
      while (first < batch.targets.size() && batch.targets[first] < 0) ++first;
      const std::vector<std::int32_t> truth = truth_of(batch, first);
      if (truth.empty() || static_cast<std::int64_t>(truth.size()) > options.longest_answer)
        continue;
      const MicroBatch prompt = leading_rows(batch, static_cast<std::int64_t>(first) + 1);
      const auto budget =
          static_cast<std::int64_t>(truth.size()) + 8;  // a longer answer is wrong anyway
      Sample sample = set.load(packed.sample);
      AnsweredSample answered{
          .category = sample.category,
          .sample = sample.id,
          .prompt = prompt_text(set.tokenizer(), prompt),
          .truth = set.tokenizer().decode(truth),
          .answer = set.tokenizer().decode(model.generate(prompt, budget, stop)),
          .pictures = std::move(sample.pictures)};
      category.category = sample.category;
      ++category.samples;
      category.exact += answered.exact();
      report.answers.push_back(std::move(answered));
    }
  }
  tell(wanted);
  for (auto& [id, category] : accuracy) {
    if (category.samples) report.accuracy.push_back(category);
  }
  return report;
}

}  // namespace orchard
