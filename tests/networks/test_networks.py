"""Every network through one list: its size, its derivatives to second order, what it refuses."""

import json

import pytest
import torch
import torch.nn.functional as F

from trajmatch.errors import SettingError
from trajmatch.networks import (
    NETWORKS,
    FunctionalNetwork,
    NetworkSpec,
    build_network,
    parameter_vector,
    require_stateless,
)
from trajmatch.networks.norm import GroupNorm, InstanceNorm, LayerNorm, build_norm

PARAMETERS = {
    "convnet": 320_010,
    "mlp": 411_146,
    "lenet": 62_006,
    "alexnet": 1_872_202,
    "vgg11": 9_231_114,
    "resnet18": 11_173_962,
    "vit": 809_098,
}
SMALL = {
    "convnet": {"width": 8},
    "mlp": {"width": 8},
    "lenet": {},
    "alexnet": {"norm": "instance"},
    "vgg11": {"width": 4},
    "resnet18": {"width": 4},
    "vit": {"width": 8, "depth": 2, "heads": 2},
}
# Networks of installed plug-ins are in the registry, too, and pass the same list with defaults.
every_network = pytest.mark.parametrize("name", sorted(NETWORKS))
OURS = [name for name in NETWORKS if NETWORKS[name].__module__.startswith("trajmatch.")]
our_networks = pytest.mark.parametrize("name", sorted(OURS))


def options_of(name):
    return SMALL.get(name, {})


def small(name, size=8, channels=3, seed=0, **options):
    return build_network(
        name, channels=channels, classes=5, size=size, seed=seed, **{**options_of(name), **options}
    )


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_lists_of_this_file_are_complete():
    assert set(PARAMETERS) == set(SMALL) == set(LAYERS) == set(OURS)


@our_networks
def test_parameter_count_is_the_fields(name):
    assert NetworkSpec(name, 3, 10, 32).parameters() == PARAMETERS[name]


@every_network
def test_functional_call_equals_module_call(name):
    module = small(name)
    images = draw(3, 3, 8, 8)
    function = FunctionalNetwork(module)
    expected = module(images)
    assert expected.shape == (3, 5)
    torch.testing.assert_close(function(parameter_vector(module), images), expected)
    other = parameter_vector(small(name, seed=1))
    torch.testing.assert_close(function(other, images), small(name, seed=1)(images))


@every_network
def test_second_derivative_agrees_with_finite_differences(name):
    """u' H d over parameters and pixels together, H the Hessian of the loss, in float64."""
    module = small(name).double()
    function = FunctionalNetwork(module)
    point = (parameter_vector(module), draw(2, 3, 8, 8, dtype=torch.float64))
    labels = torch.tensor([1, 4])
    u = [draw(*p.shape, seed=1, dtype=torch.float64) for p in point]
    d = [draw(*p.shape, seed=2, dtype=torch.float64) / p.numel() ** 0.5 for p in point]

    def slope(vector, images, graph=False):
        loss = F.cross_entropy(function(vector, images), labels)
        gradient = torch.autograd.grad(loss, (vector, images), create_graph=graph)
        return sum((g * w).sum() for g, w in zip(gradient, u, strict=True))

    def moved(step):
        return [(p + step * q).requires_grad_() for p, q in zip(point, d, strict=True)]

    here = moved(0.0)
    product = torch.autograd.grad(slope(*here, graph=True), here)
    exact = sum((p * q).sum() for p, q in zip(product, d, strict=True))
    step = 1e-6
    numeric = (slope(*moved(step)) - slope(*moved(-step))) / (2 * step)
    assert abs(exact) > 1e-6
    torch.testing.assert_close(exact, numeric, rtol=1e-4, atol=0.0)


@every_network
def test_embed_is_what_the_classifier_sees(name):
    module = small(name)
    images = draw(2, 3, 8, 8)
    features = module.embed(images)
    assert features.shape == (2, module.classifier.in_features)
    torch.testing.assert_close(module.classifier(features), module(images))


LAYERS = {
    "convnet": [(8, 8, 8), (8, 4, 4), (32,)],
    "mlp": [(8,), (8,)],
    "lenet": [(6, 8, 8), (16, 4, 4), (120,), (84,)],
    "alexnet": [
        (128, 8, 8), (192, 4, 4), (256, 2, 2), (192, 2, 2), (192, 2, 2), (192,)
    ],
    "vgg11": [
        (4, 8, 8), (8, 4, 4), *[(16, 2, 2)] * 2, *[(32, 2, 2)] * 4, (32,)
    ],
    "resnet18": [*[(4, 8, 8)] * 3, *[(8, 4, 4)] * 2, *[(16, 2, 2)] * 2, *[(32, 2, 2)] * 2, (32,)],
    "vit": [(16, 8), (16, 8), (8,)],
}  # fmt: skip


