// Pictures: known pixels come back from every kind of file, damaged files give an error.
#include "data/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <jpeglib.h>
#include <png.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "kernels/core/error.h"
#include "tests/data/scratch.h"

namespace orchard::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Bytes = std::vector<std::uint8_t>;

enum class Scans { sequential, progressive };

// Channels: 1 grey, 3 RGB, 4 CMYK as Adobe writes it.
Bytes encode_jpeg(const Bytes& pixels, int width, int height, int channels,
                  Scans scans = Scans::sequential) {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &memory, &size);
  info.image_width = static_cast<JDIMENSION>(width);
  info.image_height = static_cast<JDIMENSION>(height);
  info.input_components = channels;
  info.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 95, TRUE);
  if (scans == Scans::progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  while (info.next_scanline < info.image_height) {
    const auto* row = pixels.data() + info.next_scanline * width * channels;
    JSAMPROW rows[] = {const_cast<JSAMPROW>(row)};
    jpeg_write_scanlines(&info, rows, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  Bytes bytes(memory, memory + size);
  std::free(memory);
  return bytes;
}

struct PngKind {
  int color_type, depth, channels, interlace = PNG_INTERLACE_NONE;
};

// `rows`: packed as the kind asks. A palette kind gets the palette red, green, half-seen blue.
Bytes write_png(const PngKind& kind, int width, int height, const Bytes& rows) {
  Bytes bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &bytes,
      [](png_structp p, png_bytep from, png_size_t n) {
        auto& to = *static_cast<Bytes*>(png_get_io_ptr(p));
        to.insert(to.end(), from, from + n);
      },
      nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height),
               kind.depth, kind.color_type, kind.interlace, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  const png_color palette[] = {{255, 0, 0}, {0, 255, 0}, {0, 0, 255}};
  const png_byte seen[] = {255, 255, 128};
  if (kind.color_type == PNG_COLOR_TYPE_PALETTE) {
    png_set_PLTE(png, info, palette, 3);
    png_set_tRNS(png, info, seen, 3, nullptr);
  }
  std::vector<png_bytep> pointers;
  const std::size_t row_bytes = rows.size() / static_cast<std::size_t>(height);
  pointers.reserve(static_cast<std::size_t>(height));
  for (int y = 0; y < height; ++y)
    pointers.push_back(const_cast<png_bytep>(rows.data()) +
                       static_cast<std::size_t>(y) * row_bytes);
  png_set_rows(png, info, pointers.data());
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  png_destroy_write_struct(&png, &info);
  return bytes;
}

Picture gradient(int width, int height) {
  Picture picture{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      picture.rgb.push_back(static_cast<std::uint8_t>(255 * x / std::max(1, width - 1)));
      picture.rgb.push_back(static_cast<std::uint8_t>(255 * y / std::max(1, height - 1)));
      picture.rgb.push_back(128);
    }
  }
  return picture;
}

Bytes noise(std::size_t size) {
  std::mt19937 generator(3);
  Bytes bytes(size);
  for (auto& value : bytes) value = static_cast<std::uint8_t>(generator());
  return bytes;
}

TEST(Picture, PngComesBackExactly) {
  for (const auto& [width, height] : {std::pair{1, 1}, {7, 3}, {64, 1}, {1, 65}}) {
    Picture picture = gradient(width, height);
    const Bytes bytes = encode_png(picture);
    const Picture back = decode_picture(bytes);
    EXPECT_EQ(back.rgb, picture.rgb);
    const PictureSize size = read_picture_size(bytes);
    EXPECT_EQ(size.width, width);
    EXPECT_EQ(size.height, height);
  }
}

TEST(Picture, AGreyPictureIsStoredAsGrey) {
  Picture picture{5, 1, {}};
  for (const std::uint8_t grey : {0, 1, 127, 254, 255})
    picture.rgb.insert(picture.rgb.end(), 3, grey);
  const Bytes bytes = encode_png(picture);
  EXPECT_EQ(bytes.at(25), PNG_COLOR_TYPE_GRAY);
  EXPECT_EQ(decode_picture(bytes).rgb, picture.rgb);
}

