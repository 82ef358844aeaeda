"""Files that survive: weights and training states as safetensors, checked when read, never half written."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .runtime import place


def write(path: Path | str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write named tensors and a JSON-like ``header`` as one safetensors file, whole or not at all.

    The bytes go to a temporary file beside ``path``, which is renamed when they are on the disk: whatever happens on
    the way, ``path`` is either what it was or what it should be. A digest of everything is kept in the header.

    Raises ``OSError`` naming ``path`` and the reason (disk full, read-only folder) if it cannot be written.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    content = safetensors.torch.save(tensors, {"header": text, "sha256": _digest(tensors, text)})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise OSError(error.errno, f"{path}: could not be written ({error.strerror}); nothing was changed") from error


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file that :func:`write` wrote.

    Raises ``FileNotFoundError`` if there is none, ``ValueError`` if it is truncated, edited, or no such file.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        text = metadata["header"]
        whole = metadata["sha256"] == _digest(tensors, text)
        header = json.loads(text)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no whole file of this book's weights ({error!r})") from error
    if not whole:
        raise ValueError(f"{path}: the file was changed after it was written (its digest is not that of its content)")
    return tensors, header


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with their floating-point numbers in float16, as weights are shipped."""
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of the header and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pack(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Nested dicts and lists of tensors and plain values, taken apart: the tensors by name, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, name: str) -> Any:
        match node:
            case Tensor():
                tensors[name] = node
                return {"tensor": name}
            case dict():  # as pairs: JSON would turn the integer keys of an optimiser's state into strings
                return {"dict": [[key, walk(value, f"{name}/{key}")] for key, value in node.items()]}
            case list() | tuple():
                return {"list": [walk(value, f"{name}/{i}") for i, value in enumerate(node)]}
        return {"value": node}

    return tensors, walk(tree, "")


def unpack(tensors: dict[str, Tensor], structure: Any) -> Any:
    """What :func:`pack` took apart (tuples come back as lists)."""
    ((kind, content),) = structure.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: unpack(tensors, value) for key, value in content}
        case "list":
            return [unpack(tensors, value) for value in content]
    return content


class Stateful(Protocol):
    """Anything that can give its state and take it back: networks, optimisers, updates, batches."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as nested dicts and lists of tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state."""


class Checkpoints:
    """The states of a training run, saved in a folder from time to time; the last ``keep`` of them are kept.

    Args:
        folder: where they go, as ``step-00001200.safetensors``; made if need be.
        recipe: JSON-like; a checkpoint of another recipe is refused.
        every: seconds from one checkpoint to the next.
        keep: how many to keep.
        parts: what the state consists of, by name.

    With several processes all of them call :meth:`save`, and the first one writes. Raises ``ValueError`` if
    ``keep < 1`` or ``every < 0``.
    """

    def __init__(self, folder: Path | str, recipe: dict[str, Any], every: float = 60, keep: int = 2, **parts: Stateful):
        if keep < 1:
            raise ValueError(f"keep: must be at least 1, got {keep}")
        if every < 0:
            raise ValueError(f"every: must not be negative, got {every}")
        self.folder, self.every, self.keep, self.parts = Path(folder), every, keep, parts
        self.recipe = json.loads(json.dumps(recipe))  # as it will be read: tuples become lists

    def files(self) -> list[Path]:
        """The checkpoints that are there, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, index: int) -> None:
        """Write the state after step ``index``. Raises ``OSError`` as :func:`write` does, and then deletes nothing."""
        tensors, structure = pack({name: part.state_dict() for name, part in self.parts.items()})
        if place()[0] == 0:
            header = {"recipe": self.recipe, "index": index, "state": structure}
            write(self.folder / f"step-{index:08d}.safetensors", tensors, header)
            for old in self.files()[: -self.keep]:
                old.unlink()

    def restore(self) -> int:
        """Put everything back as the last checkpoint has it; the index of its step, or 0 if there is none.

        What a killed process left half written is removed. Raises ``OSError`` if the folder cannot be written, and
        ``ValueError`` if the last checkpoint is damaged, belongs to another recipe, or is not there for all processes.
        """
        if place()[0] == 0:
            self._prepare()
        files = self.files()
        if _differ(files[-1].name if files else ""):
            raise ValueError(
                f"{self.folder}: the processes do not see the same files there; it must be a shared folder"
            )
        if not files:
            return 0
        path = files[-1]
        try:
            tensors, header = read(path)
        except ValueError as error:
            raise ValueError(f"{error}. Delete it to go on from the checkpoint before it.") from error
        if header["recipe"] != self.recipe:
            there, here = header["recipe"], self.recipe
            names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
            found = ", ".join(f"{name} = {there.get(name)!r} (now {here.get(name)!r})" for name in names)
            more = " (A longer training is another one: its learning rate falls later.)" * ("steps" in names)
            raise ValueError(f"{path}: a checkpoint of another recipe, with {found}. Give another folder.{more}")
        state = unpack(tensors, header["state"])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return header["index"]

    def _prepare(self) -> None:
        """Find out now whether files can be written, not after an hour's work."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(error.errno, f"{self.folder}: nothing can be written there ({error.strerror})") from error
        for half in self.folder.glob(".*.safetensors.*"):
            half.unlink()


def _differ(value: Any) -> bool:
    """Whether the processes that train together have different values."""
    everyone: list[Any] = [value]
    if (world := place()[1]) > 1:
        everyone = [None] * world
        torch.distributed.all_gather_object(everyone, value)
    return any(other != everyone[0] for other in everyone)
