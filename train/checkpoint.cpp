#include "train/checkpoint.h"

#include <cmath>
#include <optional>
#include <set>
#include <span>

#include "data/hash.h"
#include "data/hdf5.h"
#include "kernels/image/image.h"

namespace orchard {
namespace {

constexpr std::int64_t format_version = 1;
constexpr std::string_view parameters_group = "parameters/";
constexpr std::string_view optimizer_group = "optimizer/";

std::span<const std::uint8_t> bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * sizeof(float)};
}

void to_device(Stream& stream, const Tensor& tensor, const std::vector<float>& values) {
  stream.copy(tensor, ConstTensor(values.data(), DType::f32, tensor.shape(), DeviceKind::cpu));
  stream.synchronize();
}

void write(hdf5::File& file, const std::string& name, const Shape& shape,
           const std::vector<float>& values) {
  hdf5::Dataset dataset = file.create_dataset(name, hdf5::Element::f32, shape);
  dataset.write(std::span<const float>(values), dataset.whole());
  dataset.set_attribute("xxh3", hash_hex(bytes_of(values)));
}

std::vector<float> read_verified(const std::filesystem::path& path, const hdf5::File& file,
                                 const std::string& name) {
  const hdf5::Dataset dataset = file.dataset(name);
  require(dataset.element() == hdf5::Element::f32, "{}: dataset {} is {}, expected f32",
          path.string(), name, hdf5::name_of(dataset.element()));
  std::vector<float> values = dataset.read<float>();
  const std::string stored = dataset.string_attribute("xxh3"), found = hash_hex(bytes_of(values));
  require(stored == found,
          "{}: dataset {} is damaged (checksum {}, expected {}); use an earlier checkpoint",
          path.string(), name, found, stored);
  return values;
}

bool is_position_table(std::string_view name) {
  return name == "vision.positions" || name == "connector.positions";
}

// [class rows + old², width] -> [class rows + new², width]; class rows are copied.
std::vector<float> resize_table(const std::vector<float>& table, std::int64_t class_rows,
                                const Shape& from, const Shape& to) {
  const auto side = [&](const Shape& shape) {
    const std::int64_t patches = shape[0] - class_rows;
    const auto root = static_cast<int>(std::lround(std::sqrt(static_cast<double>(patches))));
    require(static_cast<std::int64_t>(root) * root == patches,
            "a position table of {} rows is not a square grid", shape[0]);
    return root;
  };
  const auto skip = static_cast<std::size_t>(class_rows * from[1]);
  std::vector<float> resized(static_cast<std::size_t>(to.numel()));
  std::copy_n(table.begin(), skip, resized.begin());
  resize_positions({.table = table.data() + skip,
                    .rows = side(from),
                    .cols = side(from),
                    .width = from[1],
                    .resized = resized.data() + skip,
                    .new_rows = side(to),
                    .new_cols = side(to)});
  return resized;
}

hdf5::File open_checked(const std::filesystem::path& path) {
  hdf5::File file = hdf5::File::open(path);
  require(file.has_attribute("orchard_checkpoint"), "{} is not an Orchard checkpoint",
          path.string());
  const std::int64_t version = file.integer_attribute("orchard_checkpoint");
  require(version == format_version, "{} has checkpoint format {}, this program reads {}",
          path.string(), version, format_version);
  return file;
}

std::string_view name_of(OptimizerKind kind) {
  return kind == OptimizerKind::adamw ? "adamw" : "adafactor";
}

void write_attributes(hdf5::File& file, const CheckpointInfo& info, OptimizerKind optimizer) {
  file.set_attribute("orchard_checkpoint", format_version);
  file.set_attribute("stage", static_cast<std::int64_t>(info.stage));
  file.set_attribute("step", info.step);
  file.set_attribute("sequences", info.sequences);
  file.set_attribute("seed", static_cast<std::int64_t>(info.seed));
  file.set_attribute("stage_finished", static_cast<std::int64_t>(info.stage_finished));
  file.set_attribute("tokenizer", info.tokenizer_hash);
  file.set_attribute("model", info.model);
  file.set_attribute("optimizer", name_of(optimizer));
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const CheckpointInfo& info, Stream& stream,
                     Communicator& ranks, const ParameterStore& store, const Optimizer& optimizer,
                     const ProgressHook& progress) {
  std::optional<hdf5::File> file;
  if (ranks.rank() == 0) {
    file.emplace(hdf5::File::create(path));
    write_attributes(*file, info, optimizer.config().kind);
  }
  const std::vector<Optimizer::NamedShard> states = optimizer.state();
  const std::int64_t total = std::ssize(store.catalogue()) + std::ssize(states);
  std::int64_t done = 0;
  if (progress) progress(done, total);
  const auto save = [&](const std::string& name, const TensorShard& shard, const Tensor& tensor,
                        Counted counted) {
    const std::vector<float> values = gather_to_first(stream, ranks, shard, tensor, counted);
    if (file) write(*file, name, shard.shape, values);
    if (progress) progress(++done, total);
  };
  for (const Parameter* p : store.catalogue()) {
    const bool counts = p->is_here() && p->shard.counts();
    save(std::string(parameters_group) + p->spec.name, owned_shard(*p), p->owned.master,
         counts ? Counted::yes : Counted::no);
  }
  for (const Optimizer::NamedShard& state : states)
    save(std::string(optimizer_group) + state.name, state.shard, state.tensor, state.counted);
  if (file) file->commit();
}

