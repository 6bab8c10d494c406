#include "train/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <vector>

#include "train/expert_load.h"

namespace orchard {
namespace {

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}

// TFRecord stores CRCs changed in this way, lest a CRC be taken of bytes that contain one.
std::uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8u;
}

template <class Integer>
void put_little_endian(std::string& out, Integer value) {
  for (std::size_t byte = 0; byte < sizeof value; ++byte)
    out += static_cast<char>(value >> (8 * byte));
}

// Protocol buffer fields: a key (number << 3 | wire type), then the value.
enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, std::uint32_t number, Wire wire) {
  put_varint(out, number << 3 | static_cast<std::uint32_t>(wire));
}

void put_bytes(std::string& out, std::uint32_t number, std::string_view bytes) {
  put_key(out, number, Wire::bytes);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string event_at(std::int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_key(event, 1, Wire::fixed64);
  put_little_endian(event, std::bit_cast<std::uint64_t>(now.count()));
  put_key(event, 2, Wire::varint);
  put_varint(event, static_cast<std::uint64_t>(step));
  return event;
}

// TensorBoard asks for "tfevents" in the name and reads the files of a folder in alphabetical
// order, hence the time first; the process makes the name unique.
std::filesystem::path new_file(const std::filesystem::path& run_folder) {
  const std::filesystem::path folder = run_folder / "tensorboard";
  std::filesystem::create_directories(folder);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return folder / fmt::format("events.out.tfevents.{:010}.orchard.{}",
                              std::chrono::duration_cast<std::chrono::seconds>(now).count(),
                              ::getpid());
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> table = make_crc_table();
  std::uint32_t crc = ~0u;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<std::uint8_t>(c)) & 0xff];
  return ~crc;
}

TensorBoard::TensorBoard(const std::filesystem::path& run_folder) : file_(new_file(run_folder)) {
  std::string event = event_at(0);
  put_bytes(event, 3, "brain.Event:2");
  write_frame(event);
}

void TensorBoard::on_step(const StepEvent& event) {
  const LossReport& losses = event.report.losses;
  std::vector<Scalar> scalars{
      {"loss", losses.loss},
      {"grad_norm", event.report.gradient_norm},
      {"lr", event.learning_rate},
      {"tokens_per_s", static_cast<double>(event.tokens) / std::max(event.step_seconds, 1e-9)},
      {"step_seconds", event.step_seconds},
      {"data_seconds", event.data_seconds},
  };
  if (!losses.expert_load.empty()) {
    scalars.push_back({"balance_loss", losses.balance_loss});
    scalars.push_back({"z_loss", losses.z_loss});
  }
  for (std::size_t layer = 0; layer < losses.expert_load.size(); ++layer) {
    scalars.push_back(
        {fmt::format("expert_load/layer{}", layer), load_imbalance(losses.expert_load[layer])});
    scalars.push_back({fmt::format("dropped/layer{}", layer), losses.dropped[layer]});
    scalars.push_back({fmt::format("dead_experts/layer{}", layer),
                       static_cast<double>(dead_experts(losses.expert_load[layer]))});
  }
  write(event.stage, event.step, scalars);
}

void TensorBoard::on_validation(const ValidationEvent& event) {
  const ValidationReport& report = event.report;
  std::vector<Scalar> scalars{{"validation/loss", report.loss}};
  for (const CategoryLoss& category : report.categories)
    scalars.push_back({"validation/category/" + category.category, category.loss});
  if (report.swap.samples > 0) {
    scalars.push_back({"validation/swap_difference", report.swap.difference});
    scalars.push_back({"validation/swap_z", report.swap.z()});
  }
  write(event.stage, event.step, scalars);
}

void TensorBoard::write(int stage, std::int64_t step, std::span<const Scalar> scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    put_bytes(entry, 1, fmt::format("stage{}/{}", stage, tag));
    put_key(entry, 2, Wire::fixed32);
    put_little_endian(entry, std::bit_cast<std::uint32_t>(static_cast<float>(value)));
    put_bytes(summary, 1, entry);
  }
  std::string event = event_at(step);
  put_bytes(event, 5, summary);
  write_frame(event);
}

void TensorBoard::write_frame(std::string_view payload) {
  std::string frame;
  put_little_endian(frame, std::uint64_t{payload.size()});
  put_little_endian(frame, masked_crc(frame));
  frame += payload;
  put_little_endian(frame, masked_crc(payload));
  file_.append(frame);
}

}  // namespace orchard
