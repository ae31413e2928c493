"""Settings that cannot be used, and what is said about them."""

from pathlib import Path

import pytest

from gateway.config import Config
from streaming.errors import WanstreamError


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("two\nlines", "control character"),
        ("no-utf-8-\udcff", "not valid UTF-8"),
        ("/".join(["long"] * 800), "longer than 3584 bytes"),
        ("long" * 80, "File name too long"),
    ],
)
@pytest.mark.parametrize("variable", ["WANSTREAM_HOME", "WANSTREAM_ENGINES_DIR"])
def test_a_directory_that_some_part_could_not_use_is_refused_in_a_sentence(
    variable: str, name: str, problem: str, tmp_path: Path
) -> None:
    env = {"WANSTREAM_HOME": str(tmp_path), variable: str(tmp_path / name)}

    with pytest.raises(WanstreamError, match=problem) as caught:
        Config.from_env(env).directories.create()

    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 500
    assert variable in text


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"PIPELINE": "longlive", "WANSTREAM_PIPELINE_PARAMS": "height=320"}, "it is not JSON"),
        ({"PIPELINE": "longlive", "WANSTREAM_PIPELINE_PARAMS": "[320]"}, "must be a JSON object"),
        ({"WANSTREAM_PIPELINE_PARAMS": '{"height": 320}'}, "needs PIPELINE"),
        ({"WANSTREAM_LOCKED": "on"}, "needs PIPELINE"),
        ({"WANSTREAM_VIEW_TOKEN": "v"}, "set WANSTREAM_TOKEN, too"),
        ({"WANSTREAM_LOCKED": "yes"}, "must be one of on, off"),
    ],
    ids=str,
)
def test_a_lock_or_load_parameters_that_make_no_sense_are_refused(env: dict[str, str], problem: str) -> None:
    with pytest.raises(WanstreamError, match=problem):
        Config.from_env(env)


def test_neither_token_is_shown() -> None:
    config = Config.from_env({"WANSTREAM_TOKEN": "secret-1", "WANSTREAM_ADMIN_TOKEN": "secret-2"})

    assert "secret-" not in repr(config)


def test_shared_encoders_and_the_low_tier_are_on_unless_they_are_switched_off() -> None:
    config = Config.from_env({})
    off = Config.from_env({"WANSTREAM_SHARED_ENCODERS": "off", "WANSTREAM_LOW_TIER": "OFF"})

    assert (config.shared_encoders, config.low_tier) == (True, True)
    assert (off.shared_encoders, off.low_tier) == (False, False)
    with pytest.raises(WanstreamError, match="WANSTREAM_LOW_TIER must be one of on, off"):
        Config.from_env({"WANSTREAM_LOW_TIER": "maybe"})
