// The interpreter of PTX text: hand-written entries, each for a rule of the PTX ISA or an error. What
// nvcc emits runs through it in the tests named *_as_ptx.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/simt/ptx_text/program.h"
#include "kernels/simt/simt_device.h"
#include "tests/kernels/op_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using simt::ptx::Program;

// An entry `probe` whose body sees its parameter, a pointer, as %rd0.
std::string module_with(const std::string& body) {
  return ".version 9.0\n.target sm_80\n.address_size 64\n"
         ".extern .shared .align 16 .b8 shared_bytes[];\n"
         ".visible .entry probe(\n.param .u64 probe_param_0\n)\n.maxntid 32, 1, 1\n{\n"
         ".reg .pred %p<8>;\n.reg .b16 %rs<8>;\n.reg .b32 %r<16>;\n.reg .f32 %f<8>;\n"
         ".reg .b64 %rd<8>;\n.reg .f64 %fd<8>;\n"
         "ld.param.u64 %rd0, [probe_param_0];\n" +
         body + "\nret;\n}\n";
}
constexpr unsigned first_line = 17;  // of the body

// Runs `body` with `threads` threads on memory of 32-bit words.
std::vector<std::uint32_t> run_probe(const std::string& body, std::vector<std::uint32_t> memory,
                                     unsigned threads = 1, std::size_t shared_bytes = 0) {
  Program program({{"probe.ptx", module_with(body)}});
  const auto device = make_simt_device();
  const auto stream = device->make_stream();
  const auto count = static_cast<std::int64_t>(memory.size());
  const Buffer buffer = device->allocate(4 * memory.size());
  const Tensor on_device = buffer.tensor(DType::i32, {count});
  const Tensor on_host(reinterpret_cast<std::byte*>(memory.data()), DType::i32, {count},
                       DeviceKind::cpu);
  const void* const address = on_device.raw();
  const auto parameter = std::as_bytes(std::span(&address, 1));
  stream->copy(on_device, on_host);
  simt::enqueue(*stream, {.kernel = "probe", .block = {threads}, .shared_bytes = shared_bytes},
                {.thread = Program::thread_of(program.find({"", "probe"}), {{parameter}})});
  stream->copy(on_host, on_device);
  stream->synchronize();
  return memory;
}

// Applies an instruction of one result and up to three operands of 32 bits each.
std::uint32_t apply(const std::string& opcode, const std::vector<std::uint32_t>& operands,
                    const std::string& letter = "r") {
  std::string body, names;
  for (std::size_t n = 0; n < operands.size(); ++n) {
    const std::string name = "%" + letter + std::to_string(n + 1);
    body += "ld.global." + std::string(letter == "f" ? "f32 " : "u32 ") + name + ", [%rd0+" +
            std::to_string(4 * n) + "];\n";
    names += ", " + name;
  }
  body += opcode + " %" + letter + "0" + names + ";\n";
  body += "st.global." + std::string(letter == "f" ? "f32" : "u32") + " [%rd0], %" + letter + "0;";
  return run_probe(body, operands)[0];
}

float apply_float(const std::string& opcode, const std::vector<float>& operands) {
  std::vector<std::uint32_t> bits(operands.size());
  std::ranges::transform(operands, bits.begin(),
                         [](float value) { return std::bit_cast<std::uint32_t>(value); });
  return std::bit_cast<float>(apply(opcode, bits, "f"));
}

