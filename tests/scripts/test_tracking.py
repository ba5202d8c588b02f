"""What a finished run leaves in MLflow: told to a stand-in that keeps it, and to the real one
where it is installed."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml

from engine import artifacts
from scripts.run import tracking
from scripts.run.tracking import MlflowConfig
from tests.report.example import example, history


class Recorder:
    def __init__(self):
        self.params, self.metrics, self.files, self.starts = {}, [], [], []

    def set_tracking_uri(self, uri):
        if uri == "away":
            raise ConnectionError("no route to host")

    def set_experiment(self, name): ...

    @contextmanager
    def start_run(self, run_id=None, run_name=None):
        self.starts.append((run_id, run_name))
        yield SimpleNamespace(info=SimpleNamespace(run_id=run_id or "r1"))

    def log_params(self, values):
        assert len(values) <= 100 and all(len(v) <= 500 for v in values.values())
        assert not set(values) & set(self.params), "a parameter cannot be logged twice"
        self.params |= values

    def log_metrics(self, values, step=None):
        assert all(isinstance(v, float | int) for v in values.values())
        self.metrics.append((step, values))

    def log_artifact(self, path):
        self.files.append(path)


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    return made


@pytest.fixture
def folder(tmp_path):
    study = {
        "goals": [{"objective": "yielded_bone", "weight": 1.0}],
        "settings": {f"k{i}": i for i in range(150)},
    }
    settings = {"title": "x" * 900, "study": study}
    artifacts.write_text(tmp_path / "config.yaml", yaml.safe_dump(settings))
    artifacts.write_json(tmp_path / "result.json", example())
    for row in history():
        artifacts.append_jsonl(
            tmp_path / "history.jsonl", row | {"violation": row["violation"] or 0.0}
        )
    return tmp_path


def test_parameters_metrics_and_files_are_logged_once_and_a_second_time_into_the_same_run(
    recorder, folder
):
    config = MlflowConfig(uri="sqlite:///x.db")
    tracking.track(folder, config)
    assert (
        len(recorder.params) == 153 and recorder.params["study.goals.0.objective"] == "yielded_bone"
    )
    steps = [s for s, v in recorder.metrics if "objective" in v]
    assert steps == list(range(40))
    last = recorder.metrics[-1][1]
    assert (
        last["stock.yielded_bone_volume"] == 843.2
        and "conforming_central.yielded_bone_volume" not in last
    ), "a failed arm has no number"
    assert {f.rsplit("/", 1)[1] for f in recorder.files} == {"result.json", "config.yaml"}
    tracking.track(folder, config)
    assert recorder.starts == [(None, folder.name), ("r1", None)]


def test_a_server_that_is_away_is_a_warning_and_off_is_off(recorder, folder, caplog):
    tracking.track(folder, MlflowConfig(uri="away"))
    assert "no route to host" in caplog.text
    tracking.track(folder, MlflowConfig())
    assert not recorder.starts


def test_asked_for_and_not_installed_it_is_said_before_the_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        MlflowConfig(uri="sqlite:///x.db").require()
    MlflowConfig().require()


def test_the_real_one_takes_it(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.chdir(folder)  # with a database alone, MLflow puts its files into ./mlruns
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for _ in range(2):
        tracking.track(folder, MlflowConfig(uri=uri, experiment="test"))
    mlflow.set_tracking_uri(uri)
    runs = mlflow.search_runs(experiment_names=["test"], output_format="list")
    assert len(runs) == 1 and runs[0].data.metrics["stock.yielded_bone_volume"] == 843.2
    assert runs[0].data.params["study.goals.0.objective"] == "yielded_bone"
