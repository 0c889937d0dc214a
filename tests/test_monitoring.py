"""The table of metrics, alerts, the dashboard and compose.monitoring.yaml: in step with what learner and actors tell."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from actor_client.config import ActorConfig
from impala.addresses import split_address
from learner_server.__main__ import parse
from tests.exported import PROMETHEUS_OWN, names_in, series, types

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
UNITS = {"seconds": "s", "bytes": "bytes", "versions": "versions"}


def section() -> str:
    """Returns what docs/observing.md says of Prometheus and Grafana."""
    text = (ROOT / "docs" / "observing.md").read_text()
    return text.partition("\n## Prometheus and Grafana\n")[2].partition("\n## ")[0]


def table(header: str) -> list[list[str]]:
    """Returns the cells of the rows beneath a table's header in that section."""
    lines = section().partition(f"\n| {header} |\n")[2].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def metrics_table() -> list[list[str]]:
    return table("name | type | unit | meaning")


def load(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text())


def alerts() -> dict[str, dict[str, Any]]:
    [group] = load("prometheus/alerts.yml")["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCKER / "grafana" / "dashboards" / "impala.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Returns the dashboard's graphs."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Returns every query of the dashboard."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_table_has_every_metric_and_no_other_and_says_what_it_is() -> None:
    rows = {name.strip("`"): kind for name, kind, _, _ in metrics_table()}
    assert len(rows) == len(metrics_table())
    assert rows == types()


def test_the_table_gives_the_unit_that_stands_in_a_name() -> None:
    said = [(name.strip("`").removesuffix("_total").rpartition("_")[2], unit) for name, _, unit, _ in metrics_table()]
    assert {(ending, unit) for ending, unit in said if ending in UNITS} == set(UNITS.items())


def test_every_row_of_the_table_has_a_meaning() -> None:
    assert all(meaning for _, _, _, meaning in metrics_table())


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ('sum by (le, job) (rate(a_bucket{le="8.0", x="b"}[5m]))', {"a_bucket"}),
        ('histogram_quantile(0.9, a) / on (c) group_left (d) e offset 5m > 3 and f{g=~"h"}', {"a", "e", "f"}),
        ("scalar(max(a:b)) - c", {"a:b", "c"}),
    ],
)
def test_the_names_in_a_query_are_found(query: str, names: set[str]) -> None:
    assert names_in(query) == names


def test_every_query_of_the_dashboard_names_metrics_that_are_told() -> None:
    known = series() | PROMETHEUS_OWN
    named = {query: names_in(query) for query in queries()}
    assert all(named.values())
    assert {query: names - known for query, names in named.items() if names - known} == {}


def made() -> dict[str, Any]:
    """Returns what the dashboard's code makes."""
    path = DOCKER / "grafana" / "dashboard.py"
    spec = importlib.util.spec_from_file_location("dashboard", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.dashboard()
    return found


def test_the_dashboard_is_what_its_code_makes() -> None:
    assert made() == dashboard()


def test_no_panel_lies_on_another_or_beyond_the_grid() -> None:
    cells = set[tuple[int, int]]()
    for panel in made()["panels"]:
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        covered = set(itertools.product(range(x, x + width), range(y, y + height)))
        assert x + width <= 24
        assert not covered & cells, panel["title"]
        cells |= covered


def test_every_panel_asks_the_data_source_that_is_set_up() -> None:
    [source] = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    asked = {each["datasource"]["uid"] for panel in panels() for each in (panel, *panel["targets"])}
    assert asked == {source["uid"]}


def test_every_alert_names_metrics_that_are_told() -> None:
    known = series() | PROMETHEUS_OWN
    named = {alert: names_in(rule["expr"]) for alert, rule in alerts().items()}
    assert all(named.values())
    assert {alert: names - known for alert, names in named.items() if names - known} == {}


def test_every_metric_that_an_alert_sends_its_reader_to_is_told() -> None:
    sent_to = {name for rule in alerts().values() for name in re.findall(r"\bimpala_\w+", rule["annotations"]["action"])}
    assert sent_to
    assert sent_to - types().keys() == set()


def test_every_alert_fires_and_clears_and_keeps_quiet_before() -> None:
    seen: dict[str, list[bool]] = {}
    for test in load("prometheus/alerts_test.yml")["tests"]:
        for moment in test["alert_rule_test"]:
            seen.setdefault(moment["alertname"], []).append(bool(moment["exp_alerts"]))
    assert seen == {alert: [False, True, False] for alert in alerts()}


def test_every_alert_says_what_is_wrong_and_what_to_do_and_is_in_the_table() -> None:
    assert all({"summary", "action"} <= rule["annotations"].keys() for rule in alerts().values())
    held = {"at once": None, **{f"{minutes} min": f"{minutes}m" for minutes in range(1, 60)}}
    rows = {name.strip("`"): held[after] for name, _, after in table("alert | when | for")}
    assert rows == {alert: rule.get("for") for alert, rule in alerts().items()}


# --- compose.monitoring.yaml


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load("compose.monitoring.yaml")["services"]
    return found


def test_prometheus_asks_the_services_where_they_answer() -> None:
    learner, actor = (services()[name]["entrypoint"] for name in ("learner", "actor"))
    answers = {
        "learner": parse([*learner[1:], "--env", "CartPole-v1"]).metrics or "",
        "actor": tyro.cli(ActorConfig, args=[*actor[1:], "--learner", "learner:50051"]).metrics or "",
    }
    ports = {service: split_address(address, field="metrics")[1] for service, address in answers.items()}
    jobs = {job["job_name"]: job for job in load("prometheus/prometheus.yml")["scrape_configs"]}
    assert jobs["learner"]["static_configs"] == [{"targets": [f"learner:{ports['learner']}"]}]
    [found] = jobs["actor"]["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["actor"], ports["actor"])


@pytest.mark.parametrize("service", ["learner", "actor"])
def test_programs_are_started_as_their_images_start_them_but_for_metrics(service: str) -> None:
    line = next(line for line in (DOCKER / f"{service}.Dockerfile").read_text().splitlines() if line.startswith("ENTRYPOINT"))
    image = json.loads(line.removeprefix("ENTRYPOINT "))
    assert services()[service] == {"entrypoint": [*image, "--metrics", "0.0.0.0:50053"]}


def test_images_are_pinned_and_reached_from_this_machine_alone() -> None:
    added = {name: service for name, service in services().items() if name not in ("learner", "actor")}
    assert added.keys() == {"prometheus", "grafana"}
    for service in added.values():
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_is_mounted_is_there_and_where_it_is_looked_for() -> None:
    mounts = {}
    for service in ("prometheus", "grafana"):
        for volume in services()[service]["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                assert volume.endswith(":ro")
                assert (ROOT / source).is_dir()
                mounts[target] = ROOT / source
    looked_for = [argument.partition("=")[2] for argument in services()["prometheus"]["command"] if "config.file" in argument]
    looked_for.append(services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    [provider] = load("grafana/provisioning/dashboards/impala.yaml")["providers"]
    assert all((mounts[str(Path(path).parent)] / Path(path).name).is_file() for path in looked_for)
    assert mounts[provider["options"]["path"]] == DOCKER / "grafana" / "dashboards"
    assert mounts["/etc/grafana/provisioning"] == DOCKER / "grafana" / "provisioning"
