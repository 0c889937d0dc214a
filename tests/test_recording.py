"""Recording: a film of one whole episode, as the network sees it, that is written and decoded back with the real encoder."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces

from impala.config import EnvironmentConfig
from impala.environments import OBSERVATION, Hosting, VectorEnvironment, record_episode
from impala.environments.recording import as_picture
from impala.errors import ConfigError
from tests.test_environments import registered

STEPS = 5
LIT = np.eye(10)[:, :, np.newaxis] * np.ones(3)  # row n is lit at n


class Lamp(gymnasium.Env[np.ndarray, np.int64]):
    """Observes its count of steps, ends at 5, and draws 10 x 10 floats, black but for the place (count, count), which is white."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(0.0, 10.0, (1,))
    action_space = spaces.Discrete(2)
    draws: ClassVar[Any] = staticmethod(lambda count: LIT * (np.arange(10) == count)[:, np.newaxis, np.newaxis])

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._count += 1
        return np.full(1, self._count, np.float32), 10.0 + action, self._count == STEPS, False, {}

    def render(self) -> Any:
        return type(self).draws(self._count)


class Odd(Lamp):
    """Draws an odd number of rows and columns that are large enough as they are."""

    draws = staticmethod(lambda count: np.full((201, 303, 3), 40 * count, np.uint8))


class Growing(Lamp):
    draws = staticmethod(lambda count: np.zeros((160 + 2 * count, 160, 3), np.uint8))


class Dark(Lamp):
    draws = staticmethod(lambda count: None)


class ForHumansOnly(Lamp):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human"]}


class Timeless(Lamp):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}


@pytest.fixture(name="lamp")
def _lamp() -> Iterator[str]:
    with registered("LampForTests-v0", entry_point=Lamp) as environment_id:
        yield environment_id


def record(environment_id: str, folder: Path, act: Any = lambda *_: np.array([1]), **kwargs: Any) -> float:
    return record_episode(EnvironmentConfig(environment_id=environment_id), folder, act=act, seed=7, **kwargs)


