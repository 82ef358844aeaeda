"""The book's weights in the diffusers library's pipelines: the same pictures, and what its defaults do to them."""

import pytest
import torch

from diffutils import process, recipes, runtime, zoo
from diffutils.samplers import ddim, ddpm, sample
from diffutils.schedules import subsequence

diffusers = pytest.importorskip("diffusers", reason="diffusers is needed only to compare with it")
from diffusers import (  # noqa: E402
    ConfigMixin,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    ModelMixin,
)
from diffusers.configuration_utils import register_to_config  # noqa: E402
from diffusers.models.unets.unet_2d import UNet2DOutput  # noqa: E402

CLIPPED = {"use_clipped_model_output": True}
ANSWERS = {"v": "v_prediction", "eps": "epsilon", "x_0": "sample"}


class Wrapped(ModelMixin, ConfigMixin):
    """A network of the book as the library calls one: our t is its timestep + 1."""

    @register_to_config
    def __init__(self, recipe="digits-ddpm", sample_size=8, in_channels=1):
        super().__init__()
        self.network = recipes.build(recipes.recipe(recipe))

    def forward(self, sample, timestep, class_labels=None):
        t = torch.as_tensor(timestep).expand(len(sample)) + 1
        label = {} if class_labels is None else {"y": class_labels}
        return UNet2DOutput(sample=self.network(sample, t, **label))


def wrap(model):
    wrapped = Wrapped(model.header["recipe"]["name"], model.network.size, model.network.channels)
    wrapped.network.load_state_dict(model.network.state_dict())
    return wrapped.eval()


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits-ddpm", "cpu")


@pytest.fixture(scope="module")
def wrapped(model):
    return wrap(model)


def settings(model, **changes):
    chosen = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    return {"trained_betas": model.schedule.beta[1:].numpy()} | chosen | changes


def drawn(pipeline, **options):
    """Through a pipeline object, pixels in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"batch_size": 4, "num_inference_steps": 20, "output_type": "pt"} | options
    return 2 * pipeline(generator=runtime.generator(0), **options).images - 1


def walked(scheduler, wrapped, steps=20, **options):
    scheduler.set_timesteps(steps)
    generator = runtime.generator(0)
    x = torch.randn(4, 1, 8, 8, generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(wrapped(x, t).sample, t, x, generator=generator, **options).prev_sample
    return x


def apart(one, other):
    return (one - other).abs().max().item()


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_ddim_pipeline_draws_our_pictures(model, wrapped, steps, eta):
    pipeline = DDIMPipeline(wrapped, DDIMScheduler(**settings(model)))
    there = drawn(pipeline, num_inference_steps=steps, eta=eta, **CLIPPED)
    assert apart(there, zoo.draw(model, 4, "ddim", steps, eta=eta)) < 1e-4
    assert there.std() > 0.3  # pictures, and not one grey


def test_with_our_table_of_alpha_bar_only_the_last_bit_differs(model, wrapped):
    pipeline = DDIMPipeline(wrapped, DDIMScheduler(**settings(model)))
    pipeline.scheduler.alphas_cumprod = model.schedule.alpha_bar[1:]
    assert apart(drawn(pipeline, **CLIPPED), zoo.draw(model, 4, "ddim", 20)) < 1e-6


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_the_ddpm_pipeline_draws_our_pictures(model, wrapped, steps):
    pipeline = DDPMPipeline(wrapped, DDPMScheduler(**settings(model)))
    assert apart(drawn(pipeline, num_inference_steps=steps), zoo.draw(model, 4, "ddpm", steps)) < 1e-4


def test_the_ddpm_pipeline_walks_the_whole_chain_as_we_do(wrapped):
    """A chain of 100 levels, on which the default spacing visits every one of them; both variances."""
    chain = recipes.schedule(recipes.recipe("digits-ddpm", schedule={"name": "cosine", "T": 100}))
    denoise = process.denoiser(wrapped.network, chain, "v", clip=True)
    for variance, name in ("beta_tilde", "fixed_small"), ("beta", "fixed_large"):
        scheduler = DDPMScheduler(
            100, trained_betas=chain.beta[1:].numpy(), prediction_type="v_prediction", variance_type=name
        )
        there = drawn(DDPMPipeline(wrapped, scheduler), num_inference_steps=100)
        generator = runtime.generator(0)
        x_T = torch.randn(4, 1, 8, 8, generator=generator)
        here = sample(ddpm(denoise, chain, variance), x_T, subsequence(100, 100), generator)
        assert apart(there, here) < 1e-3


@pytest.mark.parametrize("steps", [2, 10, 20])
def test_dpm_solver_draws_our_pictures_where_thresholding_at_1_stands_for_clipping(model, wrapped, steps):
    scheduler = DPMSolverMultistepScheduler(**settings(model, thresholding=True, sample_max_value=1.0))
    assert apart(walked(scheduler, wrapped, steps), zoo.draw(model, 4, "dpm-solver", steps)) < 1e-3


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_may_be_handed_over_as_any_kind(model, wrapped, kind):
    """By DDIM in ten steps from t = 900, where the noise can still be divided by the signal's share in float32."""

    def answering(x, timestep):
        t = torch.full((len(x),), int(timestep) + 1)
        v = model.network(x, t).double()
        value = process.convert(v, x.double(), t, model.schedule, "v", kind).float()
        return UNet2DOutput(sample=value)

    scheduler = DDIMScheduler(**settings(model, prediction_type=ANSWERS[kind], timestep_spacing="leading"))
    times = [t + 1 for t in range(900, -1, -100)] + [0]
    x_T = torch.randn(4, 1, 8, 8, generator=runtime.generator(0))
    here = sample(ddim(model.denoise, model.schedule), x_T, times)
    assert apart(walked(scheduler, answering, 10, **CLIPPED), here) < 1e-4


