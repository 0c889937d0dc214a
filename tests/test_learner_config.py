"""The learner's configuration and command line: what cannot work is said before anything starts."""

import ast
import dataclasses
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from impala.addresses import split_address
from impala.config import AgentConfig, EnvironmentConfig, LossConfig, NetworkConfig, OptimiserConfig
from impala.environments import Hosting
from impala.errors import ConfigError
from learner_server.__main__ import parse
from learner_server.config import LearnerConfig
from learner_server.presets import PRESETS, preset

ROLES = (NetworkConfig, LossConfig, OptimiserConfig)
TOKEN, CERT, KEY = Path("token"), Path("cert.pem"), Path("key.pem")


def make_config(**fields: Any) -> LearnerConfig:
    return LearnerConfig(**{"env": ("CartPole-v1",), **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(**fields)
    return str(caught.value)


# --- Checks

COUNTS = ("total_steps", "envs", "unroll_length", "batch_size", "queue_batches", "max_in_flight", "threads")
MORE_COUNTS = ("keep_checkpoints", "replay_unrolls")


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", [*COUNTS, *MORE_COUNTS])
def test_counts_are_at_least_1(name: str, value: int) -> None:
    assert refusal(**{name: value}) == f"{name}: expected at least 1, came {value}"
    assert getattr(make_config(**{name: 1}), name) == 1


def test_the_most_environments_of_an_actor_are_at_least_1() -> None:
    assert refusal(max_envs=0, envs=1) == "max_envs: expected at least 1, came 0"


@pytest.mark.parametrize("name", ["actors", "seed", "max_policy_lag", "settle_steps", "inject_lag"])
def test_other_counts_are_not_negative(name: str) -> None:
    assert refusal(**{name: -1}) == f"{name}: expected at least 0, came -1"
    assert getattr(make_config(**{name: 0}), name) == 0


def test_an_actors_usual_environments_are_within_the_limit() -> None:
    assert refusal(envs=9, max_envs=8) == "envs: expected at most max_envs (8), came 9"
    assert make_config(envs=8, max_envs=8).envs == 8


@pytest.mark.parametrize("value", [0.0, -1.0, 1.01, float("nan"), float("inf")])
def test_metrics_are_written_once_a_second_at_least(value: float) -> None:
    assert refusal(log_seconds=value) == f"log_seconds: expected more than 0 and at most 1, came {value}"
    assert make_config(log_seconds=1.0).log_seconds == 1.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_checkpoints_are_some_time_apart(value: float) -> None:
    assert refusal(checkpoint_seconds=value) == f"checkpoint_seconds: expected more than 0, came {value}"


def test_no_two_environments_of_a_run_have_the_same_seed_nor_have_two_runs() -> None:
    configs = [make_config(seed=seed) for seed in range(3)]
    seeds = [config.actor_seed(index) + e for config in configs for index in range(50) for e in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= make_config(seed=2**40).actor_seed(2**20) < 2**31


def test_nor_have_two_lives_of_an_actor() -> None:
    config, lives = make_config(), (0, 1, 2, 1000, 7_654_000)
    seeds = [config.actor_seed(index, life) + e for life in lives for index in range(50) for e in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert [config.actor_seed(index, 0) for index in range(3)] == [config.actor_seed(index) for index in range(3)]


# One unroll of each actor is a batch.
LOCKSTEP: dict[str, Any] = {"deterministic": True, "actors": 2, "envs": 8, "batch_size": 16, "max_in_flight": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actors": 0}, "actors: with deterministic expected at least 1"),
        ({"max_in_flight": 2}, "max_in_flight: with deterministic expected 1"),
        ({"device": "cuda"}, "device: with deterministic expected cpu"),
        ({"threads": 2}, "threads: with deterministic expected 1"),
        ({"stop_at_return": 9.0}, "stop_at_return: with deterministic expected None"),
        ({"when_full": "drop-oldest"}, "when_full: with deterministic expected wait"),
        (
            {"env": ("A", "B", "C"), "actors": 4, "envs": 4},
            "actors: with deterministic expected as many for each of 3 environments",
        ),
        (
            {"batch_size": 32},
            "batch_size: with deterministic expected a batch of one unroll of each actor, which is 2 actors x 8 envs",
        ),
        ({"replay_fraction": 0.5}, "= 16 trajectories that are not replayed; came 8"),
    ],
)
def test_a_deterministic_run_leaves_nothing_to_chance(fields: dict[str, Any], message: str) -> None:
    assert make_config(**LOCKSTEP).deterministic
    assert make_config(**{**LOCKSTEP, "deterministic": False, **fields})
    assert message in refusal(**{**LOCKSTEP, **fields})


def test_a_deterministic_batch_may_be_replayed_in_part_and_of_several_environments() -> None:
    config = make_config(**{**LOCKSTEP, "env": ("A", "B"), "batch_size": 32, "replay_fraction": 0.5})
    assert config.fresh_trajectories == 16


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_the_replayed_share_leaves_room_for_fresh_trajectories(value: float) -> None:
    assert refusal(replay_fraction=value) == f"replay_fraction: expected at least 0 and below 1, came {value}"


def test_replay_that_leaves_no_room_for_a_replayed_trajectory_is_refused() -> None:
    expected = "replay_fraction: expected a trajectory or more of a batch of 1, one being fresh, came 0.5"
    assert refusal(batch_size=1, replay_fraction=0.5) == expected


@pytest.mark.parametrize(
    ("batch_size", "replay_fraction", "fresh"),
    [(32, 0.0, 32), (32, 0.5, 16), (32, 0.9, 3), (10, 0.25, 8), (3, 0.99, 1), (1, 0.0, 1), (2, 0.75, 1)],
)
def test_what_of_a_batch_is_not_replayed_is_fresh_and_at_least_one(batch_size: int, replay_fraction: float, fresh: int) -> None:
    assert make_config(batch_size=batch_size, replay_fraction=replay_fraction).fresh_trajectories == fresh


# --- Environments

A_TO_C = ("A", "B", "C")
WRAPPERS = "wrappers: expected a JSON array of names or of [name, keyword arguments]"


def test_there_is_an_environment_at_least() -> None:
    assert refusal(env="CartPole-v1") == "env: expected a tuple of ids, came 'CartPole-v1'"
    assert refusal(env=()) == "env: expected the id of an environment, came none"
    assert refusal(env=("A", "")) == "env: expected the id of an environment, came ''"


@pytest.mark.parametrize(
    ("env", "text", "expected"),
    [
        (("A",), '{"n": 1}', [{"n": 1}]),
        (("A",), '[{"n": 1}]', [{"n": 1}]),
        (A_TO_C, '{"n": 1}', [{"n": 1}] * 3),
        (A_TO_C, '[{"n": 1}, {}, {"n": 3}]', [{"n": 1}, {}, {"n": 3}]),
    ],
)
def test_keyword_arguments_are_for_all_environments_or_for_each(env: tuple[str, ...], text: str, expected: list[Any]) -> None:
    environments = make_config(env=env, env_kwargs=text).environments()
    assert [(environment.environment_id, environment.kwargs) for environment in environments] == list(
        zip(env, expected, strict=True)
    )


@pytest.mark.parametrize("text", ["", "{", "x", "[]", "7", "null", '"a"', "[{}]", "[{}, {}, {}, {}]", "[{}, {}, 7]"])
def test_other_keyword_arguments_are_refused(text: str) -> None:
    said = refusal(env=A_TO_C, env_kwargs=text)
    assert said.startswith(f"env_kwargs: expected a JSON object, or an array of 3 objects, came {text!r}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", ()),
        ('["A"]', (("A", {}),)),
        ('["m:A", ["B", {"n": 1}], ["C", {}]]', (("m:A", {}), ("B", {"n": 1}), ("C", {}))),
    ],
)
def test_wrappers_are_names_with_or_without_keyword_arguments(text: str, expected: tuple[Any, ...]) -> None:
    assert [environment.wrappers for environment in make_config(env=("A", "B"), wrappers=text).environments()] == [expected] * 2


@pytest.mark.parametrize("text", ["", "x", "{}", "7", "null", "[7]", '[["A"]]', '[["A", 7]]', '[["A", {}, {}]]', "[[7, {}]]"])
def test_another_form_of_wrappers_is_refused(text: str) -> None:
    assert refusal(wrappers=text).startswith(f"{WRAPPERS}, came {text!r}")


@pytest.mark.parametrize(
    ("field", "refused", "taken", "said"),
    [
        ("stop_at_return", 1.0, None, "stop_at_return: expected one environment with it, for the returns of several are not alike"),
        ("batch_size", 2, 3, "batch_size: expected a trajectory for each of 3 environments, came 2"),
        ("actors", 2, 3, "actors: expected one for each of 3 environments, or 0, came 2"),
    ],
)
def test_several_environments_need_what_one_does_not(field: str, refused: Any, taken: Any, said: str) -> None:
    assert refusal(env=A_TO_C, **{field: refused}) == said
    assert getattr(make_config(env=A_TO_C, **{field: taken}), field) == taken
    assert getattr(make_config(**{field: refused}), field) == refused


def test_several_environments_may_wait_for_remote_actors() -> None:
    assert make_config(env=A_TO_C, actors=0).actors == 0


# --- Where to listen


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("localhost:0", "localhost", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("[::1]:50051", "[::1]", 50051),
        ("a-b.c:1", "a-b.c", 1),
    ],
)
def test_an_address_is_host_and_port(address: str, host: str, port: int) -> None:
    assert split_address(address, field="listen") == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "localhost:",
        ":50051",
        "::1:50051",
        "localhost:65536",
        "localhost:100000",
        "localhost:-1",
        "localhost:x",
        "a b:1",
        "h:1\n",
    ],
)
def test_another_form_of_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_address(address, field="listen")
    assert str(caught.value) == f"listen: expected HOST:PORT, came {address!r}"


