// Matrix products whose result is computed in tiles that stay in registers.
//
// Float32 with AVX2 or AVX-512, bfloat16 with AVX-512 BF16 (sums in float32). One kernel serves a
// convolution, its gradient at the images and that at the filters: they differ in strides only.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

namespace {

using at::BFloat16;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t LANES = Vec::size();
constexpr int ROWS = LANES == 16 ? 8 : 4;  // of a tile: with VECTORS, three quarters of registers
constexpr int VECTORS = 3;                 // in a row of a tile

// How many consecutive k one multiplication sums: two in bfloat16.
template <typename T>
constexpr int64_t GROUP = std::is_same_v<T, float> ? 1 : 2;

inline void multiply_add(Vec& sum, const float* a, const Vec& b) {
  sum = at::vec::fmadd(Vec(*a), b, sum);
}
inline void store(float* to, const Vec& value) { value.store(to); }

#ifdef __AVX512BF16__
inline void multiply_add(Vec& sum, const BFloat16* a, const Vec& b) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof pair);
  sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)(__m512)b);
}
inline void store(BFloat16* to, const Vec& value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
}
#endif

// Where the factors of sum over i, r and k of A(i, r, m, k) B(i, r, k, n) are: A(i, r, m, k) at
// a + i a_i + r a_r + m a_m + k a_k and B(i, r, k, n) at b + i b_i + r b_r + k b_k + n GROUP. k
// counts groups, whose members are contiguous in A and in B.
struct Strides {
  int64_t images, rows, depth;  // numbers of i, r and k
  int64_t a_i, a_r, a_m, a_k;
  int64_t b_i, b_r, b_k;
};

// A product; the result is a sum of one or more.
template <typename T>
struct Factors {
  const T *a, *b;
};

template <typename T, int M, int N, size_t TERMS, typename Out>
inline void tile(
    const Strides& s, const std::array<Factors<T>, TERMS>& terms, int64_t m0, int64_t n0,
    Out&& out) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = Vec(0.f);
  for (const Factors<T>& term : terms)
    for (int64_t i = 0; i < s.images; ++i)
      for (int64_t r = 0; r < s.rows; ++r) {
        const T* a = term.a + i * s.a_i + r * s.a_r + m0 * s.a_m;
        const T* b = term.b + i * s.b_i + r * s.b_r + n0 * GROUP<T>;
        for (int64_t k = 0; k < s.depth; ++k, a += s.a_k, b += s.b_k) {
          Vec row[N];
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) row[n] = Vec::loadu(b + n * LANES * GROUP<T>);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) multiply_add(sums[m][n], a + m * s.a_m, row[n]);
        }
      }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) out(m0 + m, n0 + n * LANES, sums[m][n]);
}

// The sum of `terms`: of `lines` blocks of M x N numbers, whose A are `line` apart; N is a multiple
// of LANES. out(number of the line, m, n, vector of n .. n + LANES).
template <typename T, size_t TERMS, typename Out>
inline void product(
    int64_t lines, int64_t line, int64_t M, int64_t N, const Strides& s,
    const std::array<Factors<T>, TERMS>& terms, Out&& out) {
  const auto columns = [&]<int V>(int64_t n) {
    std::array<Factors<T>, TERMS> at = terms;
    for (int64_t i = 0; i < lines; ++i) {
      const auto here = [&](int64_t m, int64_t n, const Vec& value) { out(i, m, n, value); };
      int64_t m = 0;
      for (; m + ROWS <= M; m += ROWS) tile<T, ROWS, V>(s, at, m, n, here);
      for (; m + ROWS / 2 <= M; m += ROWS / 2) tile<T, ROWS / 2, V>(s, at, m, n, here);
      for (; m < M; ++m) tile<T, 1, V>(s, at, m, n, here);
      for (Factors<T>& term : at) term.a += line;
    }
  };
  int64_t n = 0;
  for (; n + VECTORS * LANES <= N; n += VECTORS * LANES) columns.template operator()<VECTORS>(n);
  if (N - n == 2 * LANES) columns.template operator()<2>(n);
  if (N - n == LANES) columns.template operator()<1>(n);
}

// The same of one block: out(m, n, vector).
template <typename T, size_t TERMS, typename Out>
inline void product(
    int64_t M, int64_t N, const Strides& s, const std::array<Factors<T>, TERMS>& terms, Out&& out) {
  product<T>(1, 0, M, N, s, terms, [&](int64_t, int64_t m, int64_t n, const Vec& value) {
    out(m, n, value);
  });
}

}  // namespace
