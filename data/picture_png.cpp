// PNG through libpng. Errors leave libpng's frames by a jump, so everything with a destructor
// belongs to the callers of the functions that call setjmp.
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <string>

#include "data/picture_codec.h"
#include "kernels/core/error.h"

namespace orchard {
namespace {

constexpr png_alloc_size_t max_chunk_bytes = 8'000'000;
constexpr png_uint_32 max_cached_chunks = 128;

struct Context {
  std::span<const std::uint8_t> rest;  // reading: what follows
  std::vector<std::uint8_t> written;   // writing: what has been made
  char message[256] = {};
};

void leave(png_structp png, png_const_charp message) {
  auto* context = static_cast<Context*>(png_get_error_ptr(png));
  std::snprintf(context->message, sizeof context->message, "%s", message);
  png_longjmp(png, 1);
}

// Warnings speak of colour profiles and other things that change no pixel.
void ignore(png_structp, png_const_charp) {}

void take(png_structp png, png_bytep to, png_size_t size) {
  auto* context = static_cast<Context*>(png_get_io_ptr(png));
  if (size > context->rest.size()) png_error(png, "truncated");
  std::memcpy(to, context->rest.data(), size);
  context->rest = context->rest.subspan(size);
}

struct Reader {
  Context context;
  png_structp png = nullptr;
  png_infop info = nullptr;

  Reader() {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &context, leave, ignore);
    info = png ? png_create_info_struct(png) : nullptr;
    require(info, "no memory to decode a PNG");
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

bool read_header(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_set_user_limits(reader.png, max_picture_side, max_picture_side);
  png_set_chunk_malloc_max(reader.png, max_chunk_bytes);
  png_set_chunk_cache_max(reader.png, max_cached_chunks);
  png_set_read_fn(reader.png, &reader.context, take);
  png_read_info(reader.png, reader.info);
  return true;
}

// Rows of 8-bit RGBA.
bool read_pixels(Reader& reader, png_bytepp rows) {
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_set_expand(reader.png);
  png_set_scale_16(reader.png);
  png_set_gray_to_rgb(reader.png);
  png_set_add_alpha(reader.png, 255, PNG_FILLER_AFTER);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  png_read_image(reader.png, rows);
  png_read_end(reader.png, nullptr);
  return true;
}

[[noreturn]] void fail_with(const Context& context) {
  const std::string reason = context.message;
  if (reason == "truncated") fail("the PNG is truncated");
  fail("the PNG is corrupt: {}", reason);
}

void append(png_structp png, png_bytep from, png_size_t size) {
  auto* context = static_cast<Context*>(png_get_io_ptr(png));
  // An exception must not pass through C frames.
  try {
    context->written.insert(context->written.end(), from, from + size);
  } catch (const std::bad_alloc&) {
    png_error(png, "no memory");
  }
}

struct Writer {
  Context context;
  png_structp png = nullptr;
  png_infop info = nullptr;

  Writer() {
    png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &context, leave, ignore);
    info = png ? png_create_info_struct(png) : nullptr;
    require(info, "no memory to encode a PNG");
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() { png_destroy_write_struct(&png, &info); }
};

bool write_all(Writer& writer, const Picture& picture, int color_type, png_bytepp rows) {
  if (setjmp(png_jmpbuf(writer.png))) return false;
  png_set_write_fn(writer.png, &writer.context, append, nullptr);
  png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(picture.width),
               static_cast<png_uint_32>(picture.height), 8, color_type, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  // Scanned or rendered text has few levels and sharp edges: filters make it larger and take time.
  if (color_type == PNG_COLOR_TYPE_GRAY)
    png_set_filter(writer.png, PNG_FILTER_TYPE_BASE, PNG_FILTER_NONE);
  png_set_rows(writer.png, writer.info, rows);
  png_write_png(writer.png, writer.info, PNG_TRANSFORM_IDENTITY, nullptr);
  return true;
}

std::vector<png_bytep> rows_of(std::vector<std::uint8_t>& pixels, std::int32_t height) {
  std::vector<png_bytep> rows(static_cast<std::size_t>(height));
  const std::size_t row_bytes = pixels.size() / rows.size();
  for (std::size_t y = 0; y < rows.size(); ++y) rows[y] = pixels.data() + y * row_bytes;
  return rows;
}

std::uint8_t on_white(int value, int alpha) {
  return static_cast<std::uint8_t>((value * alpha + 255 * (255 - alpha) + 127) / 255);
}

}  // namespace

Picture decode_png(std::span<const std::uint8_t> bytes) {
  // libpng's own refusal of a large side does not say how large; the header does.
  const PictureSize size = read_picture_size(bytes);
  Reader reader;
  reader.context.rest = bytes;
  if (!read_header(reader)) fail_with(reader.context);
  Picture picture{size.width, size.height, {}};
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(size.width) *
                                   static_cast<std::size_t>(size.height) * 4);
  std::vector<png_bytep> rows = rows_of(pixels, size.height);
  if (!read_pixels(reader, rows.data())) fail_with(reader.context);
  picture.rgb.reserve(pixels.size() / 4 * 3);
  for (std::size_t i = 0; i < pixels.size(); i += 4) {
    for (std::size_t c = 0; c < 3; ++c)
      picture.rgb.push_back(on_white(pixels[i + c], pixels[i + 3]));
  }
  return picture;
}

std::vector<std::uint8_t> encode_png(const Picture& picture) {
  const std::size_t count =
      static_cast<std::size_t>(picture.width) * static_cast<std::size_t>(picture.height);
  require(count > 0 && picture.rgb.size() == 3 * count,
          "cannot encode a picture of {}x{} pixels with {} bytes", picture.width, picture.height,
          picture.rgb.size());
  bool grey = true;
  for (std::size_t i = 0; grey && i < picture.rgb.size(); i += 3)
    grey = picture.rgb[i] == picture.rgb[i + 1] && picture.rgb[i] == picture.rgb[i + 2];
  std::vector<std::uint8_t> pixels;
  if (grey) {
    pixels.resize(count);
    for (std::size_t i = 0; i < count; ++i) pixels[i] = picture.rgb[3 * i];
  } else {
    pixels = picture.rgb;
  }
  std::vector<png_bytep> rows = rows_of(pixels, picture.height);
  Writer writer;
  if (!write_all(writer, picture, grey ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, rows.data()))
    fail("cannot encode a PNG: {}", writer.context.message);
  return std::move(writer.context.written);
}

}  // namespace orchard
