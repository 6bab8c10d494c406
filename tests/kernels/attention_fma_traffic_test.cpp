// What attention in plain fp32 arithmetic moves, counted by the emulator.
#include "tests/kernels/attention_counts.h"
#include "tests/kernels/environment.h"

namespace orchard::testing {
namespace {

constexpr DType f32 = DType::f32, b16 = DType::bf16;

// Operands once a tile that sees them, in whole sectors, and no lane of a pass over the
// banks waits for another. (The emulator serves eight lanes that read 16 bytes in one pass, also where
// all of a warp's read the same, so that its ideal of different words is out of reach.)
TEST(AttentionFmaTraffic, IsEachByteOnceATileInFullSectorsWithoutBankConflicts) {
  const Environment environment("ORCHARD_GPU_ATTENTION", "fma");
  constexpr std::uint64_t rows = 64, warps = 4, sector = 32;
  for (const DType dtype : {f32, b16}) {
    for (const std::int64_t head_dim : {64, 128, 256}) {
      const AttentionCase c{dtype, 1, 1, head_dim, {rows}, {}, Mask::full};
      SCOPED_TRACE(text_of(c));
      const std::uint64_t side = head_dim > 128 ? 16 : 32, tiles = rows / side;
      // Sectors: each warp of each block, a spare one included, looks for its document. For d_q a warp asks
      // for log_sum_exp and D of a quarter of the tile's rows, two at a time; for d_k and d_v of all rows of
      // a tile of queries, 16 at a time.
      const std::uint64_t places = 9 * warps * (tiles + 1),
                          terms = 2 * tiles * warps * (side / 8 + tiles * side / 16 * 2);
      const std::uint64_t tensor = AttentionSizes(c).queries;
      const simt::Counters out = count(c, forward), gradients = count(c, backward);
      EXPECT_LE(sector * out.loads.sectors, (1 + 2 * tiles) * tensor + sector * places);
      // D's launch has two tensors, the two after it have each two once and two a tile.
      EXPECT_LE(sector * gradients.loads.sectors,
                (2 + 2 * (2 + 2 * tiles)) * tensor + sector * (2 * places + terms));
      EXPECT_EQ(out.stores.bytes, tensor + 4 * rows);            // log_sum_exp
      EXPECT_EQ(gradients.stores.bytes, 3 * tensor + 4 * rows);  // D
      for (const simt::Counters& counters : {out, gradients}) {
        EXPECT_EQ(counters.tensor_flops, 0u);
        EXPECT_LE(counters.loads.sectors, counters.loads.ideal_sectors);
        EXPECT_EQ(counters.stores.sectors, counters.stores.ideal_sectors);
        for (const simt::SharedCounters& direction :
             {counters.shared_loads, counters.shared_stores})
          EXPECT_EQ(128 * direction.wavefronts, direction.bytes);
      }
      report_counters("attention_forward_fma", text_of(c), out, {.bytes = of_forward(c).bytes});
      report_counters("attention_backward_fma", text_of(c), gradients,
                      {.bytes = of_backward(c).bytes});
    }
  }
}

}  // namespace
}  // namespace orchard::testing
