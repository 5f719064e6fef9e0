// Instance norm, ReLU and the mean of 2x2, which lie between two convolutions; its tangent, its
// gradient and the gradient's tangent. Symbols and formulas are those of norm_relu_pool.py.
//
// A few channels of one image are handled at a time, so that a second reading finds them in the
// cache. Arithmetic is in float32.
#pragma once

#include <ATen/Parallel.h>

#include "convolution.h"

namespace {

constexpr float EPS = 1e-5f;  // of the instance norm, as in torch
constexpr int64_t WIDTH = 2 * LANES;

// WIDTH floats, of as many channels.
struct Channels {
  Vec a, b;
  explicit Channels(float value = 0.f) : a(value), b(value) {}
  Channels(const Vec& a, const Vec& b) : a(a), b(b) {}
  Channels operator+(const Channels& o) const { return {a + o.a, b + o.b}; }
  Channels operator-(const Channels& o) const { return {a - o.a, b - o.b}; }
  Channels operator*(const Channels& o) const { return {a * o.a, b * o.b}; }
  Channels& operator+=(const Channels& o) { return *this = *this + o; }
};

// x * y + z
inline Channels fma(const Channels& x, const Channels& y, const Channels& z) {
  return {at::vec::fmadd(x.a, y.a, z.a), at::vec::fmadd(x.b, y.b, z.b)};
}
// x where gate > 0, else 0
inline Channels where_positive(const Channels& gate, const Channels& x) {
  const Vec zero(0.f);
  return {x.a & (gate.a > zero), x.b & (gate.b > zero)};
}
// max(x, 0); NaN stays.
inline Channels relu(const Channels& x) {
  const Vec zero(0.f);
  return {at::vec::maximum(x.a, zero), at::vec::maximum(x.b, zero)};
}
inline Channels load(const float* p) { return {Vec::loadu(p), Vec::loadu(p + LANES)}; }
inline Channels load(const BFloat16* p) {
  const auto [a, b] = at::vec::convert_bfloat16_float(at::vec::Vectorized<BFloat16>::loadu(p));
  return {a, b};
}
inline void store(float* p, const Channels& x) {
  x.a.store(p);
  x.b.store(p + LANES);
}
inline void store(BFloat16* p, const Channels& x) {
  at::vec::convert_float_bfloat16(x.a, x.b).store(p);
}

// The parameters of a block's norm, or their tangents.
struct Norm {
  const float *scale, *shift;
};

// One image's WIDTH channels of an activation and of what is pooled from it.
struct Map {
  int64_t channels, height, width, half, breadth;
  explicit Map(const Size& h)
      : channels(h.channels),
        height(h.height),
        width(h.width),
        half(h.height / 2),
        breadth(h.width / 2) {}
  int64_t image() const { return height * width * channels; }
  int64_t pooled_image() const { return half * breadth * channels; }
  Channels per_pixel() const { return Channels(1.f / static_cast<float>(height * width)); }

  // f(pixel) for each pixel.
  template <typename F>
  void pixels(F&& f) const {
    for (int64_t p = 0; p < height * width; ++p) f(p * channels);
  }
  // begin(pooled pixel), f(pixel) for the four that it is the mean of, end(pooled pixel).
  template <typename Begin, typename F, typename End>
  void squares(Begin&& begin, F&& f, End&& end) const {
    for (int64_t i = 0; i < half; ++i)
      for (int64_t j = 0; j < breadth; ++j) {
        const int64_t first = (2 * i * width + 2 * j) * channels;
        const int64_t pooled = (i * breadth + j) * channels;
        begin(pooled);
        f(first);
        f(first + channels);
        f(first + width * channels);
        f(first + (width + 1) * channels);
        end(pooled);
      }
  }
  template <typename Begin, typename F>
  void squares(Begin&& begin, F&& f) const {
    squares(begin, f, [](int64_t) {});
  }
  // f(pixel) for the pixels of an odd border, which are pooled into none.
  template <typename F>
  void border(F&& f) const {
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = i < 2 * half ? 2 * breadth : 0; j < width; ++j)
        f((i * width + j) * channels);
  }
};

// f(image, first channel) for all images and blocks of channels.
template <typename F>
void each_block(const Size& h, F&& f) {
  const int64_t blocks = h.channels / WIDTH;
  at::parallel_for(0, h.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) f(n / blocks, n % blocks * WIDTH);
  });
}

inline Tensor statistics(const Tensor& h) {
  return at::empty({h.size(0), h.size(1)}, h.options().dtype(at::kFloat));
}
inline Tensor pooled_like(const Tensor& h) {
  return channels_last({h.size(0), h.size(1), h.size(2) / 2, h.size(3) / 2}, h.options());
}
template <typename T>
const T* read(const Tensor& x) {
  return x.const_data_ptr<T>();
}
// Sums over the batch of [batch, channels].
inline void sum_images(const Tensor& parts, float* total) {
  const float* from = read<float>(parts);
  std::fill_n(total, parts.size(1), 0.f);
  for (int64_t b = 0; b < parts.size(0); ++b)
    for (int64_t c = 0; c < parts.size(1); ++c) total[c] += *from++;
}

