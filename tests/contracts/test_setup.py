"""The set-up holds together: packages, pins, licence, commands, and import rules that can fail."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from scripts.console import machine

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"engine", "fem", "objectives", "scripts", "conf"}
#: Import name → distribution, where they differ.
DISTRIBUTION = {
    "hydra": "hydra-core",
    "omegaconf": "hydra-core",
    "skimage": "scikit-image",
    "jaxlib": "jax",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "vtkmodules": "vtk",
    "OCP": "cadquery-ocp",
}


#: What scripts/peers.py runs, in a virtual environment that it makes itself.
PEERS = {"jax-fem", "parosol-py", "petsc4py", "h5py"}


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_import_is_a_declared_dependency():
    declared = {name_of(r) for r in PROJECT["project"]["dependencies"]}
    extras = {
        name_of(r)
        for extra in ("mlflow", "slurm", "ray", "step")
        for r in PROJECT["project"]["optional-dependencies"][extra]
    }
    more = {"launchers.py": extras, "step.py": extras, "tracking.py": extras}
    for folder in ("engine", "fem", "objectives", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for top in (
                    {name.split(".")[0] for name in names} - OURS - set(sys.stdlib_module_names)
                ):
                    known = DISTRIBUTION.get(top, top.lower().replace("_", "-"))
                    place = path.relative_to(ROOT)
                    listed = declared | more.get(path.name, set())
                    listed |= PEERS if "benchmarks" in place.parts else set()
                    assert known in listed, f"{place}: {top} is not listed in pyproject.toml"


def test_every_dependency_is_pinned_and_installed_at_the_pin():
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    pins = {name_of(line): line.split("==")[1] for line in lines if "==" in line}
    assert all("==" in line or line.startswith("#") for line in lines), (
        "a pin is not name==version: hosts leak in"
    )
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = name_of(requirement)
        assert name in pins, f"{name} is not in scripts/constraints.txt"
        assert metadata.version(name) == pins[name]
    assert not {"torch", "pytorch"} & set(pins)


def test_licence_and_readme():
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text()[:200]
    assert PROJECT["project"]["license"] == "GPL-3.0-or-later"
    readme = (ROOT / "README.md").read_text()
    assert readme.count("not a cleared medical device") == 1
    for command in ("make demo", "make test", "engine/forward.py", "SPINEFIT_DATA"):
        assert command in readme


def test_source_numbers_used_in_code_and_configs_are_listed():
    listed = set(
        re.findall(r"^\| (S\d+b?) \|", (ROOT / "docs" / "sources.md").read_text(), flags=re.M)
    )
    assert len(listed) > 10
    for folder in ("engine", "fem", "objectives", "conf", "scripts"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]:
            text = path.read_text()
            used = {
                s
                for group in re.findall(r"\[(S\d+b?(?:\s*[,;-]\s*S\d+b?)*)[^\]]*\]", text)
                for s in re.findall(r"S\d+b?", group)
            }
            assert used <= listed, (
                f"{path.relative_to(ROOT)} cites {sorted(used - listed)}, not in docs/sources.md"
            )


def test_ci_runs_make_test_and_make_is_consistent():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    for script in (".ci/run", "scripts/setup.sh"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
    done = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for tool in ("ruff check", "mypy", "lint-imports", "pytest"):
        assert tool in done.stdout


def test_import_rules_can_fail(tmp_path):
    """Each contract of pyproject.toml breaks on the import that it forbids, and only then."""
    allowed = {
        "engine/types.py": "",
        "engine/materials.py": "",
        "engine/artifacts.py": "import engine.types",
        "engine/core.py": "import engine.types",
        "engine/patient/__init__.py": "",
        "engine/patient/model/scan.py": "import engine.types",
        "engine/patient/model/surfaces.py": "import engine.patient.model.scan",
        "engine/implants/_abstract.py": "",
        "engine/implants/cage.py": "import engine.implants._abstract",
        "engine/implants/rod.py": "import engine.implants._abstract",
        "fem/solve.py": "from engine import types, materials, artifacts",
        "objectives/one.py": "import engine.core",
        "scripts/run.py": "import engine.patient.model.scan, objectives.one, fem.solve",
    }
    forbidden = [
        ("engine/core.py", "import objectives.one"),
        ("engine/core.py", "import engine.patient.model.scan"),
        ("fem/solve.py", "import engine.core"),
        ("fem/solve.py", "import objectives.one"),
        ("objectives/one.py", "import fem.solve"),
        ("engine/implants/cage.py", "import engine.implants.rod"),
    ]
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(
        text[text.index("[tool.importlinter]") : text.index("# -- pytest")]
    )

    def broken(files: dict[str, str]) -> bool:
        for path, code in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (target.parent / "__init__.py").touch()
            target.write_text(code + "\n")
        code = (
            "import sys; from importlinter.cli import lint_imports;"
            " sys.exit(lint_imports(no_cache=True))"
        )
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert "Contracts:" in done.stdout, done.stdout + done.stderr
        return done.returncode != 0

    assert not broken(allowed)
    for path, code in forbidden:
        assert broken({**allowed, path: code}), f"{path}: '{code}' passed"


def test_doctor_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "MODULES", ("numpy", "no_such_module"))
    monkeypatch.setattr(machine, "CHECKS", (machine.imports,))
    assert [f.name for f in machine.check()] == ["import no_such_module"]
    with pytest.raises(SystemExit, match="no_such_module"):
        machine.require()
    monkeypatch.setattr(machine, "FILTERS", ("no_such_filter",))
    assert "no_such_filter" in machine.pymeshlab_filters()[0].problem
    assert "segmentation fault" in str(machine.in_child("import os; os.kill(os.getpid(), 11)"))
    assert "no answer" in str(machine.in_child("import time; time.sleep(9)", timeout_s=0.5))
