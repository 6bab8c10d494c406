// TensorBoard event files, written without TensorFlow: tensorboard/events.out.tfevents.* in the run
// folder, a new file each time the run starts or resumes.
//
// A file is a row of TFRecord frames: length u64, masked CRC32C of it u32, payload, masked CRC32C
// of the payload u32, little endian. A payload is the protocol buffer Event {wall_time = 1, step =
// 2, file_version = 3 | summary = 5}, where Summary is {repeated Value value = 1} and Value {tag =
// 1, simple_value = 2}. The first event gives the file version, "brain.Event:2".
//
// Scalars are called stage<k>/loss, /balance_loss, /z_loss, /grad_norm, /lr, /tokens_per_s,
// /step_seconds, /data_seconds; stage<k>/expert_load/layer<i> (busiest expert over the mean, i
// counts sparse layers), /dropped/layer<i> and /dead_experts/layer<i>; stage<k>/validation/loss,
// /validation/category/<name>, /validation/swap_difference and /validation/swap_z. Steps count
// within the stage.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "train/append_file.h"
#include "train/observer.h"

namespace orchard {

// Castagnoli's CRC (polynomial 0x1EDC6F41, reflected).
std::uint32_t crc32c(std::string_view bytes);

class TensorBoard : public Observer {
 public:
  // Creates the folder. After a resume TensorBoard shows the newer of two values of one step.
  explicit TensorBoard(const std::filesystem::path& run_folder);

  const std::filesystem::path& path() const { return file_.path(); }

  // Throws Error when the file cannot be written.
  void on_step(const StepEvent& event) override;
  void on_validation(const ValidationEvent& event) override;
  void on_message(const std::string&) override {}

 private:
  struct Scalar {
    std::string tag;
    double value;
  };
  void write(int stage, std::int64_t step, std::span<const Scalar> scalars);
  void write_frame(std::string_view payload);

  AppendFile file_;
};

}  // namespace orchard
