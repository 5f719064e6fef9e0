// The 3x3 convolution with padding 1 and its two gradients, on images in channels-last layout.
//
// Each is a sum of one or two products of the tiles in tiles.h, image by image, so that what is
// read stays in the cache of one core. Of a 3x3 neighborhood, the three pixels of a row are
// contiguous in a padded image: a convolution is a product over 3 rows of 3 * channels numbers. The
// gradients of a first layer of few channels are products with neighborhoods laid out as rows
// (im2col).
#pragma once

#include "packing.h"

namespace {

// Images, and filters packed for them.
template <typename T>
struct Input {
  const T* images;
  const T* filters;
};

// The sum of the convolutions of images of the size `size`, into `out` [batch, out, height, width].
template <typename T, size_t TERMS>
void convolve(const std::array<Input<T>, TERMS>& inputs, const Size& size, const Tensor& out) {
  const int64_t N = out.size(1), line = size.width + 2, row = line * size.channels;
  const int64_t depth = rounded_up(3 * size.channels, GROUP<T>) / GROUP<T>;
  const Strides strides{
      .images = 1,
      .rows = 3,
      .depth = depth,
      .a_i = 0,
      .a_r = row,
      .a_m = size.channels,
      .a_k = GROUP<T>,
      .b_i = 0,
      .b_r = depth * N * GROUP<T>,
      .b_k = N * GROUP<T>};
  T* const result = out.mutable_data_ptr<T>();
  at::parallel_for(0, size.batch, 1, [&](int64_t begin, int64_t end) {
    const int64_t numbers = padded_numbers(size, line);
    T* padded = scratch<T, 2>(TERMS * numbers);
    for (int64_t b = begin; b < end; ++b) {
      std::array<Factors<T>, TERMS> terms;
      for (size_t t = 0; t < TERMS; ++t) {
        pad(inputs[t].images + b * size.image(), size, line, padded + t * numbers);
        terms[t] = {padded + t * numbers, inputs[t].filters};
      }
      T* to = result + b * size.pixels() * N;
      product<T>(
          size.height, row, size.width, N, strides, terms,
          [&](int64_t i, int64_t m, int64_t n, const Vec& value) {
            store(to + (i * size.width + m) * N + n, value);
          });
    }
  });
}

// The gradient at images of few channels, `out` [batch, in, height, width] in float32 and
// contiguous. Inputs: gradients at the results, of the size `size`, and `filters_for_columns`.
template <typename T, size_t TERMS>
void gradient_at_few_channels(
    const std::array<Input<T>, TERMS>& inputs, const Size& size, const Tensor& out) {
  const int64_t in = out.size(1), columns = rounded_up(9 * in, LANES);
  const Strides strides{
      .images = 1,
      .rows = 1,
      .depth = size.channels / GROUP<T>,
      .a_i = 0,
      .a_r = 0,
      .a_m = size.channels,
      .a_k = GROUP<T>,
      .b_i = 0,
      .b_r = 0,
      .b_k = columns * GROUP<T>};
  float* const result = out.mutable_data_ptr<float>();
  at::parallel_for(0, size.batch, 1, [&](int64_t begin, int64_t end) {
    float* shares = scratch<float, 3>(size.pixels() * columns);
    for (int64_t b = begin; b < end; ++b) {
      std::array<Factors<T>, TERMS> terms;
      for (size_t t = 0; t < TERMS; ++t)
        terms[t] = {inputs[t].images + b * size.image(), inputs[t].filters};
      product<T>(size.pixels(), columns, strides, terms, [&](int64_t m, int64_t n, const Vec& v) {
        v.store(shares + m * columns + n);
      });
      // Pixel (y, x) of the result gets the share of tap (i, j) from (y + 1 - i, x + 1 - j).
      float* image = result + b * in * size.pixels();
      std::fill_n(image, in * size.pixels(), 0.f);
      for (int64_t y = 0; y < size.height; ++y)
        for (int64_t i = std::max<int64_t>(0, y + 2 - size.height); i < std::min<int64_t>(3, y + 2);
             ++i)
          for (int64_t j = 0; j < 3; ++j)
            for (int64_t c = 0; c < in; ++c) {
              const float* from =
                  shares + (y + 1 - i) * size.width * columns + (3 * i + j) * in + c;
              float* to = image + (c * size.height + y) * size.width;
              const int64_t first = std::max<int64_t>(0, j - 1);
              const int64_t last = std::min(size.width, size.width + j - 1);
              for (int64_t x = first; x < last; ++x) to[x] += from[(x + 1 - j) * columns];
            }
    }
  });
}

// Gradients at the results of a convolution, and the images that it was of.
template <typename T>
struct Contribution {
  const T* gradients;
  const T* images;
};

// The sum of [numbers] floats over the images of a batch: add(first, last, sums) adds those of some
// images, one call for each thread, to zeros where they are `cleared`.
template <typename Add>
const float* sum_over_batch(int64_t batch, int64_t numbers, bool cleared, Add&& add) {
  const int64_t chunks = std::min<int64_t>(batch, at::get_num_threads());
  float* sums = scratch<float, 4>(chunks * numbers);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (cleared) std::fill_n(sums + t * numbers, numbers, 0.f);
      add(t * batch / chunks, (t + 1) * batch / chunks, sums + t * numbers);
    }
  });
  at::parallel_for(0, chunks > 1 ? numbers : 0, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t t = 1; t < chunks; ++t)
      for (int64_t n = begin; n < end; ++n) sums[n] += sums[t * numbers + n];
  });
  return sums;
}

// Bytes of laid out images that are multiplied at a time: half of a core's cache.
constexpr int64_t CACHE = 1 << 19;

