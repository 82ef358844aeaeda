"""The module itself: imports run one way, everything public is explained, randomness is always handed in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffutils

ROOT = Path(diffutils.__file__).parent
ROOMS = """runtime data canvas captions schedules process networks.attention networks.embedding networks.mlp
    networks.unet networks.autoencoder networks.discriminator networks.classifier networks.text networks.latent
    objectives optimisers checkpoints training adversarial compression samplers metrics plots widgets recipes zoo
    evaluation latents adherence studies ranking entrants trilemma bench race doctor __main__""".split()
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if not name.endswith("__init__")}
every_file = pytest.mark.parametrize("name", FILES)


def imported(source: str, name: str) -> set[str]:
    """The rooms that the source of room ``name`` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("diffutils.") for alias in node.names if alias.name.startswith("diffutils.")
            }
        elif isinstance(node, ast.ImportFrom):
            package = ["diffutils", *name.split(".")[:-1]]
            start = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join(start + (node.module.split(".") if node.module else []))
            if target == "diffutils" or target.startswith("diffutils."):
                inner = target.removeprefix("diffutils").removeprefix(".")
                for alias in node.names:  # a name in a package may be a file or something inside one
                    as_file = f"{inner}.{alias.name}".removeprefix(".")
                    found.add(as_file if as_file in ROOMS else inner)
    return found - {""}


@pytest.mark.parametrize(
    ("source", "name", "rooms"),
    [
        ("from .process import at", "samplers", {"process"}),
        ("from . import data, schedules", "process", {"data", "schedules"}),
        ("from .embedding import sinusoids", "networks.mlp", {"networks.embedding"}),
        ("from ..data import folder", "networks.mlp", {"data"}),
        ("from .networks.unet import UNet", "zoo", {"networks.unet"}),
        ("from .networks import unet", "zoo", {"networks.unet"}),
        ("def f():\n    from diffutils.samplers import ddpm", "data", {"samplers"}),
        ("import diffutils.plots, torch", "data", {"plots"}),
        ("from torch import nn\nimport math", "data", set()),
    ],
)
def test_an_import_in_any_form_is_seen(source, name, rooms):
    assert imported(source, name) == rooms


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_from_files_before_it(name):
    assert name in ROOMS, f"{name} has no place in the list of rooms"
    later = {
        room for room in imported(MODULES[name].read_text("utf-8"), name) if room not in ROOMS[: ROOMS.index(name)]
    }
    assert not later, f"{name} imports {sorted(later)}"


def test_packages_import_nothing_of_ours_on_their_own():
    for name in set(FILES) - set(MODULES):
        assert not imported(FILES[name].read_text("utf-8"), name), name


@every_file
def test_everything_public_has_a_docstring(name):
    tree = ast.parse(FILES[name].read_text("utf-8"))
    assert ast.get_docstring(tree), name
    definitions = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    public = [node for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")]
    for node in public:
        assert ast.get_docstring(node), f"{name}.{node.name}"
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, definitions) and not inner.name.startswith("_"):
                assert ast.get_docstring(inner), f"{name}.{node.name}.{inner.name}"


RANDOM = {"rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli"}
GLOBAL = {"rand_like", "randn_like", "randint_like", "seed", "set_rng_state", "manual_seed_all"}


ON_PURPOSE = {("runtime", "manual_seed"), ("runtime", "set_rng_state")}  # `seeded`, and resuming a run


@every_file
def test_every_random_call_takes_a_generator(name):
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, attribute = ast.unparse(node.func.value), node.func.attr
            place = f"{name}, line {node.lineno}: {of}.{attribute}"
            if of == "torch":
                assert attribute not in GLOBAL | {"manual_seed"} or (name, attribute) in ON_PURPOSE, place
                assert attribute not in RANDOM or "generator" in {keyword.arg for keyword in node.keywords}, place
            assert of not in ("np.random", "numpy.random", "random") or attribute == "default_rng", place


def test_importing_the_module_neither_seeds_nor_draws():
    names = ", ".join(f"diffutils.{name}" for name in MODULES if name != "__main__")
    code = f"""
import random, numpy, torch
random.seed(5); numpy.random.seed(6); torch.manual_seed(7)
def state():
    return random.getstate(), repr(numpy.random.get_state()), torch.initial_seed(), torch.get_rng_state().tolist()
before = state()
import {names}
assert state() == before
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
