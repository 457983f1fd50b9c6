"""Where the numbers come from: versions, machine, revision, dates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pynode.study.reporting.source import Source
from pynode.study.reporting.units import day

__all__ = ["differences", "provenance"]

_SHOWN = 12  # letters of a digest
_NAMES = {"pynode": "pynode", "revision": "Git revision of pynode", "memory_mb": "Memory, MB"}


def provenance(source: Source) -> list[dict[str, Any]]:
    """For each environment: its name, the cells in it, when, and its facts in words."""
    rows = defaultdict(list)
    for row in source.rows:
        rows[str(row.get("environment") or "")].append(row)
    found = []
    for name in dict.fromkeys([*rows, *source.environments]):
        own = rows.get(name, [])
        times = sorted(row[key] for row in own for key in ("started", "ended") if row.get(key))
        threads = sorted({row["threads"] for row in own if row.get("threads") is not None})
        dtypes = sorted({str(row["dtype"]) for row in own if row.get("dtype")})
        facts = [
            ("Cells", str(len(own))),
            ("Measured", f"{day(times[0])} to {day(times[-1])}" if times else ""),
            ("Threads of a contender", ", ".join(map(str, threads))),
            ("Precision", ", ".join(dtypes)),
            *_facts(source.environments.get(name, {})),
        ]
        found.append({"name": name, "facts": [(key, text) for key, text in facts if text]})
    return found


def _facts(environment: Mapping[str, Any], of: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in environment.items():
        name = f"{of} {key}".strip() if of else _NAMES.get(key, key.replace("_", " ").capitalize())
        if isinstance(value, Mapping) and any(isinstance(part, Mapping) for part in value.values()):
            found += _facts(value, name)
        elif isinstance(value, Mapping):
            found.append((name, ", ".join(f"{part} {version}" for part, version in sorted(value.items()) if version)))
        elif isinstance(value, (list, tuple)):
            found.append((name, ", ".join(map(str, value))))
        else:
            found.append((name, "" if value is None else str(value)))
    return found


def differences(a: Source, b: Source) -> list[tuple[str, str, str]]:
    """The facts of the environments that two studies do not share, with their values in each.

    So are the digests of problems that have one name and are not the same.
    """
    sides = [_values(source) for source in (a, b)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    pairs = [(name, sides[0].get(name, ""), sides[1].get(name, "")) for name in names]
    contents = [{name: known.get("content", "") for name, known in source.problems.items()} for source in (a, b)]
    both = [name for name in contents[0] if contents[0][name] and contents[1].get(name)]
    pairs += [(f"digest of the problem {name}", *(side[name][:_SHOWN] for side in contents)) for name in both]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _values(source: Source) -> dict[str, str]:
    """Each fact with its values over the environments; packages one by one."""
    values: dict[str, list[str]] = defaultdict(list)

    def put(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for part, inner in value.items():
                put(f"{name} {part}".removeprefix("packages "), inner)
        elif value is not None and str(value) not in values[name]:
            values[name].append(str(value))

    used = {str(row.get("environment")) for row in source.rows}
    for key, environment in source.environments.items():
        if key in used:
            for name, value in environment.items():
                put(name, value)
    for row in source.rows:
        for name in ("threads", "dtype"):
            put(name, row.get(name))
    return {name: ", ".join(sorted(texts)) for name, texts in values.items() if texts}
