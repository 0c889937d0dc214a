"""One episode as a video: an mp4 file that browsers play."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np

from impala.config import EnvironmentConfig
from impala.environments.making import Hosting
from impala.environments.vector import VectorEnvironment
from impala.errors import ConfigError
from impala.specs import EnvironmentSpec

_SHORTER_SIDE = 160
_QUALITY = 7  # of 10: in Pong the worst pixel is off by 76 of 255, by 117 at the encoder's own 5; files are a third larger


def record_episode(
    config: EnvironmentConfig,
    folder: Path,
    *,
    act: Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray],
    seed: int,
    spec: EnvironmentSpec | None = None,
    task: int = 0,
    last_action_reward: bool = False,
    hosting: Hosting = Hosting(),  # noqa: B008  frozen
) -> float:
    """Plays one episode, writes it to `folder` as an mp4 file, and returns its return.

    The file is episode-SEED.mp4 or, where that exists, episode-SEED-2.mp4 and so on. It has a picture of the first observation and
    one of each step's. Of an episode that fails nothing is left.

    Args:
        act: from observations, entry name to [1, ...], and is_first, [1], to actions, [1, *actions.shape].
        folder: made if missing.
        spec, task, last_action_reward: as for `VectorEnvironment`, as is what `act` is shown.

    Raises:
        ConfigError: as `VectorEnvironment`; what drawing or writing needs is not installed; the environment does not draw pictures;
            or the file cannot be written.
    """
    encoder = _encoder()
    environment = VectorEnvironment(
        config,
        1,
        last_action_reward=last_action_reward,
        spec=spec,
        task=task,
        hosting=replace(hosting, vectorization="sync"),
        rendered=True,
    )
    try:
        observations, is_first = environment.reset(seed), np.array([True])
        first = _draw(environment, config)
        with _new_file(folder, f"episode-{seed}") as path, _film(encoder, path, first.shape, environment.render_fps) as show:
            show(first)
            while True:
                transition = environment.step(act(observations, is_first))
                show(_draw(environment, config))
                if transition.episodes:
                    return transition.episodes[0].episode_return
                observations, is_first = transition.observations, transition.is_first
    finally:
        environment.close()


def as_picture(frame: Any) -> np.ndarray:
    """Returns what an environment drew as a picture to film: [H, W, 3] uint8, H and W even and at least 160.

    Small frames are enlarged by a whole number, so that their pixels stay squares; an odd side repeats its last row or column.

    Args:
        frame: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: integers in 0 .. 255, or floats or booleans in 0 .. 1.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"expected an array [H, W, 3], came {type(frame).__name__}")
    whole = frame[..., np.newaxis] if frame.ndim == 2 else frame
    if whole.dtype.kind not in "buif" or whole.ndim != 3 or whole.shape[2] not in (1, 3, 4) or not whole.size:
        raise ValueError(f"expected an array [H, W, 3], came {frame.dtype} {list(frame.shape)}")
    if whole.dtype.kind in "bf":
        whole = np.rint(np.clip(whole, 0.0, 1.0) * 255)
    pixels = np.clip(whole, 0, 255).astype(np.uint8)[..., :3]
    factor = -(-_SHORTER_SIDE // min(pixels.shape[:2]))
    pixels = pixels.repeat(factor, 0).repeat(factor, 1).repeat(3 // pixels.shape[2], 2)
    return np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")


def _draw(environment: VectorEnvironment, config: EnvironmentConfig) -> np.ndarray:
    try:
        frame = environment.render()
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise _missing(f"{config.environment_id} cannot draw itself", error) from error
    try:
        return as_picture(frame)
    except ValueError as error:
        raise ConfigError(f"video: {config.environment_id} as rgb_array: {error}") from error


def _encoder() -> ModuleType:
    try:
        return importlib.import_module("imageio_ffmpeg")  # from an extra
    except ImportError as error:
        raise _missing("mp4 files cannot be written", error) from error


def _missing(what: str, error: Exception) -> ConfigError:
    return ConfigError(f"video: {what} ({' '.join(str(error).split())}); pip install 'impala-grpc[video]'")


@contextmanager
def _new_file(folder: Path, name: str) -> Iterator[Path]:
    """Holds a file that was not there before, and removes it where what should fill it fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _claim(folder, name)
    except OSError as error:
        raise ConfigError(f"video: expected a folder that can be written, came {folder} ({error})") from error
    try:
        yield path
    except BaseException:
        path.unlink()
        raise


def _claim(folder: Path, name: str) -> Path:
    path, numbers = folder / f"{name}.mp4", count(2)
    while True:
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            path = folder / f"{name}-{next(numbers)}.mp4"
        else:
            return path


@contextmanager
def _film(encoder: ModuleType, path: Path, shape: tuple[int, ...], fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends a picture, [H, W, 3] uint8, to the film; each is encoded as it comes, none is kept."""
    height, width, _ = shape
    # From the root on: ffmpeg takes "-name" for an option, and "name:" for a protocol.
    target = str(path.absolute())
    # yuv420p is what browsers play; sides need be even for it, and no more.
    writer = encoder.write_frames(
        target,
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        quality=_QUALITY,
        macro_block_size=2,
        ffmpeg_log_level="error",
    )

    def show(picture: np.ndarray) -> None:
        if picture.shape != shape:
            raise ConfigError(f"video: expected pictures of {width} x {height}, came {picture.shape[1]} x {picture.shape[0]}")
        _send(writer, picture.tobytes())

    try:
        _send(writer, None)  # starts it
        yield show
    finally:
        writer.close()
    if not path.stat().st_size:
        raise ConfigError(f"video: expected ffmpeg to write {path}, came an empty file")


def _send(writer: Any, picture: bytes | None) -> None:
    try:
        writer.send(picture)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"video: ffmpeg failed: {str(error).partition(chr(10))[0]}") from error