// What one block keeps for its vector-Jacobian product: `Block` of norm_relu_pool.py.
struct Block {
  Tensor x, h, mean, s, e, h_grad;
};
struct Tangents {
  Tensor x, h, mean, along;
};

// The next x, from h; sets mean and s.
template <typename T>
Tensor norm_relu_pool(Block& block, const Norm& norm) {
  const Tensor& h = block.h;
  const Map map{Size(h)};
  Tensor pooled = pooled_like(h);
  block.mean = statistics(h), block.s = statistics(h);
  float *const means = block.mean.mutable_data_ptr<float>(), *const ss =
                                                                 block.s.mutable_data_ptr<float>();
  each_block(Size(h), [&, out = pooled.mutable_data_ptr<T>()](int64_t b, int64_t c) {
    const T* x = read<T>(h) + b * map.image() + c;
    T* o = out + b * map.pooled_image() + c;
    const Channels per = map.per_pixel(), scale = load(norm.scale + c),
                   shift = load(norm.shift + c);
    Channels sum, squares, part;
    map.pixels([&](int64_t p) { sum += load(x + p); });
    const Channels mean = sum * per;
    map.pixels([&](int64_t p) {
      const Channels d = load(x + p) - mean;
      squares = fma(d, d, squares);
    });
    const Channels variance = fma(squares, per, Channels(EPS));
    const Channels s{Vec(1.f) / variance.a.sqrt(), Vec(1.f) / variance.b.sqrt()};
    store(means + b * map.channels + c, mean);
    store(ss + b * map.channels + c, s);
    map.squares(
        [&](int64_t) { part = Channels(); },
        [&](int64_t p) {
          const Channels a = fma((load(x + p) - mean) * s, scale, shift);
          part += relu(a);
        },
        [&](int64_t q) { store(o + q, part * Channels(0.25f)); });
  });
  return pooled;
}

// The tangent of the next x, from that of h; sets the tangent's mean and along.
template <typename T>
Tensor norm_relu_pool_tangent(
    const Block& block, Tangents& tangent, const Norm& norm, const Norm& d_norm) {
  const Tensor& h = block.h;
  const Map map{Size(h)};
  Tensor pooled = pooled_like(h);
  tangent.mean = statistics(h), tangent.along = statistics(h);
  float* const d_means = tangent.mean.mutable_data_ptr<float>();
  float* const alongs = tangent.along.mutable_data_ptr<float>();
  each_block(Size(h), [&, out = pooled.mutable_data_ptr<T>()](int64_t b, int64_t c) {
    const T *x = read<T>(h) + b * map.image() + c, *dx = read<T>(tangent.h) + b * map.image() + c;
    T* o = out + b * map.pooled_image() + c;
    const int64_t at = b * map.channels + c;
    const Channels per = map.per_pixel(), mean = load(read<float>(block.mean) + at);
    const Channels s = load(read<float>(block.s) + at), scale = load(norm.scale + c);
    const Channels shift = load(norm.shift + c), d_scale = load(d_norm.scale + c);
    const Channels d_shift = load(d_norm.shift + c);
    Channels sum, product, part;
    map.pixels([&](int64_t p) {
      const Channels d = load(dx + p);
      sum += d;
      product = fma((load(x + p) - mean) * s, d, product);
    });
    const Channels d_mean = sum * per, along = product * per;
    store(d_means + at, d_mean);
    store(alongs + at, along);
    map.squares(
        [&](int64_t) { part = Channels(); },
        [&](int64_t p) {
          const Channels z = (load(x + p) - mean) * s;
          const Channels d_z = s * (load(dx + p) - d_mean - z * along);
          const Channels d_a = fma(d_z, scale, fma(z, d_scale, d_shift));
          part += where_positive(fma(z, scale, shift), d_a);
        },
        [&](int64_t q) { store(o + q, part * Channels(0.25f)); });
  });
  return pooled;
}