def test_the_learner_is_not_begun_with_an_address_that_it_cannot_read() -> None:
    assert refusal(listen="50051") == "listen: expected HOST:PORT, came '50051'"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:50051", "[::1]:0"])
def test_loopback_needs_no_protection(listen: str) -> None:
    assert make_config(listen=listen).listen == listen


@pytest.mark.parametrize("protection", [{}, {"tls_cert": CERT, "tls_key": KEY}], ids=["nothing", "TLS alone"])
@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.168.0.1:50051", "learner:50051"])
def test_an_address_that_others_can_reach_needs_token_and_tls(listen: str, protection: dict[str, Any]) -> None:
    assert refusal(listen=listen, **protection).startswith(
        f"listen: {listen} can be reached from other machines; give --token-file"
    )


@pytest.mark.parametrize("insecure", [True, False])
def test_a_token_without_tls_which_no_actor_would_send_is_refused(insecure: bool) -> None:
    assert refusal(listen="0.0.0.0:50051", token_file=TOKEN, insecure=insecure).startswith("token_file: expected --tls-cert")


@pytest.mark.parametrize("protection", [{"insecure": True}, {"token_file": TOKEN, "tls_cert": CERT, "tls_key": KEY}])
def test_with_token_and_tls_or_on_a_trusted_network_any_address_will_do(protection: dict[str, Any]) -> None:
    assert make_config(listen="0.0.0.0:50051", **protection).listen == "0.0.0.0:50051"


