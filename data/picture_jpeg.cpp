// JPEG through libjpeg's API: TurboJPEG of version 2 has no limits on memory and scans.
#include <csetjmp>
#include <cstdio>
#include <string>

// jpeglib.h needs std::size_t and FILE before it.
#include <jpeglib.h>

#include "data/picture_codec.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

// A progressive JPEG holds all its coefficients, 6 bytes a pixel at full chroma.
constexpr long max_decoder_bytes = 450'000'000;
// Real files have about ten scans. Thousands of tiny ones would cost minutes of refinement.
constexpr int max_scans = 100;

// libjpeg reports through callbacks that must not return; a jump leaves its frames. Nothing with a
// destructor may live in those frames, so all of that belongs to the caller of decode_into.
struct Context {
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf exit{};
  char message[JMSG_LENGTH_MAX] = {};
};

void leave(j_common_ptr info) {
  auto* context = static_cast<Context*>(info->client_data);
  info->err->format_message(info, context->message);
  std::longjmp(context->exit, 1);
}

void treat_warning_as_error(j_common_ptr info, int level) {
  if (level < 0) leave(info);
}

void limit_scans(j_common_ptr info) {
  if (!info->is_decompressor) return;
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= max_scans) return;
  auto* context = static_cast<Context*>(info->client_data);
  std::snprintf(context->message, sizeof context->message, "more than %d scans", max_scans);
  std::longjmp(context->exit, 1);
}

struct Decoder {
  Context context;
  jpeg_decompress_struct info{};

  Decoder() {
    info.err = jpeg_std_error(&context.errors);
    context.errors.error_exit = leave;
    context.errors.emit_message = treat_warning_as_error;
    context.progress.progress_monitor = limit_scans;
    info.client_data = &context;
  }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() { jpeg_destroy_decompress(&info); }
};

enum class Step { header, pixels };

// False after an error, with the reason in the context. `rows` is used by Step::pixels only.
bool run_step(Decoder& decoder, std::span<const std::uint8_t> bytes, Step step,
              std::uint8_t* pixels) {
  if (setjmp(decoder.context.exit)) return false;
  jpeg_decompress_struct& info = decoder.info;
  if (step == Step::header) {
    jpeg_create_decompress(&info);
    info.mem->max_memory_to_use = max_decoder_bytes;
    info.progress = &decoder.context.progress;
    jpeg_mem_src(&info, bytes.data(), static_cast<unsigned long>(bytes.size()));
    jpeg_read_header(&info, TRUE);
    const bool is_ink = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
    info.out_color_space = is_ink ? JCS_CMYK : JCS_RGB;
    info.dct_method = JDCT_ISLOW;
    return true;
  }
  jpeg_start_decompress(&info);
  const std::size_t row_bytes =
      std::size_t{info.output_width} * static_cast<std::size_t>(info.output_components);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = pixels + info.output_scanline * row_bytes;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  return true;
}

[[noreturn]] void fail_with(const Context& context) {
  const std::string reason = context.message;
  const bool cut = reason.find("Premature end of JPEG file") != reason.npos ||
                   reason.find("Premature end of input") != reason.npos;
  if (cut) fail("the JPEG is truncated: {}", reason);
  fail("the JPEG is corrupt or not supported: {}", reason);
}

// Adobe's programs, nearly the only ones to write such files, store ink inverted: 255 is none.
Picture from_cmyk(const std::vector<std::uint8_t>& ink, bool inverted, std::int32_t width,
                  std::int32_t height) {
  Picture picture{width, height, {}};
  picture.rgb.reserve(ink.size() / 4 * 3);
  const auto light = [&](std::uint8_t value) { return inverted ? value : 255 - value; };
  for (std::size_t i = 0; i < ink.size(); i += 4) {
    for (std::size_t c = 0; c < 3; ++c)
      picture.rgb.push_back(
          static_cast<std::uint8_t>((light(ink[i + c]) * light(ink[i + 3]) + 127) / 255));
  }
  return picture;
}

}  // namespace

Picture decode_jpeg(std::span<const std::uint8_t> bytes) {
  Decoder decoder;
  if (!run_step(decoder, bytes, Step::header, nullptr)) fail_with(decoder.context);
  check_picture_size(decoder.info.image_width, decoder.info.image_height);
  const auto width = static_cast<std::int32_t>(decoder.info.image_width);
  const auto height = static_cast<std::int32_t>(decoder.info.image_height);
  const bool is_ink = decoder.info.out_color_space == JCS_CMYK;
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(width) *
                                   static_cast<std::size_t>(height) * (is_ink ? 4 : 3));
  if (!run_step(decoder, bytes, Step::pixels, pixels.data())) fail_with(decoder.context);
  if (is_ink) return from_cmyk(pixels, decoder.info.saw_Adobe_marker, width, height);
  return {width, height, std::move(pixels)};
}

}  // namespace orchard
