"""What torsos see of each kind of entry, and stacked frames against a slow loop."""

import numpy as np
import pytest
import torch
from torch import Tensor

from impala.networks.frames import FrameStack
from impala.networks.inputs import Inputs
from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec
from tests.network_cases import entry, make_spec, random_observations, random_starts

IMAGE = torch.arange(2 * 2 * 3 * 4, dtype=torch.uint8).reshape(2, 2, 3, 4)


@pytest.mark.parametrize(
    ("name", "raw", "frames", "came", "seen"),
    [
        ("o", entry("uint8", 3, 4), 1, IMAGE[:, 0], IMAGE[:, :1] / 255.0),
        ("o", entry("uint8", 3, 4), 2, IMAGE, IMAGE / 255.0),
        ("o", entry("uint8", 2, 3, 4), 1, IMAGE, IMAGE / 255.0),
        ("o", entry("float32", 4, 3, 2), 1, IMAGE.permute(0, 3, 2, 1).float(), IMAGE.transpose(2, 3).float()),
        ("o", entry("bool", 3, 4, 1), 2, (IMAGE > 9).unsqueeze(-1), (IMAGE > 9).float()),
        ("o", entry("uint8", 1, 3, 4), 2, IMAGE.unsqueeze(2), IMAGE / 255.0),
        ("o", entry("uint8", 2), 1, torch.tensor([[0, 255]]), torch.tensor([[0.0, 1.0]])),
        ("o", entry("bool", 2), 1, torch.tensor([[True, False]]), torch.tensor([[1.0, 0.0]])),
        ("o", entry("float32"), 1, torch.tensor([7.0, 8.0]), torch.tensor([[7.0], [8.0]])),
        ("o", entry("int64", categories=(3,)), 1, torch.tensor([0, 2]), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])),
        ("o", entry("int64", 2, categories=(2, 3)), 1, torch.tensor([[1, 0]]), torch.tensor([[0, 1.0, 1.0, 0, 0]])),
        ("o", entry("int64", 2, 1, categories=(2, 2)), 1, torch.tensor([[[1], [0]]]), torch.tensor([[0, 1.0, 1.0, 0]])),
        ("task", entry("uint8", categories=(2,)), 1, torch.tensor([1], dtype=torch.uint8), torch.tensor([[0, 1.0]])),
        ("last_action", entry("int64", categories=(3,)), 1, torch.tensor([0, 2]), torch.tensor([[0.0, 0], [0, 1.0]])),
        ("last_action", entry("float32", 2), 1, torch.tensor([[3.0, -4.0]]), torch.tensor([[3.0, -4.0]])),
        ("last_reward", entry("float32"), 1, torch.tensor([-7.0, 0.5]), torch.tensor([[-1.0], [0.5]])),
    ],
)
def test_each_entry_is_prepared_by_its_kind(name: str, raw: EntrySpec, frames: int, came: Tensor, seen: Tensor) -> None:
    inputs = Inputs(make_spec(**{name: raw, "action_mask": entry("bool", 3)}), frame_stack=frames, normalise=False)
    prepared = inputs.prepare({name: came, "action_mask": torch.ones(len(came), 3, dtype=torch.bool)})
    assert prepared.keys() == inputs.spec.observations.keys() == {name}
    torch.testing.assert_close(prepared[name], seen, check_stride=False)
    assert inputs.spec.observations[name] == EntrySpec(shape=tuple(seen.shape[1:]), dtype=np.dtype(np.float32))


