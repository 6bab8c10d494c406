// Faults put into the PTX of kernels: what a wrong asm string or a wrong operand would look like. The
// comparison with the host compiler's kernel, or a check of the emulator, must notice each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <sstream>

#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm/gemm_gpu.h"
#include "kernels/permute/permute.h"
#include "tests/kernels/device_test.h"
#include "tests/message_of.h"

namespace orchard::testing {
namespace {

using simt::ptx::ModuleText;
using simt::ptx::Program;

using Operation = std::function<std::vector<Guarded>(Stream&)>;

// What an operation gives on the emulator with these kernels; nullptr: the compiled ones.
std::vector<Guarded> results_with(Program* program, const Operation& operation) {
  const auto device = make_simt_device(
      {.races = simt::Races::find, .compute_capability = 90, .front_end = program});
  const auto stream = device->make_stream();
  return operation(*stream);
}

using Kernel = std::function<void(Stream&, const Gemm&)>;

// c = a · b with a [72, 200], b [200, 136] of integers, so that no order of additions matters.
Operation product_by(const Kernel& kernel, Transpose transpose_b) {
  return [=](Stream& stream) {
    const auto small_integers = [](Shape shape, unsigned seed) {
      Guarded out = random_normal(DType::bf16, shape, seed, 3.0);
      for (std::int64_t i = 0; i < out.size(); ++i) out.set(i, std::round(out.at(i)));
      return out;
    };
    Guarded a = small_integers({72, 200}, 1);
    Guarded b =
        small_integers(transpose_b == Transpose::yes ? Shape{136, 200} : Shape{200, 136}, 2);
    Guarded c = zeros(DType::f32, {72, 136});
    OnDevice a_d(stream, a), b_d(stream, b), c_d(stream, c);
    kernel(stream, {.a = a_d, .b = b_d, .c = c_d, .transpose_b = transpose_b});
    c_d.download();
    stream.synchronize();
    return std::vector{c};
  };
}

Operation on_sm80(Transpose transpose_b) {
  return product_by(
      [](Stream& stream, const Gemm& op) { simt::run_bf16(stream, op, simt::Tile::side_64); },
      transpose_b);
}

Operation on_sm90(Transpose transpose_b) {
  return product_by(
      [](Stream& stream, const Gemm& op) { simt::run_sm90(stream, op, simt::WideTile::n_128); },
      transpose_b);
}

std::vector<Guarded> sum_squares(Stream& stream) {
  Guarded x = random_normal(DType::f32, {3001}, 3), result = zeros(DType::f32, {1});
  OnDevice x_d(stream, x), result_d(stream, result);
  run_and_download(stream, SumOfSquares{.x = x_d, .result = result_d}, {&result_d});
  return {result};
}

std::vector<Guarded> convert_to_bf16(Stream& stream) {
  Guarded x = random_normal(DType::f32, {1000}, 4), y(DType::bf16, {1000});
  OnDevice x_d(stream, x), y_d(stream, y);
  run_and_download(stream, Convert{.x = x_d, .y = y_d}, {&y_d});
  return {y};
}

// Of more choices than a block counts: the last block adds up what the others have counted.
std::vector<Guarded> plan_rows(Stream& stream) {
  constexpr std::int64_t tokens = 1531, k = 3, experts = 8;
  std::vector<int> chosen;
  for (int i = 0; i < tokens * k; ++i) chosen.push_back(i % experts);
  Guarded choices = integers({tokens, k}, chosen), offsets(DType::i32, {experts + 1});
  Guarded source(DType::i32, {tokens * k + experts * row_multiple}), slot(DType::i32, {tokens, k});
  OnDevice choices_d(stream, choices), offsets_d(stream, offsets), source_d(stream, source),
      slot_d(stream, slot);
  run_and_download(
      stream,
      PermutePlan{
          .experts = choices_d, .row_offsets = offsets_d, .source = source_d, .slot = slot_d},
      {&offsets_d, &source_d, &slot_d});
  return {offsets, source, slot};
}

// ---- faults ------------------------------------------------------------------------------------

using Change = std::function<void(std::string& line)>;

Change replace(const std::string& from, const std::string& to) {
  return [=](std::string& line) {
    const std::size_t at = line.find(from);
    if (at != std::string::npos) line.replace(at, from.size(), to);
  };
}

// In lines with this opcode, exchanges the first two names of the n-th group in braces.
Change exchange_in_group(const std::string& opcode, int n) {
  return [=](std::string& line) {
    if (line.find(opcode) == std::string::npos) return;
    std::size_t at = 0;
    for (int i = 0; i <= n; ++i) at = line.find('{', at) + 1;
    const std::size_t comma = line.find(',', at), end = line.find_first_of(",}", comma + 1);
    const std::string first = line.substr(at, comma - at);
    const std::string second = line.substr(comma + 2, end - comma - 2);
    line.replace(at, end - at, fmt::format("{}, {}", second, first));
  };
}

struct Fault {
  const char* what;
  const char* module;
  Change change;
  Operation operation;
  const char* message;  // of the emulator; empty: the results differ
};

std::vector<Fault> faults() {
  const Operation nn = on_sm80(Transpose::no), nt = on_sm80(Transpose::yes);
  const Operation wide_nn = on_sm90(Transpose::no), wide_nt = on_sm90(Transpose::yes);
  return {
      {"mma: registers of a exchanged", "gemm_sm80", exchange_in_group("mma.sync", 1), nt, ""},
      {"mma: registers of b exchanged", "gemm_sm80", exchange_in_group("mma.sync", 2), nt, ""},
      {"mma: sums exchanged", "gemm_sm80", exchange_in_group("mma.sync", 0), nt, ""},
      {"ldmatrix: matrices exchanged", "gemm_sm80", exchange_in_group("ldmatrix", 0), nt, ""},
      {"ldmatrix: not transposed", "gemm_sm80", replace(".x4.trans.", ".x4."), nn, ""},
      {"ldmatrix: transposed", "gemm_sm80", replace(".x4.shared", ".x4.trans.shared"), nt, ""},
      {"cp.async: bytes and source bytes", "gemm_sm80", replace(", 16, ", ", 8, "), nt,
       "cp.async.cg copies 16 bytes, not 8"},
      {"cp.async: one group too many in flight", "gemm_sm80",
       replace("cp.async.wait_group 2;", "cp.async.wait_group 3;"), nt,
       "where nothing has been written"},
      {"cp.async: no commit", "gemm_sm80", replace("cp.async.commit_group;", ""), nt,
       "where nothing has been written"},
      {"st.global: half of the width", "gemm_sm80", replace("st.global.v4.f32", "st.global.v2.f32"),
       nt, "the operands do not fit st.global.v2.f32: there are too many"},
      {"an opcode that does not exist", "gemm_sm80",
       replace("m16n8k16.row.col", "m16n8k16.col.row"), nt,
       "the opcode mma.sync.aligned.m16n8k16.col.row.f32.bf16.bf16.f32 is not known"},
      {"wgmma: b transposed", "gemm_sm90", replace(", p, 1, 1, 0, 0;", ", p, 1, 1, 0, 1;"), wide_nt,
       ""},
      {"wgmma: b not transposed", "gemm_sm90", replace(", p, 1, 1, 0, 1;", ", p, 1, 1, 0, 0;"),
       wide_nn, ""},
      {"wgmma: sums exchanged", "gemm_sm90", exchange_in_group("wgmma.mma_async", 0), wide_nt, ""},
      {"wgmma: no fence", "gemm_sm90", replace("wgmma.fence.sync.aligned;", ""), wide_nt,
       "no wgmma_fence since the last commit"},
      {"wgmma: never waited for", "gemm_sm90",
       replace("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"), wide_nt,
       "wgmma"},
      {"copy engine: coordinates exchanged", "gemm_sm90",
       exchange_in_group("cp.async.bulk.tensor", 0), wide_nt, ""},
      {"mbarrier: arrives without its bytes", "gemm_sm90",
       [](std::string& line) {
         replace("arrive.expect_tx.shared", "arrive.shared")(line);
         const std::size_t at = line.find("mbarrier.arrive.shared");
         if (at == std::string::npos) return;
         line.resize(line.find(']') + 1);
         line += ';';
       },
       wide_nt, ""},
      {"mbarrier: in another state space", "gemm_sm90",
       replace("mbarrier.try_wait.parity.shared::cta.b64 p,",
               "mbarrier.try_wait.parity.shared::cluster.b64 p,"),
       wide_nt, "the opcode mbarrier.try_wait.parity.shared::cluster.b64 is not known"},
      {"shuffle: of another kind", "elementwise_sm80", replace("shfl.sync.bfly", "shfl.sync.up"),
       sum_squares, ""},
      {"arithmetic: of another kind", "elementwise_sm80", replace("add.f64", "sub.f64"),
       sum_squares, ""},
      {"a register of another width", "elementwise_sm80", replace("add.f64", "add.f32"),
       sum_squares, "the operands do not fit add.f32"},
      {"cvt: halves exchanged", "elementwise_sm80",
       [](std::string& line) {
         const std::size_t at = line.find("cvt.rn.bf16x2.f32");
         if (at == std::string::npos) return;
         std::istringstream words(line.substr(at));
         std::string opcode, d, high, low;
         words >> opcode >> d >> high >> low;
         high.pop_back(), low.resize(low.find(';'));
         line = fmt::format("{{ {} {} {}, {};}}", opcode, d, low, high);
       },
       convert_to_bf16, ""},
      {"membar: none", "permute_plan_sm80", replace("membar.gl;", ""), plan_rows,
       "nothing orders the two"},
  };
}

ModuleText module_of(const Fault& fault) {
  static const std::vector<ModuleText> modules =
      simt::ptx::read_modules(std::getenv("ORCHARD_PTX_MODULES"));
  for (const ModuleText& module : modules) {
    if (module.file == fmt::format("{}.ptx", fault.module)) return module;
  }
  throw Error(fmt::format("there is no module {}", fault.module));
}

std::string changed(const std::string& text, const Change& change) {
  std::istringstream lines(text);
  std::string out;
  for (std::string line; std::getline(lines, line);) {
    change(line);
    out += line + '\n';
  }
  return out;
}

class PtxFault : public ::testing::TestWithParam<std::size_t> {};

TEST_P(PtxFault, IsNoticed) {
  if (!std::getenv("ORCHARD_PTX_MODULES")) {
    GTEST_SKIP()
        << "ORCHARD_PTX_MODULES names no PTX: the build has no nvcc, or CTest does not run";
  }
  const Fault fault = faults()[GetParam()];
  SCOPED_TRACE(fault.what);
  ModuleText module = module_of(fault);
  const std::vector<Guarded> expected = results_with(nullptr, fault.operation);
  Program as_it_is({module});
  EXPECT_TRUE(results_with(&as_it_is, fault.operation) == expected) << "without a fault";

  const std::string text = changed(module.text, fault.change);
  ASSERT_TRUE(text != module.text) << "the fault is nowhere in the module";
  Program faulty({{module.file, text}});
  bool same = false;
  const std::string message =
      message_of([&] { same = results_with(&faulty, fault.operation) == expected; });
  EXPECT_THAT(message, ::testing::HasSubstr(fault.message));
  if (std::string(fault.message).empty()) {
    EXPECT_TRUE(!same || !message.empty());
  }
}

std::string name_of_fault(const ::testing::TestParamInfo<std::size_t>& test) {
  std::string out;
  for (const char* c = faults()[test.param].what; *c; ++c) {
    if (std::isalnum(static_cast<unsigned char>(*c))) out += *c;
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Faults, PtxFault, ::testing::Range(std::size_t{0}, faults().size()),
                         name_of_fault);

}  // namespace
}  // namespace orchard::testing
