// The 3x3 convolution with padding 1 and its two gradients, on images in channels-last layout.
//
// Each is a sum of one or two products of the tiles in tiles.h, image by image, so that what is
// read stays in the cache of one core. Of a 3x3 neighborhood, the three pixels of a row are
// contiguous in a padded image: a convolution is a product over 3 rows of 3 * channels numbers. The
// gradients of a first layer of few channels are products with neighborhoods laid out as rows
// (im2col).
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "tiles.h"

namespace {

using at::Tensor;

struct Size {
  int64_t batch, channels, height, width;
  explicit Size(const Tensor& x)
      : batch(x.size(0)), channels(x.size(1)), height(x.size(2)), width(x.size(3)) {}
  int64_t pixels() const { return height * width; }
  int64_t image() const { return pixels() * channels; }
};

Tensor channels_last(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options.memory_format(at::MemoryFormat::ChannelsLast));
}
constexpr int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Uninitialized memory that begins with a line of the cache: vectors that lie across two lines take
// twice as long to load.
constexpr int64_t LINE = 64;
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Packed = std::unique_ptr<T[], Free>;
template <typename T>
Packed<T> aligned(int64_t numbers) {
  const auto bytes = static_cast<size_t>(rounded_up(numbers * sizeof(T), LINE));
  Packed<T> memory(static_cast<T*>(std::aligned_alloc(LINE, bytes)));
  TORCH_CHECK(memory || !bytes, "not enough memory: ", bytes, " bytes");
  return memory;
}
// Of a thread, kept from one call to the next.
template <typename T, int NUMBER>
T* scratch(int64_t numbers) {
  thread_local Packed<T> memory;
  thread_local int64_t size = 0;
  if (numbers > size) {
    memory = aligned<T>(numbers);
    size = numbers;
  }
  return memory.get();
}

// -- groups --------------------------------------------------------------------------------------

// Rows k of `columns` numbers each -> groups of consecutive k, the members of a group side by side:
// [rows / GROUP][columns][GROUP].
inline void to_groups(const float* rows, int64_t count, int64_t columns, float* groups) {
  std::memcpy(groups, rows, count * columns * sizeof(float));
}
#ifdef __AVX512BF16__
inline __m512i pairs(__m256i first, __m256i second) {
  return _mm512_or_si512(
      _mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}
// An odd last row is paired with zeros.
inline void to_groups(const float* rows, int64_t count, int64_t columns, BFloat16* groups) {
  for (int64_t k = 0; k < count; k += 2, rows += 2 * columns, groups += 2 * columns)
    for (int64_t n = 0; n < columns; n += LANES) {
      const auto half = [&](const float* p) {
        return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(p + n));
      };
      _mm512_storeu_si512(
          groups + 2 * n,
          pairs(half(rows), k + 1 < count ? half(rows + columns) : _mm256_setzero_si256()));
    }
}
inline void to_groups(const BFloat16* rows, int64_t count, int64_t columns, BFloat16* groups) {
  for (int64_t k = 0; k < count; k += 2, rows += 2 * columns, groups += 2 * columns)
    for (int64_t n = 0; n < columns; n += LANES) {
      const auto half = [&](const BFloat16* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + n));
      };
      _mm512_storeu_si512(
          groups + 2 * n,
          pairs(half(rows), k + 1 < count ? half(rows + columns) : _mm256_setzero_si256()));
    }
}
#endif

// -- filters as the second factor of a product ---------------------------------------------------

// Distance of the taps in [9][out * in] numbers: at a power of two, all nine would compete for the
// same lines of the cache.
constexpr int64_t tap_stride(int64_t out, int64_t in) { return out * in + LANES; }