TEST(Picture, EveryKindOfPngBecomesRgb) {
  const auto decode = [](const PngKind& kind, int width, const Bytes& row) {
    return decode_picture(write_png(kind, width, 1, row)).rgb;
  };
  EXPECT_EQ(decode({PNG_COLOR_TYPE_GRAY, 1, 1}, 2, {0x40}), (Bytes{0, 0, 0, 255, 255, 255}));
  EXPECT_EQ(decode({PNG_COLOR_TYPE_GRAY, 16, 1}, 1, {0x80, 0x80}), (Bytes{128, 128, 128}));
  EXPECT_EQ(decode({PNG_COLOR_TYPE_RGB, 16, 3}, 1, {255, 255, 0, 0, 0x40, 0x40}),
            (Bytes{255, 0, 64}));
  // Half-seen blue on white: 255 - 128 = 127 of white remains in red and green.
  EXPECT_EQ(decode({PNG_COLOR_TYPE_PALETTE, 8, 1}, 3, {0, 1, 2}),
            (Bytes{255, 0, 0, 0, 255, 0, 127, 127, 255}));
  EXPECT_EQ(decode({PNG_COLOR_TYPE_RGB_ALPHA, 8, 4}, 2, {9, 9, 9, 0, 10, 20, 30, 255}),
            (Bytes{255, 255, 255, 10, 20, 30}));
  EXPECT_EQ(decode({PNG_COLOR_TYPE_GRAY_ALPHA, 8, 2}, 1, {0, 51}), (Bytes{204, 204, 204}));
  const Picture square = gradient(8, 8);
  EXPECT_EQ(
      decode_picture(write_png({PNG_COLOR_TYPE_RGB, 8, 3, PNG_INTERLACE_ADAM7}, 8, 8, square.rgb))
          .rgb,
      square.rgb);
}

// Quality 95 with chroma at half resolution moves a smooth gradient by a few steps of 255.
TEST(Picture, JpegIsDecodedInEveryColourSpace) {
  const Picture picture = gradient(48, 32);
  for (const Scans scans : {Scans::sequential, Scans::progressive}) {
    const Bytes bytes = encode_jpeg(picture.rgb, 48, 32, 3, scans);
    const Picture back = decode_picture(bytes);
    ASSERT_EQ(back.rgb.size(), picture.rgb.size());
    for (std::size_t i = 0; i < back.rgb.size(); ++i) ASSERT_NEAR(back.rgb[i], picture.rgb[i], 12);
    EXPECT_EQ(read_picture_size(bytes).width, 48);
    EXPECT_EQ(read_picture_size(bytes).height, 32);
  }
  const Bytes grey = decode_picture(encode_jpeg(Bytes(64, 77), 8, 8, 1)).rgb;
  EXPECT_THAT(grey, ::testing::Each(77));
  Bytes ink;  // inverted: cyan 0 is full, so red is 0; black 255 is none
  for (int i = 0; i < 64; ++i) ink.insert(ink.end(), {0, 255, 128, 255});
  const Bytes rgb = decode_picture(encode_jpeg(ink, 8, 8, 4)).rgb;
  // The cosine transform and the quantisation may be off by a level each.
  EXPECT_NEAR(rgb[0], 0, 2);
  EXPECT_NEAR(rgb[1], 255, 2);
  EXPECT_NEAR(rgb[2], 128, 2);
}

std::vector<Bytes> real_files() {
  const Picture small = gradient(40, 24);
  const Bytes rough = noise(40 * 24 * 3);
  return {encode_png(small), encode_png({40, 24, rough}), encode_jpeg(rough, 40, 24, 3),
          encode_jpeg(rough, 40, 24, 3, Scans::progressive), encode_jpeg(rough, 20, 24, 1)};
}

