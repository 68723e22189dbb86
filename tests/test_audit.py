"""The audit of packages: licences without a network, vulnerabilities from one answer."""

import importlib.util
import json
from pathlib import Path

import pytest

ENVS = Path(__file__).parents[1] / "envs"
SPEC = importlib.util.spec_from_file_location("audit", ENVS / "audit.py")
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

LOCK = """\
numpy==2.0.1 \\
    --hash=sha256:00
PyYAML==6.0 ; sys_platform == "linux" \\
    --hash=sha256:00
    # via numpy
not-installed-anywhere==1.0 \\
    --hash=sha256:00
"""


@pytest.fixture
def call(tmp_path, capsys):
    """call(answer): the audit of the lock above; exit code, output and licences."""
    lock, table = tmp_path / "x.lock", tmp_path / "a/licences.csv"
    lock.write_text(LOCK)

    def run(answer):
        code = audit.main([str(lock), "--licences", str(table)], answer)
        return code, capsys.readouterr(), table.read_text()

    return run


def test_the_lock_is_read_whole():
    pins = audit.locked(LOCK)
    assert pins == {"numpy": "2.0.1", "PyYAML": "6.0", "not-installed-anywhere": "1.0"}
    whole = (ENVS / "requirements.lock").read_text()
    hashed = sum("==" in line and line[0].isalnum() for line in whole.splitlines())
    assert len(audit.locked(whole)) > 150 and hashed >= len(audit.locked(whole))


def test_one_question_names_every_package(call):
    asked = []

    def clean(body):
        asked.append(json.loads(body)["queries"])
        return json.dumps({"results": [{}] * 3}).encode()

    code, printed, table = call(clean)
    assert code == 0 and "no known vulnerability in 3 packages" in printed.out
    assert [q["version"] for q in asked[0]] == ["2.0.1", "6.0", "1.0"] and len(asked) == 1
    assert table.splitlines()[0] == "package,version,licence" and "PyYAML" in table
    assert "not-installed" not in table


def test_a_vulnerability_is_named_and_fails(call):
    found = {"vulns": [{"id": "GHSA-1"}, {"id": "CVE-2"}]}
    code, printed, _ = call(lambda body: json.dumps({"results": [{}, found, {}]}).encode())
    assert code == 1 and "vulnerability: PyYAML 6.0: GHSA-1, CVE-2" in printed.out


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[]", b'{"results": [{}]}'])
def test_an_answer_that_is_none_is_one_line(call, answer):
    code, printed, table = call(lambda body: answer)
    assert code == 2 and "numpy" in table
    assert len(printed.err.splitlines()) == 1 and "not checked" in printed.err


def test_no_network_is_one_line_and_the_licences_stand(call):
    def unplugged(body):
        raise OSError("network is unreachable")

    code, printed, table = call(unplugged)
    assert code == 2 and "numpy" in table
    assert len(printed.err.splitlines()) == 1 and "network is unreachable" in printed.err


@pytest.mark.parametrize(
    ("licence", "fine"),
    [("MIT", True), ("BSD-3-Clause", True), ("Apache Software License", True),
     ("GPL-3.0-only", False), ("unknown", False), ("Proprietary", False)],
)  # fmt: skip
def test_licences_that_need_a_look(licence, fine):
    row = {"package": "x", "version": "1", "licence": licence}
    assert (audit.doubtful([row]) == []) is fine
    assert audit.doubtful([row | {"package": "nvidia-x"}]) == []
