"""Scores of samples in the features of the book's classifiers, and what they refuse to judge."""

import math
from unittest.mock import patch

import pytest
import torch

from diffutils import checkpoints, data, evaluation, metrics, runtime, zoo
from diffutils.evaluation import compare, features, scores
from diffutils.networks.classifier import Classifier

DIGITS = evaluation.judge("digits-classifier")


def test_classifiers_reach_the_accuracy_they_state():
    network, header = zoo.weights("digits-classifier")
    test = data.images("digits", train=False)
    with torch.no_grad():
        right = (network(test.x).argmax(1) == test.y).double().mean().item()
    assert abs(right - header["results"]["accuracy"]["test"]) < 0.003 and right > 0.97
    assert zoo.weights("mnist-classifier")[1]["results"]["accuracy"]["test"] > 0.99


def test_the_reference_holds_the_features_of_the_data():
    seen, kept = features(DIGITS.network, data.images("digits").x), DIGITS.reference
    nearest, row = torch.cdist(seen, kept).min(1)
    assert nearest.max() < 0.05 and len(row.unique()) > 0.99 * len(kept) == 0.99 * len(seen)  # kept in float16


def test_the_floor_is_what_real_images_score():
    """The digits' test set has 360 images: one set, which can be measured again."""
    found = compare(DIGITS, data.images("digits", train=False).x)
    for name in "frechet", "kernel", "precision", "recall", "density", "coverage":
        measured = found[name]
        assert measured["floor"][1] is None and abs(measured["value"] - measured["floor"][0]) < 0.01, name
        assert 0 < measured["error"] < 0.3, name
    assert found["frechet / floor"] == pytest.approx(1, abs=0.03) and sum(found["classes"]) == found["n"] == 360
    assert found["sure"] > 0.9


def test_dropped_classes_and_noise_are_seen_by_the_scores_made_for_them():
    real, test = data.images("digits"), data.images("digits", train=False)
    full = compare(DIGITS, test.x)
    few = compare(DIGITS, real.x[real.y < 5][:360])
    assert few["recall"]["value"] < 0.7 < 0.85 < full["recall"]["value"] and few["coverage"]["value"] < 0.6
    assert few["precision"]["value"] > 0.9 and few["classes"][5:] < [20] * 5 and few["frechet / floor"] > 20
    noise = torch.rand(test.x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = compare(DIGITS, noise)
    assert noisy["precision"]["value"] < 0.5 and noisy["coverage"]["value"] < 0.1 and noisy["frechet / floor"] > 20


def test_the_error_depends_on_its_seed_alone():
    x = data.images("digits", train=False).x
    assert compare(DIGITS, x, 1) == compare(DIGITS, x, 1) != compare(DIGITS, x, 2)


def test_precision_and_recall_are_of_equally_many():
    x, y = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.randn(200, 3)
    assert scores(x, torch.cat([x, y]))["precision"] == scores(x, torch.cat([x, y]))["recall"] == 1


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda x: x[:7], "n: the floor is known at 360 images, got 7"),
        (lambda x: x * math.nan, "x: has values that are not finite"),
        (lambda x: 127.5 * (x + 1), r"x: must lie in \[-1, 1\], got values from 0 to 255"),
    ],
)
def test_images_that_cannot_be_judged_are_refused(spoil, complaint):
    with pytest.raises(ValueError, match=complaint):
        compare(DIGITS, spoil(data.images("digits", train=False).x))


def test_a_network_left_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="network: is in training mode"):
        features(Classifier(8).train(), torch.zeros(2, 1, 8, 8))


def test_a_number_of_images_without_a_floor_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="n: the floor is known at .*, got 7"):
        evaluation.evaluate(zoo.load("digits-ddpm", "cpu"), 7)


def test_how_to_make_a_judge_that_is_not_shipped_is_said():
    with pytest.raises(FileNotFoundError, match="the judge cifar10-classifier is not shipped: .* train .* --record /"):
        evaluation.judge("cifar10-classifier")


def test_a_fresh_draw_is_as_good_as_the_header_says(as_stored):
    as_stored(zoo.load("digits-ddpm", "cpu"), 360, 0.0)


def test_inception_features_go_to_a_maintained_library_and_come_back_the_same(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is needed only for scores in Inception's features")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    with runtime.seeded(0):
        with patch("torch.load"), patch.object(Inception, "load_state_dict"):
            network = Inception("inception", ["64"], "none")
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    y, x = (data.images("digits", train).x[:72] for train in (False, True))
    x = -x  # so that the kernel distance is far from its rounding
    found = evaluation.inception(x, y, tmp_path / "inception.pth", layer="64")
    of = [network(((part + 1) * 127.5).round().byte().expand(-1, 3, -1, -1))[0] for part in (x, y)]
    assert abs(found["fid"] - metrics.frechet_distance(*of).item()) < 1e-3 * found["fid"]
    assert abs(found["kid"] - metrics.kernel_distance(*of).item()) < 1e-3 * found["kid"]
    with pytest.raises(FileNotFoundError, match="are not there"):
        evaluation.inception(x, y, tmp_path / "missing.pth")


def test_inception_may_judge_alone_and_what_it_needs_is_missed_before_anything_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "_fidelity", lambda weights: None)
    monkeypatch.setattr(evaluation, "inception", lambda x, y, weights: {"fid": float(len(x)), "kid": float(len(y))})
    model = zoo.load("digits-ddpm", "cpu")
    model.header["recipe"] |= {"judge": "cifar10-classifier"}
    found = evaluation.evaluate(model, 7, steps=1, weights="file")
    assert found["n"] == 7 and found["inception"]["fid"] == 7 and "frechet" not in found
    monkeypatch.setattr(zoo, "draw", None)
    with pytest.raises(FileNotFoundError, match="the judge cifar10-classifier is not shipped"):
        evaluation.evaluate(model, 7)
    model.header["recipe"] |= {"data": "cifar10"}
    monkeypatch.setenv("DIFFUTILS_DATA", "/dev/null/nowhere")
    with pytest.raises(OSError, match="cifar10: not found"):
        evaluation.evaluate(model, 7, weights="file")


def test_evaluations_with_other_settings_stay_in_the_header(tmp_path):
    path, network = tmp_path / "weights.safetensors", {"w": torch.ones(1)}
    checkpoints.write(path, network, {"recipe": {}, "trained": {}, "results": {"evaluations": [], "other": 1}})
    for n, steps, value in (360, 10, 5.0), (360, 20, 4.0), (360, 10, 3.0):
        one = {"n": n, "sampler": {"name": "ddim", "steps": steps}, "frechet": value}
        evaluation.record(path, {"evaluations": [one]}, path)
    results = checkpoints.read(path)[1]["results"]
    assert [(one["sampler"]["steps"], one["frechet"]) for one in results["evaluations"]] == [(20, 4.0), (10, 3.0)]
    assert results["other"] == 1


def test_a_shipped_model_is_recorded_by_its_name(tmp_path):
    evaluation.record("digits-ddpm", {"another": 2}, tmp_path / "weights.safetensors")
    assert checkpoints.read(tmp_path / "weights.safetensors")[1]["results"]["another"] == 2