// Sets h_grad, from e; the gradients at scale and shift are written to `scale_grad`, `shift_grad`.
template <typename T>
void norm_relu_pool_grad(Block& block, const Norm& norm, float* scale_grad, float* shift_grad) {
  const Tensor& h = block.h;
  const Map map{Size(h)};
  block.h_grad = channels_last(h.sizes(), h.options());
  Tensor sums = statistics(h), products = statistics(h);
  float* const sum_of = sums.mutable_data_ptr<float>();
  float* const product_of = products.mutable_data_ptr<float>();
  each_block(Size(h), [&, out = block.h_grad.mutable_data_ptr<T>()](int64_t b, int64_t c) {
    const T* x = read<T>(h) + b * map.image() + c;
    const T* g = read<T>(block.e) + b * map.pooled_image() + c;
    T* o = out + b * map.image() + c;
    const int64_t at = b * map.channels + c;
    const Channels per = map.per_pixel(), mean = load(read<float>(block.mean) + at);
    const Channels s = load(read<float>(block.s) + at), scale = load(norm.scale + c);
    const Channels shift = load(norm.shift + c);
    Channels sum, product, part;
    const auto share = [&](int64_t q) { part = load(g + q) * Channels(0.25f); };
    map.squares(share, [&](int64_t p) {
      const Channels z = (load(x + p) - mean) * s;
      const Channels e = where_positive(fma(z, scale, shift), part);
      sum += e;
      product = fma(e, z, product);
    });
    store(sum_of + at, sum);
    store(product_of + at, product);
    const Channels e_mean = sum * per, e_along = product * per, factor = s * scale;
    map.squares(share, [&](int64_t p) {
      const Channels z = (load(x + p) - mean) * s;
      const Channels e = where_positive(fma(z, scale, shift), part);
      store(o + p, factor * (e - e_mean - z * e_along));
    });
    map.border([&](int64_t p) {
      const Channels z = (load(x + p) - mean) * s;
      store(o + p, factor * (Channels() - e_mean - z * e_along));
    });
  });
  sum_images(products, scale_grad);
  sum_images(sums, shift_grad);
}

// The tangents of what norm_relu_pool_grad computes: returns that of h_grad.
template <typename T>
Tensor norm_relu_pool_grad_tangent(
    const Block& block, const Tangents& tangent, const Tensor& d_e, const Norm& norm,
    const Norm& d_norm, float* d_scale_grad, float* d_shift_grad) {
  const Tensor& h = block.h;
  const Map map{Size(h)};
  Tensor result = channels_last(h.sizes(), h.options());
  Tensor sums = statistics(h), products = statistics(h);
  float* const sum_of = sums.mutable_data_ptr<float>();
  float* const product_of = products.mutable_data_ptr<float>();
  each_block(Size(h), [&, out = result.mutable_data_ptr<T>()](int64_t b, int64_t c) {
    const int64_t image = b * map.image() + c, pooled = b * map.pooled_image() + c;
    const T *x = read<T>(h) + image, *dx = read<T>(tangent.h) + image;
    const T *g = read<T>(block.e) + pooled, *dg = read<T>(d_e) + pooled;
    T* o = out + image;
    const int64_t at = b * map.channels + c;
    const Channels per = map.per_pixel(), mean = load(read<float>(block.mean) + at);
    const Channels s = load(read<float>(block.s) + at), scale = load(norm.scale + c);
    const Channels shift = load(norm.shift + c), d_scale = load(d_norm.scale + c);
    const Channels d_mean = load(read<float>(tangent.mean) + at);
    const Channels along = load(read<float>(tangent.along) + at);
    Channels sum, product, d_sum, d_product, part, d_part;
    const auto shares = [&](int64_t q) {
      part = load(g + q) * Channels(0.25f);
      d_part = load(dg + q) * Channels(0.25f);
    };
    map.squares(shares, [&](int64_t p) {
      const Channels z = (load(x + p) - mean) * s, a = fma(z, scale, shift);
      const Channels e = where_positive(a, part), d_e = where_positive(a, d_part);
      const Channels d_z = s * (load(dx + p) - d_mean - z * along);
      sum += e;
      product = fma(e, z, product);
      d_sum += d_e;
      d_product = fma(d_e, z, fma(e, d_z, d_product));
    });
    store(sum_of + at, d_sum);
    store(product_of + at, d_product);
    const Channels e_mean = sum * per, e_along = product * per;
    const Channels d_e_mean = d_sum * per, d_e_along = d_product * per;
    const Channels factor = s * scale, d_factor = s * d_scale - s * s * along * scale;
    const auto write = [&](int64_t p, bool pooled) {
      const Channels z = (load(x + p) - mean) * s, a = fma(z, scale, shift);
      const Channels e = pooled ? where_positive(a, part) : Channels();
      const Channels d_e = pooled ? where_positive(a, d_part) : Channels();
      const Channels d_z = s * (load(dx + p) - d_mean - z * along);
      store(
          o + p, d_factor * (e - e_mean - z * e_along) +
                     factor * (d_e - d_e_mean - d_z * e_along - z * d_e_along));
    };
    map.squares(shares, [&](int64_t p) { write(p, true); });
    map.border([&](int64_t p) { write(p, false); });
  });
  sum_images(products, d_scale_grad);
  sum_images(sums, d_shift_grad);
  return result;
}

}  // namespace
