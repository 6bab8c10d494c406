// The text of the inline PTX: for every wrapper of kernels/ptx, what nvcc makes of a kernel that calls
// it (ptx_text.cu), with each register replaced by the operand that it holds. The emulator never sees
// this text, so a wrong opcode or an exchanged operand would pass everything but a GPU.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include "kernels/core/error.h"

namespace orchard::testing {
namespace {

#ifdef ORCHARD_PTX_TEXT

using Lines = std::vector<std::string>;

// The body of an entry, line by line.
Lines body_of(const std::string& entry) {
  std::ifstream file(ORCHARD_PTX_TEXT);
  Lines lines;
  bool inside = false, in_asm = false;  // inline PTX has braces of its own
  for (std::string line; std::getline(file, line);) {
    if (line.find(".entry " + entry + "(") != std::string::npos) inside = true;
    if (line.find(" inline asm") != std::string::npos) in_asm = !in_asm;
    if (inside && !in_asm && line == "}") return lines;
    if (inside) lines.push_back(line.substr(std::min(line.find_first_not_of(" \t"), line.size())));
  }
  throw Error("no entry " + entry + " in the PTX");
}

// What registers hold: "p1" parameter 1, "shared p1" its address in shared memory, "&p0" the address
// of parameter 0, "m3" word 3 of memory, loaded before or stored after, "branch" what a branch is taken by.
// A register that says whether another one is 0 counts as that one.
std::map<std::string, std::string> origins(const Lines& lines) {
  static const std::regex parameter(R"(ld\.param\.\w+\s+(%\w+), \[\w+_param_(\d+)\];)"),
      address(R"(mov\.b64\s+(%\w+), \w+_param_(\d+);)"),
      same(R"((?:cvta\.[\w.]+|mov\.\w+)\s+(%\w+), (%\w+);)"),
      to_shared(R"(cvta\.to\.shared\.u64\s+%tmp, (%\w+);)"),
      from_tmp(R"(cvt\.u32\.u64\s+(%\w+), %tmp; \})"),
      loaded(R"(ld\.global\.\w+\s+(%\w+), \[%\w+(?:\+(\d+))?\];)"),
      stored(R"(st\.global\.\w+\s+\[%\w+(?:\+(\d+))?\], (%\w+);)"),
      is_zero(R"(setp\.(?:eq|ne)\.s32\s+(%\w+), (%\w+), 0;)"),
      chosen(R"(selp\.u32\s+(%\w+), 1, 0, (%\w+);)"), branch(R"(@!?(%\w+) bra\s+\S+)");
  std::map<std::string, std::string> out, stands_for;
  const auto root = [&](const std::string& name) {
    const auto found = stands_for.find(name);
    return found == stands_for.end() ? name : found->second;
  };
  std::string shared;
  const auto word = [](const std::string& bytes) {
    return fmt::format("m{}", bytes.empty() ? 0 : std::stoi(bytes) / 4);
  };
  for (const std::string& line : lines) {
    std::smatch match;
    if (std::regex_match(line, match, parameter)) {
      out[match[1]] = fmt::format("p{}", match[2].str());
    } else if (std::regex_match(line, match, address)) {
      out[match[1]] = fmt::format("&p{}", match[2].str());
    } else if (std::regex_match(line, match, to_shared)) {
      shared = out[match[1]];
    } else if (std::regex_match(line, match, from_tmp)) {
      out[match[1]] = fmt::format("shared {}", shared);
    } else if (std::regex_match(line, match, same)) {
      out[match[1]] = out[match[2]];
    } else if (std::regex_match(line, match, loaded)) {
      out[match[1]] = word(match[2]);
    } else if (std::regex_match(line, match, is_zero) || std::regex_match(line, match, chosen)) {
      stands_for[match[1]] = root(match[2]);
      out[match[1]] = out[root(match[2])];
    } else if (std::regex_match(line, match, branch)) {
      std::string& origin = out[root(match[1])];
      if (origin.empty()) origin = "branch";
    } else if (std::regex_match(line, match, stored)) {
      std::string& origin = out[root(match[2])];
      if (origin.empty()) origin = word(match[1]);
      // What was loaded from a word and changed must go back there.
      EXPECT_EQ(origin, word(match[1])) << line;
    }
  }
  return out;
}

// The inline PTX of an entry, without what belongs to a scope of its own.
Lines inline_ptx(const std::string& entry) {
  const Lines lines = body_of(entry);
  const auto names = origins(lines);
  static const std::regex register_name(R"(%\w+)");
  Lines out;
  bool inside = false;
  for (const std::string& line : lines) {
    if (line == "// begin inline asm") {
      inside = true;
    } else if (line == "// end inline asm") {
      inside = false;
    } else if (inside && line != "{" && line != "}" && !line.starts_with(".reg ")) {
      std::string named;
      auto rest = line.cbegin();
      for (std::sregex_iterator it(line.begin(), line.end(), register_name), end; it != end; ++it) {
        const auto known = names.find(it->str());
        named.append(rest, line.cbegin() + it->position());
        const bool special = it->str().starts_with("%cluster_");
        named += special ? it->str() : known == names.end() ? "?" : known->second;
        rest = line.cbegin() + it->position() + it->length();
      }
      out.push_back(named.append(rest, line.cend()));
    }
  }
  return out;
}

std::string words(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += fmt::format("{}m{}", i ? ", " : "", i);
  return out;
}

TEST(PtxText, Mma) {
  EXPECT_EQ(inline_ptx("mma_m16n8k16"),
            (Lines{"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {m0, m1, m2, m3}, "
                   "{p1, p2, p3, p4}, {p5, p6}, {m0, m1, m2, m3};"}));
}

TEST(PtxText, Ldmatrix) {
  for (const int matrices : {1, 2, 4}) {
    for (const bool transposed : {false, true}) {
      EXPECT_EQ(
          inline_ptx(fmt::format("ldmatrix_x{}{}", matrices, transposed ? "_trans" : "")),
          Lines{fmt::format("ldmatrix.sync.aligned.m8n8.x{}{}.shared.b16 {{{}}}, [shared p1];",
                            matrices, transposed ? ".trans" : "", words(matrices))});
    }
  }
}

TEST(PtxText, Stmatrix) {
  Lines expected;
  for (const char* const transposed : {"", ".trans"}) {
    const std::string start = "stmatrix.sync.aligned.m8n8.x";
    const std::string end = fmt::format("{}.shared.b16 [shared p0], ", transposed);
    expected.push_back(start + "1" + end + "{p1};");
    expected.push_back(start + "2" + end + "{p1, p2};");
    expected.push_back(start + "4" + end + "{p1, p2, p3, p4};");
  }
  EXPECT_EQ(inline_ptx("stmatrix_all"), expected);
}

TEST(PtxText, NamedBarriers) {
  EXPECT_EQ(inline_ptx("named_barriers"), (Lines{"bar.sync p0, p1;", "bar.arrive p0, p1;"}));
}

// The address that mapa gives is stored in two words.
TEST(PtxText, Clusters) {
  EXPECT_EQ(
      inline_ptx("clusters"),
      (Lines{"barrier.cluster.arrive;", "barrier.cluster.wait;", "mov.u32 m0, %cluster_ctarank;",
             "mov.u32 m1, %cluster_nctarank;", "mapa.u64 m2, p1, p2;"}));
}

TEST(PtxText, Elect) {
  EXPECT_EQ(inline_ptx("election"),
            (Lines{"elect.sync _|p, 0xffffffff;", "selp.u32 m0, 1, 0, p;"}));
}

TEST(PtxText, Exp2) {
  EXPECT_EQ(inline_ptx("exponential"), (Lines{"ex2.approx.ftz.f32 m0, p1;"}));
}

TEST(PtxText, Convert) {
  EXPECT_EQ(inline_ptx("two_floats"),
            (Lines{"cvt.rn.bf16x2.f32 m0, p2, p1;"}));  // the upper half comes first
}

TEST(PtxText, BulkCopies) {
  EXPECT_EQ(inline_ptx("bulk_copies"),
            (Lines{"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                   "[shared p0], [p1], p2, [shared p3];",
                   "cp.async.bulk.global.shared::cta.bulk_group [p1], [shared p0], p2;",
                   "cp.async.bulk.commit_group;", "cp.async.bulk.wait_group 2;",
                   "cp.async.bulk.wait_group.read 1;"}));
}

TEST(PtxText, CpAsync) {
  EXPECT_EQ(inline_ptx("cp_async_copies"),
            (Lines{"cp.async.cg.shared.global.L2::128B [shared p0], [p1], 16, p2;",
                   "cp.async.ca.shared.global [shared p0], [p1], 8, p2;",
                   "cp.async.ca.shared.global [shared p0], [p1], 4, p2;", "cp.async.commit_group;",
                   "cp.async.wait_group 2;", "cp.async.wait_all;"}));
}

TEST(PtxText, Mbarrier) {
  EXPECT_EQ(inline_ptx("mbarriers"),
            (Lines{"mbarrier.init.shared::cta.b64 [shared p0], p1;",
                   "fence.mbarrier_init.release.cluster;",
                   "mbarrier.arrive.shared::cta.b64 _, [shared p0];",
                   "mapa.shared::cluster.u32 there, shared p0, p1;",
                   "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];",
                   "mbarrier.arrive.expect_tx.shared::cta.b64 _, [shared p0], p1;",
                   "mbarrier.try_wait.parity.shared::cta.b64 p, [shared p0], p1;",
                   "selp.u32 branch, 1, 0, p;"}));
}

TEST(PtxText, Tma) {
  EXPECT_EQ(
      inline_ptx("tma"),
      (Lines{"prefetch.tensormap [&p0];",
             "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
             "[shared p1], [&p0, {p2, p3, p4}], [shared p5];",
             "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
             ".multicast::cluster [shared p1], [&p0, {p2, p3, p4}], [shared p5], p6;",
             "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [&p0, {p2, p3, p4}], "
             "[shared p1];",
             "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group "
             "[&p0, {p2, p3, p4}], [shared p1];",
             "cp.async.bulk.prefetch.tensor.3d.L2.global.tile [&p0, {p2, p3, p4}];"}));
}

TEST(PtxText, Wgmma) {
  EXPECT_EQ(
      inline_ptx("wgmma_n64"),
      (Lines{"setp.ne.b32 p, p3, 0;", "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" +
                                          words(32) + "}, p1, p2, p, 1, 1, 0, 1;"}));
  EXPECT_EQ(
      inline_ptx("wgmma_n64_registers"),
      (Lines{"setp.ne.b32 p, p6, 0;", "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" +
                                          words(32) + "}, {p1, p2, p3, p4}, p5, p, 1, 1, 1;"}));
  EXPECT_EQ(
      inline_ptx("wgmma_n128"),
      (Lines{"fence.proxy.async.shared::cta;", "wgmma.fence.sync.aligned;", "setp.ne.b32 p, p3, 0;",
             "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" + words(64) +
                 "}, p1, p2, p, 1, 1, 0, 1;",
             "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 1;"}));
  EXPECT_EQ(
      inline_ptx("wgmma_n128_registers"),
      (Lines{"setp.ne.b32 p, p6, 0;", "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" +
                                          words(64) + "}, {p1, p2, p3, p4}, p5, p, 1, 1, 1;"}));
  EXPECT_EQ(inline_ptx("wgmma_n256"),
            (Lines{"setmaxnreg.dec.sync.aligned.u32 40;", "setmaxnreg.inc.sync.aligned.u32 232;",
                   "setp.ne.b32 p, p3, 0;",
                   "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" + words(128) +
                       "}, p1, p2, p, 1, 1, 1, 0;"}));
}

#else

TEST(PtxText, NeedsNvcc) {
  GTEST_SKIP() << "this build has no nvcc";
}

#endif

}  // namespace
}  // namespace orchard::testing
