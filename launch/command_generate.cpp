#include <fmt/format.h>

#include <iostream>
#include <optional>

#include "data/atomic_file.h"
#include "data/chat.h"
#include "data/picture.h"
#include "launch/asked_model.h"
#include "launch/command.h"
#include "launch/configuration_error.h"
#include "launch/device.h"
#include "launch/job.h"
#include "launch/watch.h"
#include "train/prompt.h"

namespace orchard {
namespace {

constexpr const char* usage =
    "usage: orchard generate --run-folder FOLDER --prompt TEXT [--image FILE]... [options]\n\n"
    "Lets a model answer a prompt, one likeliest token after the other. <image> in the prompt "
    "marks\n"
    "the place of the next picture; pictures without a mark come first.";

enum class Frame : std::uint8_t { chat, none };

constexpr std::string_view image_mark = "<image>";

std::size_t count_marks(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = text.find(image_mark); at != text.npos; at = text.find(image_mark, at + 1))
    ++count;
  return count;
}

EncodedPicture open_picture(const std::string& path) {
  EncodedPicture picture{.bytes = read_file(path)};
  try {
    // Decoded here already: later nobody knows the file's name.
    const Picture decoded = decode_picture(picture.bytes);
    picture.width = decoded.width;
    picture.height = decoded.height;
  } catch (const Error& error) {
    fail("{}: {}", path, error.what());
  }
  return picture;
}

// The text between image marks as it stands.
void append_document(std::vector<DraftPart>& parts, std::string_view text) {
  for (;;) {
    const std::size_t at = std::min(text.find(image_mark), text.size());
    if (at > 0) parts.push_back({Role::document, -1, std::string(text.substr(0, at))});
    if (at == text.size()) return;
    parts.push_back({Role::document, token_image, {}});
    text.remove_prefix(at + image_mark.size());
  }
}

Draft make_draft(std::string text, const std::vector<std::string>& images, Frame frame,
                 const std::string& templates) {
  const std::size_t marks = count_marks(text);
  require_configuration(marks <= images.size(), "the prompt marks {} pictures, {} are given", marks,
                        images.size());
  for (std::size_t i = marks; i < images.size(); ++i) text.insert(0, image_mark);
  Draft draft{.id = "the prompt", .category = "prompt"};
  if (frame == Frame::chat) {
    Chat(templates).append_prompt(draft.parts, text);
  } else {
    append_document(draft.parts, text);
  }
  for (const std::string& image : images) draft.pictures.push_back(open_picture(image));
  return draft;
}

struct Request {
  std::string text, templates;
  std::vector<std::string> images;
  std::int64_t longest = 128;
  bool plain = false;
  AskedModel asked;
};

// Empty when only help was wanted.
std::optional<Request> parse(Arguments arguments, int ranks) {
  using program_options::value;
  Request request;
  std::int64_t& longest = request.longest;
  CommandLine line(usage);
  line.options().add_options()                                                           //
      ("prompt", value<std::string>(), "text; also without --prompt")                    //
      ("image", value<std::vector<std::string>>(), "JPEG or PNG file; may be repeated")  //
      ("plain", program_options::bool_switch(&request.plain),
       "go on with the prompt itself, without the frame of a chat")                               //
      ("templates", value<std::string>(), "folder of chat templates that replace built-in ones")  //
      ("tokens", value(&longest)->default_value(longest), "most tokens of the answer");
  add_model_arguments(line);
  line.collect_positional("prompt");
  if (line.parse(arguments, run_option_names()) == CommandLine::Outcome::helped) return {};
  require_configuration(longest > 0, "--tokens {}: must be positive", longest);

  request.asked = find_model(line, ranks);
  request.images = line.list("image");
  require_configuration(request.images.empty() || request.asked.run.model.has_vision(),
                        "the model is text-only: it takes no --image");
  request.text = line.required("prompt");
  request.templates = line.text("templates");
  return request;
}

}  // namespace

int command_generate(Arguments arguments) {
  return run_job([&](Job& job) {
    std::optional<Request> request;
    std::optional<Tokenizer> tokenizer;
    std::optional<MicroBatch> prompt;
    job.together([&] {
      request = parse(arguments, job.ranks().size());
      if (!request) return;
      const AskedModel& asked = request->asked;
      tokenizer.emplace(open_tokenizer(asked));
      const std::unique_ptr<Device> host = make_cpu_device();  // renders pictures
      prompt =
          prompt_batch(make_draft(request->text, request->images,
                                  request->plain ? Frame::none : Frame::chat, request->templates),
                       *tokenizer, asked.run, asked.stage, *host);
    });
    if (!request) return 0;
    const AskedModel& asked = request->asked;
    const std::unique_ptr<Device> device = open_device(asked.run, rank_on_node(job.ranks()));
    job.set_name(Mesh(job.ranks().size(), asked.run.layout).name(job.ranks().rank()));
    AskingWatch watch(job, asked.run, asked.run_folder);
    const DeviceRanks connected =
        connect_devices(job.ranks(), *device, find_links(asked.run, job, *device));
    const ParallelContext ranks = context_of(asked, connected.of(job.ranks()));
    const std::unique_ptr<InferenceModel> model =
        load_model(asked, *device, ranks, prompt->length + request->longest);
    constexpr std::int32_t stop[] = {token_end, token_turn_end};
    const std::string answer = tokenizer->decode(model->generate(*prompt, request->longest, stop));
    if (job.is_first()) fmt::print("{}\n", answer);
    watch.end();
    return 0;
  });
}

}  // namespace orchard
