"""The check stage keeps what it has when an arm's process dies."""

from __future__ import annotations

import os

from scripts.run import check


def test_a_dead_process_is_a_status_of_its_arm_and_not_an_exception(monkeypatch):
    monkeypatch.setattr(check, "check", os._exit)
    found = check.check_in_process(3)
    assert found.response is None
    assert found.status.code == "failed" and "died" in found.status.text
