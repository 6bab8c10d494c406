// A corpus of faults for the emulator's checkers: small kernels that are correct but for one mistake
// each. Under every policy the fault must be named, and its correct twin must pass without a report.
#pragma once

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/gpu/gpu.h"
#include "kernels/simt/simt_device.h"

namespace orchard::testing {

// A device for one run, and memory for its kernels.
class FaultBench {
 public:
  explicit FaultBench(const SimtOptions& options)
      : device_(make_simt_device(options)), stream_(device_->make_stream()) {}

  // Never written.
  template <class T>
  T* fresh(std::int64_t count) {
    return reinterpret_cast<T*>(
        buffers_.emplace_back(*device_, static_cast<std::size_t>(count) * sizeof(T)).data());
  }
  template <class T>
  T* zeros(std::int64_t count) {
    T* const data = fresh<T>(count);
    stream_->fill_zero(bytes(data, count));
    return data;
  }
  // It is freed already.
  template <class T>
  T* freed(std::int64_t count) {
    T* const data = zeros<T>(count);
    stream_->synchronize();
    buffers_.pop_back();
    return data;
  }
  template <class T>
  static Tensor bytes(T* data, std::int64_t count) {
    return {reinterpret_cast<std::byte*>(data),
            DType::u8,
            {count * static_cast<std::int64_t>(sizeof(T))},
            DeviceKind::simt};
  }
  Stream& stream() { return *stream_; }

  template <class... Parameters, class... Arguments>
  void run(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
    simt::launch(*stream_, shape, kernel, arguments...);
    stream_->synchronize();
  }

 private:
  std::unique_ptr<SimtDevice> device_;
  std::unique_ptr<Stream> stream_;
  std::list<Buffer> buffers_;
};

// What a fault is found by.
enum class FoundBy : std::uint8_t {
  calls,           // what the kernel calls
  races,           // the race checker
  plain_accesses,  // the compiler's announcements of plain accesses, or knowing all writes by them
};

struct SeededFault {
  std::string name;
  FoundBy found_by;
  void (*run)(FaultBench&, bool fault);
  // One of them is part of the report, with anything in place of "*"; which one may depend on the order
  // of threads.
  std::vector<std::string> messages;
};

// The pieces of the message between its "*" are in the report, in this order.
inline bool names(std::string_view report, std::string_view message) {
  for (bool more = true; more;) {
    const std::size_t star = message.find('*');
    const std::string_view piece = message.substr(0, star);
    const std::size_t at = report.find(piece);
    if (at == std::string_view::npos) return false;
    report.remove_prefix(at + piece.size());
    more = star != std::string_view::npos;
    if (more) message.remove_prefix(star + 1);
  }
  return true;
}

inline std::ostream& operator<<(std::ostream& out, const SeededFault& fault) {
  return out << fault.name;
}

class FaultCorpus : public ::testing::TestWithParam<SeededFault> {
 protected:
  static std::string report(const SimtOptions& options, bool fault) {
    try {
      FaultBench bench(options);
      GetParam().run(bench, fault);
    } catch (const Error& error) {
      return error.what();
    }
    return "no report";
  }

  static void expect_found_under(const SimtOptions& options) {
    EXPECT_EQ(report(options, false), "no report");
    const std::string actual = report(options, true);
    const std::vector<std::string>& messages = GetParam().messages;
    EXPECT_TRUE(std::any_of(messages.begin(), messages.end(),
                            [&](const std::string& message) { return names(actual, message); }))
        << actual << "\nis none of\n"
        << fmt::format("{}", fmt::join(messages, "\n"));
  }
};

TEST_P(FaultCorpus, IsNamedAndItsTwinIsClean) {
#ifndef ORCHARD_SIMT_PLAIN_ACCESSES
  if (GetParam().found_by == FoundBy::plain_accesses) GTEST_SKIP() << "they are not announced";
#endif
  using simt::AsyncCompletion;
  using simt::Races;
  using simt::ThreadOrder;
  for (const ThreadOrder order : {ThreadOrder::fifo, ThreadOrder::reverse, ThreadOrder::random}) {
    for (const AsyncCompletion completion :
         {AsyncCompletion::eager, AsyncCompletion::lazy, AsyncCompletion::random}) {
      for (const Races races : {Races::find, Races::ignore}) {
        if (races == Races::ignore && GetParam().found_by == FoundBy::races) continue;
        SCOPED_TRACE(fmt::format("order {}, completion {}, races {}", static_cast<int>(order),
                                 static_cast<int>(completion),
                                 races == Races::find ? "found" : "ignored"));
        expect_found_under({.order = order,
                            .seed = 5,
                            .completion = completion,
                            .races = races,
                            .compute_capability = 90});
      }
    }
  }
}

inline std::string fault_name(const ::testing::TestParamInfo<SeededFault>& test) {
  return test.param.name;
}

}  // namespace orchard::testing