TEST(PtxInterpreter, IntegersWrapAndShiftsClamp) {
  EXPECT_EQ(apply("add.s32", {0x7fffffff, 1}), 0x80000000);
  EXPECT_EQ(apply("mul.hi.s32", {0xffffffff, 2}), 0xffffffff);
  EXPECT_EQ(apply("mul.hi.u32", {0xffffffff, 2}), 1u);
  EXPECT_EQ(apply("mad.lo.s32", {3, 5, 0xffffffff}), 14u);
  EXPECT_EQ(apply("div.s32", {static_cast<std::uint32_t>(-7), 2}), static_cast<std::uint32_t>(-3));
  EXPECT_EQ(apply("rem.s32", {static_cast<std::uint32_t>(-7), 2}), static_cast<std::uint32_t>(-1));
  EXPECT_EQ(apply("shl.b32", {1, 32}), 0u);
  EXPECT_EQ(apply("shr.u32", {0x80000000, 40}), 0u);
  EXPECT_EQ(apply("shr.s32", {0x80000000, 40}), 0xffffffff);
  EXPECT_EQ(apply("shr.s32", {0x80000000, 4}), 0xf8000000);
  EXPECT_EQ(apply("min.s32", {0xffffffff, 1}), 0xffffffff);
  EXPECT_EQ(apply("brev.b32", {0x00000003}), 0xc0000000);
  EXPECT_EQ(apply("bfind.shiftamt.u32", {0x00010000}), 15u);
  EXPECT_EQ(apply("bfind.shiftamt.u32", {0}), 0xffffffff);
  // As wide as its name says, not as C++'s int.
  EXPECT_EQ(run_probe("ld.global.u16 %rs1, [%rd0];\nmul.wide.u16 %r0, %rs1, %rs1;\n"
                      "st.global.u32 [%rd0], %r0;",
                      {0xffff}),
            std::vector<std::uint32_t>{0xfffe0001});
}

TEST(PtxInterpreter, FloatsRoundAndTreatNaNs) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = INFINITY;
  EXPECT_EQ(apply_float("max.f32", {nan, 1.0f}), 1.0f);
  EXPECT_EQ(apply_float("cvt.sat.f32.f32", {nan}), 0.0f);
  EXPECT_EQ(apply_float("cvt.sat.f32.f32", {2.5f}), 1.0f);
  // 1 + 2^-24 lies between two floats; so does 1 - 2^-26, and the product is not exact in either.
  EXPECT_EQ(apply_float("fma.rm.f32", {0x1p-12f, 0x1p-12f, 1.0f}), 1.0f);
  EXPECT_EQ(apply_float("fma.rm.f32", {-0x1p-13f, 0x1p-13f, 1.0f}), 1.0f - 0x1p-24f);
  EXPECT_EQ(apply_float("fma.rn.f32", {-0x1p-13f, 0x1p-13f, 1.0f}), 1.0f);
  // Below a double's precision: the sum's error decides.
  EXPECT_EQ(apply_float("fma.rm.f32", {-0x1p-40f, 0x1p-40f, 1.0f}), 1.0f - 0x1p-24f);
  EXPECT_EQ(apply_float("fma.rm.f32", {0x1p-40f, 0x1p-40f, 1.0f}), 1.0f);
  EXPECT_EQ(apply_float("ex2.approx.ftz.f32", {-126.0f}), 0x1p-126f);
  EXPECT_EQ(apply_float("ex2.approx.ftz.f32", {-126.5f}), 0.0f);
  EXPECT_EQ(apply_float("div.approx.f32", {1.0f, 0x1p127f}), 0.0f);
  EXPECT_EQ(apply_float("div.approx.f32", {1.0f, infinity}), 0.0f);
  EXPECT_EQ(apply_float("div.approx.f32", {6.0f, 4.0f}), 1.5f);
}

TEST(PtxInterpreter, ComparisonsWithNaNs) {
  const auto holds = [](const std::string& relation, float a, float b) {
    const std::vector<std::uint32_t> out =
        run_probe("ld.global.v2.f32 {%f0, %f1}, [%rd0];\nsetp." + relation +
                      ".f32 %p1, %f0, %f1;\nselp.u32 %r0, 1, 0, %p1;\nst.global.u32 [%rd0], %r0;",
                  {std::bit_cast<std::uint32_t>(a), std::bit_cast<std::uint32_t>(b)});
    return out[0] == 1;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const char* const relation : {"lt", "le", "gt", "ge", "eq", "ne"}) {
    EXPECT_FALSE(holds(relation, nan, 1.0f)) << relation;
  }
  for (const char* const relation : {"ltu", "leu", "gtu", "geu", "equ", "neu"}) {
    EXPECT_TRUE(holds(relation, nan, 1.0f)) << relation;
  }
  EXPECT_TRUE(holds("ltu", 1.0f, 2.0f));
  EXPECT_FALSE(holds("geu", 1.0f, 2.0f));
  EXPECT_TRUE(holds("ne", 1.0f, 2.0f));
}

