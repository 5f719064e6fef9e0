// The gradient of the field's ConvNet and its vector-Jacobian product: convnet.py for one
// processor.
//
// Operators, in float32 or with convolutions in bfloat16 (their sums and all else in float32):
//   trajmatch::convnet_logits    vector, images -> logits
//   trajmatch::convnet_grad      vector, images, labels -> gradient, then saved tensors
//   trajmatch::convnet_grad_vjp  vector, labels, saved tensors, v -> derivatives of <gradient, v>
// and after these: depth, width, whether in bfloat16, and which convolutions are torch's own
// instead of tiles (`library`: 3 block + 0 for the convolution, + 1 for its gradient at images, + 2
// at filters). Formulas and the order of the saved tensors are those of convnet.py.
//
// trajmatch::convolution, _at_images and _at_filters are the three functions by themselves, for
// tests and benchmarks.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "convolution_of_tensors.h"
#include "norm_relu_pool.h"

namespace {

// Neither gradients nor autocast inside of an operator.
struct Plain {
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Where each parameter of a network lies in its vector: per block filters, bias, scale and shift;
// then the linear layer's weight and bias.
struct Layout {
  int64_t channels, width, depth, features, classes;

  Layout(const Tensor& vector, const Size& images, int64_t depth, int64_t width)
      : channels(images.channels),
        width(width),
        depth(depth),
        features(width * (images.height >> depth) * (images.width >> depth)),
        classes((vector.numel() - block(depth)) / (features + 1)) {
    TORCH_CHECK(
        images.batch > 0 && vector.scalar_type() == at::kFloat && width % WIDTH == 0 &&
            features > 0 && block(depth) + classes * (features + 1) == vector.numel(),
        "convnet: ", vector.numel(), " parameters in ", vector.scalar_type(), " and ", images.batch,
        " images of ", images.channels, "x", images.height, "x", images.width, " do not fit depth ",
        depth, ", width ", width);
  }
  int64_t in(int64_t n) const { return n ? width : channels; }
  int64_t block(int64_t n) const {
    return n ? width * (9 * channels + 3) + (n - 1) * width * (9 * width + 3) : 0;
  }
  int64_t bias(int64_t n) const { return block(n) + 9 * width * in(n); }
  Norm norm(const Tensor& v, int64_t n) const {
    const float* from = read<float>(v) + bias(n);
    return {from + width, from + 2 * width};
  }
  Tensor filters(const Tensor& v, int64_t n) const {
    return v.narrow(0, block(n), 9 * width * in(n)).view({width, in(n), 3, 3});
  }
  Tensor weight(const Tensor& v) const {
    return v.narrow(0, block(depth), classes * features).view({classes, features});
  }
  Tensor linear_bias(const Tensor& v) const { return v.narrow(0, v.numel() - classes, classes); }
};

template <typename T>
struct ConvNet {
  const Layout layout;
  const at::IntArrayRef library;

  int64_t width() const { return layout.width; }
  Convolution<T> conv(int64_t n) const {
    const auto own = [&](Function f) {
      return std::find(library.begin(), library.end(), 3 * n + f) != library.end();
    };
    return {layout.in(n), width(), {own(CONVOLVE), own(AT_IMAGES), own(AT_FILTERS)}};
  }
  // Writes the gradient at block n's filters, and at its bias: zero before a norm.
  template <size_t TERMS>
  void filters_grad(
      int64_t n, const std::array<TensorContribution, TERMS>& contributions,
      const Tensor& to) const {
    to.narrow(0, layout.bias(n), width()).zero_();
    conv(n).at_filters(contributions, layout.filters(to, n));
  }

  Tensor scores(const Tensor& vector, const Tensor& features) const {
    return at::linear(features, layout.weight(vector), layout.linear_bias(vector));
  }

  Tensor logits(const Tensor& vector, const Tensor& images) const {
    Block block;
    block.x = Convolution<T>::rounded(images);
    for (int64_t n = 0; n < layout.depth; ++n) {
      const Filters<T> own = conv(n).filters(layout.filters(vector, n), true, false);
      block.h = conv(n).template convolved<1>({{{block.x, own}}});
      block.x = norm_relu_pool<T>(block, layout.norm(vector, n));
    }
    return scores(vector, block.x.to(at::kFloat).flatten(1));
  }

