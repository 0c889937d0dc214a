"""The minimal implementation: one file, whole, and the same V-trace as the full system's."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import minimal as runner
from examples import minimal_impala as minimal
from impala.vtrace import vtrace
from tests.test_vtrace import make_case

SOURCE = Path(minimal.__file__)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(monkeypatch: pytest.MonkeyPatch, updates: int) -> int:
    monkeypatch.setattr(sys, "argv", ["minimal_impala.py", "--seed", "0", "--updates", str(updates)])
    with pytest.raises(SystemExit) as end:
        minimal.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def some_unroll(*, reset_reward: float = 0.0, reset_action: int = 0) -> minimal.Unroll:
    """Returns an unroll of five steps of three environments; in the second of them row 2 is a reset."""
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(6, 3, 4, generator=generator)
    actions = torch.randint(0, 2, (5, 3), generator=generator)
    rewards = torch.rand(5, 3, generator=generator)
    log_probs = torch.rand(5, 3, generator=generator).log()
    resets = torch.zeros(5, 3, dtype=torch.bool)
    resets[2, 1] = True
    rewards[2, 1], actions[2, 1] = reset_reward, reset_action
    return minimal.Unroll(observations, actions, log_probs, rewards, torch.zeros(5, 3, dtype=torch.bool), resets, 0, [])


@pytest.mark.parametrize("seed", range(5))
def test_its_v_trace_is_that_of_the_full_system(seed: int) -> None:
    case = make_case(np.random.default_rng(seed), 20, 8)
    vs, advantages = minimal.vtrace(*case.values())
    expected = vtrace(**case)
    torch.testing.assert_close(vs, expected.vs, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(advantages, expected.pg_advantages, rtol=0.0, atol=1e-10)


def test_it_says_how_far_it_is_and_ends_with_code_1_when_out_of_updates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, 50) == 1
    assert re.fullmatch(r" *[\d.]+ s  update    50    32,000 steps  return +[\d.]+  lag [\d.]+\n", capsys.readouterr().out)


def test_it_ends_with_code_0_once_its_weights_hold_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minimal, "SOLVED", 12.0)
    assert run(monkeypatch, 200) == 0
    told = runner.SOLVED.search(capsys.readouterr().out)
    assert told
    assert float(told[3]) >= 12.0


def test_it_goes_on_where_the_weights_do_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([11.0, 11.0, 12.0])
    asked = []
    monkeypatch.setattr(minimal, "SOLVED", 12.0)
    monkeypatch.setattr(minimal, "evaluate", lambda network, seed: asked.append(seed) or next(scores))
    assert run(monkeypatch, 200) == 0
    assert len(asked) == 3


def test_what_a_reset_row_holds_changes_nothing() -> None:
    torch.manual_seed(0)
    network = minimal.ActorCritic(4, 2)
    loss = minimal.impala_loss(network, [some_unroll()])
    other = minimal.impala_loss(network, [some_unroll(reset_reward=100.0, reset_action=1)])
    assert loss.item() == other.item()


def test_a_batch_is_its_unrolls_side_by_side() -> None:
    torch.manual_seed(0)
    network = minimal.ActorCritic(4, 2)
    one = minimal.impala_loss(network, [some_unroll()])
    assert minimal.impala_loss(network, [some_unroll()] * 2).item() == pytest.approx(2.0 * one.item(), rel=1e-5)


def test_it_is_one_file_of_at_most_two_hundred_lines_that_needs_torch_numpy_and_gymnasium_alone() -> None:
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 200
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - set(sys.stdlib_module_names) == {"torch", "numpy", "gymnasium"}
