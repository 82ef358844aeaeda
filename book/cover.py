"""Draw the picture of the home page, book/_static/cover.png: python book/cover.py

Above, one digit on its way through the forward process (linear schedule, T = 1000). Below, the reverse process from
pure noise, with the exact denoiser of the digits data set, so that nothing has to be trained. Seed 3.
"""

from pathlib import Path

import torch

from diffutils import data, plots, process, runtime, samplers, schedules

generator, schedule = runtime.generator(3), schedules.linear()
digits = data.images("digits")
x_0 = digits.x[digits.y == 3][:1]
times = [0, 50, 120, 200, 300, 400, 600, 1000]
forward = [x_0] + [process.q_sample(x_0, t, torch.randn(x_0.shape, generator=generator), schedule) for t in times[1:]]

denoise = process.ideal_denoiser(data.GaussianMixture.of_points(digits.x), schedule)
x_T = torch.randn(1, 64, generator=generator)
path = [x_T, *samplers.reverse(samplers.ddpm(denoise, schedule), x_T, range(1000, -1, -1), generator)]
backward = [path[1000 - t].reshape(1, 1, 8, 8) for t in reversed(times)]

rows = torch.cat(forward + backward)
rows = rows / rows.abs().amax((1, 2, 3), keepdim=True)
figure = plots.images(rows, columns=len(times), width=10)
figure.savefig(Path(__file__).parent / "_static" / "cover.png", dpi=120)