@our_networks
def test_layers_are_the_blocks_before_pooling_and_the_embedding(name):
    module = small(name)
    images = draw(2, 3, 8, 8)
    found = module.layers(images)
    assert [tuple(layer.shape[1:]) for layer in found] == LAYERS[name]
    torch.testing.assert_close(found[-1], module.embed(images), rtol=0, atol=0)
    with pytest.raises(SettingError, match="1x8x8"):
        module.layers(draw(1, 1, 8, 8))


def test_layers_of_a_convnet_by_hand():
    module = small("convnet", norm="none")
    first, second = (part for part in module.features if isinstance(part, torch.nn.Conv2d))
    images = draw(2, 3, 8, 8)
    one = F.relu(first(images))
    two = F.relu(second(F.avg_pool2d(one, 2)))
    for found, wanted in zip(
        module.layers(images), [one, two, F.avg_pool2d(two, 2).flatten(1)], strict=True
    ):
        torch.testing.assert_close(found, wanted)
    # Where nothing is pooled the last block is the embedding, and there once.
    bare = small("convnet", pooling="none", depth=2)
    assert [tuple(layer.shape) for layer in bare.layers(images)] == [(2, 8, 8, 8), (2, 512)]


@every_network
def test_stateless_and_no_image_sees_another(name):
    module = small(name).train()
    require_stateless(module)
    images = draw(4, 3, 8, 8)
    together = module(images)
    torch.testing.assert_close(module(images), together, rtol=0, atol=0)
    torch.testing.assert_close(module(images[:1]), together[:1])


@pytest.mark.parametrize(
    ("channels", "size"), [(1, 8), (3, 8), (1, 28), (3, 28), (3, 5), (1, 4), (3, (9, 13)), (1, 17)]
)
@every_network
def test_any_size_reaches_the_logits(name, channels, size):
    """A norm over single pixels would erase the image: the logits must differ between images."""
    module = small(name, size=size, channels=channels)
    height, width = size if isinstance(size, tuple) else (size, size)
    images = draw(2, channels, height, width).requires_grad_()
    logits = module(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    logits[0, 0].backward()
    assert images.grad[0].abs().max() > 1e-5
    assert images.grad[1].abs().max() == 0


@every_network
def test_a_seed_is_a_network_and_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    first, again, other = small(name), small(name), small(name, seed=1)
    spec = NetworkSpec(name, 3, 5, 8, options_of(name))
    spec.describe()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(parameter_vector(first), parameter_vector(again))
    assert torch.equal(parameter_vector(first), parameter_vector(spec.build(0)))
    assert not torch.equal(parameter_vector(first), parameter_vector(other))


def test_without_a_seed_the_global_generator_draws():
    torch.manual_seed(7)
    first, second = small("convnet", seed=None), small("convnet", seed=None)
    torch.manual_seed(7)
    again = small("convnet", seed=None)
    assert torch.equal(parameter_vector(first), parameter_vector(again))
    assert not torch.equal(parameter_vector(first), parameter_vector(second))


def test_a_seeded_network_lands_on_the_default_device():
    with torch.device("meta"):
        module = small("convnet")
    assert {p.device.type for p in module.parameters()} == {"meta"}


@every_network
def test_images_of_another_shape_are_refused(name):
    with pytest.raises(SettingError, match=r"images are 3x9x9 .* built for 3x8x8; build"):
        small(name)(draw(1, 3, 9, 9))
    with pytest.raises(SettingError, match="1x8x8"):
        small(name).embed(draw(1, 1, 8, 8))


# --- ConvNet ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "depth"),
    [(4, 2), (8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5), ((64, 32), 3), (3, 1), (2, 1)],
)
def test_default_depth_follows_the_shorter_side(size, depth):
    assert NetworkSpec("convnet", 3, 10, size).options["depth"] == depth


def test_convnet_parameters_come_in_the_released_order():
    module = build_network("convnet", channels=3, classes=10, size=32, width=16)
    shapes = [tuple(p.shape) for p in module.parameters()]
    block = [(16,), (16,), (16,)]
    assert shapes == [
        (16, 3, 3, 3), *block, (16, 16, 3, 3), *block, (16, 16, 3, 3), *block, (10, 256), (10,)
    ]  # fmt: skip


