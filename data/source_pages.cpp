// Samples of document pages: words, lines and regions cut out, read, and asked about.
#include <algorithm>
#include <set>
#include <unordered_map>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/page.h"
#include "data/source_common.h"
#include "data/sources.h"

namespace orchard {
namespace {

// "the" fills a tenth of English: of each word about this many crops a category are offered.
constexpr std::uint64_t crops_per_word = 6;
constexpr std::size_t interleaved_lines = 3;
constexpr std::size_t max_region_lines = 4;

// The page's picture is missing, damaged or of another size: nothing can be cut from it.
class BadPicture : public Error {
 public:
  using Error::Error;
};

// Decodes its page when the first crop is asked for. Throws BadPicture.
class PagePicture {
 public:
  explicit PagePicture(const Page& page) : page_(page) {}

  EncodedPicture cut(const Box& box) {
    if (!picture_) picture_ = decode();
    return encode(crop(*picture_, box.left, box.top, box.width(), box.height()));
  }

 private:
  Picture decode() const {
    try {
      Picture picture = decode_picture(read_file(page_.path));
      require(picture.width == page_.width && picture.height == page_.height,
              "the picture has {}x{} pixels, the record says {}x{}", picture.width, picture.height,
              page_.width, page_.height);
      return picture;
    } catch (const Error& error) {
      throw BadPicture(fmt::format("{}: {}", page_.path.string(), error.what()));
    }
  }

  const Page& page_;
  std::optional<Picture> picture_;
};

// All that the samples of one page need.
struct PageJob {
  const Page& page;
  PagePicture picture;
  Selection& selection;
  Sink& sink;
};

std::string join(const Page& page, std::size_t first, std::size_t count) {
  std::string text;
  for (std::size_t i = first; i < first + count; ++i)
    text.append(i > first ? "\n" : "").append(page.lines[i].text);
  return text;
}

class PageSource : public Source {
 public:
  PageSource(const std::filesystem::path& file, const std::string& name,
             const SourceContext& context)
      : context_(context) {
    for_each_record(file, [&](const Json& record, const std::string& place) {
      Page& page = pages_.emplace_back(read_page(record, file.parent_path(), name, place));
      page.split = context.splitter.page(page.text());
      for (const Line& line : page.lines) {
        if (page.split == Split::train) train_lines_.insert(line.text);
        for (const Word& word : line.words) ++occurrences_[word.key];
      }
    });
  }

  void texts(const std::function<void(std::string)>& take) const override {
    for (const Page& page : pages_) {
      if (page.split == Split::held_out) continue;
      for (const Line& line : page.lines) {
        take(line.text);
        // A word alone, as in a crop of it, has no space before it.
        for (const Word& word : line.words)
          if (shows_word(page, word, Split::train)) take(word.text);
      }
    }
  }

  void drafts(Selection& selection, Sink& sink) const override {
    for (const Page& page : pages_) {
      PageJob job{page, PagePicture(page), selection, sink};
      try {
        words(job);
        lines(job);
        regions(job);
      } catch (const BadPicture& error) {
        sink.bad(page.place, error.what());
      }
    }
  }

 private:
  // Whether a crop of the word may stand in that split; see split.h.
  bool shows_word(const Page& page, const Word& word, Split split) const {
    return !word.key.empty() && context_.splitter.word(word.text) == split &&
           (split == Split::held_out || page.split == Split::train);
  }

  bool is_rare_enough(const Word& word, const std::string& id) const {
    return hash64(id, hash64("occurrence")) % occurrences_.at(word.key) < crops_per_word;
  }

  static Draft start(const char* category, const std::string& id, Split split) {
    return {.id = id, .category = category, .split = split, .parts = {}, .pictures = {}};
  }

  // A picture and its text, as a document: `category` of stages 1 and 2.
  static void offer_reading(PageJob& job, const char* category, const std::string& id, Split split,
                            const Box& box, const std::string& text) {
    if (!job.selection.wants(category, id)) return;
    Draft draft = start(category, id, split);
    draft.add_picture(job.picture.cut(with_margin(box, job.page)));
    draft.add_text(text);
    job.sink.draft(std::move(draft));
  }

  // An exchange about pictures, by template.
  void offer_chat(PageJob& job, const char* category, const char* exchange, const std::string& id,
                  Split split, const std::vector<Box>& boxes, const Phrase::Fields& fields) const {
    const std::string full_id = fmt::format("{} {}", id, exchange);
    if (!job.selection.wants(category, full_id)) return;
    Draft draft = start(category, full_id, split);
    for (const Box& box : boxes)
      draft.pictures.push_back(job.picture.cut(with_margin(box, job.page)));
    context_.chat.append(draft.parts, exchange, hash64(full_id), fields);
    job.sink.draft(std::move(draft));
  }

