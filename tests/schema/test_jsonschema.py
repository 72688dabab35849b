from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest

from autopart.cli.schema import FormatName
from autopart.schema.jsonschema import FORMATS, json_schema
from autopart.schema.store import dump
from tests.paper import a_measurement, a_plan


def test_every_format_can_be_asked_for() -> None:
    assert set(get_args(FormatName)) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_it_names_the_fields_and_refuses_others(name: str) -> None:
    schema = json.loads(json_schema(name))
    top = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    fields = dataclasses.fields(FORMATS[name])
    assert list(top["properties"]) == [each.name for each in fields]
    assert all(each["additionalProperties"] is False for each in schema["$defs"].values() if "properties" in each)


@pytest.mark.parametrize(("name", "thing"), [("plan", a_plan()), ("measurement", a_measurement())])
def test_what_is_written_has_these_fields_at_every_depth(name: str, thing: Any) -> None:
    schema = json.loads(json_schema(name))

    def check(rule: dict[str, Any], data: Any) -> None:
        if "$ref" in rule:
            rule = schema["$defs"][rule["$ref"].removeprefix("#/$defs/")]
        if "properties" in rule and isinstance(data, dict):
            assert set(rule.get("required", ())) <= set(data) <= set(rule["properties"])
            for key, value in data.items():
                check(rule["properties"][key], value)
        if isinstance(data, list) and isinstance(rule.get("items"), dict):
            for each in data:
                check(rule["items"], each)

    check(schema, json.loads(dump(thing)))
    with pytest.raises(AssertionError):
        check(schema, {**json.loads(dump(thing)), "unknown": 1})
