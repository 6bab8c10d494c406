#include <fmt/format.h>

#include <algorithm>

#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/source_common.h"
#include "data/sources.h"

namespace orchard {
namespace {

constexpr std::string_view image_mark = "<image>";

struct Exchange {
  std::string question, answer;
};

struct Conversation {
  std::string id, place, category;
  std::vector<std::filesystem::path> pictures;
  std::vector<Exchange> exchanges;
  std::string problem;  // why the record makes no sense; empty if it does
  Split split;
};

std::size_t image_marks(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(image_mark, at)) != text.npos; at += image_mark.size())
    ++count;
  return count;
}

std::vector<std::string> images_of(const Json& record, const std::string& place) {
  for (const char* name : {"images", "image"}) {
    if (!record.contains(name) || record[name].is_null()) continue;
    if (record[name].is_array()) return json_field<std::vector<std::string>>(record, name, place);
    return {json_field<std::string>(record, name, place)};
  }
  return {};
}

class ConversationSource : public Source {
 public:
  ConversationSource(const std::filesystem::path& file, const std::string& name,
                     const SourceContext& context)
      : context_(context) {
    for_each_record(file, [&](const Json& record, const std::string& place) {
      conversations_.push_back(read(record, place, file.parent_path(), name));
    });
  }

  void texts(const std::function<void(std::string)>& take) const override {
    for (const Conversation& conversation : conversations_) {
      if (conversation.split == Split::held_out) continue;
      for (const Exchange& exchange : conversation.exchanges) {
        take(one_line(exchange.question));
        take(one_line(exchange.answer));
      }
    }
  }

  void drafts(Selection& selection, Sink& sink) const override {
    for (const Conversation& conversation : conversations_) {
      if (!selection.wants(conversation.category, conversation.id)) continue;
      if (!conversation.problem.empty()) {
        sink.bad(conversation.place, conversation.problem);
        continue;
      }
      Draft draft{.id = conversation.id,
                  .category = conversation.category,
                  .split = conversation.split,
                  .parts = {},
                  .pictures = {}};
      try {
        for (const auto& path : conversation.pictures) {
          EncodedPicture& encoded = draft.pictures.emplace_back();
          encoded.bytes = read_file(path);
          const Picture decoded = decode_picture(encoded.bytes);
          encoded.width = decoded.width, encoded.height = decoded.height;
        }
      } catch (const Error& error) {
        const auto& path = conversation.pictures[draft.pictures.size() - 1];
        sink.bad(conversation.place, fmt::format("{}: {}", path.string(), error.what()));
        continue;
      }
      for (const Exchange& exchange : conversation.exchanges)
        context_.chat.append(draft.parts, exchange.question, exchange.answer);
      sink.draft(std::move(draft));
    }
  }

 private:
  Conversation read(const Json& record, const std::string& place,
                    const std::filesystem::path& folder, const std::string& name) const {
    Conversation conversation{
        .id = id_of(name, place),
        .place = place,
        .category = json_field<std::string>(record, "category", place, "general"),
        .pictures = {},
        .exchanges = {},
        .problem = {},
        .split = Split::train};
    const auto& names = category_names();
    require(std::find(names.begin(), names.end(), conversation.category) != names.end(),
            "{}: the category \"{}\" is none of: {}", place, conversation.category,
            fmt::join(names, ", "));
    for (const std::string& image : images_of(record, place)) {
      conversation.pictures.push_back(picture_path(folder, image, place));
      if (context_.splitter.picture(read_file(conversation.pictures.back())) == Split::held_out)
        conversation.split = Split::held_out;
    }
    read_turns(record, place, conversation);
    if (conversation.pictures.empty() && !conversation.exchanges.empty())
      conversation.split = context_.splitter.text(conversation.exchanges.front().question);
    return conversation;
  }

  static void read_turns(const Json& record, const std::string& place, Conversation& conversation) {
    const Json turns = json_field<Json>(record, "conversations", place);
    require(turns.is_array(), "{}: \"conversations\" is not a list", place);
    std::size_t marks = 0, number = 0;
    for (const Json& turn : turns) {
      const auto from = json_field<std::string>(turn, "from", place);
      auto value = json_field<std::string>(turn, "value", place);
      const bool asks = number++ % 2 == 0;
      if (from != (asks ? "human" : "gpt")) {
        conversation.problem = fmt::format(
            "turn {} is from \"{}\": human and gpt must alternate, human first", number, from);
        return;
      }
      if (asks) {
        marks += image_marks(value);
        conversation.exchanges.push_back({std::move(value), {}});
      } else {
        conversation.exchanges.back().answer = std::move(value);
      }
    }
    if (number == 0 || number % 2 != 0) {
      conversation.problem = "the last question has no answer";
      return;
    }
    if (marks == 0) {  // LLaVA's files leave the mark out now and then; the picture comes first
      for (std::size_t i = 0; i < conversation.pictures.size(); ++i)
        conversation.exchanges.front().question.insert(0, "<image>\n");
    } else if (marks != conversation.pictures.size()) {
      conversation.problem =
          fmt::format("{} pictures but {} times <image>", conversation.pictures.size(), marks);
    }
  }

  const SourceContext& context_;
  std::vector<Conversation> conversations_;
};

}  // namespace

std::unique_ptr<Source> open_conversations(const std::filesystem::path& file,
                                           const std::string& name, const SourceContext& context) {
  return std::make_unique<ConversationSource>(file, name, context);
}

}  // namespace orchard