def test_the_wrapped_network_is_written_and_read_by_the_library(wrapped, tmp_path):
    wrapped.save_pretrained(tmp_path)
    again = Wrapped.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 1, 8, 8, generator=runtime.generator(0))
    with torch.no_grad():
        assert torch.equal(again(x, torch.tensor(10)).sample, wrapped(x, torch.tensor(10)).sample)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_guidance_scale_is_our_weight(weight):
    model = zoo.load("digits-ddpm-class", "cpu")
    wrapped, y, nothing = wrap(model), torch.tensor([0, 3, 5, 9]), torch.full((4,), model.network.nothing)

    def guided(x, t):
        without = wrapped(x, t, nothing).sample
        return UNet2DOutput(sample=without + weight * (wrapped(x, t, y).sample - without))

    there = walked(DDIMScheduler(**settings(model)), guided, **CLIPPED)
    assert apart(there, zoo.draw(model, 4, "ddim", 20, y=y, weight=weight)) < 1e-3


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"clip_sample": False}, CLIPPED),
        ({"timestep_spacing": "leading"}, CLIPPED),
        ({"set_alpha_to_one": False}, CLIPPED),
        ({"thresholding": True, "sample_max_value": 2.0}, CLIPPED),
        ({"prediction_type": "epsilon"}, CLIPPED),
        ({"trained_betas": None}, CLIPPED),
    ],
    ids=["eps not of the clipped x_0", "unclipped", "leading", "alpha", "threshold", "epsilon", "linear"],
)
def test_a_setting_left_alone_is_seen(model, wrapped, changes, options):
    """What appendix D warns of: each is off by more than a grey level somewhere, far above the tolerances."""
    there = walked(DDIMScheduler(**settings(model, **changes)), wrapped, **options)
    assert apart(there, zoo.draw(model, 4, "ddim", 20)) > 1 / 127.5


def test_the_larger_variance_adds_noise_in_the_last_step_there_and_not_here(model, wrapped):
    there = walked(DDPMScheduler(**settings(model, variance_type="fixed_large")), wrapped)
    noise = (there - zoo.draw(model, 4, "ddpm-beta", 20)).std().item()
    expected = (1 - model.schedule.alpha_bar[50].item()) ** 0.5  # the last step starts at 1000 / 20
    assert noise == pytest.approx(expected, rel=0.15)
