// Filters and images laid out as the factors of the products in tiles.h.
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
  const int64_t row = size.width * size.channels, padded_row = line * size.channels;
  std::fill_n(padded, padded_row, T(0.f));
  T* to = padded + padded_row;
  for (int64_t i = 0; i < size.height; ++i, to += padded_row, image += row) {
    std::fill_n(to, size.channels, T(0.f));
    std::memcpy(to + size.channels, image, row * sizeof(T));
    std::fill_n(to + size.channels + row, padded_row - size.channels - row, T(0.f));
  }
  std::fill_n(to, padded_row + 2, T(0.f));
}

}  // namespace
