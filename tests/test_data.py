"""Mixtures against torch.distributions, autograd and quadrature; point sets and images against what they promise."""

import gzip
import math
import struct
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torchvision import datasets

from diffutils import data
from diffutils.data import GaussianMixture


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def planar(*batch: int) -> GaussianMixture:
    """Four Gaussians in three dimensions, unequal in every way; with ``batch``, as many different ones."""
    weight = (randn(*batch, 4, seed=1)).softmax(-1)
    return GaussianMixture(weight, randn(*batch, 4, 3, seed=2), 0.1 + randn(*batch, 4, seed=3) ** 2)


def reference(mixture: GaussianMixture) -> MixtureSameFamily:
    std = mixture.variance.sqrt()[..., None].expand_as(mixture.mean)
    return MixtureSameFamily(Categorical(mixture.weight), Independent(Normal(mixture.mean, std), 1))


def normal_log_prob(x: torch.Tensor, mean: torch.Tensor, variance: float) -> torch.Tensor:
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


LINE = torch.linspace(-9, 9, 36_001, dtype=torch.float64)
STEP = (LINE[1] - LINE[0]).item()


def test_log_prob_is_that_of_torch_distributions():
    x = randn(50, 3)
    assert (planar().log_prob(x) - reference(planar()).log_prob(x)).abs().max() < 1e-12
    assert (planar(50).log_prob(x) - reference(planar(50)).log_prob(x)).abs().max() < 1e-12
    assert planar().log_prob(x[0]).shape == () and planar().log_prob(x.reshape(5, 10, 3)).shape == (5, 10)


@pytest.mark.parametrize("of", ["log_prob", "score"])
def test_points_have_no_density(of):
    points = GaussianMixture.of_points(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="a mixture with point components has no density; diffuse it first"):
        getattr(points, of)(torch.ones(4, 2))


def test_log_prob_of_narrow_components_keeps_its_digits_in_float32():
    single = GaussianMixture(*(v.float() for v in vars(data.twenty_five_gaussians(std=1e-3)).values()))
    double = GaussianMixture(single.weight.double(), single.mean.double(), single.variance.double())
    x = single.sample(100, seeded())
    assert (single.log_prob(x) - double.log_prob(x.double())).abs().max() < 0.01


