#include "train/model_json.h"

#include <fmt/format.h>

#include "data/json.h"

namespace orchard {
namespace {

// One list of fields serves both directions: `visit(name, field)` reads or writes each.
template <class Model, class Visit>
void for_each_field(Model& m, const Visit& visit) {
  visit("vision.layers", m.vision.layers);
  visit("vision.width", m.vision.width);
  visit("vision.heads", m.vision.heads);
  visit("vision.mlp_width", m.vision.mlp_width);
  visit("vision.patch", m.vision.patch);
  visit("vision.side", m.vision.side);
  visit("vision.features", m.vision.features);
  visit("connector.hidden", m.connector.hidden);
  visit("connector.depth", m.connector.depth);
  visit("connector.out_side", m.connector.out_side);
  visit("decoder.layers", m.decoder.layers);
  visit("decoder.hidden", m.decoder.hidden);
  visit("decoder.ffn", m.decoder.ffn);
  visit("decoder.heads", m.decoder.heads);
  visit("decoder.kv_heads", m.decoder.kv_heads);
  visit("decoder.head_dim", m.decoder.head_dim);
  visit("decoder.vocabulary", m.decoder.vocabulary);
  visit("decoder.max_positions", m.decoder.max_positions);
  visit("decoder.rope_theta", m.decoder.rope_theta);
  visit("moe.experts", m.decoder.moe.experts);
  visit("moe.every", m.decoder.moe.every);
  visit("moe.top_k", m.decoder.moe.top_k);
  visit("moe.capacity_factor", m.decoder.moe.capacity_factor);
  visit("moe.balance_counts", m.decoder.moe.balance_counts);
}

}  // namespace

std::string model_json(const ModelConfig& model) {
  Json json;
  for_each_field(model, [&](const char* name, const auto& field) { json[name] = field; });
  return json.dump();
}

ModelConfig model_from_json(const std::string& text) {
  const std::string place = "the model description of the checkpoint";
  const Json json = parse_json(text, place);
  ModelConfig model;
  for_each_field(model, [&](const char* name, auto& field) {
    field = json_field<std::decay_t<decltype(field)>>(json, name, place);
  });
  return model;
}

std::string model_difference(const ModelConfig& stored, const ModelConfig& recipe) {
  ModelConfig expected = recipe;
  expected.vision.side = stored.vision.side;
  expected.decoder.max_positions = stored.decoder.max_positions;
  if (recipe.decoder.vocabulary == 0) expected.decoder.vocabulary = stored.decoder.vocabulary;
  const Json found = Json::parse(model_json(stored)), wanted = Json::parse(model_json(expected));
  std::string text;
  for (const auto& [name, value] : found.items()) {
    if (value == wanted[name]) continue;
    text += fmt::format("{}{} = {}, not {}", text.empty() ? "" : "; ", name, value.dump(),
                        wanted[name].dump());
  }
  return text;
}

}  // namespace orchard
