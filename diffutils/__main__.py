"""The command line, ``python -m diffutils``: train, sample, evaluate, study, trilemma, bench, race, recipes and
doctor."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import doctor

try:
    import torch

    from . import adherence, bench, evaluation, latents, ranking, recipes, runtime, studies, zoo
    from . import race as races
    from . import trilemma as table
    from .training import Step
except (ImportError, OSError, RuntimeError, SyntaxError, TypeError) as error:
    # a set-up in which the module can't be used: only the doctor runs there
    if sys.argv[1:2] == ["doctor"]:
        sys.exit(doctor.main())
    raise SystemExit(f"error: {error} (python -m diffutils doctor says what is wrong)") from error


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Say, when a run is stopped by Ctrl-C, that it can be gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise


def train(options: argparse.Namespace) -> None:
    """Follow a recipe; under ``torchrun`` with several processes."""
    changes = {key: getattr(options, key) for key in ("steps", "seed", "batch") if getattr(options, key) is not None}
    recipe = recipes.recipe(options.recipe, **changes)
    if options.images:
        recipe = recipes.for_folder(recipe, options.images)
    if options.snapshots and options.minutes is not None:
        raise ValueError("snapshots: are kept at shares of the recipe's steps, and with minutes there are none")
    folder = Path(options.out or Path("runs") / options.recipe)
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    on_gpu = runtime.own_device(options.device).type == "cuda"
    if together:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        with _stoppable():
            run = recipes.Run(
                recipe,
                folder,
                options.device,
                None if options.minutes is None else 60 * options.minutes,
                options.micro,
                options.shard,
                options.compile,
                options.snapshots or 0,
                (20 if on_gpu else 1) if options.every is None else options.every,
            )
            first = runtime.place()[0] == 0
            walk = _logged(run, options.tensorboard, not options.shard) if options.tensorboard and first else run
            for _ in walk:
                pass
            if first and run.update.index:
                print(f"{run.update.index} steps in {run.budget.spent():.0f} s: {folder / 'weights.safetensors'}")
    finally:
        if together:
            torch.distributed.destroy_process_group()


def _logged(run: recipes.Run, every: int, drawing: bool) -> Iterator[Step]:
    """The run's steps, their losses written for TensorBoard, and a grid of samples every so many steps.

    There are no samples when no process has the whole network.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard: needs the package tensorboard (pip install tensorboard)") from error
    with SummaryWriter(str(run.folder)) as writer:
        for step in run:
            for name, value in step.losses.items():
                writer.add_scalar(name, value, step.index)
            if drawing and run.recipe["method"] == "ddpm" and step.index % every < run.every:
                labels = _labels(run.average, 64)
                images = zoo.draw(zoo.model(run.average, {"recipe": run.recipe}), 64, steps=20, y=labels)
                writer.add_images("samples", (images + 1) / 2, step.index)
            yield step


def _labels(network: torch.nn.Module, n: int, label: int | None = None) -> torch.Tensor | None:
    """What to tell a network with classes about n images: ``label``, or each class in turn; to another, nothing."""
    classes = getattr(network, "classes", None)
    if label is None:
        return None if classes is None else torch.arange(n) % classes
    if classes is None or not 0 <= label < classes:
        has = "takes no labels" if classes is None else f"has labels 0..{classes - 1}"
        raise ValueError(f"label: this network {has}, got {label}")
    return torch.full((n,), label)


def sample(options: argparse.Namespace) -> None:
    """Draw a grid of images into a file."""
    from torchvision.utils import save_image

    _check_place(options.out)
    model = zoo.load(options.recipe, options.device)
    if not model.denoise and (options.steps is not None or options.eta or options.sampler != "ddim"):
        raise ValueError(f"sampler, steps, eta: {model.header['recipe']['name']} draws in a way of its own")
    longest = model.schedule.T if model.denoise else 1
    usual = longest if options.sampler.startswith("ddpm") else min(50, longest)
    steps = usual if options.steps is None else options.steps
    how = options.sampler, steps, options.eta, options.seed
    y = prompts = None
    if options.prompt is None or options.label is not None:
        y = _labels(model.network, options.n, options.label)
    else:
        prompts = [options.prompt] * options.n
    weight = options.weight
    if weight is None:
        weight = 1.0 if prompts is None else 3.0
    elif y is None and prompts is None:
        raise ValueError("weight: is of guidance by a label or a prompt, and there is neither")
    images = zoo.draw(model, options.n, *how, y=y, power=options.power, prompts=prompts, weight=weight)
    save_image((images + 1) / 2, options.out, nrow=max(1, round(options.n**0.5)))
    print(f"{options.n} images: {options.out}")


