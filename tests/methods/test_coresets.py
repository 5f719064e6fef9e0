"""Chosen sets: the greedy order by hand and against brute force; what select_coreset refuses."""

from __future__ import annotations

import itertools

import pytest
import torch

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.whiten import fit_whitening, to_float
from trajmatch.errors import SettingError
from trajmatch.methods.coresets import (
    BASELINES,
    CORESETS,
    Coreset,
    Herding,
    KCenter,
    KMeans,
    Random,
    Share,
    class_members,
    embeddings,
    select_coreset,
)
from trajmatch.networks import NetworkSpec, parameter_vector

LABELS = torch.tensor([1, 0, 1, 0, 2, 2, 1, 0, 2, 0, 1, 2, 1])


def any_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(n, d=3, seed=0):
    return torch.randn(n, d, generator=any_generator(seed))


@pytest.fixture
def dataset():
    generator = any_generator(1)
    images = torch.randint(0, 256, (13, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageDataset.from_arrays(images, LABELS, images[:3], LABELS[:3], classes=("a", "b", "c"))


@pytest.fixture
def whitening(dataset):
    return fit_whitening("normalize", dataset.train)


def statistics_for(method):
    """Of the kind that `method` requires, for the images of `dataset`."""
    counts = torch.tensor([0, 2, torch.inf, 2, 1, 0, 0, 0, torch.inf, 5, 1, 1, 0])
    kinds = {"nothing": None, "features": features(13), "forgetting": counts}
    return kinds[CORESETS[method].requires]


# The choices themselves.


def test_herding_by_hand():
    """Mean 3.2. Pick nearest to 3.2: 3. Then 6.4 - 3 = 3.4: 2. Then 9.6 - 5 = 4.6: 1.
    Then 12.8 - 6 = 6.8: 10 (off by 3.2, and 0 by 6.8)."""
    points = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    order = Herding().choose(points, torch.zeros(5, dtype=torch.int64), 5, any_generator())
    assert order.tolist() == [3, 2, 1, 4, 0]


def test_herding_goes_class_by_class():
    """Classes interleaved: class 0 holds 0, 4, 5 (mean 3, so 4 first), class 1 holds 7, 9, 8."""
    points = torch.tensor([[7.0], [0.0], [9.0], [4.0], [8.0], [5.0]])
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    assert Herding().choose(points, labels, 1, any_generator()).tolist() == [3, 4]


def test_herding_ties_go_to_the_lowest_index():
    points = torch.tensor([[1.0, 0.1], [-1.0, -0.1]]).repeat(30, 1) / 3
    order = Herding().choose(points, torch.zeros(60, dtype=torch.int64), 6, any_generator())
    assert order.tolist() == [0, 1, 2, 3, 4, 5]


def brute_force_herding(points, labels, ipc):
    """The slow clear twin: try every image and measure the distance of the means."""
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = [i for i in range(len(labels)) if labels[i] == label]
        mean, picks = points[members].double().mean(0), []
        for _ in range(ipc):
            rest = [i for i in members if i not in picks]
            gaps = [(points[[*picks, i]].double().mean(0) - mean).norm().item() for i in rest]
            picks.append(rest[gaps.index(min(gaps))])
        chosen += picks
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_herding_is_its_brute_force_twin(seed):
    labels = torch.randint(0, 3, (40,), generator=any_generator(seed))
    points = features(40, 4, seed) + 300  # far from the origin, where rounding would show
    order = Herding().choose(points, labels, 6, any_generator())
    assert order.tolist() == brute_force_herding(points, labels, 6)


@pytest.mark.parametrize("choose", [Herding().choose, KCenter().choose])
@pytest.mark.parametrize("seed", range(8))
def test_equal_images_are_taken_in_order_whatever_the_rounding(seed, choose):
    """The rows of a product are summed in an order of their own at the matrix's edge: seen at 7."""
    points = features(7, 33, seed)
    points[[1, 3, 6]] = points[5].clone()
    order = choose(points, torch.zeros(7, dtype=torch.int64), 7, any_generator()).tolist()
    assert [i for i in order if i in (1, 3, 5, 6)] == [1, 3, 5, 6]


def test_herding_mean_is_nearer_than_a_random_ones():
    labels, points = torch.zeros(200, dtype=torch.int64), features(200, 8)

    def gap(order):
        return float((points[order].mean(0) - points.mean(0)).norm())

    chosen = gap(Herding().choose(points, labels, 10, any_generator()))
    at_random = [gap(Random().choose(None, labels, 10, any_generator(i))) for i in range(20)]
    assert chosen < 0.3 * min(at_random)


ONE_CLASS = torch.zeros(40, dtype=torch.int64)


def test_k_center_by_hand():
    """Mean 4. Nearest to it: 3. Farthest from 3: 10. Then 0 (3 from a pick), then 8 (2 from one).
    Then 2 and 1, each 1 from a pick: in order."""
    points = torch.tensor([[0.0], [2.0], [1.0], [3.0], [10.0], [8.0]])
    order = KCenter().choose(points, ONE_CLASS[:6], 6, any_generator())
    assert order.tolist() == [3, 4, 0, 5, 1, 2]


def test_k_center_goes_class_by_class():
    """Class 0 holds 0, 4, 5 (mean 3: 4, then 0); class 1 holds 7, 9, 8 (8, then 7 before 9)."""
    points = torch.tensor([[7.0], [0.0], [9.0], [4.0], [8.0], [5.0]])
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    assert KCenter().choose(points, labels, 2, any_generator()).tolist() == [3, 1, 4, 0]


def test_k_center_ties_go_to_the_lowest_index_and_nothing_is_taken_twice():
    """Both points lie equally near the mean; then the other; then every image lies on a pick."""
    points = torch.tensor([[1.0, 0.1], [-1.0, -0.1]]).repeat(30, 1)
    order = KCenter().choose(points, torch.zeros(60, dtype=torch.int64), 6, any_generator())
    assert order.tolist() == [0, 1, 2, 3, 4, 5]


def radius(points, picks):
    """How far the image farthest from the picks is from the nearest of them."""
    return torch.cdist(points, points[list(picks)]).min(1).values.max().item()


def two_radii(seed, choose):
    """Of four picks among ten points in four blobs, and the least any four have, by trying all."""
    blobs = 6 * features(4, 2, seed + 50)[torch.arange(10) % 4]
    points = features(10, 2, seed) + blobs
    best = min(radius(points.double(), four) for four in itertools.combinations(range(10), 4))
    picks = choose(points, ONE_CLASS[:10], 4, any_generator(seed))
    return radius(points.double(), picks.tolist()), best


@pytest.mark.parametrize("seed", range(12))
def test_k_center_is_within_twice_the_best_radius(seed):
    found, best = two_radii(seed, KCenter().choose)
    assert found <= 2 * best


def test_twice_the_best_radius_is_no_gift():
    broken = [
        found > 2 * best for found, best in (two_radii(s, Random().choose) for s in range(12))
    ]
    assert sum(broken) >= 6


def separated(seed):
    """Three clusters of 20, 12 and 8 in one class, shuffled; (points, cluster of each)."""
    where = torch.tensor([0] * 20 + [1] * 12 + [2] * 8)
    where = where[torch.randperm(40, generator=any_generator(seed))]
    far = torch.tensor([[0.0, 0.0, 0.0], [90.0, 0.0, 0.0], [0.0, 90.0, 0.0]]) + 300
    return features(40, 3, seed) + far[where], where


@pytest.mark.parametrize("seed", range(6))
def test_k_means_takes_the_image_nearest_each_clusters_mean_the_largest_first(seed):
    points, where = separated(seed)
    expected = []
    for cluster in range(3):
        members = (where == cluster).nonzero().flatten()
        center = points[members].double().mean(0)
        expected.append(int(members[(points[members].double() - center).norm(dim=1).argmin()]))
    order = KMeans().choose(points, ONE_CLASS, 3, any_generator(seed))
    assert order.tolist() == expected


def test_k_means_by_hand():
    """Clusters 0, 1, 2, 7 (center 2.5: 2) and 20, 30 (center 25: a tie, the first). The classes,
    one the other's mirror, lie between each other."""
    line = [[0.0], [20.0], [1.0], [30.0], [2.0], [7.0]]
    points = torch.tensor([[-x[0]] if c else x for x in line for c in (0, 1)])
    labels = torch.tensor([0, 1] * 6)
    order = KMeans().choose(points, labels, 2, any_generator())
    assert order.tolist() == [8, 2, 9, 3]
    assert KMeans().choose(points, labels, 6, any_generator()).sort()[0].tolist() == list(range(12))


def test_centers_that_share_their_nearest_image_take_two():
    """Four different images only, and six clusters: some centers coincide."""
    points = features(4, 3).repeat(10, 1)
    order = KMeans().choose(points, ONE_CLASS, 6, any_generator())
    assert len(order.unique()) == 6
    assert len(points[order].unique(dim=0)) == 4


def test_k_means_depends_on_its_generator_alone():
    points = features(40, 8)

    def chosen(seed):
        return tuple(KMeans().choose(points, ONE_CLASS, 7, any_generator(seed)).tolist())

    assert chosen(3) == chosen(3)
    assert len({chosen(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("choose", [KCenter().choose, KMeans().choose])
@pytest.mark.parametrize("seed", range(4))
def test_one_image_a_class_is_the_one_nearest_its_mean(choose, seed):
    """As herding's is."""
    labels = torch.randint(0, 3, (40,), generator=any_generator(seed))
    points = features(40, 4, seed)
    expected = Herding().choose(points, labels, 1, any_generator())
    assert torch.equal(choose(points, labels, 1, any_generator()), expected)


def test_random_choices_of_a_seed_are_nested_and_differ_between_seeds():
    def one_class(ipc, seed):
        return Random().choose(None, LABELS, ipc, any_generator(seed)).view(3, ipc)

    assert torch.equal(one_class(4, seed=0)[:, :2], one_class(2, seed=0))
    assert len({tuple(one_class(4, seed).flatten().tolist()) for seed in range(5)}) == 5


def test_random_finds_every_image():
    seen = torch.cat([Random().choose(None, LABELS, 1, any_generator(i)) for i in range(60)])
    assert len(seen.unique()) == len(LABELS)


# Every method, through the one door.


@pytest.mark.parametrize("method", CORESETS)
@pytest.mark.parametrize("ipc", [1, 4])
def test_a_coreset_is_ipc_different_training_images_of_each_class(dataset, whitening, method, ipc):
    rows = statistics_for(method)
    coreset = select_coreset(method, dataset, ipc, seed=3, whitening=whitening, statistics=rows)
    white = whitening.apply(to_float(dataset.train.images))
    where = [(white == image).flatten(1).all(1).nonzero().item() for image in coreset.images]
    assert len(set(where)) == 3 * ipc
    assert coreset.labels.tolist() == [label for label in range(3) for _ in range(ipc)]
    assert dataset.train.labels[where].tolist() == coreset.labels.tolist()
    assert (coreset.step_size, coreset.classes, coreset.ipc) == (None, ("a", "b", "c"), ipc)
    assert coreset.info["method"] == method
    assert coreset.info["data"]["fingerprint"] == dataset.fingerprint
    again = select_coreset(method, dataset, ipc, seed=3, whitening=whitening, statistics=rows)
    assert torch.equal(coreset.images, again.images)


@pytest.mark.parametrize("ipc", [0, 5])
def test_more_than_the_smallest_class_has_is_refused(dataset, whitening, ipc):
    with pytest.raises(SettingError, match=f"ipc is {ipc} and class 'a' has 4 .* from 1 to 4"):
        select_coreset("random", dataset, ipc, whitening=whitening)


def test_unknown_methods_are_refused_with_a_suggestion(dataset, whitening):
    with pytest.raises(SettingError, match="did you mean 'herding'"):
        select_coreset("herdin", dataset, 1, whitening=whitening)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (None, "herding needs rows of features; give the embeddings of a trained network"),
        (features(12), "12 rows of features of shape .12, 3. for 13"),
        (features(13) / 0, "no numbers"),
        (features(13)[:, 0], "of shape .13,. for 13"),
    ],
)
def test_features_that_do_not_fit_are_refused(dataset, whitening, rows, reason):
    with pytest.raises(SettingError, match=reason):
        select_coreset("herding", dataset, 1, whitening=whitening, statistics=rows)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (None, "forgetting needs counts of forgetting; give the forgetting_counts of"),
        (torch.zeros(12), "12 counts of forgetting of shape .12,. for 13"),
        (torch.zeros(13) / 0, "no numbers"),
        (features(13), "of shape .13, 3. for 13"),
    ],
)
def test_counts_that_do_not_fit_are_refused(dataset, whitening, counts, reason):
    with pytest.raises(SettingError, match=reason):
        select_coreset("forgetting", dataset, 1, whitening=whitening, statistics=counts)


def test_a_made_set_is_compared_with_two_of_them():
    """`distill` and `run` end with these; more would be more networks to train each time."""
    assert BASELINES == ("random", "herding")
    assert set(BASELINES) <= set(CORESETS)


class First(Coreset):
    """A coreset of somebody else's: the first images of each class."""

    name = "first"

    def choose(self, statistics, labels, ipc, generator):
        return torch.cat([members[:ipc] for members in class_members(labels)])


def test_a_coreset_of_ones_own_is_an_object(dataset, whitening):
    coreset = select_coreset(First(), dataset, 2, whitening=whitening)
    assert torch.equal(coreset.pixels(), dataset.train.images[[1, 3, 0, 2, 4, 5]])
    assert coreset.info["method"] == "first"


def test_a_coreset_of_ones_own_has_a_path_for_the_command_line(dataset, whitening, monkeypatch):
    monkeypatch.setattr(CORESETS, "_entries", dict(CORESETS._entries))
    coreset = select_coreset(f"{__name__}:First", dataset, 2, whitening=whitening)
    assert torch.equal(
        coreset.images, select_coreset(First(), dataset, 2, whitening=whitening).images
    )
    with pytest.raises(SettingError, match="not a coreset"):
        select_coreset(f"{__name__}:features", dataset, 2, whitening=whitening)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_embeddings_are_what_the_last_layer_sees(norm):
    spec = NetworkSpec("convnet", 3, 3, 8, {"width": 4, "depth": 2, "norm": norm})
    module = spec.build(seed=5).eval()
    images = torch.randn(13, 3, 8, 8, generator=any_generator())
    rows = embeddings(spec, parameter_vector(module), images, batch=5)
    assert rows.shape == (13, 16)
    assert not rows.requires_grad
    torch.testing.assert_close(module.classifier(rows), module(images))


# A share of each class.


@pytest.mark.parametrize("method", CORESETS)
def test_a_share_of_each_class_is_what_the_method_chooses_of_it_alone(method, dataset, whitening):
    """Classes a, b, c have 4, 5 and 4 images: of 0.6, 2, 3 and 2."""
    statistics = statistics_for(method)
    share = {"whitening": whitening, "statistics": statistics}
    chosen = select_coreset(method, dataset, Share(0.6), seed=3, **share)
    assert chosen.labels.tolist() == [0] * 2 + [1] * 3 + [2] * 2
    assert (chosen.ipc, chosen.ipc_words) == (2, "2 to 3")
    assert (chosen.info["ipc"], chosen.info["fraction"]) == (2, 0.6)
    assert len(chosen.images.flatten(1).unique(dim=0)) == 7
    if method not in ("random", "k-means"):  # those draw; of the others a number gives the same
        for label, count in ((0, 2), (1, 3), (2, 2)):
            by_number = select_coreset(method, dataset, count, seed=3, **share)
            expected = by_number.images[by_number.labels == label]
            assert torch.equal(chosen.images[chosen.labels == label], expected)


def test_a_share_is_at_least_one_image_and_at_most_all(dataset, whitening):
    one = select_coreset("random", dataset, Share(0.001), whitening=whitening)
    assert one.labels.tolist() == [0, 1, 2]
    everything = select_coreset("random", dataset, Share(1.0), whitening=whitening)
    assert everything.labels.bincount().tolist() == LABELS.bincount().tolist()
    for wrong in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(SettingError, match=f"fraction is {wrong}; it must be above 0 and at"):
            Share(wrong)