TEST(PtxInterpreter, LoadsExtendAndPacksHaveTheirFirstBelow) {
  const std::vector<std::uint32_t> out = run_probe(
      "ld.global.s16 %r1, [%rd0];\n"
      "ld.global.s32 %rd1, [%rd0+4];\n"
      "ld.global.u8 %rs1, [%rd0+3];\n"
      "cvt.u32.u16 %r2, %rs1;\n"
      "mov.b64 {%r3, %r4}, %rd1;\n"
      "mov.b32 %r5, {%rs1, %rs1};\n"
      "mov.f32 %f1, 0f3F800000;\n"
      "mov.f32 %f2, 0f40000000;\n"
      "{ cvt.rn.bf16x2.f32 %r6, %f1, %f2;}\n"
      "st.global.v4.u32 [%rd0], {%r1, %r2, %r3, %r4};\n"
      "st.global.v2.u32 [%rd0+16], {%r5, %r6};",
      {0xab118001, 0x80000000, 0, 0, 0, 0});
  EXPECT_EQ(out, (std::vector<std::uint32_t>{0xffff8001, 0xab, 0x80000000, 0xffffffff, 0x00ab00ab,
                                             0x3f804000}));
}

TEST(PtxInterpreter, BranchesAndPredicates) {
  // Sums 1 .. 10, and overwrites the result where a predicate that does not hold says so.
  EXPECT_EQ(run_probe("mov.u32 %r1, 0;\nmov.u32 %r2, 0;\n"
                      "$L__again:\nadd.s32 %r1, %r1, 1;\nadd.s32 %r2, %r2, %r1;\n"
                      "setp.lt.s32 %p1, %r1, 10;\n@%p1 bra $L__again;\n"
                      "@%p1 mov.u32 %r2, 0;\n@!%p1 add.s32 %r2, %r2, 100;\n"
                      "st.global.u32 [%rd0], %r2;",
                      {0})[0],
            155u);
}

// A scope has registers of its own.
TEST(PtxInterpreter, ScopesHideRegisters) {
  EXPECT_EQ(run_probe(".reg .b32 p;\nmov.u32 p, 7;\n{\n.reg .pred p;\nsetp.eq.s32 p, %tid.x, 0;\n"
                      "selp.b32 %r1, 1, 2, p;\n}\nadd.s32 %r1, %r1, p;\nst.global.u32 [%rd0], %r1;",
                      {0})[0],
            8u);
}

// Each lane writes what it got of lane numbers; the sections have 8 lanes.
TEST(PtxInterpreter, ShufflesClampToTheirSection) {
  const auto shuffled = [](const std::string& kind, int b, int c) {
    return run_probe("mov.u32 %r1, %tid.x;\nshfl.sync." + kind + ".b32 %r2|%p1, %r1, " +
                         std::to_string(b) + ", " + std::to_string(c) +
                         ", -1;\n"
                         "@!%p1 add.s32 %r2, %r2, 100;\n"
                         "mul.wide.u32 %rd1, %r1, 4;\nadd.s64 %rd1, %rd0, %rd1;\n"
                         "st.global.u32 [%rd1], %r2;",
                     std::vector<std::uint32_t>(32), 32);
  };
  const int sections = 24 << 8;  // the upper two bits of a lane choose its section
  const auto up = shuffled("up", 3, sections), down = shuffled("down", 3, sections | 31),
             butterfly = shuffled("bfly", 16, 31), index = shuffled("idx", 9, sections | 31);
  for (unsigned lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(up[lane], lane % 8 >= 3 ? lane - 3 : lane + 100) << lane;
    EXPECT_EQ(down[lane], lane % 8 < 5 ? lane + 3 : lane + 100) << lane;
    EXPECT_EQ(butterfly[lane], lane ^ 16) << lane;
    EXPECT_EQ(index[lane], lane / 8 * 8 + 1) << lane;
  }
}

