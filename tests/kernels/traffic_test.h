// Operations on an emulated GPU whose memory traffic is counted.
#pragma once

#include <list>

#include "kernels/simt/simt_device.h"
#include "tests/kernels/kernel_counters.h"
#include "tests/kernels/op_test.h"
#include "tests/kernels/simt_policy.h"

namespace orchard::testing {

class Traffic : public ::testing::Test {
 protected:
  // A tensor of zeros.
  Tensor tensor(DType dtype, Shape shape) {
    const auto bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
    const Tensor made = buffers_.emplace_back(*device_, bytes).tensor(dtype, shape);
    stream_->fill_zero(made);
    return made;
  }
  Tensor bf16s(Shape shape) { return tensor(DType::bf16, shape); }
  Tensor floats(Shape shape) { return tensor(DType::f32, shape); }

  Tensor words(const std::vector<int>& values) {
    const Shape shape = {static_cast<std::int64_t>(values.size())};
    const Tensor made = tensor(DType::i32, shape);
    stream_->copy(made, integers_.emplace_back(integers(shape, values)));
    return made;
  }

  // `op` reads and writes these numbers of bytes, and at most this share more: partial sums,
  // statistics and what each block reads again because it is small. The caches serve most of that.
  template <class Operation>
  simt::Counters expect_bytes(const std::string& name, const Shape& shape, const Operation& op,
                              std::size_t loaded, std::size_t stored, double excess = 0.05) {
    const simt::Counters counters = count_and_report(name, shape, op, loaded + stored);
    const std::uint64_t compulsory = loaded + stored;
    const std::uint64_t moved = 32 * (counters.loads.sectors + counters.stores.sectors);
    EXPECT_GE(moved, compulsory) << name;
    EXPECT_LE(static_cast<double>(moved), (1 + excess) * static_cast<double>(compulsory))
        << name << ": loads " << 32 * counters.loads.sectors << " of " << loaded << ", stores "
        << 32 * counters.stores.sectors << " of " << stored;
    return counters;
  }

  // As above, and of all accesses none touches a sector that a packed one would not.
  template <class Operation>
  void expect_packed_bytes(const std::string& name, const Shape& shape, const Operation& op,
                           std::size_t loaded, std::size_t stored) {
    const simt::Counters counters = expect_bytes(name, shape, op, loaded, stored);
    EXPECT_LE(counters.loads.sectors, counters.loads.ideal_sectors) << name;
    EXPECT_LE(counters.stores.sectors, counters.stores.ideal_sectors) << name;
  }

  // DRAM sees these numbers of bytes, and at most this share more. Requests touch few more sectors than
  // packed ones would: `loose` more.
  template <class Operation>
  simt::Counters expect_dram(const std::string& name, const Shape& shape, const Operation& op,
                             std::size_t loaded, std::size_t stored, double excess = 0.05,
                             double loose = 0.05) {
    const simt::Counters counters = count_and_report(name, shape, op, loaded + stored);
    const auto compulsory = static_cast<double>(loaded + stored);
    EXPECT_GE(counters.dram.bytes(), loaded + stored) << name;
    EXPECT_LE(static_cast<double>(counters.dram.bytes()), (1 + excess) * compulsory)
        << name << ": reads " << counters.dram.read_bytes << " of " << loaded << ", writes "
        << counters.dram.written_bytes << " of " << stored;
    const auto expect_packed = [&](const simt::AccessCounters& direction, const char* what) {
      EXPECT_LE(static_cast<double>(direction.sectors),
                (1 + loose) * static_cast<double>(direction.ideal_sectors))
          << name << ' ' << what;
    };
    expect_packed(counters.loads, "loads");
    expect_packed(counters.stores, "stores");
    return counters;
  }

 private:
  template <class Operation>
  simt::Counters count_and_report(const std::string& name, const Shape& shape, const Operation& op,
                                  std::size_t compulsory_bytes) {
    stream_->synchronize();
    device_->reset_counters();
    run(*stream_, op);
    stream_->synchronize();
    const simt::Counters counters = device_->counters();
    report_counters(name, fmt::format("{}", shape), counters, {.bytes = compulsory_bytes});
    return counters;
  }

  std::list<Guarded> integers_;  // copied when the stream gets there
  std::unique_ptr<SimtDevice> device_ = make_policy_device({.counting = simt::Counting::on});
  std::list<Buffer> buffers_;
  std::unique_ptr<Stream> stream_ = device_->make_stream();
};

}  // namespace orchard::testing