TEST(Picture, ACutFileIsAnErrorAtEveryLength) {
  for (const Bytes& file : real_files()) {
    const bool jpeg = file[0] == 0xff;
    for (std::size_t length = 0; length < file.size(); ++length) {
      // A fresh allocation of exactly this length, so that the sanitizer sees a read beyond it.
      const Bytes cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
      const std::string message = message_of([&] { decode_picture(cut); });
      ASSERT_NE(message, "") << "accepted when cut to " << length << " of " << file.size();
      if (length > 3 && !jpeg) {
        ASSERT_THAT(message, HasSubstr("truncated")) << length;
      }
      message_of([&] { read_picture_size(cut); });
    }
  }
}

TEST(Picture, FlippedBytesNeverCrash) {
  for (const Bytes& file : real_files()) {
    std::mt19937 generator(7);
    int refused = 0;
    for (std::size_t position = 0; position < file.size(); ++position) {
      Bytes damaged = file;
      damaged[position] ^= static_cast<std::uint8_t>(1 + generator() % 255);
      refused += message_of([&] { decode_picture(damaged); }) != "";
      message_of([&] { read_picture_size(damaged); });
    }
    if (file[0] != 0xff) {
      EXPECT_GE(refused, static_cast<int>(file.size()) - 16);  // the end mark may go unread
    }
    for (int round = 0; round < 300; ++round) {
      Bytes damaged = file;
      for (int i = 0; i < 8; ++i)
        damaged[generator() % damaged.size()] = static_cast<std::uint8_t>(generator());
      message_of([&] { decode_picture(damaged); });
    }
  }
}

TEST(Picture, ErrorsSayWhatIsWrong) {
  EXPECT_THAT(message_of([] { decode_picture({}); }), HasSubstr("empty"));
  const Bytes text{'G', 'I', 'F', '8', '9', 'a'};
  EXPECT_THAT(message_of([&] { decode_picture(text); }), HasSubstr("neither JPEG nor PNG"));
  Bytes png = encode_png(gradient(9, 9));
  png[18] = 0xff, png[22] = 0xff;  // width and height 65289
  for (const auto& read :
       {+[](const Bytes& b) { read_picture_size(b); }, +[](const Bytes& b) { decode_picture(b); }})
    EXPECT_THAT(message_of([&] { read(png); }), AllOf(HasSubstr("too large"), HasSubstr("65289")));
  Bytes jpeg = encode_jpeg(noise(40 * 24 * 3), 40, 24, 3);
  const Bytes cut(jpeg.begin(), jpeg.begin() + static_cast<std::ptrdiff_t>(jpeg.size() / 2));
  EXPECT_THAT(message_of([&] { decode_picture(cut); }), HasSubstr("truncated"));
}

TEST(Picture, AHugeSizeIsRefusedBeforeMemoryIsTaken) {
  Bytes jpeg = encode_jpeg(noise(8 * 8 * 3), 8, 8, 3);
  for (std::size_t i = 2; i + 9 < jpeg.size(); ++i) {
    if (jpeg[i] == 0xff && jpeg[i + 1] == 0xc0) {
      jpeg[i + 5] = jpeg[i + 7] = 0x7f;
      break;
    }
  }
  EXPECT_THAT(message_of([&] { decode_picture(jpeg); }), HasSubstr("too large"));
}

TEST(Picture, ACropIsTheRectangleItNames) {
  const Picture picture = gradient(10, 6);
  const Picture part = crop(picture, 2, 1, 3, 4);
  ASSERT_EQ(part.rgb.size(), 3u * 4 * 3);
  for (int y = 0; y < 4; ++y) {
    for (int x = 0; x < 9; ++x)
      EXPECT_EQ(part.rgb[static_cast<std::size_t>(y * 9 + x)],
                picture.rgb[static_cast<std::size_t>(((y + 1) * 10 + 2) * 3 + x)]);
  }
  EXPECT_NE(message_of([&] { crop(picture, 8, 0, 3, 1); }), "");
}

}  // namespace
}  // namespace orchard::testing
