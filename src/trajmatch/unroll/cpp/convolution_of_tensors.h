// The three functions of convolution.h on tensors, or torch's own in their place.
#pragma once

#include <ATen/ATen.h>

#include "convolution.h"

namespace {

// Filters as the functions read them.
template <typename T>
struct Filters {
  Packed<T> forward, backward;
  Tensor library;
};

template <typename T>
struct Term {
  Tensor images;  // or gradients, for the gradient at images
  const Filters<T>& filters;
};

struct TensorContribution {
  Tensor gradients, images;
};

enum Function { CONVOLVE, AT_IMAGES, AT_FILTERS };

inline Tensor plus(const Tensor& sum, const Tensor& share) {
  return sum.defined() ? sum.add_(share) : share;
}

// The convolution of one block, from `in` to `out` channels. Images and their gradients are of type
// T and channels last; filters and their gradients are contiguous float32.
template <typename T>
struct Convolution {
  int64_t in, out;
  std::array<bool, 3> library;  // by Function: whether torch's own computes it

  bool few() const { return in % LANES != 0; }
  static Tensor rounded(const Tensor& x) {
    return x.to(c10::CppTypeToScalarType<T>::value).contiguous(at::MemoryFormat::ChannelsLast);
  }

  Filters<T> filters(const Tensor& filters, bool forward, bool backward) const {
    Filters<T> result;
    const bool theirs_forward = forward && library[CONVOLVE];
    const bool theirs_backward = backward && library[AT_IMAGES];
    if (theirs_forward || theirs_backward) result.library = rounded(filters);
    if (forward == theirs_forward && backward == theirs_backward) return result;
    const float* taps = by_tap(filters.const_data_ptr<float>(), out, in);
    if (forward && !library[CONVOLVE]) result.forward = filters_for_images<T>(taps, out, in);
    if (backward && !library[AT_IMAGES])
      result.backward =
          few() ? filters_for_columns<T>(taps, out, in) : filters_for_gradient<T>(taps, out, in);
    return result;
  }

  // The sum of the terms' convolutions.
  template <size_t TERMS>
  Tensor convolved(const std::array<Term<T>, TERMS>& terms) const {
    if (library[CONVOLVE]) {
      Tensor sum;
      for (const Term<T>& term : terms)
        sum = plus(sum, at::conv2d(term.images, term.filters.library, {}, 1, 1));
      return sum.contiguous(at::MemoryFormat::ChannelsLast);  // of one channel it is not
    }
    const Size size(terms[0].images);
    std::array<Input<T>, TERMS> inputs;
    for (size_t t = 0; t < TERMS; ++t)
      inputs[t] = {terms[t].images.template const_data_ptr<T>(), terms[t].filters.forward.get()};
    Tensor h = channels_last({size.batch, out, size.height, size.width}, terms[0].images.options());
    convolve(inputs, size, h);
    return h;
  }

  // The gradient at the images: the sum of that by the terms; at few channels in float32 and
  // contiguous where it is not torch's own.
  template <size_t TERMS>
  Tensor at_images(const std::array<Term<T>, TERMS>& terms) const {
    const Tensor& first = terms[0].images;
    const Size size(first);
    const std::array<int64_t, 4> sizes{size.batch, in, size.height, size.width};
    if (library[AT_IMAGES]) {
      Tensor sum;
      const Tensor like = channels_last(sizes, first.options());
      for (const Term<T>& term : terms)
        sum = plus(sum, backward(term.images, like, term.filters.library, AT_IMAGES));
      return sum.contiguous(at::MemoryFormat::ChannelsLast);
    }
    std::array<Input<T>, TERMS> inputs;
    for (size_t t = 0; t < TERMS; ++t)
      inputs[t] = {terms[t].images.template const_data_ptr<T>(), terms[t].filters.backward.get()};
    if (few()) {
      Tensor result = at::empty(sizes, first.options().dtype(at::kFloat));
      gradient_at_few_channels(inputs, size, result);
      return result;
    }
    Tensor result = channels_last(sizes, first.options());
    convolve(inputs, size, result);
    return result;
  }

  // Writes the gradient at the filters, the sum over `contributions`.
  template <size_t TERMS>
  void at_filters(
      const std::array<TensorContribution, TERMS>& contributions, const Tensor& result) const {
    if (library[AT_FILTERS]) {
      const Tensor like = channels_last(result.sizes(), contributions[0].images.options());
      Tensor sum;
      for (const TensorContribution& contribution : contributions) {
        const Tensor share =
            backward(contribution.gradients, contribution.images, like, AT_FILTERS);
        if (sum.defined())
          sum.add_(share);
        else
          sum = result.copy_(share);
      }
      return;
    }
    std::array<Contribution<T>, TERMS> pointers;
    for (size_t t = 0; t < TERMS; ++t)
      pointers[t] = {
          contributions[t].gradients.template const_data_ptr<T>(),
          contributions[t].images.template const_data_ptr<T>()};
    const Size size(contributions[0].images);
    float* to = result.mutable_data_ptr<float>();
    if (few())
      gradient_at_few_filters(pointers, size, out, to);
    else
      gradient_at_filters(pointers, size, out, to);
  }

 private:
  static Tensor backward(
      const Tensor& gradient, const Tensor& x, const Tensor& filters, Function function) {
    const auto both = at::convolution_backward(
        gradient, x, filters, c10::nullopt, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1,
        {function == AT_IMAGES, function == AT_FILTERS, false});
    return function == AT_IMAGES ? std::get<0>(both) : std::get<1>(both);
  }
};

}  // namespace