def decode(path: Path, height: int, width: int) -> np.ndarray:
    """Returns the frames of a film, [N, H, W, 3] uint8."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(decoded, np.uint8).reshape(-1, height, width, 3)


def test_a_recording_is_of_one_whole_episode_as_the_network_sees_it(lamp: str, tmp_path: Path) -> None:
    shown: list[Any] = []

    def act(observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        shown.append(([observations[name].tolist() for name in (OBSERVATION, "last_action", "last_reward")], is_first.tolist()))
        return np.array([1])

    assert record(lamp, tmp_path / "new" / "folder", act, last_action_reward=True) == STEPS * 11.0
    first, *others = shown
    assert first == ([[[0]], [0], [0.0]], [True])
    assert others == [([[[count]], [2], [11.0]], [False]) for count in range(1, STEPS)]
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert path.name == "episode-7.mp4"
    # A place of 10 x 10 is 16 x 16 pixels, of which the middle is as it was drawn.
    places = decode(path, 160, 160)[:, 8::16, 8::16].astype(int)
    expected = np.stack([Lamp.draws(count) * 255 for count in range(STEPS + 1)])
    assert places.shape == expected.shape
    assert np.abs(places - expected).max() < 16


def test_a_film_lasts_as_long_as_the_environment_says_in_a_form_that_browsers_play(lamp: str, tmp_path: Path) -> None:
    record(lamp, tmp_path)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "episode-7.mp4")]
    said = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False).stderr
    (stream,) = [line for line in said.splitlines() if "Video:" in line]
    assert "h264" in stream
    assert "yuv420p" in stream
    assert "10 fps" in stream


def test_large_pictures_keep_their_size_but_for_odd_sides(tmp_path: Path) -> None:
    with registered(entry_point=Odd) as environment_id:
        record(environment_id, tmp_path)
    film = decode(tmp_path / "episode-7.mp4", 202, 304)
    grey = np.arange(STEPS + 1)[:, np.newaxis] * 40
    assert np.abs(film.reshape(STEPS + 1, -1).astype(int) - grey).max() < 16


@pytest.mark.parametrize(
    ("frame", "colour"),
    [
        (np.full((10, 10, 3), 0.4), (102, 102, 102)),
        (np.full((10, 10, 3), [0.0, 1.0, 1.5], np.float32), (0, 255, 255)),
        (np.ones((10, 10), np.bool_), (255, 255, 255)),
        (np.full((10, 10, 3), [1, 2, 3], np.uint8), (1, 2, 3)),
        (np.full((10, 10, 3), [1, -2, 300], np.int64), (1, 0, 255)),
        (np.full((10, 10, 4), [1, 2, 3, 4], np.uint8), (1, 2, 3)),
        (np.full((10, 10, 1), 9, np.uint8), (9, 9, 9)),
        (np.full((10, 10), 9, np.uint8), (9, 9, 9)),
    ],
    ids=["floats", "floats-beyond", "booleans", "bytes", "integers", "alpha", "one-channel", "grey"],
)
def test_whatever_numbers_a_frame_is_of_a_picture_is_of_bytes(frame: np.ndarray, colour: tuple[int, int, int]) -> None:
    picture = as_picture(frame)
    assert (picture.shape, picture.dtype) == ((160, 160, 3), np.uint8)
    assert (picture == colour).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 10), (160, 160)), ((84, 84), (168, 168)), ((7, 30), (162, 690)), ((160, 210), (160, 210)), ((400, 601), (400, 602))],
)
def test_small_frames_are_enlarged_by_a_whole_number_and_sides_are_even(size: tuple[int, int], expected: tuple[int, int]) -> None:
    frame = np.arange(size[0] * size[1], dtype=np.uint32).reshape(*size, 1).repeat(3, 2) % 251
    picture = as_picture(frame)
    assert picture.shape == (*expected, 3)
    factor = expected[0] // size[0]
    for row, column in ((0, 0), (size[0] - 1, size[1] - 1)):
        place = picture[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert (place == frame[row, column]).all()
    assert (picture[-1, -1] == frame[-1, -1]).all()


def test_a_recording_never_overwrites_another(lamp: str, tmp_path: Path) -> None:
    older = [tmp_path / name for name in ("episode-7.mp4", "episode-7-2.mp4")]
    for path in older:
        path.write_text("of another run")
    record(lamp, tmp_path)
    assert [path.read_text() for path in older] == ["of another run"] * 2
    assert len(decode(tmp_path / "episode-7-3.mp4", 160, 160)) == STEPS + 1


def test_a_name_that_ffmpeg_would_take_for_something_else_is_a_file(
    lamp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(lamp, Path("run:1"))
    assert len(decode(tmp_path / "run:1" / "episode-7.mp4", 160, 160)) == STEPS + 1


def test_an_episode_that_fails_leaves_no_file(lamp: str, tmp_path: Path) -> None:
    def act(observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        if not is_first[0]:
            raise ZeroDivisionError
        return np.array([1])

    with pytest.raises(ZeroDivisionError):
        record(lamp, tmp_path, act)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        (ForHumansOnly, r"expected an environment that renders rgb_array, came CounterForTests-v0, which renders \['human'\]"),
        (lambda **_: Dark(), r"CounterForTests-v0 as rgb_array: expected an array \[H, W, 3\], came NoneType"),
        (Growing, "expected pictures of 160 x 160, came 160 x 162"),
    ],
    ids=["none", "none-unsaid", "growing"],
)
def test_an_environment_without_pictures_of_one_size_is_refused(entry_point: Any, reason: str, tmp_path: Path) -> None:
    with registered(entry_point=entry_point) as environment_id, pytest.raises(ConfigError, match=f"^video: {reason}$"):
        record(environment_id, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame", [np.zeros((10, 10, 2)), np.zeros((0, 10, 3)), np.zeros((2, 10, 10, 3)), np.zeros((9, 9), str)])
def test_a_frame_that_is_no_picture_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an array \[H, W, 3\], came"):
        as_picture(frame)


@pytest.mark.parametrize(("environment_id", "package"), [("LampForTests-v0", "imageio_ffmpeg"), ("CartPole-v1", "pygame")])
def test_a_recording_without_its_packages_says_which_to_install(
    environment_id: str, package: str, lamp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"^video: .*{package}.*; pip install 'impala-grpc\[video\]'$"):
        record(environment_id, tmp_path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "ffmpeg failed: .*No such file.*"),
        ("#!/bin/sh\ncat > /dev/null\n", "expected ffmpeg to write .*, came an empty file"),
    ],
    ids=["missing", "silent"],
)
def test_an_ffmpeg_that_does_not_write_is_a_config_error(
    script: str | None, reason: str, lamp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffmpeg = tmp_path / "ffmpeg"
    if script:
        ffmpeg.write_text(script)
        ffmpeg.chmod(0o700)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    with pytest.raises(ConfigError, match=f"^video: {reason}$"):
        record(lamp, tmp_path / "video")
    assert list((tmp_path / "video").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_config_error(lamp: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"^video: expected a folder that can be written, came .*taken"):
        record(lamp, tmp_path / "taken")


def test_a_step_of_an_environment_that_does_not_say_lasts_a_thirtieth_of_a_second() -> None:
    with registered(entry_point=Timeless) as environment_id:
        assert fps(environment_id) == 30


@pytest.mark.parametrize(("kwargs", "expected"), [({}, 15), ({"frameskip": 2}, 30)], ids=str)
def test_a_step_of_an_atari_game_lasts_as_long_as_the_frames_that_it_repeats(kwargs: dict[str, Any], expected: float) -> None:
    assert fps("ALE/Pong-v5", **kwargs) == expected


def fps(environment_id: str, **kwargs: Any) -> float:
    config = EnvironmentConfig(environment_id=environment_id, kwargs=kwargs)
    environment = VectorEnvironment(config, 1, hosting=Hosting(vectorization="sync"), rendered=True)
    try:
        return environment.render_fps
    finally:
        environment.close()
