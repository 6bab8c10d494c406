// Depthwise convolution and adaptive pooling, by loops over their definitions: the reference in double,
// the plain evaluation in float (same_precision.h).
#pragma once

#include <cmath>
#include <vector>

#include "kernels/convolution/convolution.h"
#include "tests/kernels/same_precision.h"

namespace orchard::testing {

struct ConvCase {
  DType dtype;
  std::int64_t images, height, width, channels;
  int shift = 0;  // elements by which pixels miss their alignment

  Shape shape() const { return {images, height, width, channels}; }
  Shape weight_shape() const { return {channels, 3, 3}; }
};

// Calls body(output element, input element, weight element) for all pairs inside the picture.
template <class Body>
void for_each_tap(const ConvCase& p, const Body& body) {
  for (std::int64_t o = 0; o < p.shape().numel(); ++o) {
    const std::int64_t c = o % p.channels, j = o / p.channels % p.width;
    const std::int64_t i = o / p.channels / p.width % p.height;
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t s = 0; s < 3; ++s) {
        if (i + r < 1 || i + r > p.height || j + s < 1 || j + s > p.width) continue;
        body(o, o + ((r - 1) * p.width + s - 1) * p.channels, c * 9 + r * 3 + s);
      }
    }
  }
}

template <class Real>
std::vector<Real> convolved(const ConvCase& p, const Guarded& x, const Guarded& weight) {
  std::vector<Real> y(static_cast<std::size_t>(x.size()));
  for_each_tap(p, [&](std::int64_t out, std::int64_t in, std::int64_t w) {
    y[static_cast<std::size_t>(out)] +=
        static_cast<Real>(weight.at(w)) * static_cast<Real>(x.at(in));
  });
  return y;
}

template <class Real>
std::vector<Real> convolution_d_x(const ConvCase& p, const Guarded& d_y, const Guarded& weight) {
  std::vector<Real> d_x(static_cast<std::size_t>(d_y.size()));
  for_each_tap(p, [&](std::int64_t out, std::int64_t in, std::int64_t w) {
    d_x[static_cast<std::size_t>(in)] +=
        static_cast<Real>(weight.at(w)) * static_cast<Real>(d_y.at(out));
  });
  return d_x;
}

// Added to what was there `before`.
template <class Real>
std::vector<Real> convolution_d_weight(const ConvCase& p, const Guarded& x, const Guarded& d_y,
                                       const Guarded& before) {
  std::vector<Real> d_weight = values_as<Real>(before);
  for_each_tap(p, [&](std::int64_t out, std::int64_t in, std::int64_t w) {
    d_weight[static_cast<std::size_t>(w)] +=
        static_cast<Real>(x.at(in)) * static_cast<Real>(d_y.at(out));
  });
  return d_weight;
}

struct PoolCase {
  DType dtype;
  std::int64_t images, height, width, out_height, out_width, channels;
  int shift = 0;

  Shape in_shape() const { return {images, height, width, channels}; }
  Shape out_shape() const { return {images, out_height, out_width, channels}; }
};

// Calls body(output element, input element, pixels of the output's bin), by the definition in floating
// point: exact, since the quotients of numbers this small round to whole ones only when they are whole.
template <class Body>
void for_each_pair(const PoolCase& p, const Body& body) {
  const auto first = [](std::int64_t i, std::int64_t n, std::int64_t m) {
    return static_cast<std::int64_t>(
        std::floor(static_cast<double>(i * n) / static_cast<double>(m)));
  };
  const auto last = [](std::int64_t i, std::int64_t n, std::int64_t m) {
    return static_cast<std::int64_t>(
        std::ceil(static_cast<double>((i + 1) * n) / static_cast<double>(m)));
  };
  for (std::int64_t o = 0; o < p.out_shape().numel(); ++o) {
    const std::int64_t c = o % p.channels, j = o / p.channels % p.out_width;
    const std::int64_t i = o / p.channels / p.out_width % p.out_height;
    const std::int64_t image = o / p.channels / p.out_width / p.out_height;
    const std::int64_t top = first(i, p.height, p.out_height);
    const std::int64_t bottom = last(i, p.height, p.out_height);
    const std::int64_t left = first(j, p.width, p.out_width);
    const std::int64_t right = last(j, p.width, p.out_width);
    for (std::int64_t r = top; r < bottom; ++r) {
      for (std::int64_t s = left; s < right; ++s) {
        body(o, ((image * p.height + r) * p.width + s) * p.channels + c,
             static_cast<double>((bottom - top) * (right - left)));
      }
    }
  }
}

template <class Real>
std::vector<Real> pooled(const PoolCase& p, const Guarded& x) {
  std::vector<Real> y(static_cast<std::size_t>(p.out_shape().numel())), areas = y;
  for_each_pair(p, [&](std::int64_t out, std::int64_t in, double area) {
    y[static_cast<std::size_t>(out)] += static_cast<Real>(x.at(in));
    areas[static_cast<std::size_t>(out)] = static_cast<Real>(area);
  });
  for (std::size_t i = 0; i < y.size(); ++i) y[i] /= areas[i];
  return y;
}

// `d_extra`, if given, is added to the result.
template <class Real>
std::vector<Real> pool_d_x(const PoolCase& p, const Guarded& d_y, const Guarded* d_extra) {
  std::vector<Real> d_x(static_cast<std::size_t>(p.in_shape().numel()));
  for_each_pair(p, [&](std::int64_t out, std::int64_t in, double area) {
    d_x[static_cast<std::size_t>(in)] += static_cast<Real>(d_y.at(out)) / static_cast<Real>(area);
  });
  for (std::size_t i = 0; d_extra && i < d_x.size(); ++i)
    d_x[i] += static_cast<Real>(d_extra->at(static_cast<std::int64_t>(i)));
  return d_x;
}

}  // namespace orchard::testing