@pytest.mark.parametrize("half", [{"tls_cert": CERT}, {"tls_key": KEY}])
def test_a_certificate_comes_with_its_key(half: dict[str, Any]) -> None:
    assert refusal(**half) == "tls_key: expected --tls-cert and --tls-key together, came one of them"


# --- What a run is


def test_the_agent_is_what_actors_and_evaluation_need() -> None:
    network = NetworkConfig(hidden_sizes=(8,))
    config = make_config(
        env=("A", "B"), env_kwargs='[{"n": 1}, {}]', wrappers='["W"]', life_loss_terminates=False, network=network, unroll_length=7
    )
    environments = (
        EnvironmentConfig(environment_id="A", kwargs={"n": 1}, wrappers=(("W", {}),), life_loss_terminates=False),
        EnvironmentConfig(environment_id="B", wrappers=(("W", {}),), life_loss_terminates=False),
    )
    assert config.agent() == AgentConfig(environments=environments, network=network, unroll_length=7)


def test_the_identity_is_json() -> None:
    identity = make_config().identity()
    assert json.loads(json.dumps(identity)).keys() == identity.keys()


# Every field but those of TLS and the one that others must fit, which are checked by themselves.
OTHER_VALUES: dict[str, Any] = {
    "env": ("Acrobot-v1",),
    "env_kwargs": '{"a": 1}',
    "wrappers": '["A"]',
    "life_loss_terminates": False,
    "allow_module": ("mine",),
    "vectorization": "async",
    "preset": "cartpole",
    "total_steps": 5,
    "stop_at_return": 1.0,
    "settle_steps": 7,
    "seed": 1,
    "actors": 1,
    "advertise": "a.example",
    "metrics": "127.0.0.1:1",
    "envs": 1,
    "listen": "localhost:1",
    "token_file": TOKEN,
    "insecure": True,
    "health": "127.0.0.1:1",
    "run_dir": Path("elsewhere"),
    "device": "cuda",
    "precision": "bfloat16",
    "compile": True,
    "threads": 2,
    "unroll_length": 1,
    "batch_size": 1,
    "queue_batches": 2,
    "when_full": "drop-oldest",
    "max_in_flight": 1,
    "max_on_the_way": 3,
    "compress": False,
    "max_policy_lag": 1,
    "max_envs": 32,
    "max_calls_per_second": 5,
    "max_actor_mebibytes": 6,
    "max_line_mebibytes": 7,
    "max_connections": 8,
    "replay_fraction": 0.5,
    "replay_unrolls": 7,
    "inject_lag": 8,
    "checkpoint_seconds": 1.0,
    "keep_checkpoints": 1,
    "log_seconds": 1.0,
    "wandb": "a",
    "log_format": "json",
    "profile": 5.0,
    "status": "127.0.0.1:80",
    "network": NetworkConfig(hidden_sizes=(8,)),
    "loss": LossConfig(discount=0.5),
    "optimiser": OptimiserConfig(learning_rate=0.5),
}
DECIDE_WHAT_IS_LEARNT = {"env", "env_kwargs", "wrappers", "life_loss_terminates", "total_steps", "seed", "unroll_length"}
DECIDE_WHAT_IS_LEARNT |= {"batch_size", "replay_fraction", "replay_unrolls", "inject_lag", "network", "loss", "optimiser"}


