from __future__ import annotations

import json
from typing import Literal

import pytest
from pydantic import Field, PositiveFloat, ValidationError

from vaezoo.config import BaseConfig, describe_fields
from vaezoo.errors import VaezooError


class Config(BaseConfig):
    size: int = Field(3, ge=1, le=9, description="how large")
    rate: PositiveFloat | None = Field(None, description="how fast")
    kind: Literal["a", "b"] = Field("a", description="which")
    widths: tuple[int, ...] = Field((1, 2), description="how wide")
    table: dict[str, float] = Field({}, description="what")


class Required(BaseConfig):
    path: str = Field(description="where")


def test_parse():
    config = Config.parse({"size": 4, "widths": [5], "rate": 2}, "thing")
    assert (config.size, config.widths, config.rate) == (4, (5,), 2.0)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    with pytest.raises(ValidationError):
        config.size = 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"size": 0},
            "thing: size=0 is not valid: Input should be greater than or equal to 1 (size: how large)",
        ),
        ({"widths": [1, "x"]}, "thing: widths[1]='x' is not valid"),
        ({"table": {"key": "x"}}, "thing: table[key]='x' is not valid"),
        ({"kind": "c"}, "thing: kind='c' is not valid: Input should be 'a' or 'b' (kind: which)"),
        ({"sise": 1}, "unknown option of thing 'sise'; did you mean 'size'? Available: kind, rate, size"),
        ({"rate": float("nan")}, "rate=nan is not valid"),
    ],
)
def test_one_sentence_for_each_mistake(options, sentence):
    with pytest.raises(VaezooError) as error:
        Config.parse(options, "thing")
    assert sentence in str(error.value)


def test_all_mistakes_are_listed_and_long_values_shortened():
    with pytest.raises(VaezooError) as error:
        Config.parse({"size": 0, "kind": "x" * 10_000}, "thing")
    text = str(error.value)
    assert "size=0" in text
    assert "kind='xxx" in text
    assert len(text) < 400


def test_missing_option():
    with pytest.raises(VaezooError, match=r"^thing needs the option 'path'$"):
        Required.parse({}, "thing")


def test_describe_fields():
    rows = {row["name"]: row for row in describe_fields(Config)}
    assert rows["size"] == {
        "name": "size",
        "type": "int",
        "default": "3",
        "limits": "≥ 1, ≤ 9",
        "meaning": "how large",
    }
    assert rows["rate"]["type"] == "float | None"
    assert rows["kind"]["type"] == "Literal['a', 'b']"
    assert rows["widths"]["type"] == "tuple[int, ...]"
    assert rows["table"]["type"] == "dict[str, float]"
    assert describe_fields(Required)[0]["default"] == "required"
