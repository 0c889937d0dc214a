"""The example that plays with trained weights, on an environment of one's own."""

from pathlib import Path

import pytest

from examples import trained_agent
from impala.config import AgentConfig, EnvironmentConfig
from impala.environments import Hosting, agent_spec
from impala.errors import ConfigError
from impala.networks import build_network
from tests.test_evaluate import make_run

OWN = "custom_environment"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["trained_agent", *arguments])
    trained_agent.main()


def test_an_agent_of_an_environment_of_one_s_own_plays_where_its_module_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(trained_agent.__file__).parent))
    agent = AgentConfig(environments=(EnvironmentConfig(environment_id=f"{OWN}:Corridor-v0"),))
    network = build_network(agent.network, agent_spec(agent, Hosting(allowed_modules=(OWN,))))
    run = make_run(tmp_path / "run", agent, network=network)
    run_main(monkeypatch, "--run-dir", str(run), "--episodes", "2", "--allow-module", OWN)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["episode 1", "episode 2"]
    with pytest.raises(ConfigError, match=f"--allow-module {OWN}"):
        run_main(monkeypatch, "--run-dir", str(run))
