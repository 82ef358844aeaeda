"""The shared module of *Diffusion Models, Measured*.

Read the files in the order of the data: :mod:`~diffutils.runtime` (device, seeds), :mod:`~diffutils.data` (what is to
be modelled), :mod:`~diffutils.canvas` and :mod:`~diffutils.captions` (pictures to describe),
:mod:`~diffutils.schedules` and :mod:`~diffutils.process` (the fixed forward process),
:mod:`~diffutils.networks` (what is learned), :mod:`~diffutils.objectives` (what is minimised),
:mod:`~diffutils.optimisers`, :mod:`~diffutils.checkpoints` and :mod:`~diffutils.training` (how),
:mod:`~diffutils.adversarial` and :mod:`~diffutils.compression` (two networks against each other),
:mod:`~diffutils.samplers` (the reverse process), :mod:`~diffutils.metrics` (how well), :mod:`~diffutils.plots` (the
figures) and :mod:`~diffutils.widgets` (those that move), :mod:`~diffutils.recipes` and :mod:`~diffutils.zoo` (trained
networks), :mod:`~diffutils.evaluation`, :mod:`~diffutils.latents`, :mod:`~diffutils.adherence` and
:mod:`~diffutils.studies` (measured),
:mod:`~diffutils.ranking`, :mod:`~diffutils.entrants` and :mod:`~diffutils.trilemma` (all of it in one table),
:mod:`~diffutils.bench` and :mod:`~diffutils.race` (how fast, and how good after equal time), :mod:`~diffutils.doctor`
(what is wrong with a set-up). A file imports only from files earlier in this list.
"""

__version__ = "0.1.0"
