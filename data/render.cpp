#include "data/render.h"

#include "kernels/core/error.h"
#include "kernels/image/image.h"

namespace orchard {

PictureRenderer::PictureRenderer(Device& device, std::int64_t side, std::int64_t patch)
    : stream_(device.make_stream()), side_(side), patch_(patch) {
  require(device.kind() == DeviceKind::cpu, "pictures are rendered on a CPU device, not on {}",
          name_of(device.kind()));
  require(patch >= 1 && side % patch == 0, "tile side {} is not a multiple of the patch side {}",
          side, patch);
}

void PictureRenderer::render(const Picture& picture, const TilePlan& plan, float* patches) {
  render_grid(picture, plan, patches);
  if (!plan.has_overview) return;
  render_grid(picture, {.grid = {1, 1}, .height = side_, .width = side_},
              patches + plan.grid_tiles() * tile_values());
}

void PictureRenderer::render_grid(const Picture& picture, const TilePlan& plan, float* patches) {
  const Shape canvas_shape{plan.grid.rows * side_, plan.grid.cols * side_, 3};
  canvas_.resize(static_cast<std::size_t>(canvas_shape.numel()));
  const Tensor canvas{canvas_.data(), DType::f32, canvas_shape, DeviceKind::cpu};
  const std::int64_t grid = side_ / patch_;
  const Shape patches_shape{plan.grid_tiles(), grid * grid, 3 * patch_ * patch_};
  run(*stream_,
      ResizeBicubic{
          .x = {picture.rgb.data(), DType::u8, {picture.height, picture.width, 3}, DeviceKind::cpu},
          .height = plan.height,
          .width = plan.width,
          .y = canvas});
  run(*stream_,
      NormalisePatchify{.x = canvas,
                        .height = plan.height,
                        .width = plan.width,
                        .side = side_,
                        .patch = patch_,
                        .patches = {patches, DType::f32, patches_shape, DeviceKind::cpu}});
  stream_->synchronize();
}

}  // namespace orchard
