// Row gathers and scatters: token embedding with visual tokens in place, target rows, class tokens.
// One dtype, f32 or bf16, but for table gradients, which are fp32 and added to in token order: the
// same bits on every device. The CPU checks sources and indices; GPUs, whose indices no host code
// reads, do not.
#pragma once

#include "kernels/core/tensor.h"
#include "kernels/core/vocabulary_shard.h"

namespace orchard {

class Stream;

// y[t] = table[sources[t]] for a text token, visual[-1 - sources[t]] for a visual one.
// With a shard: zeros for tokens that are other ranks', and for visual ones where `visual` is
// absent, so that the rows of all shards add up to the whole.
struct EmbeddingForward {
  ConstTensor table;        // [vocab, hidden]
  ConstTensor visual = {};  // [visual_tokens, hidden]; absent: text only
  ConstTensor sources;      // i32 [tokens]: >= 0 a vocabulary id, < 0 visual row -1 - source
  VocabularyShard shard = {};
  Tensor y;  // [tokens, hidden]
};

// d_table[id] += d_y[t] for text tokens; d_visual[row] = d_y[t] for visual ones (each row has one
// token; a row that no token names receives zero). With a shard: text tokens of other ranks add
// nothing.
struct EmbeddingBackward {
  ConstTensor d_y;      // [tokens, hidden]
  ConstTensor sources;  // i32 [tokens]
  VocabularyShard shard = {};
  Tensor d_table = {};   // f32 [vocab, hidden], added to; absent: not wanted
  Tensor d_visual = {};  // [visual_tokens, hidden]; absent: not wanted
};

// y[i] = x[indices[i]]; index -1 yields zeros.
struct GatherRows {
  ConstTensor x;        // [rows, cols]
  ConstTensor indices;  // i32 [n]
  Tensor y;             // [n, cols]
};

// y = 0, then y[indices[i]] = x[i]; index -1 is skipped, every other index occurs once.
struct ScatterRows {
  ConstTensor x;        // [n, cols]
  ConstTensor indices;  // i32 [n]
  Tensor y;             // [rows, cols]
};

// The ViT's input: class token in front of the patches, positions added to all.
//   y[n, 0] = class_token + positions[0];  y[n, 1 + p] = patches[n, p] + positions[1 + p]
struct PrependClassForward {
  ConstTensor patches;      // [images, patches, width]
  ConstTensor class_token;  // [width]
  ConstTensor positions;    // [patches + 1, width]
  Tensor y;                 // [images, patches + 1, width]
};
struct PrependClassBackward {
  ConstTensor d_y;            // [images, patches + 1, width]
  Tensor d_patches;           // [images, patches, width]
  Tensor d_class_token = {};  // f32 [width], added to; absent with d_positions: not wanted
  Tensor d_positions = {};    // f32 [patches + 1, width], added to
};

// The connector's input: the class token dropped, and its own positions added if given.
struct DropClassForward {
  ConstTensor x;               // [images, patches + 1, width]
  ConstTensor positions = {};  // [patches, width]; absent: none
  Tensor y;                    // [images, patches, width]
};
struct DropClassBackward {
  ConstTensor d_y;          // [images, patches, width]
  Tensor d_x;               // [images, patches + 1, width]; row 0 of each image becomes zero
  Tensor d_positions = {};  // f32 [patches, width], added to
};

void run(Stream&, const EmbeddingForward&);
void run(Stream&, const EmbeddingBackward&);
void run(Stream&, const GatherRows&);
void run(Stream&, const ScatterRows&);
void run(Stream&, const PrependClassForward&);
void run(Stream&, const PrependClassBackward&);
void run(Stream&, const DropClassForward&);
void run(Stream&, const DropClassBackward&);

}  // namespace orchard