def test_every_field_has_another_value_here() -> None:
    names = {field.name for field in dataclasses.fields(LearnerConfig)}
    assert names == OTHER_VALUES.keys() | {"deterministic", "tls_cert", "tls_key", "tls_client_ca"}
    assert all(getattr(make_config(), name) != value for name, value in OTHER_VALUES.items())


@pytest.mark.parametrize("name", sorted(DECIDE_WHAT_IS_LEARNT))
def test_the_identity_tells_apart_what_learns_differently(name: str) -> None:
    assert make_config(**{name: OTHER_VALUES[name]}).identity() != make_config().identity()


@pytest.mark.parametrize("name", sorted(OTHER_VALUES.keys() - DECIDE_WHAT_IS_LEARNT))
def test_the_identity_ignores_where_and_how_long_a_run_runs(name: str) -> None:
    assert make_config(**{name: OTHER_VALUES[name]}).identity() == make_config().identity()


def test_environments_are_hosted_as_the_flags_say() -> None:
    hosting = make_config(vectorization="async", allow_module=("m",)).hosting()
    assert hosting == Hosting(vectorization="async", allowed_modules=("m",))


# --- Presets


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_a_configuration_that_can_work(name: str) -> None:
    config = LearnerConfig(preset=name, **preset(name))
    assert (config.preset, len(config.env) >= 1) == (name, True)


def test_a_preset_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("pong")
    assert str(caught.value) == f"preset: expected one of {', '.join(sorted(PRESETS))}, came 'pong'"


def test_the_help_names_every_preset() -> None:
    source = (Path(__file__).resolve().parent.parent / "learner_server" / "config.py").read_text()
    named = source.partition("flags given besides override them. One of: ")[2].partition(".")[0]
    assert set(" ".join(named.split()).split(", ")) == set(PRESETS)


# --- The command line


def test_the_fewest_flags_give_the_defaults() -> None:
    assert parse(["--env", "CartPole-v1"]) == make_config()


