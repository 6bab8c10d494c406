#include "data/source_common.h"

#include <algorithm>

#include "data/sources.h"

namespace orchard {

const std::vector<std::string>& category_names() {
  static const std::vector<std::string> names{
      "caption_words", "caption_clipart", "interleaved", "text",         "ocr_words", "ocr_lines",
      "ocr_regions",   "general",         "text_rich",   "refer_ground", "science",   "math",
      "code",          "multi_image",     "text_only"};
  return names;
}

std::string id_of(const std::string& name, const std::string& place) {
  return fmt::format("{}/{}", name, std::filesystem::path(place).filename().string());
}

std::filesystem::path picture_path(const std::filesystem::path& folder, const std::string& image,
                                   const std::string& place) {
  auto path = folder / image;
  require(std::filesystem::is_regular_file(path),
          "{}: the picture {} does not exist: restore it or remove the record", place,
          path.string());
  return path;
}

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool blank = c == ' ' || c == '\t' || c == '\r' || c == '\n';
    if (!blank) line.push_back(c);
    if (blank && !line.empty() && line.back() != ' ') line.push_back(' ');
  }
  if (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

EncodedPicture encode(const Picture& picture) {
  return {encode_png(picture), picture.width, picture.height};
}

std::vector<std::unique_ptr<Source>> open_corpus(const std::filesystem::path& corpus,
                                                 const SourceContext& context) {
  const auto path = std::filesystem::absolute(corpus).lexically_normal();
  require(std::filesystem::exists(path),
          "the corpus {} does not exist: name one that `orchard pack --help` describes",
          corpus.string());
  std::vector<std::unique_ptr<Source>> sources;
  if (!std::filesystem::is_directory(path)) {
    require(path.extension() == ".json" || path.extension() == ".jsonl",
            "{} is neither a corpus folder nor a .json or .jsonl file of conversations",
            corpus.string());
    sources.push_back(open_conversations(path, path.parent_path().filename().string(), context));
    return sources;
  }
  // A trailing slash leaves an empty file name.
  const auto folder = path.has_filename() ? path : path.parent_path();
  const std::string name = folder.filename().string();
  using Open = std::unique_ptr<Source> (*)(const std::filesystem::path&, const std::string&,
                                           const SourceContext&);
  const std::pair<const char*, Open> kinds[] = {{"clipart.jsonl", open_clipart},
                                                {"pages.jsonl", open_pages},
                                                {"conversations.jsonl", open_conversations},
                                                {"conversations.json", open_conversations}};
  for (const auto& [file, open] : kinds)
    if (std::filesystem::exists(folder / file))
      sources.push_back(open(folder / file, name, context));
  if (std::filesystem::is_directory(folder / "text")) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder / "text"))
      if (entry.path().extension() == ".txt") files.push_back(entry.path());
    std::sort(files.begin(), files.end());  // the file system's order is nobody's
    for (const auto& file : files) sources.push_back(open_text(file, name + "/text", context));
  }
  require(!sources.empty(),
          "the corpus {} has none of clipart.jsonl, pages.jsonl, conversations.jsonl, "
          "conversations.json and text/*.txt",
          corpus.string());
  return sources;
}

}  // namespace orchard
