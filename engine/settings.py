"""The base of all settings models, and their errors in one line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Settings that refuse unknown keys and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def one_line(error: Exception) -> str:
    """The error in one line; pydantic's with each key and what was given."""
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']} (given"
            f" {item['input']!r})"
            for item in error.errors()
        )
    return " ".join(str(error).split())