// The gradient at filters [out, in, 3, 3], of images of the size `size`, in a multiple of LANES
// channels: for each tap a product over all pixels. In bfloat16 pixels are read in pairs, so images
// are laid out twice: from their first pixel on and from their second.
template <typename T, size_t TERMS>
void gradient_at_filters(
    const std::array<Contribution<T>, TERMS>& contributions, const Size& size, int64_t out,
    float* result) {
  const int64_t in = size.channels, half = rounded_up(size.width, GROUP<T>);
  const int64_t line = rounded_up(size.width + 2, GROUP<T>);
  const int64_t gradient = size.height * half * out,
                image = rounded_up((size.height + 2) * line * in + 2, LINE);
  const int64_t bytes = (gradient + GROUP<T> * image) * static_cast<int64_t>(sizeof(T));
  const int64_t group = std::clamp<int64_t>(CACHE / bytes, 1, size.batch);
  const float* total = sum_over_batch(
      size.batch, 9 * tap_stride(out, in), false, [&](int64_t first, int64_t last, float* sums) {
        T* const gradients = GROUP<T> == 1 ? nullptr : scratch<T, 5>(group * gradient);
        bool adding = false;
        T* const images = scratch<T, 6>(GROUP<T> * group * image);
        T* const padded = scratch<T, 7>(padded_numbers(size, line) + in);
        for (const Contribution<T>& contribution : contributions)
          for (int64_t begin = first; begin < last; begin += group) {
            const int64_t count = std::min(group, last - begin);
            const T* g = contribution.gradients + begin * size.pixels() * out;
            for (int64_t b = 0; b < count; ++b) {
              T* const to = GROUP<T> == 1 ? images + b * image : padded;
              pad(contribution.images + (begin + b) * size.image(), size, line, to);
              if constexpr (GROUP<T> == 2) {
                for (int64_t shift = 0; shift < 2; ++shift)
                  to_groups(
                      to + shift * in, (size.height + 2) * line, in,
                      images + (shift * group + b) * image);
                for (int64_t i = 0; i < size.height; ++i)
                  to_groups(
                      g + (b * size.height + i) * size.width * out, size.width, out,
                      gradients + b * gradient + i * half * out);
              }
            }
            if constexpr (GROUP<T> == 2) g = gradients;
            const Strides strides{
                .images = count,
                .rows = size.height,
                .depth = half / GROUP<T>,
                .a_i = gradient,
                .a_r = half * out,
                .a_m = GROUP<T>,
                .a_k = out * GROUP<T>,
                .b_i = image,
                .b_r = line * in,
                .b_k = in * GROUP<T>};
            for (int64_t tap = 0; tap < 9; ++tap) {
              const int64_t pixel = tap / 3 * line + tap % 3, shift = pixel % GROUP<T>;
              const T* x = images + shift * group * image + (pixel - shift) * in;
              float* to = sums + tap * tap_stride(out, in);
              product<T>(
                  out, in, strides, std::array<Factors<T>, 1>{{{g, x}}},
                  [&](int64_t m, int64_t n, const Vec& value) {
                    float* at = to + m * in + n;
                    (adding ? value + Vec::loadu(at) : value).store(at);
                  });
            }
            adding = true;
          }
      });
  join_nine(total, tap_stride(out, in), out * in, result);
}

// The same for images of few channels.
template <typename T, size_t TERMS>
void gradient_at_few_filters(
    const std::array<Contribution<T>, TERMS>& contributions, const Size& size, int64_t out,
    float* result) {
  const int64_t in = size.channels, taps = rounded_up(9 * in, ROWS / 2), line = size.width + 2;
  const int64_t length = rounded_up(size.pixels(), GROUP<T>);
  const float* total =
      sum_over_batch(size.batch, taps * out, true, [&](int64_t first, int64_t last, float* sums) {
        T* const padded = scratch<T, 7>(padded_numbers(size, line));
        T* const columns = scratch<T, 6>(length * taps);
        T* const gradients = scratch<T, 5>(length * out);
        std::fill_n(columns, length * taps, T(0.f));
        for (const Contribution<T>& contribution : contributions)
          for (int64_t b = first; b < last; ++b) {
            pad(contribution.images + b * size.image(), size, line, padded);
            for (int64_t p = 0; p < size.pixels(); ++p) {
              const T* at = padded + (p / size.width * line + p % size.width) * in;
              T* to = columns + p / GROUP<T> * GROUP<T> * taps + p % GROUP<T>;
              for (int64_t i = 0; i < 3; ++i, at += line * in, to += 3 * in * GROUP<T>)
                for (int64_t k = 0; k < 3 * in; ++k) to[k * GROUP<T>] = at[k];
            }
            const T* g = contribution.gradients + b * size.pixels() * out;
            if constexpr (GROUP<T> == 2) {
              to_groups(g, size.pixels(), out, gradients);
              g = gradients;
            }
            const Strides strides{
                .images = 1,
                .rows = 1,
                .depth = length / GROUP<T>,
                .a_i = 0,
                .a_r = 0,
                .a_m = GROUP<T>,
                .a_k = taps * GROUP<T>,
                .b_i = 0,
                .b_r = 0,
                .b_k = out * GROUP<T>};
            product<T>(
                taps, out, strides, std::array<Factors<T>, 1>{{{columns, g}}},
                [&](int64_t m, int64_t n, const Vec& value) {
                  (value + Vec::loadu(sums + m * out + n)).store(sums + m * out + n);
                });
          }
      });
  for (int64_t o = 0; o < out; ++o)
    for (int64_t c = 0; c < in; ++c)
      for (int64_t tap = 0; tap < 9; ++tap)
        result[9 * (o * in + c) + tap] = total[(tap * in + c) * out + o];
}

}  // namespace
