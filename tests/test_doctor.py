"""The doctor: every fault of a set-up is told from a fact, in words that say how to mend it."""

import ast
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from diffutils import doctor

GIB = doctor.GIB


def kinds(findings):
    return [finding.kind for finding in findings]


def test_the_oldest_python_is_that_of_the_project():
    project = tomllib.loads((doctor.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor.PYTHON))
    assert doctor.python((3, 11, 0)).kind == doctor.python((3, 14, 2)).kind == "fine"
    old = doctor.python((3, 10, 13))
    assert old.kind == "fault" and "3.10.13 is too old" in old.what and "make lab PYTHON=python3.11" in old.mend


def test_an_older_python_can_read_the_doctor():
    source = Path(doctor.__file__).read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source
    at_the_top = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    at_the_top |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in at_the_top} <= sys.stdlib_module_names  # nothing that may be missing


def test_what_is_asked_for_is_what_the_two_files_say():
    asked = doctor.asked()
    project = tomllib.loads((doctor.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {*project["dependencies"], "jupyter-book>=1.0.4,<2"} <= set(asked)
    assert not any(text.startswith("-") or "#" in text for text in asked)


def test_without_the_books_folder_the_installed_list_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2", "numpy", 'pytest>=8; extra == "test"'])
    assert doctor.asked(tmp_path) == ["torch>=2", "numpy"]


@pytest.mark.parametrize(
    ("have", "faults"),
    [
        ({"torch": "2.15.0", "jupyter-book": "1.0.4.post1"}, []),
        ({"torch": "2.15.0+cu130", "jupyter-book": "1.1.0"}, []),
        ({"torch": "2.10.1", "jupyter-book": "1.0.4"}, ["torch 2.10.1 is installed; the book needs torch>=2.11"]),
        ({"torch": "2.15.0"}, ["jupyter-book is not installed; the book needs jupyter-book"]),
        (
            {"torch": "2.15.0", "jupyter-book": "2.0.1"},
            ["jupyter-book 2.0.1 is installed; the book needs jupyter-book"],
        ),
        ({}, ["torch is not installed", "jupyter-book is not installed"]),
    ],
)
def test_packages_are_compared_with_their_ranges(have, faults):
    asked = ["torch>=2.11", "jupyter-book>=1.0.4,<2", 'colorama>=9; platform_system == "Nowhere"']
    found = list(doctor.packages(asked, have.get))
    if not faults:
        assert found == [("fine", "2 packages, all within their ranges", "")]
        return
    assert kinds(found) == ["fault"] * len(faults)
    for finding, start in zip(found, faults, strict=True):
        assert finding.what.startswith(start) and "pip install" in finding.mend
        assert ("builds none of these pages" in finding.what) == finding.what.startswith("jupyter-book")


def test_a_package_that_does_not_start_is_a_fault():
    def load(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    (broken,) = doctor.imports(load=load)
    assert broken.kind == "fault" and "torchvision" in broken.what and "nms" in broken.what
    assert not list(doctor.imports(load=lambda name: None))


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"prefix": "/book/venv", "package": "/book/diffutils"}, None),
        (None, "no kernel called python3"),
        ({"error": "No such file"}, "does not start: No such file"),
        (
            {"prefix": "/old/venv", "package": "/book/diffutils"},
            "runs in /old/venv, not in this environment, /book/venv",
        ),
        ({"prefix": "/book/venv", "package": None}, "do not find diffutils"),
        ({"prefix": "/book/venv", "package": "/copy/diffutils"}, "import diffutils from /copy/diffutils"),
    ],
)
def test_the_kernel_must_be_this_environments_and_find_this_module(found, complaint):
    finding = doctor.kernel(found, "/book/venv", "/book/diffutils")
    assert finding.kind == ("fault" if complaint else "fine")
    assert (complaint or "") in finding.what and bool(finding.mend) == bool(complaint)