@pytest.mark.parametrize("batch", [(), (50,)])
def test_score_is_the_gradient_of_log_prob(batch):
    x = randn(50, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(planar(*batch).log_prob(x).sum(), x)
    assert (planar(*batch).score(x) - gradient).abs().max() < 1e-10


@pytest.mark.parametrize("alpha_bar", [0.999, 0.5, 0.01])
def test_diffuse_is_the_convolution_with_the_noise(alpha_bar):
    mixture, x_t = data.bumps(), torch.linspace(-3, 3, 13, dtype=torch.float64)
    kernel = normal_log_prob(x_t[:, None], math.sqrt(alpha_bar) * LINE, 1 - alpha_bar).exp()
    exact = (kernel * mixture.log_prob(LINE[:, None]).exp()).sum(1) * STEP
    assert (mixture.diffuse(alpha_bar).log_prob(x_t[:, None]).exp() - exact).abs().max() < 1e-11


@pytest.mark.parametrize(("alpha_bar_t", "alpha_bar_s"), [(0.98, 1.0), (0.6, 0.9), (0.02, 0.7), (0.5, 1.0)])
def test_reverse_is_bayes_rule_by_quadrature(alpha_bar_t, alpha_bar_s):
    mixture, x_t = data.bumps(), torch.linspace(-2.5, 2.5, 7, dtype=torch.float64)[:, None]
    a = alpha_bar_t / alpha_bar_s
    log_p = mixture.diffuse(alpha_bar_s).log_prob(LINE[:, None]) + normal_log_prob(x_t, math.sqrt(a) * LINE, 1 - a)
    exact = log_p.softmax(1) / STEP
    step = mixture.reverse(x_t, alpha_bar_t, alpha_bar_s)
    for i in range(7):
        one = GaussianMixture(step.weight[i], step.mean[i], step.variance[i])
        assert (one.log_prob(LINE[:, None]).exp() - exact[i]).abs().max() < 1e-8


def test_reverse_of_a_batch_is_the_reverse_of_each_point():
    x_t, mixture = randn(6, 3), planar()
    together = mixture.reverse(x_t, 0.3, 0.8)
    again = planar(6).reverse(x_t, 0.3, 0.8)
    for i in range(6):
        alone = mixture.reverse(x_t[i], 0.3, 0.8)
        of_batch = GaussianMixture(*(getattr(planar(6), name)[i] for name in ("weight", "mean", "variance")))
        for name in ("weight", "mean", "variance"):
            assert (getattr(together, name)[i] - getattr(alone, name)).abs().max() < 1e-14
            assert (getattr(again, name)[i] - getattr(of_batch.reverse(x_t[i], 0.3, 0.8), name)).abs().max() < 1e-14


@pytest.mark.parametrize("alpha_bar_s", [1.0, 0.8])
def test_reverse_of_a_finite_data_set_is_a_softmax_over_its_points(alpha_bar_s):
    points, x_t, alpha_bar_t = randn(40, 2, 3), randn(5, 6, seed=1), 0.5
    step = GaussianMixture.of_points(points).reverse(x_t, alpha_bar_t, alpha_bar_s)
    a = alpha_bar_t / alpha_bar_s
    for i in range(5):
        x = x_t[i].numpy()
        flat = points.reshape(40, 6).numpy()
        logit = np.array([-np.sum((x - math.sqrt(alpha_bar_t) * p) ** 2) / (2 * (1 - alpha_bar_t)) for p in flat])
        weight = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
        # the posterior of one step given that x_0 is this point
        mean = (math.sqrt(alpha_bar_s) * (1 - a) * flat + math.sqrt(a) * (1 - alpha_bar_s) * x) / (1 - alpha_bar_t)
        variance = (1 - alpha_bar_s) * (1 - a) / (1 - alpha_bar_t)
        assert np.abs(step.weight[i].numpy() - weight).max() < 1e-13
        assert np.abs(step.mean[i].numpy() - mean).max() < 1e-13
        assert np.abs(step.variance[i].numpy() - variance).max() < 1e-13


def test_reverse_of_a_slightly_noisy_digit_finds_that_digit_in_float32():
    x = data.images("digits").x[:300]
    mixture = GaussianMixture.of_points(x)
    x_t = math.sqrt(0.99) * x[:20] + 0.1 * torch.randn(x[:20].shape, generator=seeded())
    step = mixture.reverse(x_t.flatten(1), 0.99, 0.999)
    assert mixture.mean.dtype == torch.float32 and step.mean.isfinite().all()
    assert step.weight.argmax(1).tolist() == list(range(20)) and step.weight.max(1).values.min() > 0.99


@pytest.mark.parametrize("alpha_bar", [0.99, 0.4, 0.01])
@pytest.mark.parametrize("batch", [(), (20,)])
def test_denoise_is_the_mean_of_the_reverse_step_and_obeys_tweedie(alpha_bar, batch):
    mixture, x_t = planar(*batch), 2 * randn(20, 3)
    x_0 = mixture.posterior_mean(x_t, alpha_bar)
    assert (x_0 - mixture.reverse(x_t, alpha_bar).moments()[0]).abs().max() < 1e-12
    # E[x_0 | x_t] = (x_t + (1 - alpha_bar) score_t(x_t)) / sqrt(alpha_bar)
    tweedie = (x_t + (1 - alpha_bar) * mixture.diffuse(alpha_bar).score(x_t)) / math.sqrt(alpha_bar)
    assert (x_0 - tweedie).abs().max() < 1e-11


@pytest.mark.parametrize("alpha_bar", [0.99, 0.4, 0.01])
def test_posterior_mean_by_quadrature(alpha_bar):
    mixture, x_t = data.bumps(), torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
    log_p = mixture.log_prob(LINE[:, None]) + normal_log_prob(x_t, math.sqrt(alpha_bar) * LINE, 1 - alpha_bar)
    assert (mixture.posterior_mean(x_t, alpha_bar) - (log_p.softmax(1) * LINE).sum(1, keepdim=True)).abs().max() < 1e-11


def test_moments_are_those_of_the_density_by_quadrature():
    p = data.bumps().log_prob(LINE[:, None]).exp() * STEP
    mean, covariance = data.bumps().moments()
    assert mean.shape == (1,) and covariance.shape == (1, 1)
    assert abs(mean.item() - (p * LINE).sum()) < 1e-11
    assert abs(covariance.item() - (p * (LINE - mean) ** 2).sum()) < 1e-11


def test_moments_of_a_batch_are_those_of_a_plain_sum_over_components():
    mixture = planar(5)
    mean, covariance = mixture.moments()
    for i in range(5):
        parts = list(zip(mixture.weight[i], mixture.mean[i], mixture.variance[i], strict=True))
        centre = sum(w * m for w, m, _ in parts)
        second = sum(w * (torch.outer(m, m) + v * torch.eye(3, dtype=torch.float64)) for w, m, v in parts)
        assert (mean[i] - centre).abs().max() < 1e-14
        assert (covariance[i] - (second - torch.outer(centre, centre))).abs().max() < 1e-13


def test_samples_follow_the_density():
    mixture = data.bumps()
    x = mixture.sample(20_000, seeded(1))[:, 0].numpy()
    parts = [
        (w.item(), m.item(), v.item() ** 0.5)
        for w, m, v in zip(mixture.weight, mixture.mean, mixture.variance, strict=True)
    ]
    assert stats.kstest(x, lambda z: sum(w * stats.norm.cdf(z, m, s) for w, m, s in parts)).pvalue > 0.01
    mean, covariance = planar().moments()
    y = planar().sample(40_000, seeded())
    assert (y.mean(0) - mean).abs().max() < 0.03 and (y.T.cov() - covariance).abs().max() < 0.06


def test_a_batch_of_mixtures_gives_one_draw_of_each():
    points = GaussianMixture(torch.ones(4, 1), torch.arange(4.0)[:, None, None], torch.zeros(4, 1))
    assert points.sample(4, seeded()).tolist() == [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match="n: must be 4"):
        points.sample(5, seeded())


def test_samples_are_those_of_the_generator():
    draws = [data.bumps().sample(5, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    rolls = [data.swiss_roll(5, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(rolls[0], rolls[1]) and not torch.equal(rolls[0], rolls[2])


def test_points_keep_their_shape_flat_and_have_no_density():
    mixture = GaussianMixture.of_points(torch.arange(12.0).reshape(3, 2, 2))
    assert mixture.mean.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] and mixture.dims == 4
    with pytest.raises(ValueError, match="variance"):
        mixture.log_prob(torch.zeros(1, 4))
    assert mixture.diffuse(0.5).log_prob(torch.zeros(1, 4)).isfinite().all()


@pytest.mark.parametrize(
    ("weight", "mean", "variance", "name"),
    [
        ([0.5, 0.5], [[0.0], [1.0]], [1.0], "weight, mean, variance"),
        ([0.5, 0.5], [0.0, 1.0], [1.0, 1.0], "weight, mean, variance"),
        ([1.0], [[0.0], [1.0]], [1.0, 1.0], "weight, mean, variance"),
        ([0.5, 0.4], [[0.0], [1.0]], [1.0, 1.0], "weight: "),
        ([1.5, -0.5], [[0.0], [1.0]], [1.0, 1.0], "weight: "),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, -1.0], "variance: "),
    ],
)
def test_a_mixture_of_wrong_shapes_or_no_probabilities_is_refused(weight, mean, variance, name):
    with pytest.raises(ValueError, match=name):
        GaussianMixture(torch.tensor(weight), torch.tensor(mean), torch.tensor(variance))


@pytest.mark.parametrize(("alpha_bar_t", "alpha_bar_s"), [(0.5, 0.5), (0.6, 0.5), (0.0, 0.5), (0.5, 1.1)])
def test_reverse_needs_falling_alpha_bars(alpha_bar_t, alpha_bar_s):
    with pytest.raises(ValueError, match="alpha_bar"):
        data.bumps().reverse(torch.zeros(1, 1, dtype=torch.float64), alpha_bar_t, alpha_bar_s)


def test_toys_are_centred_and_of_variance_close_to_one():
    mean, covariance = data.bumps().moments()
    assert mean.abs().max() < 1e-12 and abs(covariance.item() - 1) < 0.2
    grid = data.twenty_five_gaussians()
    mean, covariance = grid.moments()
    assert mean.abs().max() < 1e-12 and (covariance - torch.eye(2)).abs().max() < 0.05
    assert {tuple(round(v, 6) for v in m) for m in grid.mean.tolist()} == {
        (round(0.7 * i, 6), round(0.7 * j, 6)) for i in range(-2, 3) for j in range(-2, 3)
    }
    assert grid.weight.unique().tolist() == [1 / 25] and abs(grid.variance.max().item() - 0.02**2) < 1e-9


def test_swiss_roll_is_a_spiral_of_one_and_a_half_turns():
    x = data.swiss_roll(5000, seeded(), noise=0.0)
    angle = 6.6 * x.norm(dim=1)
    assert x.shape == (5000, 2) and x.dtype == torch.float32
    assert (torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None] / 6.6 - x).abs().max() < 1e-4
    assert abs(angle.min() - 1.5 * math.pi) < 0.05 and abs(angle.max() - 4.5 * math.pi) < 0.05
    assert stats.kstest(angle.numpy(), stats.uniform(1.5 * math.pi, 3 * math.pi).cdf).pvalue > 0.01
    assert (x.var(0) - 1).abs().max() < 0.25
    noise = data.swiss_roll(5000, seeded(), noise=0.1) - x
    assert (noise.std(0) - 0.1).abs().max() < 0.005


def test_digits_are_all_of_scikit_learns_split_in_two():
    train, test = data.images("digits"), data.images("digits", train=False)
    assert train.x.shape == (1437, 1, 8, 8) and test.x.shape == (360, 1, 8, 8)
    assert train.x.dtype == torch.float32 and train.y.dtype == torch.int64
    source = load_digits()
    rows = torch.cat([torch.cat([s.x.flatten(1) * 8 + 8, s.y[:, None].float()], 1) for s in (train, test)])
    original = np.concatenate([source.images.reshape(-1, 64), source.target[:, None]], 1)
    # the same rows, labels included, each as often: nothing is in both parts, nothing is lost
    assert sorted(map(tuple, rows.numpy())) == sorted(map(tuple, original.astype(np.float32)))
    assert train.y.unique().tolist() == test.y.unique().tolist() == list(range(10))


def test_digits_have_17_grey_values_from_minus_one_to_one():
    train = data.images().x
    assert train.unique().tolist() == [i / 8 - 1 for i in range(17)]


def test_digits_are_the_same_whatever_the_global_seed_and_leave_it_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = data.images("digits")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = data.images("digits")
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    assert first.y.tolist() != load_digits().target[:1437].tolist()  # shuffled: not split by who wrote them


def write_idx(path, array: np.ndarray, compress: bool) -> None:
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if compress:
        path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(content) if compress else content)