def evaluate(options: argparse.Namespace) -> None:
    """Measure models and autoencoders, or calibrate a classifier; print the results, and keep them if asked to."""
    _check_place(options.out)
    headers = {name: zoo.weights(name)[1] for name in options.recipe}
    _check_record(options.record, [header["recipe"] for header in headers.values()])
    results = []
    for name, header in headers.items():
        if header["recipe"]["method"] == "classifier":
            found = evaluation.calibrate(name, options.record)
        elif header["recipe"]["data"].startswith(recipes.FOLDER_OF):
            raise ValueError(
                f"{name}: was trained on pictures of your own, of which no judge of the book knows anything"
            )
        elif header["recipe"]["method"] == "autoencoder":
            of_canvases = header["recipe"]["data"].endswith("-seen")
            measure = adherence.reconstruction if of_canvases else latents.reconstruction
            found = {"reconstruction": measure(zoo.weights(name)[0], header["recipe"])}
        else:
            model = zoo.load(name, options.device)
            seeds = range(options.seed, options.seed + options.repeats)
            if "captions" in header["recipe"]:
                weight = 3.0 if options.weight is None else options.weight
                n, how = options.n or 200, (weight, options.sampler, options.steps)
                if options.eta or options.power != 1 or options.inception:
                    raise ValueError("eta, power, inception: are not for models of text")
                both = [(n, pairs, *how, seed) for pairs in ("seen", "unseen") for seed in seeds]
                found = {"adherence": [adherence.adherence(model, *one) for one in both]}
            else:
                if options.weight is not None:
                    raise ValueError(f"weight: is of guidance by prompts, and {header['recipe']['name']} takes none")
                how = options.n, options.sampler, options.steps, options.eta
                weights, power = options.inception, options.power
                found = {"evaluations": [evaluation.evaluate(model, *how, seed, weights, power) for seed in seeds]}
        results.append({"recipe": header["recipe"]["name"], "trained": header["trained"]} | found)
        print(json.dumps(results[-1]), flush=True)
        if options.record and header["recipe"]["method"] != "classifier":
            evaluation.record(name, found, options.record)
    _keep(results, options.out)


def _check_place(out: str | None) -> None:
    """Say that a file cannot be written before the work that it is to hold is done."""
    if not out:
        return
    folder = Path(out).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"out: there is no folder {folder}")
    if Path(out).is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"out: {out} cannot be written")


def _check_record(to: str | None, recipes_of: list[recipes.Recipe]) -> None:
    """The same of ``--record``: a folder for classifiers, whose reference features go beside them, else one file."""
    if to is None:
        return
    classifiers = [recipe["method"] == "classifier" for recipe in recipes_of]
    if all(classifiers):
        if Path(to).suffix or not (Path(to).is_dir() or Path(to).parent.is_dir()):
            raise ValueError(f"record: must be the folder that a classifier and its features are written to, got {to}")
    elif len(recipes_of) > 1 or Path(to).suffix != ".safetensors":
        raise ValueError(f"record: must be a .safetensors file, for a single recipe, got {to}")
    else:
        _check_place(to)


def _keep(results: Any, out: str | None) -> None:
    if out:
        Path(out).write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def race(options: argparse.Namespace) -> None:
    """Train recipes, and other libraries with their defaults, for equal times; measure what they draw; go on with what
    an earlier start left.
    """
    _check_place(options.out)
    setting = runtime.setting(runtime.device(options.device), *(name.split(",")[0] for name in races.LIBRARIES))
    results: dict[str, Any] = {"race": options.judge, "setting": setting, "results": []}
    if options.out:
        results = studies.resumed(Path(options.out), results)
    how = options.minutes, options.n, options.steps, options.eta, options.seeds, options.judge, options.device
    with _stoppable():
        for result in races.race(options.names, *how, done=tuple(results["results"])):
            results["results"].append(result)
            print(json.dumps(result), flush=True)
            if options.out:
                studies.write(Path(options.out), results)


def benchmark(options: argparse.Namespace) -> None:
    """Measure speed and memory in pairs, here and against other libraries where they are installed."""
    _check_place(options.out)
    results = {}
    for name, result in bench.measure(options.rounds, options.device):
        results[name] = result
        print(json.dumps({name: result}), flush=True)
    _keep(results, options.out)


