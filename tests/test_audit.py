"""`make audit` tells vulnerabilities, packages that nobody knows, and a service out of reach."""

import json

import pytest
from audit import judged

from engine.errors import InputError

SAFE = {"name": "numpy", "version": "2.4.6", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
WRONG = {
    "name": "tqdm",
    "version": "4.1",
    "vulns": [{"id": "PYSEC-2017-74", "fix_versions": ["4.11.2"], "aliases": []}],
}


@pytest.mark.parametrize(
    "packages, lines, vulnerable",
    [
        ([SAFE], ["1 packages audited, known vulnerabilities: 0"], False),
        (
            [SAFE, UNKNOWN],
            ["1 packages audited, known vulnerabilities: 0; unknown there: torch"],
            False,
        ),
        (
            [SAFE, WRONG],
            [
                "tqdm 4.1: PYSEC-2017-74, mended in 4.11.2",
                "2 packages audited, known vulnerabilities: 1",
            ],
            True,
        ),
    ],
)
def test_what_was_found_is_told(packages, lines, vulnerable):
    assert judged(json.dumps({"dependencies": packages, "fixes": []}), "") == (lines, vulnerable)


@pytest.mark.parametrize(
    "out, error",
    [
        (json.dumps({"dependencies": [UNKNOWN, UNKNOWN]}), "No known vulnerabilities found"),
        ("", "ERROR:pip_audit._cli:Could not connect to the service\n"),
        ("", "requests: Max retries exceeded with url: /v1/query\n"),
    ],
)
def test_a_service_that_was_not_asked_is_no_audit_and_no_error(out, error):
    [line], vulnerable = judged(out, error)
    assert line.startswith("nothing was audited: ") and not vulnerable


def test_another_failure_is_an_error():
    with pytest.raises(InputError, match="pip-audit failed: invalid requirement"):
        judged("", "Traceback\ninvalid requirement\n")
