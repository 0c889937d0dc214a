"""A real Prometheus beside a learner and an actor: what it scrapes, what it makes of the queries, and what promtool says."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exported import series
from tests.programs import ENDLESS, Programs
from tests.service import free_port
from tests.test_monitoring import DOCKER, alerts, load, queries

MISSING = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)} (Debian's package prometheus has both)"),
]

# What a run may have nothing to say of: what failed, was refused or was dropped, alerts that fire, trajectories of lag 0.
NOT_ALWAYS = {
    "ALERTS",
    "impala_actor_failed_calls_total",
    "impala_dropped_by_rule_total",
    "impala_log_rho_abs_lag_0",
    "impala_refused_total",
}


@dataclass
class Watched:
    """Ports of a learner and an actor of one run, and of the Prometheus that asks them."""

    programs: Programs
    learner: int
    actor: int
    prometheus: int

    def ask(self, path: str, **parameters: str) -> Any:
        """Returns the data of an answer of Prometheus's own API, which is an error where it does not understand."""
        address = f"http://127.0.0.1:{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> list[float]:
        """Returns the values of all series of a query's answer."""
        found = self.ask("query", query=query)
        if found["resultType"] == "scalar":
            return [float(found["result"][1])]
        return [float(each["value"][1]) for each in found["result"]]

    def wait_until(self, condition: Any) -> None:
        self.programs.wait_until(condition, *self.programs.started)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    programs = Programs(folder)
    try:
        numbers = [free_port() for _ in range(3)]
        addresses = [f"127.0.0.1:{number}" for number in numbers]
        flags = ["--actors", "0", *ENDLESS, "--stop-at-return", "1000", "--metrics", addresses[0]]
        learner = programs.learner(folder / "run", *flags)
        programs.actor(programs.address(learner), "--metrics", addresses[1])
        config = configuration(addresses)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        files = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        programs.launch(["prometheus", *files, f"--web.listen-address={addresses[2]}", "--log.level=warn"])
        found = Watched(programs, *numbers)
        found.wait_until(lambda: is_up(found))
        yield found
    finally:
        programs.end()


def configuration(addresses: list[str]) -> dict[str, Any]:
    """Returns the committed configuration, with the targets at hand and in more of a hurry."""
    config: dict[str, Any] = load("prometheus/prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    for job, address in zip(config["scrape_configs"], addresses, strict=False):
        del job["static_configs" if job["job_name"] == "learner" else "dns_sd_configs"]
        job["static_configs"] = [{"targets": [address]}]
    return config


def is_up(watched: Watched) -> bool:
    try:
        return watched.values("up") == [1.0, 1.0]
    except OSError:  # it does not listen yet
        return False


def test_it_scrapes_learner_and_actor(watched: Watched) -> None:
    for query in (
        'impala_env_steps_total{job="learner"}',
        'impala_policy_lag_versions_count{job="learner"}',
        'impala_importance_ratio_count{job="learner"}',
        'impala_rpc_seconds_count{job="learner", method="SubmitTrajectory"}',
        'impala_stage_seconds_count{job="learner", stage="step"}',
        'impala_actor_env_steps_total{job="actor"}',
        'impala_actor_seconds_total{job="actor", what="inference"}',
        'impala_actor_rpc_seconds_count{job="actor", method="SubmitTrajectory"}',
    ):
        watched.wait_until(lambda query=query: [value > 0.0 for value in watched.values(query)] == [True])


def test_every_query_of_the_dashboard_is_answered(watched: Watched) -> None:
    for query in queries():
        asked = query.replace("$__rate_interval", "1m")
        if any(name in query for name in NOT_ALWAYS):
            watched.values(asked)  # understood
        else:
            watched.wait_until(lambda asked=asked: watched.values(asked))


def test_it_loads_every_alert_and_none_is_at_fault(watched: Watched) -> None:
    def rules() -> dict[str, str]:
        return {rule["name"]: rule["health"] for group in watched.ask("rules")["groups"] for rule in group["rules"]}

    watched.wait_until(lambda: watched.values("impala_stage_seconds_count"))
    # Asked now, for what was evaluated before there was anything to evaluate is at no fault either.
    for rule in alerts().values():
        watched.values(rule["expr"])
    watched.wait_until(lambda: "unknown" not in rules().values())
    assert rules() == dict.fromkeys(alerts(), "ok")


def test_promtool_has_nothing_to_say_of_what_learner_and_actor_answer(watched: Watched) -> None:
    seen = set[str]()
    for port in (watched.learner, watched.actor):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
        seen |= {line.split("{")[0].split()[0] for line in text.decode().splitlines() if not line.startswith("#")}
    # Gauges are left out: those of a log interval in which nothing was trained on are not known.
    counted = {name for name in series() if name.endswith(("_total", "_bucket", "_sum", "_count"))}
    assert counted - seen <= NOT_ALWAYS


def promtool(*arguments: str, folder: Path) -> tuple[int, str]:
    done = subprocess.run(["promtool", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode()


def test_configuration_and_rules_are_valid() -> None:
    for arguments in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        assert promtool(*arguments, folder=DOCKER / "prometheus")[0] == 0


def test_each_alert_fires_and_clears() -> None:
    code, said = promtool("test", "rules", "alerts_test.yml", folder=DOCKER / "prometheus")
    assert code == 0, said