  std::vector<Tensor> grad(const Tensor& vector, const Tensor& images, const Tensor& labels) const {
    TORCH_CHECK(
        labels.size(0) == images.size(0), "convnet: ", images.size(0), " images and ",
        labels.size(0), " labels");
    std::vector<Block> blocks(layout.depth);
    std::vector<Filters<T>> own;
    Tensor x = Convolution<T>::rounded(images);
    for (int64_t n = 0; n < layout.depth; ++n) {
      own.push_back(conv(n).filters(layout.filters(vector, n), true, n > 0));
      blocks[n].x = x;
      blocks[n].h = conv(n).template convolved<1>({{{x, own[n]}}});
      x = norm_relu_pool<T>(blocks[n], layout.norm(vector, n));
    }
    const Tensor features = x.to(at::kFloat).flatten(1), logits = scores(vector, features);
    Tensor error = at::softmax(logits, 1);
    if (labels.is_floating_point())
      error = error * labels.sum(1, true) - labels;
    else
      error.scatter_add_(
          1, labels.to(at::kLong).unsqueeze(1),
          at::full({1, 1}, -1.f, error.options()).expand({labels.size(0), 1}));
    error.div_(static_cast<double>(images.size(0)));

    Tensor gradient = at::empty_like(vector);
    Tensor weight = layout.weight(gradient), bias = layout.linear_bias(gradient);
    at::mm_out(weight, error.t(), features);
    at::sum_out(bias, error, {0});
    Tensor e = Convolution<T>::rounded(at::mm(error, layout.weight(vector)).view(x.sizes()));
    for (int64_t n = layout.depth - 1; n >= 0; --n) {
      Block& block = blocks[n];
      block.e = e;
      float* norm = gradient.mutable_data_ptr<float>() + layout.bias(n) + width();
      norm_relu_pool_grad<T>(block, layout.norm(vector, n), norm, norm + width());
      filters_grad<1>(n, {{{block.h_grad, block.x}}}, gradient);
      if (n) e = conv(n).template at_images<1>({{{block.h_grad, own[n]}}});
    }
    std::vector<Tensor> result{gradient};
    for (const Block& b : blocks)
      for (const Tensor& t : {b.x, b.h, b.mean, b.s, b.e, b.h_grad}) result.push_back(t);
    for (const Tensor& t : {features, logits, error}) result.push_back(t);
    return result;
  }