@pytest.mark.parametrize("arguments", [["--preset", "cartpole"], ["--preset=cartpole"], ["--seed", "0", "--preset", "cartpole"]])
def test_a_preset_is_taken_from_wherever_it_stands(arguments: list[str]) -> None:
    assert parse(arguments) == LearnerConfig(preset="cartpole", **preset("cartpole"))


def test_flags_override_the_preset_and_leave_the_rest_of_it() -> None:
    config = parse(["--total-steps", "5", "--preset", "cartpole", "--learning-rate", "0.5", "--env", "Acrobot-v1"])
    assert (config.total_steps, config.optimiser.learning_rate, config.env) == (5, 0.5, ("Acrobot-v1",))
    assert config.stop_at_return == PRESETS["cartpole"]["stop_at_return"]
    assert config.optimiser.optimiser == PRESETS["cartpole"]["optimiser"].optimiser


def test_every_kind_of_flag_is_read() -> None:
    words = [
        "--env",
        "A",
        "--env-kwargs",
        '{"a": 1}',
        "--run-dir",
        "runs/a",
        "--stop-at-return",
        "1.5",
        "--actors",
        "3",
        "--insecure",
    ]
    more = ["--no-life-loss-terminates", "--wrappers", '["W"]', "--vectorization", "sync", "--allow-module", "m", "n.o"]
    nested = ["--hidden-sizes", "8", "16", "--no-anneal", "--lambda_", "0.5", "--reward-clip", "unit", "--correction", "one-step"]
    config = parse([*words, *more, *nested])
    environment = EnvironmentConfig(environment_id="A", kwargs={"a": 1}, wrappers=(("W", {}),), life_loss_terminates=False)
    assert (config.environments(), config.run_dir, config.stop_at_return) == ((environment,), Path("runs/a"), 1.5)
    assert (config.network.hidden_sizes, config.insecure, config.actors) == ((8, 16), True, 3)
    assert (config.vectorization, config.allow_module) == ("sync", ("m", "n.o"))
    assert (config.optimiser.anneal, config.loss.lambda_, config.loss.reward_clip) == (False, 0.5, "unit")
    assert config.loss.correction == "one-step"


def test_several_environments_stand_side_by_side() -> None:
    config = parse(["--env", "A", "m:B", "--replay-fraction", "0.5", "--replay-unrolls", "64", "--inject-lag", "8"])
    assert config == make_config(env=("A", "m:B"), replay_fraction=0.5, replay_unrolls=64, inject_lag=8)


def test_an_unknown_preset_on_the_command_line_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^preset: expected one of .*, came 'pong'$"):
        parse(["--preset", "pong"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env", "A", "--envz", "3"], "--envz"),
        (["--env", "A", "--batch-size", "many"], "--batch-size"),
        (["--env", "A", "--device", "tpu"], "--device"),
        (["--env", "A", "--preset"], "--preset"),
        (["--env", "A", "--vectorization", "threads"], "--vectorization"),
        (["--env", "A", "--correction", "v-trace"], "--correction"),
        ([], "--env"),
        (["--seed", "1"], "--env"),
    ],
)
def test_flags_that_do_not_exist_cannot_be_read_or_are_missing_exit_with_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--batch-size", "0"], ["--discount", "1.5"], ["--hidden-sizes", "0"], ["--learning-rate", "0"]])
def test_flags_that_cannot_work_are_refused_by_name(flags: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--preset", "cartpole", *flags])
    assert str(caught.value).startswith(flags[0].removeprefix("--").replace("-", "_") + ": expected ")


def documented_fields(role: type) -> dict[str, str]:
    """Returns what stands under each field of a configuration."""
    (definition,) = ast.parse(inspect.getsource(role)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(below.value.value.split())
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def test_every_flag_is_documented() -> None:
    for role, nested in ((LearnerConfig, {"network", "loss", "optimiser"}), *((role, set()) for role in ROLES)):
        assert documented_fields(role).keys() == {field.name for field in dataclasses.fields(role)} - nested


def test_help_exits_with_code_0_and_says_what_stands_under_every_field(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for role in (LearnerConfig, *ROLES):
        for name, said in documented_fields(role).items():
            flag = "--" + name.rstrip("_").replace("_", "-")
            assert f" {flag}" in text
            assert said in text, name
