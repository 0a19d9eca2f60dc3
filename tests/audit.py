"""`make audit`: known vulnerabilities of the pinned packages, by pip-audit.

Exit code 0: none is known, or the advisory service could not be asked, which a line then says.
1: some are known. 2: pip-audit is missing or failed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import InputError, Parser, command, excerpt, some
from engine.files import ROOT

REQUIREMENTS = ("requirements.txt", "requirements-optional.txt")
FLAGS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
OFFLINE = re.compile(r"connect|resolv|timed out|unreachable|proxy|max retries", re.IGNORECASE)
NOT_ASKED = "nothing was audited: the advisory service"


def judged(out: str, error: str) -> tuple[list[str], bool]:
    """What pip-audit's JSON, or its error, comes to: lines, and whether a package is vulnerable."""
    try:
        found = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError) as failure:
        last = (error.strip().splitlines() or ["no message"])[-1]
        if OFFLINE.search(error):
            return [f"{NOT_ASKED} cannot be reached ({excerpt(last, 120)})"], False
        raise InputError(f"pip-audit failed: {excerpt(last)}") from failure
    skipped = [package["name"] for package in found if "skip_reason" in package]
    if len(skipped) == len(found):
        return [f"{NOT_ASKED} knows none of {len(found)} packages, or cannot be reached"], False
    lines = [line for package in found for line in _vulnerabilities(package)]
    audited = len(found) - len(skipped)
    summary = f"{audited} packages audited, known vulnerabilities: {len(lines)}"
    unknown = f"; unknown there: {some(skipped)}" if skipped else ""
    return [*lines, summary + unknown], bool(lines)


def _vulnerabilities(package: dict) -> list[str]:
    return [
        f"{package['name']} {package['version']}: {known['id']}, "
        f"mended in {some(known['fix_versions'])}"
        for known in package.get("vulns", [])
    ]


@command
def main():
    Parser(__doc__).parse_args()
    files = [word for name in REQUIREMENTS for word in ("--requirement", name)]
    words = [sys.executable, "-m", "pip_audit"]
    if subprocess.run([*words, "--version"], capture_output=True).returncode:
        raise InputError(f"pip-audit is missing: {sys.executable} -m pip install pip-audit")
    done = subprocess.run([*words, *FLAGS, *files], cwd=ROOT, capture_output=True, text=True)
    lines, vulnerable = judged(done.stdout, done.stderr)
    print("\n".join(lines))
    sys.exit(int(vulnerable))


if __name__ == "__main__":
    main()