CheckpointInfo read_checkpoint_info(const std::filesystem::path& path) {
  const hdf5::File file = open_checked(path);
  return {.stage = static_cast<int>(file.integer_attribute("stage")),
          .step = file.integer_attribute("step"),
          .sequences = file.integer_attribute("sequences"),
          .seed = static_cast<std::uint64_t>(file.integer_attribute("seed")),
          .stage_finished = file.integer_attribute("stage_finished") != 0,
          .tokenizer_hash = file.string_attribute("tokenizer"),
          .model = file.string_attribute("model")};
}

void load_parameters(const std::filesystem::path& path, Stream& stream, ParameterStore& store,
                     PositionTables positions, const ProgressHook& progress) {
  const hdf5::File file = open_checked(path);
  std::set<std::string> unknown;
  for (const std::string& name : file.links(parameters_group)) unknown.insert(name);
  const std::int64_t total = std::ssize(store.catalogue());
  std::int64_t done = 0;
  for (const Parameter* parameter : store.catalogue()) {
    if (progress) progress(done++, total);
    const Parameter& p = *parameter;
    const std::string name = std::string(parameters_group) + p.spec.name;
    require(unknown.erase(p.spec.name) == 1,
            "{} is a checkpoint of another model: it has no parameter {}; compare its attribute "
            "'model' with the recipe",
            path.string(), p.spec.name);
    const Shape stored = file.dataset(name).shape();
    if (!p.is_here() && stored == p.spec.shape) continue;
    std::vector<float> values = read_verified(path, file, name);
    if (stored != p.spec.shape) {
      const bool resizable = positions == PositionTables::resized &&
                             is_position_table(p.spec.name) && stored.rank() == 2 &&
                             stored[1] == p.spec.shape[1];
      require(resizable,
              "{} is a checkpoint of another model: {} has shape {}, the recipe asks for {}",
              path.string(), p.spec.name, stored, p.spec.shape);
      values =
          resize_table(values, p.spec.name == "vision.positions" ? 1 : 0, stored, p.spec.shape);
    }
    if (!p.is_here()) continue;
    std::vector<float> slice(static_cast<std::size_t>(p.shape().numel()));
    cut(p.spec.shape, p.shard.slice, values, slice);
    store.write(stream, p, slice);
  }
  if (progress) progress(total, total);
  require(unknown.empty(),
          "{} is a checkpoint of another model: it also holds {} parameters that the recipe's "
          "model lacks, {} the first",
          path.string(), unknown.size(), unknown.empty() ? "" : *unknown.begin());
}

void load_optimizer(const std::filesystem::path& path, Stream& stream, const Optimizer& optimizer) {
  const hdf5::File file = open_checked(path);
  const std::string kind = file.string_attribute("optimizer");
  require(kind == name_of(optimizer.config().kind),
          "{} holds the state of {}, the recipe asks for {}", path.string(), kind,
          name_of(optimizer.config().kind));
  for (const auto& [name, shard, tensor, counted] : optimizer.state()) {
    const std::string full = std::string(optimizer_group) + name;
    require(file.contains(full),
            "{} has no optimizer state {}; was it saved with another factoring threshold?",
            path.string(), name);
    const Shape stored = file.dataset(full).shape();
    require(stored == shard.shape, "{}: optimizer state {} has shape {}, expected {}",
            path.string(), name, stored, shard.shape);
    if (shard.count > 0) to_device(stream, tensor, cut(shard, read_verified(path, file, full)));
  }
}

}  // namespace orchard