def test_no_gpu_is_a_fact_and_one_that_cannot_be_used_gets_advice():
    assert doctor.gpu(["H100"]) == ("fine", "1 GPU: H100", "")
    none, cpu_build, old_driver = doctor.gpu([]), doctor.gpu([], driver=True), doctor.gpu([], driver=True, cuda="13.0")
    assert kinds([none, cpu_build, old_driver]) == ["note"] * 3 and not none.mend
    assert "without CUDA" in cpu_build.what and "driver" in old_driver.mend
    assert doctor.bf16(True, "x").kind == "fine" and doctor.bf16(False, "x").kind == "note"


def test_too_little_memory_or_disk_is_a_fault_and_little_a_note():
    assert kinds(doctor.memory(size) for size in (1 * GIB, 3 * GIB, 9 * GIB, None)) == ["fault", "note", "fine", "note"]
    sizes = 0.1 * GIB, 1 * GIB, 9 * GIB
    assert kinds(doctor.disk(size, "here") for size in sizes) == ["fault", "note", "fine"]
    assert doctor.memory(1 * GIB).mend and doctor.disk(0, "here").mend


def test_a_container_leaves_its_limit_and_what_it_keeps_of_files(tmp_path):
    pytest.importorskip("psutil")
    for name, text in ("memory.max", "5000"), ("memory.current", "4000"), ("memory.stat", "anon 1\ninactive_file 300"):
        (tmp_path / name).write_text(f"{text}\n")
    assert doctor._free_memory(tmp_path) == 1300
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._free_memory(tmp_path) > 1300


def test_cores_and_threads_are_facts():
    assert kinds([doctor.cores(8), doctor.cores(1), doctor.cores(2, "1"), doctor.cores(2, "2")]) == [
        "fine",
        "note",
        "note",
        "fine",
    ]


def test_a_named_folder_that_is_not_there_is_a_fault_and_no_mnist_is_not(tmp_path):
    nowhere = doctor.image_sets(str(tmp_path / "nowhere"), tmp_path / "nowhere")
    assert nowhere.kind == "fault" and "DIFFUTILS_DATA" in nowhere.what and "mkdir" in nowhere.mend
    assert doctor.image_sets(None, tmp_path / "data").kind == "note"
    assert doctor.image_sets(str(tmp_path), tmp_path).kind == "note"
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)  # as a download that failed leaves it
    assert doctor.image_sets(str(tmp_path), tmp_path).kind == "note"
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").touch()
    assert doctor.image_sets(str(tmp_path), tmp_path) == ("fine", f"MNIST in {tmp_path}", "")


def test_only_faults_make_the_exit_code_1(capsys):
    note, fault = doctor.Finding("note", "No GPU."), doctor.Finding("fault", "No disk.", "Make room.")
    assert doctor.report([note]) == 0 and "Nothing is wrong" in capsys.readouterr().out
    assert doctor.report([note, fault]) == 1
    printed = capsys.readouterr().out
    assert "fault  No disk.\n       -> Make room." in printed and "1 fault. Mend" in printed


def test_the_command_examines_this_machine(tmp_path):
    """Whatever it finds here, it finds it without an error, and its exit code says whether there is a fault."""
    done = subprocess.run([sys.executable, "-m", "diffutils", "doctor"], capture_output=True, text=True)
    assert not done.stderr and done.returncode == int("\nfault " in done.stdout), done
    assert "packages" in done.stdout and "GiB of memory" in done.stdout and "python3" in done.stdout


def test_the_command_runs_where_torch_does_not(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: not found')")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['diffutils', WORD]; "
    code += "runpy.run_module('diffutils', run_name='__main__')"

    def run(word):
        return subprocess.run([sys.executable, "-c", code.replace("WORD", repr(word))], capture_output=True, text=True)

    doctors, others = run("doctor"), run("recipes")
    assert doctors.returncode == 1 and "torch is installed but does not start: libtorch.so" in doctors.stdout
    assert others.returncode == 1 and others.stderr.startswith("error: libtorch.so: not found (python -m diffutils doc")
