"""What a case of api_cases.json may expect of a value, an answer or a message (api.md 17)."""

import re
from collections.abc import Iterator
from typing import Any

from tests.server.client import Answer

MISSING: Any = type("Missing", (), {"__repr__": lambda _: "<missing>"})()

_TYPES: dict[str, Any] = {
    "string": lambda v: isinstance(v, str),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "list": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


class CaseError(AssertionError):
    """An expectation of a case does not hold, or a precondition cannot be made true."""


def check(condition: bool, text: str) -> None:
    __tracebackhide__ = True
    if not condition:
        raise CaseError(text)


def lookup(value: Any, path: str) -> list[tuple[str, Any]]:
    """All (path, value) pairs that a dotted path names; `*` is every element, MISSING an absent value."""
    found = [("", value)]
    for part in path.split(".") if path else []:
        found = [
            (f"{where}.{key}".lstrip("."), v) for where, parent in found for key, v in _step(parent, part)
        ]
    return found


def _join(where: str, key: str) -> str:
    return f"{where}.{key}".lstrip(".")


def _step(parent: Any, part: str) -> Iterator[tuple[str, Any]]:
    if part == "*":
        if isinstance(parent, dict):
            yield from parent.items()
        elif isinstance(parent, list):
            yield from ((str(i), v) for i, v in enumerate(parent))
        else:
            yield part, MISSING
    elif isinstance(parent, dict):
        yield part, parent.get(part, MISSING)
    elif isinstance(parent, list) and part.isdigit() and int(part) < len(parent):
        yield part, parent[int(part)]
    else:
        yield part, MISSING


def differences(expected: Any, actual: Any, where: str = "") -> list[str]:
    """Where `actual` contradicts `expected`: keys as a subset, lists element by element, numbers to 1e-6."""
    here = where or "the whole"
    if isinstance(expected, dict) and isinstance(actual, dict):
        return [
            d for k, v in expected.items() for d in differences(v, actual.get(k, MISSING), _join(where, k))
        ]
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{here}: {len(actual)} elements instead of {len(expected)}: {actual!r}"]
        return [d for i, v in enumerate(expected) for d in differences(v, actual[i], _join(where, str(i)))]
    return [] if _equal(expected, actual) else [f"{here}: expected {expected!r}, got {actual!r}"]


def _equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, bool) or isinstance(actual, bool) or not isinstance(actual, int | float):
        return type(expected) is type(actual) and bool(expected == actual)
    return isinstance(expected, int | float) and abs(expected - actual) <= 1e-6


def check_subset(expected: Any, actual: Any, what: str) -> None:
    problems = differences(expected, actual)
    check(not problems, f"{what}: " + "; ".join(problems))


def check_types(types: dict[str, str], value: Any) -> None:
    for path, alternatives in types.items():
        for where, found in lookup(value, path):
            fits = any(_TYPES[name](found) for name in alternatives.split("|"))
            check(fits, f"{where}: expected {alternatives}, got {found!r}")


def check_answer(expect: dict[str, Any], answer: Answer) -> None:
    """Compare an HTTP answer with the `expect` of its step. Raises CaseError."""
    accepted = expect.get("status", [])
    accepted = [accepted] if isinstance(accepted, int) else accepted
    status_fits = not accepted or answer.status in accepted
    check(status_fits, f"status {answer.status} instead of {accepted}: {answer.text[:400]}")
    needs_json = any(key in expect for key in ("json", "types", "absent")) or any(expect.get("contains", {}))
    value = _parsed(answer) if needs_json else None
    if "json" in expect:
        check_subset(expect["json"], value, "body")
    check_types(expect.get("types", {}), value)
    for path in expect.get("absent", []):
        check(all(v is MISSING for _, v in lookup(value, path)), f"{path} must not exist")
    for path, part in expect.get("contains", {}).items():
        text = answer.text if path == "" else str(lookup(value, path)[0][1])
        check(part.lower() in text.lower(), f"{path or 'body'}: {part!r} is not in {text[:400]!r}")
    for name, pattern in expect.get("headers", {}).items():
        header = answer.headers.get(name.lower(), "")
        check(
            re.search(pattern, header, re.IGNORECASE) is not None,
            f"header {name}: {header!r} lacks {pattern!r}",
        )


def _parsed(answer: Answer) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise CaseError(f"the body is not JSON: {answer.text[:400]!r}") from None