def study(options: argparse.Namespace) -> None:
    """Measure what a chapter's tables are read from; go on with what an earlier start left."""
    with _stoppable():
        for row in studies.run(options.name, options.out or Path("runs") / f"{options.name}.json"):
            print(json.dumps(row), flush=True)


def trilemma(options: argparse.Namespace) -> None:
    """Measure every model of the book on one data set; go on with what an earlier start left."""
    path = Path(options.out or Path("runs") / f"trilemma-{options.data}.json")
    how = options.retrain, options.n, options.draws, options.device, options.own
    changes = {} if options.steps is None else {"steps": options.steps}
    with _stoppable():
        for done in table.run(options.data, path, *how, **changes):
            now = f"; now {_label(done.next)}" if done.next else ""
            took = f"{done.row['took']:.1f} s, about {done.left / 60:.1f} min left"
            print(f"{done.index:4} of {done.total}: {_label(done.row)}: {took}{now}", file=sys.stderr, flush=True)
    found = json.loads(path.read_text("utf-8"))
    print(ranking.text(found))
    for recipe, why in found["missing"].items():
        print(f"not measured: {recipe}: {why}")
    try:
        changes = list(ranking.changes(found, table.results(options.data)))
    except FileNotFoundError:
        return
    outside = [one for one in changes if not abs(one.now - one.stored) <= one.allowed]
    print(
        f"{len(changes) - len(outside)} of {len(changes)} scores are those of the shipped file, within their intervals"
    )
    for one in outside:
        print(f"    {one.name}, {one.score} by {one.judge}: {one.now:.3f}, not {one.stored:.3f} ± {one.allowed:.3f}")


def _label(key: dict[str, Any]) -> str:
    words = [key["kind"], key.get("name", key["recipe"])]
    return ", ".join(words + [f"{word} {key[word]}" for word in ("training", "draw") if word in key])


def show(options: argparse.Namespace) -> None:
    """List the recipes, and which have weights."""
    for name, recipe in recipes.recipes().items():
        shipped = (recipes.FOLDER / f"{name}.safetensors").exists()
        print(f"{name:24} {'shipped ' if shipped else '        '} {recipe['about']}")


def diagnose(options: argparse.Namespace) -> int:
    """Say what is wrong with this set-up, and how to mend it; the exit code is 1 if anything is."""
    return doctor.main()