def write_mnist(root, folder: str = "MNIST", stem: str = "train", n: int = 5, compress: bool = False) -> np.ndarray:
    pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
    write_idx(root / folder / "raw" / f"{stem}-images-idx3-ubyte", pixels, compress)
    write_idx(root / folder / "raw" / f"{stem}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) + 3, compress)
    return pixels


@pytest.fixture
def offline(monkeypatch):
    """Every download of torchvision fails as it does without a network; the list counts the attempts."""
    attempts = []

    def download(self):
        attempts.append(self)
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    return attempts


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
@pytest.mark.parametrize(("train", "stem"), [(True, "train"), (False, "t10k")])
def test_mnist_is_read_from_its_files_and_padded_to_32(tmp_path, offline, name, folder, train, stem, compress):
    pixels = write_mnist(tmp_path, folder, stem, compress=compress)
    x, y = data.images(name, train, tmp_path)
    assert x.shape == (5, 1, 32, 32) and x.dtype == torch.float32
    assert y.tolist() == [3, 4, 5, 6, 7] and y.dtype == torch.int64
    assert np.abs(x[:, 0, 2:30, 2:30].numpy() - (pixels / 127.5 - 1)).max() < 1e-6
    assert x[0, 0, 2, 2] == -1 and x[0, 0, 2, 3] == 1
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (x[:, 0, border] == -1).all()
    assert not offline


def test_the_root_is_the_argument_then_the_environment_then_the_folder_data(tmp_path, offline, monkeypatch):
    for n, place in (1, "argument"), (2, "environment"), (3, "here/data"):
        write_mnist(tmp_path / place, n=n)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DIFFUTILS_DATA", str(tmp_path / "environment"))
    assert len(data.images("mnist", root=str(tmp_path / "argument")).x) == 1
    assert len(data.images("mnist").x) == 2
    monkeypatch.delenv("DIFFUTILS_DATA")
    assert len(data.images("mnist").x) == 3


def test_mnist_is_downloaded_once(tmp_path, monkeypatch):
    calls = []

    def download(self):
        calls.append(self.root)
        write_mnist(tmp_path, n=4)
        write_mnist(tmp_path, stem="t10k", n=2)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    assert len(data.images("mnist", root=tmp_path).x) == len(data.images("mnist", root=tmp_path).x) == 4
    assert len(data.images("mnist", train=False, root=tmp_path).x) == 2
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
@pytest.mark.parametrize("filled", [False, True])
def test_without_a_network_or_a_copy_the_error_names_the_place_and_what_to_do(tmp_path, offline, name, filled):
    if filled:  # only the other split is there
        write_mnist(tmp_path, "MNIST", "t10k")
    with pytest.raises(FileNotFoundError) as error:
        data.images(name, root=tmp_path)
    for part in (name, str(tmp_path), "no route to host", "DIFFUTILS_DATA"):
        assert part in str(error.value)


def test_cifar10_has_its_channels_first(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    asked = []

    def fake(root, train, download):
        asked.append((root, train))
        return SimpleNamespace(data=pixels, targets=[9, 0, 4])

    monkeypatch.setattr(datasets, "CIFAR10", fake)
    x, y = data.images("cifar10", train=False, root=tmp_path)
    assert asked == [(tmp_path, False)] and y.tolist() == [9, 0, 4]
    assert x.shape == (3, 3, 32, 32) and x.dtype == torch.float32
    assert np.abs(x.permute(0, 2, 3, 1).numpy() - (pixels / 127.5 - 1)).max() < 1e-6


@pytest.mark.parametrize("name", ["imagenet", "Digits", ""])
def test_an_unknown_set_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"name: .*digits, mnist, fashion, cifar10.*'{name}'"):
        data.images(name)


def write_image(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def test_folder_reads_one_class_a_sub_folder(tmp_path):
    red = np.zeros((16, 16, 3))
    red[..., 0] = 255
    write_image(tmp_path / "b" / "red.png", red)
    write_image(tmp_path / "a" / "white.png", np.full((16, 16, 3), 255))
    write_image(tmp_path / "a" / "grey.png", np.full((32, 16), 51))
    x, y = data.folder(tmp_path, 16)
    assert x.shape == (3, 3, 16, 16) and x.dtype == torch.float32 and y.tolist() == [0, 0, 1]
    assert y.dtype == torch.int64
    # in the order of the names: grey, white; red
    assert (x[0] - (51 / 127.5 - 1)).abs().max() < 1e-6 and (x[1] == 1).all()
    assert (x[2, 0] == 1).all() and (x[2, 1:] == -1).all()
    grey, _ = data.folder(tmp_path, 8, channels=1)
    assert grey.shape == (3, 1, 8, 8)
    assert (grey[2] - (76 / 127.5 - 1)).abs().max() < 1e-6  # ITU-R 601 luma of red: 0.299 * 255 = 76


def test_folder_covers_the_square_and_crops_at_the_centre(tmp_path):
    wide = np.zeros((8, 24, 3))
    wide[:, 8:16] = 255  # black, white, black: only the middle third is to be seen
    write_image(tmp_path / "a" / "wide.png", wide)
    assert (data.folder(tmp_path, 8).x == 1).all()


def test_folder_says_what_it_needs_when_there_is_nothing_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_images" / "a").mkdir(parents=True)
    (tmp_path / "damaged" / "a").mkdir(parents=True)
    (tmp_path / "damaged" / "a" / "x.png").write_bytes(b"this is no picture")
    for name in ("missing", "empty", "no_images", "damaged"):
        with pytest.raises(FileNotFoundError, match="path: needs a folder") as error:
            data.folder(tmp_path / name, 8)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ValueError, match="channels: must be 1 or 3, got 2"):
        data.folder(tmp_path, 8, channels=2)


def test_tensors_of_ones_own_keep_their_numbers_and_get_classes():
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    mine = data.tensors(x, torch.tensor([3, 1], dtype=torch.uint8))
    assert mine.x.dtype == torch.float32 and mine.x.flatten().tolist() == [-1, 1]
    assert mine.y.dtype == torch.int64 and mine.y.tolist() == [3, 1]
    assert data.tensors(x).y.dtype == torch.int64 and data.tensors(x).y.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (torch.zeros(1, 8, 8), r"square images .*\(1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 9), r"square images .*\(1, 1, 8, 9\)"),
        (torch.full((1, 1, 8, 8), 1.01), r"\[-1, 1\], got values from 1.01 to 1.01"),
        (torch.full((1, 1, 8, 8), -255.0), r"\[-1, 1\], got values from -255"),
        (torch.full((1, 1, 8, 8), math.nan), r"\[-1, 1\]"),
    ],
)
def test_images_of_other_shapes_and_ranges_are_refused(x, complaint):
    with pytest.raises(ValueError, match=f"x: .*{complaint}"):
        data.tensors(x)


@pytest.mark.parametrize("y", [torch.zeros(2), torch.zeros(3, 1), torch.tensor(0)])
def test_classes_must_be_one_for_each_image(y):
    with pytest.raises(ValueError, match="y: needs one class for each of the 3 images"):
        data.tensors(torch.zeros(3, 1, 4, 4), y)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 30])
def test_a_damaged_mnist_file_is_named(tmp_path, compress, keep):
    write_mnist(tmp_path, compress=compress)
    (path,) = (tmp_path / "MNIST" / "raw").glob("train-images*")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a whole IDX file of bytes") as error:
        data.images("mnist", root=tmp_path)
    assert str(path) in str(error.value)


def test_a_mixture_moves_to_another_dtype():
    mixture = data.bumps().to(torch.float32)
    assert mixture.sample(3, torch.Generator().manual_seed(0)).dtype == torch.float32