def test_only_float_vectors_of_the_environment_s_own_are_normalised() -> None:
    spec = make_spec(
        ActionSpec(dimensions=2),
        speed=entry("float32"),
        joints=entry("float32", 2),
        grid=entry("float32", 2, 2),
        bytes=entry("uint8", 2),
        flags=entry("bool", 2),
        kind=entry("int64", categories=(3,)),
        last_action=entry("float32", 2),
        last_reward=entry("float32"),
    )
    plain = Inputs(spec, frame_stack=1, normalise=False)
    inputs = Inputs(spec, frame_stack=1, normalise=True)
    observations = random_observations(spec, 50, 4)
    inputs.update_statistics(observations)
    flat = {name: tensor.flatten(0, 1) for name, tensor in observations.items()}
    prepared, raw = inputs.prepare(flat), plain.prepare(flat)
    assert {name for name in raw if not torch.equal(raw[name], prepared[name])} == {"speed", "joints"}
    for name in ("speed", "joints"):
        expected = (raw[name] - raw[name].mean(0)) / raw[name].std(0, correction=0)
        torch.testing.assert_close(prepared[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "frames", "channels"),
    [((2, 3), 1, [[0]]), ((2, 3), 4, [[0], [1], [2], [3]]), ((4, 5, 3), 2, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])],
)
def test_images_of_bytes_are_centred_pixel_by_pixel(shape: tuple[int, ...], frames: int, channels: list[list[int]]) -> None:
    spec = make_spec(image=entry("uint8", *shape), plane=entry("float32", 2, 2))
    inputs = Inputs(spec, frame_stack=frames, normalise=True)
    seen = torch.randint(0, 256, (7, 5, *shape), dtype=torch.uint8)
    inputs.update_statistics({"image": seen, "plane": torch.zeros(7, 5, 2, 2)})
    shown = torch.randint(0, 256, (6, frames, *shape), dtype=torch.uint8)
    centred = (shown.float() - seen[0].float().mean(0)) / 255.0
    # Of images with channels, innermost as they come, each frame's in turn.
    columns = [centred[:, frame][..., channel] if channel else centred[:, frame] for frame, *channel in channels]
    expected = torch.stack([column.squeeze(-1) if len(shape) == 3 else column for column in columns], 1)
    planes = torch.rand(6, frames, 2, 2)
    prepared = inputs.prepare({"image": shown, "plane": planes})
    torch.testing.assert_close(prepared["image"], expected, check_stride=False)
    torch.testing.assert_close(prepared["plane"], planes, check_stride=False)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_learner_s_compiled_loop_gives_the_same_bits_as_what_actors_compute(frames: int, *, normalise: bool) -> None:
    """Every byte, less means that no float holds exactly, from memory that is not in one piece."""
    inputs = Inputs(make_spec(image=entry("uint8", 16, 17)), frame_stack=frames, normalise=normalise)
    for _ in range(3):
        inputs.update_statistics({"image": torch.randint(0, 256, (1, 7, 16, 17), dtype=torch.uint8)})
    image = torch.arange(256 * frames * 17, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(16, frames, 17, 16).mT
    with torch.inference_mode():
        acted = inputs.prepare({"image": image})["image"]
    learnt = inputs.prepare({"image": image})["image"]
    assert torch.equal(acted, learnt)
    assert acted.stride() == learnt.stride() or frames == 1
    assert (acted < 0).any() == normalise


@pytest.mark.parametrize(("threads", "asked"), [(1, 1), (3, 1), (4, 0)])
def test_many_threads_do_better_than_the_loop_which_has_one(threads: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, calls = Inputs(make_spec(image=entry("uint8", 2, 3)), frame_stack=1, normalise=False), list[None]()
    monkeypatch.setattr("impala.networks.inputs._frame_loop", lambda: calls.append(None))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs.prepare({"image": torch.zeros(1, 1, 2, 3, dtype=torch.uint8)})
    assert len(calls) == asked


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_stack_is_the_newest_frames_of_this_episode_and_zeros(count: int, steps: int) -> None:
    spec = make_spec(image=entry("uint8", 2, 3), colours=entry("bool", 2, 3, 2), vector=entry("float32", 2))
    frames = FrameStack(spec, count)
    observations, is_first = random_observations(spec, steps, 5), random_starts(steps, 5)
    initial = {
        "frames.image": torch.randint(0, 256, (5, count - 1, 2, 3), dtype=torch.uint8),
        "frames.colours": torch.randint(0, 2, (5, count - 1, 2, 3, 2)).bool(),
    }
    stacked, after = frames.stack(observations, is_first, initial)
    assert stacked.keys() == observations.keys()
    assert stacked["vector"] is observations["vector"]
    for name in ("image", "colours"):
        expected, last = _slowly_stacked(observations[name], is_first, initial[f"frames.{name}"])
        assert torch.equal(stacked[name], expected)
        assert stacked[name].dtype == observations[name].dtype
        assert torch.equal(after[f"frames.{name}"], last)
    start = frames.initial_state(5, torch.device("cpu"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in start.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in initial.items()
    }
    assert not any(bool(tensor.any()) for tensor in start.values())


def _slowly_stacked(observations: Tensor, is_first: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    columns, last = [], []
    for b in range(is_first.shape[1]):
        recent, column = list(initial[b]), []
        for t in range(is_first.shape[0]):
            if is_first[t, b]:
                recent = [torch.zeros_like(frame) for frame in recent]
            column.append(torch.stack([*recent, observations[t, b]]))
            recent = [*recent[1:], observations[t, b]]
        columns.append(torch.stack(column))
        last.append(torch.stack(recent))
    return torch.stack(columns, 1), torch.stack(last)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (make_spec(o=entry("uint8", 84, 84)), 4),
        (make_spec(o=entry("uint8", 84, 84), p=entry("uint8", 84, 84), vector=entry("float32", 2)), 4),
        (make_spec(o=entry("uint8", 84, 84), p=entry("uint8", 84, 84, 3)), 1),
        (make_spec(o=entry("uint8", 84, 84, 3)), 1),
        (make_spec(o=entry("float32", 84, 84)), 1),
        (make_spec(o=entry("uint8", 84)), 1),
    ],
)
def test_by_default_images_of_bytes_without_channels_are_stacked(spec: EnvironmentSpec, expected: int) -> None:
    assert FrameStack(spec, 0).count == expected
    assert FrameStack(spec, 1).count == 1
