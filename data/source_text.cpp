#include <algorithm>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/source_common.h"
#include "data/sources.h"

namespace orchard {
namespace {

// A sample holds consecutive paragraphs of one document and one split, up to this many bytes: about
// 300 tokens, so that packing wastes little of a sequence. A longer paragraph is cut at spaces.
constexpr std::size_t sample_bytes = 1000;

// A sentence of this many bytes is long enough to be completed and short enough to be recited. Few
// words are left to complete, or they would outweigh in the loss what is read from pictures.
constexpr std::size_t min_sentence_bytes = 40, max_sentence_bytes = 240;
constexpr int completed_words = 3;

struct Paragraph {
  std::int64_t line;
  std::int64_t document;
  std::string text;
  Split split;
};

std::vector<std::string_view> cut(std::string_view text) {
  std::vector<std::string_view> parts;
  while (text.size() > sample_bytes) {
    const std::size_t space = text.rfind(' ', sample_bytes);
    const bool found = space != text.npos && space > 0;
    parts.push_back(text.substr(0, found ? space : sample_bytes));
    text.remove_prefix(found ? space + 1 : sample_bytes);
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::string_view> sentences(std::string_view text) {
  std::vector<std::string_view> result;
  while (!text.empty()) {
    const std::size_t stop = text.find(". ");
    const std::size_t length = stop == text.npos ? text.size() : stop + 1;
    if (length >= min_sentence_bytes && length <= max_sentence_bytes)
      result.push_back(text.substr(0, length));
    text.remove_prefix(std::min(text.size(), length + 1));
  }
  return result;
}

class TextSource : public Source {
 public:
  TextSource(const std::filesystem::path& file, const std::string& name,
             const SourceContext& context)
      : context_(context), id_(fmt::format("{}/{}", name, file.filename().string())) {
    const std::string whole = read_text(file);
    std::int64_t line = 0, document = 0;
    for (std::string_view rest = whole; !rest.empty();) {
      const std::string_view raw = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), raw.size() + 1));
      ++line;
      std::string text = one_line(raw);
      if (text.empty()) {
        ++document;
      } else {
        const Split split = context.splitter.text(text);
        paragraphs_.push_back({line, document, std::move(text), split});
      }
    }
  }

  void texts(const std::function<void(std::string)>& take) const override {
    for (const Paragraph& paragraph : paragraphs_)
      if (paragraph.split == Split::train) take(paragraph.text);
  }

  void drafts(Selection& selection, Sink& sink) const override {
    for (std::size_t first = 0; first < paragraphs_.size();) {
      const std::size_t last = end_of_sample(first);
      std::string text;
      for (std::size_t i = first; i < last; ++i)
        text.append(i > first ? "\n" : "").append(paragraphs_[i].text);
      // Several paragraphs are within the limit; a single one may be longer.
      const auto parts = last - first > 1 ? std::vector<std::string_view>{text} : cut(text);
      for (std::size_t i = 0; i < parts.size(); ++i)
        offer_text(paragraphs_[first], i, parts[i], selection, sink);
      first = last;
    }
    for (const Paragraph& paragraph : paragraphs_) offer_completion(paragraph, selection, sink);
  }

 private:
  std::size_t end_of_sample(std::size_t first) const {
    const Paragraph& head = paragraphs_[first];
    std::size_t bytes = head.text.size(), end = first + 1;
    while (end < paragraphs_.size() && paragraphs_[end].document == head.document &&
           paragraphs_[end].split == head.split &&
           bytes + 1 + paragraphs_[end].text.size() <= sample_bytes)
      bytes += 1 + paragraphs_[end++].text.size();
    return end;
  }

  void offer_text(const Paragraph& head, std::size_t part, std::string_view text,
                  Selection& selection, Sink& sink) const {
    const std::string id = fmt::format("{}:{} part {}", id_, head.line, part);
    if (!selection.wants("text", id)) return;
    Draft draft{.id = id, .category = "text", .split = head.split, .parts = {}, .pictures = {}};
    draft.add_text(std::string(text));
    sink.draft(std::move(draft));
  }

  void offer_completion(const Paragraph& paragraph, Selection& selection, Sink& sink) const {
    const auto choices = sentences(paragraph.text);
    if (choices.empty()) return;
    const std::string id = fmt::format("{}:{}", id_, paragraph.line);
    if (!selection.wants("text_only", id)) return;
    const std::string_view sentence = choices[hash64(id) % choices.size()];
    std::size_t space = sentence.size();
    for (int word = 0; word < completed_words && space != sentence.npos; ++word)
      space = space ? sentence.rfind(' ', space - 1) : sentence.npos;
    if (space == sentence.npos) return;
    Draft draft{
        .id = id, .category = "text_only", .split = paragraph.split, .parts = {}, .pictures = {}};
    context_.chat.append(draft.parts, "text_only", hash64(id, 1),
                         {{"beginning", std::string(sentence.substr(0, space))},
                          {"rest", std::string(sentence.substr(space + 1))}});
    sink.draft(std::move(draft));
  }

  const SourceContext& context_;
  std::string id_;
  std::vector<Paragraph> paragraphs_;
};

}  // namespace

std::unique_ptr<Source> open_text(const std::filesystem::path& file, const std::string& name,
                                  const SourceContext& context) {
  return std::make_unique<TextSource>(file, name, context);
}

}  // namespace orchard
