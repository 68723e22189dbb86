"""Licences of every locked package, and known vulnerabilities of the lock (``make audit``).

Licences come from what is installed, so that half works without a network. Vulnerabilities come
from osv.dev, which is asked once for all packages; names and versions are all that is sent.
"""

import argparse
import csv
import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

OSV = "https://api.osv.dev/v1/querybatch"
#: Words of licences that let the suite be used and passed on under its own licence.
PERMISSIVE = re.compile(
    r"\b(apache|mit|bsd|isc|psf|python software foundation|unlicense|cc0|zlib|hpnd|mpl|mozilla|"
    r"0bsd|public domain|zpl|lgpl|historical permission notice|python-2\.0|pil|boost|unicode)",
    re.IGNORECASE,
)
#: NVIDIA's run-time libraries come with torch; they may be used and passed on with it.
VENDOR = re.compile(r"^(nvidia|cuda)-")


def locked(text: str) -> dict[str, str]:
    """Name → version of every requirement of a lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.MULTILINE))


def licence(package: metadata.Distribution) -> str:
    """What a package says of its licence, in one line: expression, classifiers, or first words."""
    found = package.metadata
    classifiers = [
        c.rpartition(" :: ")[2]
        for c in found.get_all("Classifier") or []
        if c.startswith("License ::") and not c.endswith("OSI Approved")
    ]
    stated = found.get("License-Expression") or "; ".join(classifiers) or found.get("License") or ""
    if stated.strip().upper() in ("", "UNKNOWN"):
        stated = _licence_file(package)
    return (stated.strip().splitlines() or ["unknown"])[0].strip()[:80]


def _licence_file(package: metadata.Distribution) -> str:
    """The licence's own text, where the package names none."""
    files = [f for f in package.files or [] if re.match(r"(licen[cs]e|copying)", f.name, re.I)]
    return (files[0].read_text() if files else "") or ""


def licences(names: Iterable[str]) -> list[dict[str, str]]:
    """A row for every package of the lock that is installed here."""
    rows = []
    for name in sorted(names, key=str.lower):
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        rows.append({"package": name, "version": package.version, "licence": licence(package)})
    return rows


def doubtful(rows: list[dict[str, str]]) -> list[str]:
    """Packages whose licence is none of the permissive ones."""
    return [
        f"{row['package']} {row['version']}: {row['licence']}"
        for row in rows
        if not PERMISSIVE.search(row["licence"]) and not VENDOR.match(row["package"])
    ]


def ask(body: bytes) -> bytes:
    """One question to osv.dev."""
    request = urllib.request.Request(OSV, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def vulnerabilities(pins: dict[str, str], ask: Callable[[bytes], bytes] = ask) -> list[str]:
    """Known vulnerabilities of exact versions, as "name version: ID, ID".

    Raises:
        OSError: osv.dev cannot be reached.
        ValueError: its answer is not what it documents.
    """
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
        for name, version in pins.items()
    ]
    results = json.loads(ask(json.dumps({"queries": queries}).encode()))["results"]
    if len(results) != len(queries):
        raise ValueError(f"{len(results)} answers to {len(queries)} questions")
    return [
        f"{name} {version}: {', '.join(found['id'] for found in result['vulns'])}"
        for (name, version), result in zip(pins.items(), results, strict=True)
        if result.get("vulns")
    ]


def main(arguments: list[str] | None = None, ask: Callable[[bytes], bytes] = ask) -> int:
    """Audit; 0 where all is well, 1 for findings, 2 where osv.dev gave no answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path, nargs="+")
    parser.add_argument("--licences", type=Path, required=True, help="CSV file to write")
    chosen = parser.parse_args(arguments)
    pins: dict[str, str] = {}
    for lock in chosen.lock:
        pins |= locked(lock.read_text(encoding="utf-8"))
    rows = licences(pins)
    chosen.licences.parent.mkdir(parents=True, exist_ok=True)
    with chosen.licences.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["package", "version", "licence"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"licences of {len(rows)} installed packages of {len(pins)} locked: {chosen.licences}")
    findings = [f"licence to look at: {line}" for line in doubtful(rows)]
    try:
        findings += [f"vulnerability: {line}" for line in vulnerabilities(pins, ask)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"audit: osv.dev gave no answer ({error}); vulnerabilities were not checked: run "
            "make audit again with a network",
            file=sys.stderr,
        )
        print("\n".join(findings), end="\n" if findings else "")
        return 2
    print("\n".join(findings) or f"no known vulnerability in {len(pins)} packages")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
