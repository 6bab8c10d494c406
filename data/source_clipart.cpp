#include "data/atomic_file.h"
#include "data/hash.h"
#include "data/source_common.h"
#include "data/sources.h"

namespace orchard {
namespace {

struct Clipart {
  std::string id, place;
  std::filesystem::path path;
  std::string category, title;
  Split split;
};

class ClipartSource : public Source {
 public:
  ClipartSource(const std::filesystem::path& file, const std::string& name,
                const SourceContext& context)
      : context_(context) {
    for_each_record(file, [&](const Json& record, const std::string& place) {
      Clipart picture{.id = id_of(name, place),
                      .place = place,
                      .path = picture_path(file.parent_path(),
                                           json_field<std::string>(record, "image", place), place),
                      .category = one_line(json_field<std::string>(record, "category", place)),
                      .title = one_line(json_field<std::string>(record, "title", place)),
                      .split = {}};
      picture.split = context.splitter.picture(read_file(picture.path));
      pictures_.push_back(std::move(picture));
    });
  }

  void texts(const std::function<void(std::string)>& take) const override {
    for (const Clipart& picture : pictures_)
      if (picture.split == Split::train) take(caption_of(picture));
  }

  void drafts(Selection& selection, Sink& sink) const override {
    for (const Clipart& picture : pictures_) {
      const bool caption = selection.wants("caption_clipart", picture.id);
      const bool question = selection.wants("general", picture.id);
      if (!caption && !question) continue;
      EncodedPicture encoded;
      try {
        encoded.bytes = read_file(picture.path);
        const Picture decoded = decode_picture(encoded.bytes);
        encoded.width = decoded.width, encoded.height = decoded.height;
      } catch (const Error& error) {
        sink.bad(picture.place, fmt::format("{}: {}", picture.path.string(), error.what()));
        continue;
      }
      Draft draft{
          .id = picture.id, .category = {}, .split = picture.split, .parts = {}, .pictures = {}};
      if (caption) {
        Draft with_caption = draft;
        with_caption.category = "caption_clipart";
        with_caption.add_picture(encoded);
        with_caption.add_text(caption_of(picture));
        sink.draft(std::move(with_caption));
      }
      if (question) {
        draft.category = "general";
        draft.pictures.push_back(std::move(encoded));
        context_.chat.append(draft.parts, "general", hash64(picture.id),
                             {{"category", picture.category}, {"title", picture.title}});
        sink.draft(std::move(draft));
      }
    }
  }

 private:
  static std::string caption_of(const Clipart& picture) {
    return fmt::format("{}: {}", picture.category, picture.title);
  }

  const SourceContext& context_;
  std::vector<Clipart> pictures_;
};

}  // namespace

std::unique_ptr<Source> open_clipart(const std::filesystem::path& file, const std::string& name,
                                     const SourceContext& context) {
  return std::make_unique<ClipartSource>(file, name, context);
}

}  // namespace orchard