// [count][9] <-> [9][count] numbers, whose nine rows are `stride` apart: split_nine and join_nine.
// count is a multiple of LANES.
#ifdef CPU_CAPABILITY_AVX512
// Number p of 16 * 9 is element p / 9 of row p % 9.
struct NineRows {
  alignas(64) int32_t to_rows[9][16], from_rows[9][16];
  __mmask16 in_vector[9][9];  // [row][vector]: which lanes of the row lie in that vector
  __mmask16 in_row[9][9];     // [vector][row]: which lanes of the vector lie in that row
};
constexpr NineRows nine_rows() {
  NineRows t{};
  for (int p = 0; p < 144; ++p) {
    const int row = p % 9, lane = p / 9, vector = p / 16, place = p % 16;
    t.to_rows[row][lane] = place;
    t.from_rows[vector][place] = lane;
    t.in_vector[row][vector] |= static_cast<__mmask16>(1 << lane);
    t.in_row[vector][row] |= static_cast<__mmask16>(1 << place);
  }
  return t;
}
constexpr NineRows NINE = nine_rows();

template <typename Load, typename Store>
inline void regroup_nine(
    const int32_t (&places)[9][16], const __mmask16 (&from)[9][9], Load&& load, Store&& store) {
  __m512 in[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; ++k) in[k] = load(k);
#pragma GCC unroll 9
  for (int n = 0; n < 9; ++n) {
    const __m512i place = _mm512_load_si512(places[n]);
    __m512 out = _mm512_setzero_ps();
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) out = _mm512_mask_permutexvar_ps(out, from[n][k], place, in[k]);
    store(n, out);
  }
}
inline void split_some(const float* from, int64_t count, float* rows, int64_t stride) {
  for (int64_t i = 0; i < count; i += 16)
    regroup_nine(
        NINE.to_rows, NINE.in_vector, [&](int k) { return _mm512_loadu_ps(from + 9 * i + 16 * k); },
        [&](int n, __m512 row) { _mm512_storeu_ps(rows + n * stride + i, row); });
}
inline void join_some(const float* rows, int64_t stride, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 16)
    regroup_nine(
        NINE.from_rows, NINE.in_row, [&](int k) { return _mm512_loadu_ps(rows + k * stride + i); },
        [&](int n, __m512 vector) { _mm512_storeu_ps(to + 9 * i + 16 * n, vector); });
}
#else
inline void split_some(const float* from, int64_t count, float* rows, int64_t stride) {
  at::vec::transpose_mxn<float>(from, 9, rows, stride, count, 9);
}
inline void join_some(const float* rows, int64_t stride, int64_t count, float* to) {
  at::vec::transpose_mxn<float>(rows, stride, to, 9, 9, count);
}
#endif
constexpr int64_t GRAIN = 256;  // blocks of LANES
inline void split_nine(const float* from, int64_t count, float* rows, int64_t stride) {
  at::parallel_for(0, count / LANES, GRAIN, [&](int64_t begin, int64_t end) {
    split_some(from + 9 * LANES * begin, (end - begin) * LANES, rows + LANES * begin, stride);
  });
}
inline void join_nine(const float* rows, int64_t stride, int64_t count, float* to) {
  at::parallel_for(0, count / LANES, GRAIN, [&](int64_t begin, int64_t end) {
    join_some(rows + LANES * begin, stride, (end - begin) * LANES, to + 9 * LANES * begin);
  });
}

// [9][out * in] of filters [out, in, 3, 3], in scratch memory.
inline const float* by_tap(const float* filters, int64_t out, int64_t in) {
  float* taps = scratch<float, 0>(9 * tap_stride(out, in));
  split_nine(filters, out * in, taps, tap_stride(out, in));
  return taps;
}

// [3][groups of 3 * in][out] of filters given by tap, for a convolution.
template <typename T>
Packed<T> filters_for_images(const float* taps, int64_t out, int64_t in) {
  const int64_t row = rounded_up(3 * in, GROUP<T>) * out;
  Packed<T> packed = aligned<T>(3 * row);
  at::parallel_for(0, 3, in < LANES ? 3 : 1, [&](int64_t begin, int64_t end) {
    float* rows = scratch<float, 1>(3 * in * out);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < 3; ++j)
        at::vec::transpose_mxn<float>(
            taps + (3 * i + j) * tap_stride(out, in), in, rows + j * in * out, out, out, in);
      to_groups(rows, 3 * in, out, packed.get() + i * row);
    }
  });
  return packed;
}

