"""The matcher of the wire-level cases notices what it has to notice."""

from typing import Any

import pytest

from tests.server.client import Answer
from tests.server.expectations import MISSING, CaseError, check_answer, lookup

JSON = {"content-type": "application/json"}
GOOD = Answer(200, JSON, b'{"a": 1, "b": [{"c": "Text", "d": null}], "e": 0.25}')


@pytest.mark.parametrize(
    "expect",
    [
        {"status": 200},
        {"status": [200, 204]},
        {"json": {"a": 1}},
        {"json": {"b": [{"c": "Text"}]}},
        {"json": {"e": 0.25}},
        {"types": {"a": "int", "b.*.d": "object|null", "e": "number"}},
        {"absent": ["z", "b.1", "a.x"]},
        {"contains": {"b.0.c": "tex", "": '"a": 1'}},
        {"headers": {"Content-Type": "^application/JSON$"}},
    ],
    ids=str,
)
def test_true_expectation_passes(expect: dict[str, Any]) -> None:
    check_answer(expect, GOOD)

    assert GOOD.status == 200


@pytest.mark.parametrize(
    "expect",
    [
        {"status": 404},
        {"status": [400, 404]},
        {"json": {"a": 2}},
        {"json": {"a": True}},
        {"json": {"a": "1"}},
        {"json": {"z": None}},
        {"json": {"b": []}},
        {"json": {"b": [{"c": "Text"}, {}]}},
        {"json": {"b": [{"d": "x"}]}},
        {"types": {"a": "string"}},
        {"types": {"a": "bool"}},
        {"types": {"e": "int"}},
        {"types": {"z": "null"}},
        {"types": {"b.*.c": "object|null"}},
        {"types": {"a.*": "string"}},
        {"absent": ["a"]},
        {"absent": ["b.0.d"]},
        {"contains": {"b.0.c": "other"}},
        {"contains": {"": "other"}},
        {"headers": {"content-type": "html"}},
        {"headers": {"retry-after": "[0-9]+"}},
    ],
    ids=str,
)
def test_false_expectation_is_noticed(expect: dict[str, Any]) -> None:
    with pytest.raises(CaseError):
        check_answer(expect, GOOD)


def test_answer_that_is_not_json_fails_a_json_expectation() -> None:
    with pytest.raises(CaseError, match="not JSON"):
        check_answer({"json": {}}, Answer(200, {}, b"<html>"))


def test_lookup_names_every_element_behind_a_star() -> None:
    value = {"list": [{"x": 1}, {"x": 2}], "map": {"k": {"x": 3}}}

    assert lookup(value, "list.*.x") == [("list.0.x", 1), ("list.1.x", 2)]
    assert lookup(value, "map.*.x") == [("map.k.x", 3)]
    assert lookup(value, "list.5.x") == [("list.5.x", MISSING)]