  void words(PageJob& job) const {
    for (const Split split : {Split::train, Split::held_out}) {
      std::vector<const Word*> before;  // in this split, on this page, different words
      for (std::size_t l = 0; l < job.page.lines.size(); ++l) {
        const auto& line = job.page.lines[l];
        for (std::size_t w = 0; w < line.words.size(); ++w) {
          const Word& word = line.words[w];
          const std::string id = fmt::format("{} line {} word {}", job.page.id, l, w);
          if (!shows_word(job.page, word, split) || !is_rare_enough(word, id)) continue;
          offer_reading(job, "caption_words", id, split, word.box, word.text);
          offer_reading(job, "ocr_words", id, split, word.box, word.text);
          offer_chat(job, "text_rich", "text_rich", id, split, {word.box}, {{"text", word.text}});
          if (before.size() >= 2)
            several_words(job, id, split, *before.end()[-2], *before.back(), word);
          if (before.empty() || before.back()->key != word.key) before.push_back(&word);
        }
      }
    }
  }

  void several_words(PageJob& job, const std::string& id, Split split, const Word& a, const Word& b,
                     const Word& c) const {
    if (a.key == b.key || b.key == c.key || a.key == c.key) return;
    offer_chat(job, "multi_image", "multi_image_read", id, split, {a.box, b.box, c.box},
               {{"first", a.text}, {"second", b.text}, {"third", c.text}});
    const bool first = hash64(id, hash64("which")) % 2 == 0;
    offer_chat(job, "multi_image", "multi_image_which", id, split, {b.box, c.box},
               {{"word", first ? b.text : c.text}, {"answer", first ? "first" : "second"}});
  }

  void lines(PageJob& job) const {
    const Page& page = job.page;
    for (std::size_t l = 0; l < page.lines.size(); ++l) {
      const Line& line = page.lines[l];
      if (line.text.empty()) continue;
      const std::string id = fmt::format("{} line {}", page.id, l);
      const bool also_trained = page.split == Split::held_out && train_lines_.count(line.text) > 0;
      if (!also_trained) offer_reading(job, "ocr_lines", id, page.split, line.box, line.text);
      if (l % interleaved_lines == 0) offer_interleaved(job, id, l);
    }
  }

  static void offer_interleaved(PageJob& job, const std::string& id, std::size_t first) {
    const Page& page = job.page;
    if (first + interleaved_lines > page.lines.size() || !job.selection.wants("interleaved", id))
      return;
    Draft draft = start("interleaved", id, page.split);
    for (std::size_t l = first; l < first + interleaved_lines; ++l) {
      draft.add_picture(job.picture.cut(with_margin(page.lines[l].box, page)));
      draft.add_text(page.lines[l].text + "\n");
    }
    job.sink.draft(std::move(draft));
  }

  void regions(PageJob& job) const {
    const Page& page = job.page;
    for (std::size_t first = 0; first < page.lines.size(); ++first) {
      const std::string start_id = fmt::format("{} line {}", page.id, first);
      std::size_t count = 2 + hash64(start_id, hash64("region")) % (max_region_lines - 1);
      while (count > 1 && !region_box(page, first, count)) --count;
      if (count < 2) continue;
      const Box box = *region_box(page, first, count);
      const std::string id = fmt::format("{} lines {}", start_id, count);
      offer_reading(job, "ocr_regions", id, page.split, box, join(page, first, count));
      grounding(job, id, first, count, box);
      counting(job, id, first, count, box);
    }
  }

  // Where is the word, and what word is there: about a word that stands once in the region, and in
  // the train split is a train word.
  void grounding(PageJob& job, const std::string& id, std::size_t first, std::size_t count,
                 const Box& box) const {
    std::unordered_map<std::string_view, int> times;
    std::vector<const Word*> words;
    for (std::size_t l = first; l < first + count; ++l) {
      for (const Word& word : job.page.lines[l].words) {
        ++times[word.key];
        words.push_back(&word);
      }
    }
    std::erase_if(words, [&](const Word* word) {
      const bool may_show =
          job.page.split == Split::held_out || shows_word(job.page, *word, Split::train);
      return word->key.size() < 2 || times[word->key] > 1 || !may_show;
    });
    if (words.empty()) return;
    const Box frame = with_margin(box, job.page);
    for (const char* exchange : {"refer_ground_where", "refer_ground_what"}) {
      const Word& word = *words[hash64(id, hash64(exchange)) % words.size()];
      offer_chat(job, "refer_ground", exchange, id, job.page.split, {box},
                 {{"word", word.text}, {"box", box_text(word.box, frame)}});
    }
  }

  void counting(PageJob& job, const std::string& id, std::size_t first, std::size_t count,
                const Box& box) const {
    std::size_t words = 0;
    for (std::size_t l = first; l < first + count; ++l) words += job.page.lines[l].words.size();
    offer_chat(job, "math", "math_words", id, job.page.split, {box},
               {{"count", std::to_string(words)}});
    offer_chat(job, "math", "math_lines", id, job.page.split, {box},
               {{"count", std::to_string(count)}});
  }

  const SourceContext& context_;
  std::vector<Page> pages_;
  std::set<std::string> train_lines_;
  std::unordered_map<std::string, std::uint64_t> occurrences_;
};

}  // namespace

std::unique_ptr<Source> open_pages(const std::filesystem::path& file, const std::string& name,
                                   const SourceContext& context) {
  return std::make_unique<PageSource>(file, name, context);
}

}  // namespace orchard