  std::array<Tensor, 3> grad_vjp(
      const Tensor& vector, const Tensor& labels, at::TensorList saved, const Tensor& v) const {
    TORCH_CHECK(
        v.sizes() == vector.sizes(), "convnet: v has ", v.numel(), " numbers and the vector ",
        vector.numel());
    const int64_t depth = layout.depth;
    std::vector<Block> blocks;
    for (int64_t n = 0; n < depth; ++n) {
      const auto of = saved.slice(6 * n, 6);
      blocks.push_back({of[0], of[1], of[2], of[3], of[4], of[5]});
    }
    const auto of = saved.slice(6 * depth, 3);
    const Tensor &features = of[0], &logits = of[1], &error = of[2];
    std::vector<Tangents> tangents(depth);
    std::vector<Filters<T>> own, d_own;
    Tensor d_x;
    for (int64_t n = 0; n < depth; ++n) {
      own.push_back(conv(n).filters(layout.filters(vector, n), n > 0, true));
      d_own.push_back(conv(n).filters(layout.filters(v, n), true, true));
      Tangents& tangent = tangents[n];
      tangent.x = d_x;
      tangent.h = n ? conv(n).template convolved<2>({{{blocks[n].x, d_own[n]}, {d_x, own[n]}}})
                    : conv(n).template convolved<1>({{{blocks[n].x, d_own[n]}}});
      d_x =
          norm_relu_pool_tangent<T>(blocks[n], tangent, layout.norm(vector, n), layout.norm(v, n));
    }
    const Tensor d_features = d_x.to(at::kFloat).flatten(1);
    const Tensor d_logits = at::linear(d_features, layout.weight(vector)) + scores(v, features);
    const Tensor probabilities = at::softmax(logits, 1);
    const Tensor centered = (d_logits - (probabilities * d_logits).sum(1, true))
                                .div_(static_cast<double>(features.size(0)));
    Tensor d_error = probabilities * centered, d_labels;
    if (labels.is_floating_point()) {
      d_error.mul_(labels.sum(1, true));
      d_labels = -centered;
    }
    Tensor product = at::empty_like(vector);
    Tensor weight = layout.weight(product), bias = layout.linear_bias(product);
    at::mm_out(weight, d_error.t(), features);
    weight.addmm_(error.t(), d_features);
    at::sum_out(bias, d_error, {0});
    Tensor d_e = Convolution<T>::rounded(
        at::mm(d_error, layout.weight(vector)).addmm_(error, layout.weight(v)).view(d_x.sizes()));
    for (int64_t n = depth - 1; n >= 0; --n) {
      const Block& block = blocks[n];
      float* norm = product.mutable_data_ptr<float>() + layout.bias(n) + width();
      const Tensor d_h_grad = norm_relu_pool_grad_tangent<T>(
          block, tangents[n], d_e, layout.norm(vector, n), layout.norm(v, n), norm, norm + width());
      if (n)
        filters_grad<2>(n, {{{d_h_grad, block.x}, {block.h_grad, tangents[n].x}}}, product);
      else
        filters_grad<1>(n, {{{d_h_grad, block.x}}}, product);
      d_e = conv(n).template at_images<2>({{{d_h_grad, own[n]}, {block.h_grad, d_own[n]}}});
    }
    return {product, d_e.to(at::kFloat).contiguous(), d_labels};
  }
};

// f(ConvNet<type of convolutions>).
template <typename F>
auto with_type(bool bf16, const Layout& layout, at::IntArrayRef library, F&& f) {
  if (!bf16) return f(ConvNet<float>{layout, library});
#ifdef __AVX512BF16__
  return f(ConvNet<BFloat16>{layout, library});
#endif
  TORCH_CHECK(false, "convnet: this processor has no products in bfloat16");
}

Tensor convnet_logits(
    const Tensor& vector, const Tensor& images, int64_t depth, int64_t width, bool bf16,
    at::IntArrayRef library) {
  const Plain plain;
  return with_type(bf16, Layout(vector, Size(images), depth, width), library, [&](const auto& net) {
    return net.logits(vector.contiguous(), images);
  });
}

std::vector<Tensor> convnet_grad(
    const Tensor& vector, const Tensor& images, const Tensor& labels, int64_t depth, int64_t width,
    bool bf16, at::IntArrayRef library) {
  const Plain plain;
  return with_type(bf16, Layout(vector, Size(images), depth, width), library, [&](const auto& net) {
    return net.grad(vector.contiguous(), images, labels);
  });
}

std::tuple<Tensor, Tensor, Tensor> convnet_grad_vjp(
    const Tensor& vector, const Tensor& labels, at::TensorList saved, const Tensor& v,
    int64_t depth, int64_t width, bool bf16, at::IntArrayRef library) {
  const Plain plain;
  const Layout layout(vector, Size(saved[0]), depth, width);
  return with_type(bf16, layout, library, [&](const auto& net) {
    const auto [product, images, soft_labels] =
        net.grad_vjp(vector.contiguous(), labels, saved, v.contiguous());
    return std::make_tuple(product, images, soft_labels);
  });
}

// f(Convolution<type of x>).
template <typename F>
Tensor with_convolution(const Tensor& x, int64_t in, int64_t out, bool library, F&& f) {
  const Plain plain;
  TORCH_CHECK(out % WIDTH == 0, "convolution: ", out, " channels are not a multiple of ", WIDTH);
  const std::array<bool, 3> all{library, library, library};
  if (x.scalar_type() == at::kFloat) return f(Convolution<float>{in, out, all});
#ifdef __AVX512BF16__
  if (x.scalar_type() == at::kBFloat16) return f(Convolution<BFloat16>{in, out, all});
#endif
  TORCH_CHECK(false, "convolution: no products in ", x.scalar_type());
}

Tensor convolution(const Tensor& images, const Tensor& filters, bool library) {
  return with_convolution(images, filters.size(1), filters.size(0), library, [&](const auto& net) {
    const auto packed = net.filters(filters.contiguous(), true, false);
    return net.template convolved<1>({{{net.rounded(images), packed}}});
  });
}

Tensor convolution_at_images(const Tensor& gradients, const Tensor& filters, bool library) {
  return with_convolution(
      gradients, filters.size(1), filters.size(0), library, [&](const auto& net) {
        const auto packed = net.filters(filters.contiguous(), false, true);
        return net.template at_images<1>({{{net.rounded(gradients), packed}}});
      });
}

Tensor convolution_at_filters(const Tensor& gradients, const Tensor& images, bool library) {
  const int64_t in = images.size(1), out = gradients.size(1);
  return with_convolution(gradients, in, out, library, [&](const auto& net) {
    const Tensor result = at::empty({out, in, 3, 3}, images.options().dtype(at::kFloat));
    net.template at_filters<1>({{{net.rounded(gradients), net.rounded(images)}}}, result);
    return result;
  });
}

}  // namespace

TORCH_LIBRARY(trajmatch, library) {
  library.def(
      "convnet_logits(Tensor vector, Tensor images, int depth, int width, bool bf16, int[] library)"
      " -> Tensor",
      convnet_logits);
  library.def(
      "convnet_grad(Tensor vector, Tensor images, Tensor labels, int depth, int width, bool bf16, "
      "int[] library) -> Tensor[]",
      convnet_grad);
  library.def(
      "convnet_grad_vjp(Tensor vector, Tensor labels, Tensor[] saved, Tensor v, int depth, int "
      "width, bool bf16, int[] library) -> (Tensor, Tensor, Tensor)",
      convnet_grad_vjp);
  library.def("convolution(Tensor images, Tensor filters, bool library) -> Tensor", convolution);
  library.def(
      "convolution_at_images(Tensor gradients, Tensor filters, bool library) -> Tensor",
      convolution_at_images);
  library.def(
      "convolution_at_filters(Tensor gradients, Tensor images, bool library) -> Tensor",
      convolution_at_filters);
}