TEST(PtxInterpreter, LanesMatchAndAreActive) {
  constexpr std::uint32_t thirds = 0x49249249;  // lanes 0, 3, 6, ...
  const auto answers = run_probe(
      "mov.u32 %r1, %tid.x;\nrem.u32 %r2, %r1, 3;\ncvt.u64.u32 %rd2, %r2;\n"
      "match.any.sync.b32 %r3, %r2, -1;\nmatch.any.sync.b64 %r4, %rd2, -1;\n"
      "match.all.sync.b32 %r5|%p1, %r2, -1;\nmov.u32 %r6, 7;\n"
      "match.all.sync.b32 %r7|%p2, %r6, -1;\nselp.u32 %r8, 1, 0, %p1;\nselp.u32 %r9, 1, 0, %p2;\n"
      "activemask.b32 %r10;\n"
      "setp.ne.u32 %p3, %r1, 0;\n@%p3 ret;\n"
      "st.global.u32 [%rd0], %r3;\nst.global.u32 [%rd0+4], %r4;\nst.global.u32 [%rd0+8], %r5;\n"
      "st.global.u32 [%rd0+12], %r7;\nst.global.u32 [%rd0+16], %r8;\nst.global.u32 [%rd0+20], "
      "%r9;\n"
      "st.global.u32 [%rd0+24], %r10;",
      std::vector<std::uint32_t>(7, 9), 32);
  EXPECT_THAT(answers, ::testing::ElementsAre(thirds, thirds, 0u, ~0u, 0u, 1u, ~0u));
}

TEST(PtxInterpreter, SharedMemoryAndBarrier) {
  const auto out = run_probe(
      "mov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 2;\nmov.u32 %r3, shared_bytes;\n"
      "add.s32 %r3, %r3, %r2;\nst.shared.u32 [%r3], %r1;\nbar.sync 0;\n"
      "xor.b32 %r4, %r2, 252;\nld.shared.u32 %r5, [%r4];\n"
      "cvt.u64.u32 %rd1, %r2;\nadd.s64 %rd1, %rd0, %rd1;\nst.global.u32 [%rd1], %r5;",
      std::vector<std::uint32_t>(64), 64, 256);
  for (unsigned i = 0; i < 64; ++i) EXPECT_EQ(out[i], 63 - i);
}

std::string error_of(const std::string& body, std::size_t shared_bytes = 0) {
  return message_of([&] { run_probe(body, {0}, 1, shared_bytes); });
}

std::string at_line(unsigned n) {
  return fmt::format("probe.ptx:{}", first_line + n);
}

TEST(PtxInterpreter, SaysWhatItDoesNotKnow) {
  EXPECT_EQ(error_of("nop;\nsin.approx.f32 %f1, %f2;"),
            at_line(0) + ": the opcode nop is not known");
  EXPECT_EQ(error_of("mov.u32 %r1, 0;\nadd.s32 %r1, %r1, %rd1;"),
            at_line(1) + ": the operands do not fit add.s32: %rd1 has another width");
  EXPECT_EQ(error_of("add.s32 %r1, %r1;"),
            at_line(0) + ": the operands do not fit add.s32: one is missing");
  EXPECT_EQ(error_of("add.s32 %r1, %r99, 1;"),
            at_line(0) + ": the operands do not fit add.s32: %r99 is not declared");
  EXPECT_EQ(error_of("bra $nowhere;"), at_line(0) + ": there is no label $nowhere");
  EXPECT_EQ(error_of(".local .b8 depot[8];"),
            at_line(0) + ": the directive .local in the body of an entry is not known");
}

TEST(PtxInterpreter, ChecksAccesses) {
  using ::testing::HasSubstr;
  EXPECT_THAT(error_of("ld.global.u32 %r1, [%rd0+4];"),
              HasSubstr("reads 4 bytes at " + at_line(0) + ", at byte 4 of an allocation of 4"));
  EXPECT_THAT(error_of("ld.global.v2.u32 {%r1, %r2}, [%rd0];"),
              HasSubstr("reads 8 bytes at " + at_line(0)));
  EXPECT_THAT(error_of("ld.global.u16 %rs1, [%rd0+1];"), HasSubstr("not aligned"));
  EXPECT_THAT(error_of("mov.u32 %r1, 16;\nst.shared.u32 [%r1], %r1;", 16),
              HasSubstr("writes 4 bytes at " + at_line(1) + ", at byte 16 of 16 bytes of shared"));
  EXPECT_THAT(error_of("ld.param.u64 %rd1, [probe_param_0+8];"),
              HasSubstr("reads 8 bytes at byte 8 of 8 bytes of parameters"));
  EXPECT_THAT(error_of("mov.u64 %rd1, shared_bytes;\ncvta.shared.u64 %rd1, %rd1;\n"
                       "ld.global.u32 %r1, [%rd1];",
                       16),
              HasSubstr(at_line(2) + ": an access to global memory has an address of shared"));
}

}  // namespace
}  // namespace orchard::testing