def _count(text: str) -> int:
    """A whole number from 1 on, as an option gives it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    main = argparse.ArgumentParser("python -m diffutils", description="Train, sample and measure the book's models.")
    commands = main.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        made.set_defaults(run=run)
        return made

    def add(to: argparse.ArgumentParser, *names: str, help: str, **settings: Any) -> None:
        if "default" in settings:
            default = settings["default"]
            help += f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
        to.add_argument(*names, help=help, **settings)

    where = "cpu, cuda, cuda:1 (default: a GPU if there is one)"
    as_json = "write the results to this file as JSON"

    one = command("train", train)
    add(one, "recipe", help="its name, as `recipes` lists them")
    add(one, "--out", help="folder for checkpoints and weights (default: runs/RECIPE); run again to go on from there")
    add(
        one,
        "--images",
        metavar="FOLDER",
        help="your own pictures to train on: a folder with a sub-folder of them for each class (one is enough)",
    )
    add(one, "--minutes", type=float, help="train so long, instead of the recipe's number of steps")
    add(one, "--steps", type=_count, help="train so many steps, instead of the recipe's")
    add(one, "--batch", type=_count, help="rows of a batch, of all processes together")
    add(
        one,
        "--seed",
        type=int,
        help="of the first weights, the order of the data and the noise, instead of the recipe's",
    )
    add(one, "--device", help=where)
    add(one, "--micro", type=_count, default=1, help="parts to divide a batch in, for less memory")
    add(one, "--shard", action="store_true", help="spread the weights over the processes (FSDP)")
    add(one, "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on GPUs)")
    add(one, "--snapshots", type=_count, help="also keep weights at so many of 1/2, 1/4, ... of the steps")
    add(one, "--every", type=_count, help="read the losses every so many steps (default: 1, on a GPU 20)")
    add(one, "--tensorboard", type=_count, metavar="N", help="write losses, and samples every N steps, for TensorBoard")

    for name, run in ("sample", sample), ("evaluate", evaluate):
        one = command(name, run)
        several = {"nargs": "+"} if name == "evaluate" else {}
        add(one, "recipe", help="its name, for the shipped weights, or a weights file", **several)
        add(one, "--sampler", choices=zoo.SAMPLERS, default="ddim", help="the rule of a step")
        if name == "sample":
            add(one, "--steps", type=_count, help="calls of the network (default: 50; all that there are for ddpm)")
            add(one, "--n", type=_count, default=64, help="images to draw")
        else:
            add(one, "--steps", type=_count, default=50, help="calls of the network")
            add(
                one,
                "--n",
                type=_count,
                help="images to draw (default: the most, up to 5000, that the judge has a floor for)",
            )
        add(one, "--eta", type=float, default=0.0, help="of DDIM: 0 draws no noise, 1 is DDPM")
        add(one, "--power", type=float, default=1.0, help="spacing of the steps: 1 even, 2 quadratic")
        of = "a prompt (default: 3) or a label (default: 1)" if name == "sample" else "prompts (default: 3)"
        add(one, "--weight", type=float, help=f"of guidance by {of}; 1 takes it as it is")
        add(one, "--seed", type=int, default=0, help="of all noise")
        add(one, "--device", help=where)
        if name == "sample":
            add(one, "--label", type=int, help="class to draw (default: each in turn)")
            add(one, "--prompt", help='what to draw, such as "a large red seven at the top left"')
            add(one, "--out", default="grid.png", help="the picture to write")
        else:
            add(one, "--repeats", type=_count, default=1, help="measure with so many seeds, from --seed on")
            into = "write the weights with these results in their header to this file; of a classifier: to this folder"
            add(one, "--record", help=into)
            add(one, "--inception", help="weights of torch-fidelity's Inception network: add the papers' FID and KID")
            add(one, "--out", help=as_json)

    one = command("study", study)
    add(one, "name", help=", ".join(studies.STUDIES))
    add(one, "--out", help="the file to write, or to go on with (default: runs/NAME.json)")

    one = command("trilemma", trilemma)
    add(one, "--data", default="digits", help="digits, mnist or cifar10")
    add(one, "--out", help="the file to write, or to go on with (default: runs/trilemma-DATA.json)")
    add(one, "--retrain", action="store_true", help="train every model from nothing, with three seeds")
    add(one, "--n", type=_count, help="images a draw (default: as many as the floor is known at, up to 2000)")
    add(one, "--draws", type=_count, help="sampling seeds a training (default: 2 on the digits, else 3)")
    add(one, "--device", help=where)
    add(one, "--own", default="runs", help="folder of weights that are not shipped, as `train` leaves them")
    add(one, "--steps", type=_count, help="with --retrain: train so many steps only, for a rehearsal")

    one = command("bench", benchmark)
    add(one, "--rounds", type=_count, default=15, help="how often each pair is measured")
    add(one, "--device", help=where)
    add(one, "--out", help=as_json)

    one = command("race", race)
    add(one, "names", nargs="+", help="recipes, and of " + ", ".join(map(repr, races.LIBRARIES)))
    add(one, "--minutes", type=float, nargs="+", default=[30], help="to train for; several times, one after the other")
    add(one, "--n", type=_count, default=2000, help="images to draw from each")
    add(one, "--steps", type=_count, default=50, help="of DDIM, calls of the network")
    add(one, "--eta", type=float, default=0.0, help="of DDIM: 0 draws no noise, 1 is DDPM")
    add(one, "--seeds", type=int, nargs="+", default=[0], help="of trainings")
    add(
        one,
        "--judge",
        default="mnist-classifier",
        help="the recipe of the classifier in whose features they are compared",
    )
    add(one, "--device", help=where)
    add(one, "--out", help="the file to write, or to go on with, as JSON")

    command("recipes", show)
    command("doctor", diagnose)
    return main


def main() -> int:
    """Run a command; what is the user's to mend is said in one line."""
    options = parser().parse_args()
    if torch.cuda.is_available():
        runtime.fast_float32()
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, FloatingPointError, torch.OutOfMemoryError) as error:
        text = getattr(error, "strerror", None) or str(error)
        if isinstance(error, torch.OutOfMemoryError):
            text = f"{text.split('. ')[0]} (train --micro 2 needs half as much)"
        if getattr(error, "filename", None):
            text = f"{error.filename}: {text}"
        print("error:", " ".join(text.split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