def test_pooling_floors():
    module = small("convnet", size=(28, 31), depth=3)
    assert module.embed(draw(1, 3, 28, 31)).shape == (1, 8 * 3 * 3)


def test_depth_that_pools_the_image_away_is_refused():
    with pytest.raises(SettingError, match=r"depth 6 pools 40x50 .* largest depth that fits is 5"):
        small("convnet", size=(40, 50), depth=6)
    assert small("convnet", size=(40, 50), depth=5).options["depth"] == 5
    assert small("convnet", depth=6, pooling="none")(draw(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("activation", ["relu", "leakyrelu", "sigmoid"])
def test_convnet_is_what_its_options_say(activation, pooling):
    module = small("convnet", depth=1, activation=activation, pooling=pooling, norm="none")
    images = draw(2, 3, 8, 8)
    convolution = module.features[0]
    maps = F.conv2d(images, convolution.weight, convolution.bias, padding=1)
    maps = {"relu": F.relu, "leakyrelu": F.leaky_relu, "sigmoid": torch.sigmoid}[activation](maps)
    if pooling != "none":
        blocks = maps.unflatten(3, (4, 2)).unflatten(2, (4, 2))
        maps = blocks.mean((3, 5)) if pooling == "avg" else blocks.amax((3, 5))
    torch.testing.assert_close(module.embed(images), maps.flatten(1))


# --- norms -----------------------------------------------------------------------------------


def by_hand(inputs, groups, weight, bias):
    """Group norm in words: per image and group, (x - mean) / sqrt(var + 1e-5)."""
    parts = inputs.reshape(len(inputs), groups, -1)
    centered = parts - parts.mean(2, keepdim=True)
    normal = centered / (centered.square().mean(2, keepdim=True) + 1e-5).sqrt()
    return normal.reshape(inputs.shape) * weight + bias


@pytest.mark.parametrize(
    ("norm", "groups"), [(InstanceNorm(6), 6), (GroupNorm(2, 6), 2), (LayerNorm(6, 3, 4), 1)]
)
def test_norms_equal_their_formula_to_the_second_derivative(norm, groups):
    norm = norm.double()
    inputs = 3 * draw(2, 6, 3, 4, dtype=torch.float64) + 5
    shape = norm.weight.shape
    with torch.no_grad():
        norm.weight.copy_(draw(*shape, seed=1, dtype=torch.float64))
        norm.bias.copy_(draw(*shape, seed=2, dtype=torch.float64))
    u, v = (draw(*inputs.shape, seed=s, dtype=torch.float64) for s in (3, 4))

    def derivatives(function):
        leaves = [t.detach().clone().requires_grad_() for t in (inputs, norm.weight, norm.bias)]
        output = function(*leaves)
        first = torch.autograd.grad((output * u).sum(), leaves, create_graph=True)
        total = (first[0] * v).sum() + first[1].square().sum()
        return output, *first, *torch.autograd.grad(total, leaves[:2])

    def ours(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    def twin(x, weight, bias):
        if groups > 1:
            weight, bias = weight.view(-1, 1, 1), bias.view(-1, 1, 1)
        return by_hand(x, groups, weight, bias)

    for got, expected in zip(derivatives(ours), derivatives(twin), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", [InstanceNorm(4), GroupNorm(2, 4), LayerNorm(4, 16, 16)])
def test_half_precision_goes_through_float32_statistics(norm):
    """A mean of 100 beside a deviation of 1 would be lost in bf16's 8 bits."""
    inputs = (draw(2, 4, 16, 16) + 100).bfloat16()
    output = norm(inputs)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, norm(inputs.float()).bfloat16(), rtol=0, atol=0)


def test_autocast_stays_near_float32_and_parameters_keep_their_precision():
    module, images = small("convnet", size=16), draw(4, 3, 16, 16)
    expected = module(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = module(images)
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_group_norm_refuses_a_width_it_cannot_split():
    with pytest.raises(SettingError, match=r"10 channels into 4 equal groups; use a width"):
        small("convnet", width=10, norm="group")
    small("convnet", width=12, norm="group")


def test_none_is_no_norm_and_layer_norm_is_per_pixel():
    assert not list(build_norm("none", 8, (4, 4)).parameters())
    assert build_norm("layer", 8, (4, 5)).weight.shape == (8, 4, 5)


@pytest.mark.parametrize("name", ["convnet", "alexnet", "vgg11", "resnet18"])
def test_batch_norm_works_in_evaluation_and_is_refused_as_student(name):
    module = small(name, norm="batch")
    images = draw(4, 3, 8, 8)
    module(images)
    module.eval()
    torch.testing.assert_close(module(images[:1]), module(images)[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(SettingError, match="running statistics"):
        FunctionalNetwork(module)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
@pytest.mark.parametrize("name", ["convnet", "alexnet", "vgg11", "resnet18"])
def test_every_other_norm_can_be_a_student(name, norm):
    module = small(name, norm=norm)
    function = FunctionalNetwork(module)
    vector = parameter_vector(module).requires_grad_()
    (gradient,) = torch.autograd.grad(function(vector, draw(2, 3, 8, 8)).square().sum(), vector)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


# --- names, options, specs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("convnet", {}, "ConvNet-D3 width 128 instance"),
        ("convnet", {"width": 64, "norm": "none"}, "ConvNet-D3 width 64 without norm"),
        (
            "convnet",
            {"depth": 2, "activation": "sigmoid", "pooling": "max"},
            "ConvNet-D2 width 128 instance sigmoid max pooling",
        ),
        ("mlp", {}, "MLP width 128"),
        ("lenet", {}, "LeNet"),
        ("alexnet", {}, "AlexNet without norm"),
        ("vgg11", {}, "VGG11 instance"),
        ("resnet18", {}, "ResNet18 instance"),
        ("resnet18", {"width": 16, "norm": "batch"}, "ResNet18 width 16 batch"),
        ("vit", {}, "ViT depth 4 width 128 patch 4"),
    ],
)
def test_describe(name, options, words):
    spec = NetworkSpec(name, 3, 10, 32, options)
    assert spec.describe() == words
    assert spec.describe() == spec.build(0).describe()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convent", {}, r"unknown network 'convent'; did you mean 'convnet'\? \(known: alexnet,"),
        ("convnet", {"dept": 3}, r"convnet has no option 'dept'; did you mean 'depth'\?"),
        ("lenet", {"norm": "none"}, r"lenet has no option 'norm'; it has no options"),
        ("convnet", {"norm": "instanse"}, r"unknown norm 'instanse'; did you mean 'instance'\?"),
        ("resnet18", {"norm": "bach"}, r"unknown norm 'bach'; did you mean 'batch'\?"),
        ("convnet", {"activation": "rely"}, r"unknown activation 'rely'; did you mean 'relu'\?"),
        ("convnet", {"pooling": "average"}, r"unknown pooling 'average'; "),
        ("convnet", {"width": 0}, r"width is 0; it must be at least 1 and at most 65536"),
        ("vit", {"width": 10, "heads": 4}, r"width 10 does not split into 4 heads"),
        ("vit", {"patch": 9}, r"a patch of 9 pixels is larger than images of 8x8; use at most 8"),
    ],
)
def test_mistakes_are_named_with_the_mend(name, options, message):
    for attempt in (
        lambda: build_network(name, channels=3, classes=5, size=8, **options),
        lambda: NetworkSpec(name, 3, 5, 8, options),
    ):
        with pytest.raises(SettingError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lenet", "alexnet", "vgg11", "resnet18"])
def test_images_too_small_are_refused(name):
    with pytest.raises(SettingError, match="at least 4x4 pixels, not 3x20"):
        small(name, size=(3, 20))


def test_sizes_that_are_none_are_refused():
    with pytest.raises(SettingError, match="size is 0"):
        NetworkSpec("mlp", 3, 5, 0)
    with pytest.raises(SettingError, match="classes is 0"):
        NetworkSpec("mlp", 3, 0, 8)


@every_network
def test_a_spec_survives_json(name):
    for size in (32, (24, 40)):
        spec = NetworkSpec(name, 1, 7, size, options_of(name))
        again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec
        assert again.build(3).image_shape == (1, *((32, 32) if size == 32 else size))


def test_equal_networks_have_equal_specs():
    plain = NetworkSpec("convnet", 3, 10, 32)
    spelled = NetworkSpec("convnet", 3, 10, (32, 32), {"depth": 3, "norm": "instance"})
    assert plain == spelled == NetworkSpec("convnet", 3, 10, 32, {"depth": None})
    assert plain != NetworkSpec("convnet", 3, 10, 32, {"width": 64})
    assert plain.to_json()["options"] == {
        "depth": 3, "width": 128, "norm": "instance", "activation": "relu", "pooling": "avg"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "not by channels, classes, extra, name"),
        ({"options": 3}, "options of a network are a table, not 3"),
        ({"size": [0, 8]}, "size is 0"),
    ],
)
def test_a_foreign_description_is_refused(change, message):
    values = NetworkSpec("mlp", 3, 10, 32).to_json() | change
    with pytest.raises(SettingError, match=message):
        NetworkSpec.from_json(values)