// The same of the filters turned by 180 degrees, from `out` to `in` channels, for the gradient at
// the images.
template <typename T>
Packed<T> filters_for_gradient(const float* taps, int64_t out, int64_t in) {
  Packed<T> packed = aligned<T>(9 * out * in);
  at::parallel_for(0, 9, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tap = begin; tap < end; ++tap)
      to_groups(taps + (8 - tap) * tap_stride(out, in), out, in, packed.get() + tap * out * in);
  });
  return packed;
}

// [groups of out][9 * in, rounded up to whole vectors]: for the gradient at few channels.
template <typename T>
Packed<T> filters_for_columns(const float* taps, int64_t out, int64_t in) {
  const int64_t columns = rounded_up(9 * in, LANES);
  std::vector<float> rows(out * columns, 0.f);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t c = 0; c < in; ++c)
      for (int64_t tap = 0; tap < 9; ++tap)
        rows[o * columns + tap * in + c] = taps[tap * tap_stride(out, in) + o * in + c];
  Packed<T> packed = aligned<T>(out * columns);
  to_groups(rows.data(), out, columns, packed.get());
  return packed;
}

// -- images as a factor --------------------------------------------------------------------------

// An image with a border of zeros: [height + 2][line][channels], line >= width + 2. `padded` has
// room for `padded_numbers`.
inline int64_t padded_numbers(const Size& size, int64_t line) {
  return rounded_up((size.height + 2) * line * size.channels + 2, LINE);
}
template <typename T>
void pad(const T* image, const Size& size, int64_t line, T* padded) {
  const int64_t row = size.width * size.channels, whole = line * size.channels;
  std::fill_n(padded, whole, T(0.f));
  T* to = padded + whole;
  for (int64_t i = 0; i < size.height; ++i, to += whole, image += row) {
    std::fill_n(to, size.channels, T(0.f));
    std::memcpy(to + size.channels, image, row * sizeof(T));
    std::fill_n(to + size.channels + row, whole - size.channels - row, T(0.f));
  }
  std::fill_n(to, whole + 2, T(0.f));
}

// -- the three functions -------------------------------------------------------------------------

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
struct Pass {
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
    const std::array<Pass<T>, TERMS>& passes, const Size& size, int64_t out, float* result) {
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
        for (const Pass<T>& pass : passes)
          for (int64_t begin = first; begin < last; begin += group) {
            const int64_t count = std::min(group, last - begin);
            const T* g = pass.gradients + begin * size.pixels() * out;
            for (int64_t b = 0; b < count; ++b) {
              T* const to = GROUP<T> == 1 ? images + b * image : padded;
              pad(pass.images + (begin + b) * size.image(), size, line, to);
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
    const std::array<Pass<T>, TERMS>& passes, const Size& size, int64_t out, float* result) {
  const int64_t in = size.channels, taps = rounded_up(9 * in, ROWS / 2), line = size.width + 2;
  const int64_t length = rounded_up(size.pixels(), GROUP<T>);
  const float* total =
      sum_over_batch(size.batch, taps * out, true, [&](int64_t first, int64_t last, float* sums) {
        T* const padded = scratch<T, 7>(padded_numbers(size, line));
        T* const columns = scratch<T, 6>(length * taps);
        T* const gradients = scratch<T, 5>(length * out);
        std::fill_n(columns, length * taps, T(0.f));
        for (const Pass<T>& pass : passes)
          for (int64_t b = first; b < last; ++b) {
            pad(pass.images + b * size.image(), size, line, padded);
            for (int64_t p = 0; p < size.pixels(); ++p) {
              const T* at = padded + (p / size.width * line + p % size.width) * in;
              T* to = columns + p / GROUP<T> * GROUP<T> * taps + p % GROUP<T>;
              for (int64_t i = 0; i < 3; ++i, at += line * in, to += 3 * in * GROUP<T>)
                for (int64_t k = 0; k < 3 * in; ++k) to[k * GROUP<T>] = at[k];
            }
            const T* g = pass.gradients + b * size.pixels() * out;
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
