"""A finished run in MLflow, for teams that keep their runs there: off unless mlflow.uri is given
(extra `mlflow`).

Parameters are the resolved configuration, metrics every measure of every arm and the search's
objective and violation by iteration, artifacts the report, result.json and config.yaml. A job that
goes on takes up its own MLflow run (mlflow.json). Whatever MLflow does, the run folder is the
record: a server that is away is a warning.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from engine import artifacts

log = logging.getLogger("spinefit")
#: MLflow refuses longer values, and more parameters in one call.
_LONGEST, _MOST = 500, 100


class MlflowConfig(BaseModel):
    """uri: of the tracking server or a database (sqlite:///…); null: not used."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    uri: str | None = None
    experiment: str = "spinefit"

    def require(self) -> None:
        """Raises ValueError when it is asked for and not installed: before the work, not after
        it."""
        if self.uri is not None and importlib.util.find_spec("mlflow") is None:
            raise ValueError(
                "mlflow.uri needs MLflow: pip install 'spinefit[mlflow]', or leave out mlflow.uri"
            )


def flat(value: Any, path: str = "") -> dict[str, str]:
    """The configuration by dotted keys; longer values are cut."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, part in value.items()
            for k, v in flat(part, f"{path}.{key}" if path else str(key)).items()
        }
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{path}.{i}").items()}
    return {path: str(value)[:_LONGEST]}


def track(folder: Path, config: MlflowConfig) -> None:
    """Log a finished run folder. Problems are warnings."""
    if config.uri is None:
        return
    try:
        _log(folder, config)
    except Exception as error:  # a server away, a full store: the run itself is done
        log.warning("not logged to MLflow (%s): %s", config.uri, " ".join(str(error).split())[:300])


def _log(folder: Path, config: MlflowConfig) -> None:
    import mlflow

    mlflow.set_tracking_uri(config.uri)
    mlflow.set_experiment(config.experiment)
    held = folder / "mlflow.json"
    before = artifacts.read_json(held) if held.exists() else {}
    again = before.get("uri") == config.uri
    with mlflow.start_run(
        run_id=before["run_id"] if again else None, run_name=None if again else folder.name
    ) as run:
        artifacts.write_json(held, {"uri": config.uri, "run_id": run.info.run_id})
        if not again:
            parameters = list(flat(yaml.safe_load((folder / "config.yaml").read_text())).items())
            for first in range(0, len(parameters), _MOST):
                mlflow.log_params(dict(parameters[first : first + _MOST]))
        for row in artifacts.read_jsonl(folder / "history.jsonl"):
            mlflow.log_metrics(
                {k: row[k] for k in ("objective", "violation")}, step=row["iteration"]
            )
        if (folder / "result.json").exists():
            arms = artifacts.read_json(folder / "result.json")["arms"]
            values = {
                f"{arm}.{name}": m["value"]
                for arm, a in arms.items()
                for name, m in a["measures"].items()
            }
            mlflow.log_metrics({k: v for k, v in values.items() if v is not None})
        for name in ("report.html", "result.json", "config.yaml"):
            if (folder / name).exists():
                mlflow.log_artifact(str(folder / name))
    log.info("logged to MLflow (%s, %s)", config.uri, config.experiment)
