"""The committed results of benchmarks agree with themselves and with the recipe that they say they ran."""

import json
from pathlib import Path

import pytest

import vaezoo

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_json_and_name_their_versions(path):
    result = json.loads(path.read_text())
    runs = [result] if "versions" in result else list(result.values())
    assert runs
    assert all(run["versions"]["torch"] for run in runs)


def test_the_trainer_learns_as_well_as_a_plain_loop():
    result = json.loads((RESULTS / "plain_loop.json").read_text())
    difference = result["vaezoo"]["value"] - result["plain_loop"]["value"]
    assert difference == pytest.approx(result["difference"])
    assert result["matched"] == (difference < result["tolerance"])
    assert result["matched"], f"the zoo's trainer is {difference:.2f} nats worse than a plain loop"
    assert result["epochs"] == vaezoo.describe("vae")["recipes"]["*"]["epochs"]


def test_plain_loop_data_are_the_published_images(real_data):
    result = json.loads((RESULTS / "plain_loop.json").read_text())
    assert real_data("fashion_mnist").header() == result["data"]
