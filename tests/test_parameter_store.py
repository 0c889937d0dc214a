"""The parameter store: one snapshot a version, encoded at most once."""

import threading
import weakref

import pytest
import torch

from impala.networks import build_network
from impala.wire import decode_parameters
from learner_server.parameter_store import ParameterStore
from tests.samples import AGENT, SPEC


def filled(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((50, 20), value), "b": torch.full((7,), value)}


def test_a_version_is_encoded_once_however_many_ask() -> None:
    store = ParameterStore()
    store.publish(1, filled(1.0))
    answers = {store.encoded() for _ in range(10)}
    assert len(answers) == 1
    assert store.encodings == 1


def test_every_version_is_encoded_anew() -> None:
    store = ParameterStore()
    for version in (1, 2, 3):
        store.publish(version, filled(float(version)))
        newest, data = store.encoded()
        assert newest == version
        assert decode_parameters(data)["b"].tolist() == [float(version)] * 7
    assert store.encodings == 3


def test_versions_that_nobody_asks_for_are_not_encoded() -> None:
    store = ParameterStore()
    for version in range(1, 20):
        store.publish(version, filled(0.0))
    assert store.encodings == 0


def test_what_is_served_decodes_to_the_network_that_was_published() -> None:
    network = build_network(AGENT.network, SPEC.environment)
    store = ParameterStore()
    store.publish(1, network.state_dict())
    served = decode_parameters(store.encoded()[1])
    assert served.keys() == network.state_dict().keys()
    assert all(torch.equal(served[name], tensor) for name, tensor in network.state_dict().items())


def test_changing_the_network_afterwards_changes_nothing_that_is_served() -> None:
    network = build_network(AGENT.network, SPEC.environment)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    store = ParameterStore()
    store.publish(1, network.state_dict())
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(7.0)
    served = decode_parameters(store.encoded()[1])
    assert all(torch.equal(served[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("version", [0, 4, 5])
def test_versions_must_grow(version: int) -> None:
    store = ParameterStore()
    store.publish(5, filled(5.0))
    with pytest.raises(ValueError, match=f"expected more than 5, came {version}"):
        store.publish(version, filled(0.0))
    newest, data = store.encoded()
    assert (newest, decode_parameters(data)["b"][0]) == (5, 5.0)


@pytest.mark.parametrize("lag", [0, 3])
def test_the_version_is_0_before_anything_is_published(lag: int) -> None:
    store = ParameterStore(inject_lag=lag)
    assert (store.version, store.newest_version) == (0, 0)


@pytest.mark.parametrize("lag", [0, 1, 3, 30])
def test_an_injected_lag_serves_the_weights_of_so_many_updates_before_the_newest(lag: int) -> None:
    store, first = ParameterStore(inject_lag=lag), 41
    for newest in range(first, first + 12):
        store.publish(newest, filled(float(newest)))
        expected = max(first, newest - lag)
        for _ in range(2):
            version, data = store.encoded()
            assert (store.newest_version, store.version, version) == (newest, expected, expected)
            assert decode_parameters(data)["b"].unique().tolist() == [float(expected)]
    # Once for each version that was served, not for each that was published meanwhile.
    assert store.encodings == max(1, 12 - lag)


def test_versions_grow_beyond_the_newest_whatever_is_served() -> None:
    store = ParameterStore(inject_lag=5)
    for version in (1, 2, 3):
        store.publish(version, filled(0.0))
    with pytest.raises(ValueError, match="expected more than 3, came 2"):
        store.publish(2, filled(0.0))


def test_a_lag_holds_one_snapshot_more_than_its_updates() -> None:
    store, published = ParameterStore(inject_lag=2), []
    for version in range(1, 20):
        store.publish(version, filled(0.0))
        published += [weakref.ref(tensor) for tensor in store._snapshots[-1][1].values()]
    assert sum(reference() is not None for reference in published) == 3 * len(filled(0.0))


def test_version_and_weights_are_of_one_snapshot_while_another_thread_publishes() -> None:
    store = ParameterStore()
    store.publish(1, filled(1.0))
    store.encoded()

    def train() -> None:
        for version in range(2, 400):
            store.publish(version, filled(float(version)))

    trainer = threading.Thread(target=train, name="trainer")
    trainer.start()
    newest = 0
    while trainer.is_alive() or newest < store.version:
        version, data = store.encoded()
        values = torch.cat([tensor.flatten() for tensor in decode_parameters(data).values()])
        assert values.unique().tolist() == [float(version)]
        assert version >= newest
        newest = version
    trainer.join()
    assert newest == 399
