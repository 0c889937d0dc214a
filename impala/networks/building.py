"""Building networks: which parts an environment's observations ask for, and torsos of one's own."""

import importlib
from collections.abc import Callable, Mapping, Sequence

import torch

from impala.config import NetworkConfig, is_allowed
from impala.errors import ConfigError
from impala.networks.convolutions import SMALLEST_IMAGE, ConvolutionalTorso
from impala.networks.frames import FrameStack
from impala.networks.inputs import Inputs
from impala.networks.network import Network
from impala.networks.torsos import MLPTorso, Torso
from impala.specs import EntrySpec, EnvironmentSpec

# Below this height or width, two strided convolutions leave too little: the small trunk is taken.
_SHALLOW_FROM = 36


def build_network(config: NetworkConfig, spec: EnvironmentSpec, *, allowed_modules: Sequence[str] = ()) -> Network:
    """Returns a new network for an environment, its weights drawn from torch's global random state.

    Args:
        config: which network.
        spec: what the environment shows and takes.
        allowed_modules: modules, and packages with all within, that a network "MODULE:CLASS" may name. A learner chooses the
            network and an actor builds it: which code may be imported, each machine says for itself.

    Raises:
        ConfigError: the network does not take such observations; its module is not allowed, or has no such torso.
    """
    frames = FrameStack(spec, config.frame_stack)
    inputs = Inputs(spec, frame_stack=frames.count, normalise=config.normalise_observations)
    if not inputs.spec.observations:
        raise ConfigError("network: expected an environment with at least one observation entry, came none")
    make_torso, is_mlp = _torso_maker(config, inputs.spec, allowed_modules)
    return Network(
        spec,
        inputs=inputs,
        frames=frames,
        make_torso=make_torso,
        # A value in the hundreds and a policy near 0 pull a small shared torso apart.
        separate_value=is_mlp and config.lstm_size == 0,
        lstm_size=config.lstm_size,
        forget_bias=config.lstm_forget_bias,
        action_std=config.action_std,
        squash_means=config.squash_means,
        normalise_returns=config.normalise_returns,
    )


def _torso_maker(config: NetworkConfig, spec: EnvironmentSpec, allowed: Sequence[str]) -> tuple[Callable[[], Torso], bool]:
    """Returns what makes a torso for prepared observations, and whether that is the MLP."""
    if ":" in config.network:
        return _own_torso_maker(config.network, spec, allowed), False
    trunks = _trunks(config.network, spec)
    if trunks:
        return lambda: ConvolutionalTorso(spec, trunks), False
    return lambda: MLPTorso(spec, config.hidden_sizes), True


def _trunks(network: str, spec: EnvironmentSpec) -> Mapping[str, str]:
    """Returns the trunk of each image that gets one."""
    images = {name: entry for name, entry in spec.observations.items() if entry.is_image}
    if network == "mlp":
        return {}
    if network == "auto":
        return {name: trunk for name, entry in images.items() if (trunk := _trunk_by_size(entry))}
    if not images:
        raise ConfigError(f"network: expected an environment with images for {network}, came only {sorted(spec.observations)}")
    return dict.fromkeys(images, network)


def _trunk_by_size(image: EntrySpec) -> str:
    size = min(image.shape[1:])
    if size < SMALLEST_IMAGE["minatar"]:
        return ""
    return "minatar" if size < _SHALLOW_FROM else "shallow"


def _own_torso_maker(network: str, spec: EnvironmentSpec, allowed: Sequence[str]) -> Callable[[], Torso]:
    module, _, name = network.partition(":")
    if not is_allowed(module, allowed):
        raise ConfigError(
            f"network: expected a module that this machine allows, came {network!r}; --allow-module {module} allows it"
        )
    try:
        torso_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"network: expected MODULE:CLASS, came {network!r} ({error})") from error
    if not (isinstance(torso_class, type) and issubclass(torso_class, Torso)):
        raise ConfigError(f"network: expected a subclass of impala.networks.Torso, came {network!r}")
    return lambda: _checked(torso_class(spec), network, spec)


def _checked(torso: Torso, network: str, spec: EnvironmentSpec) -> Torso:
    """Returns the torso, after a look at what it gives for two observations."""
    with torch.no_grad():
        features = torso({name: torch.zeros(2, *entry.shape) for name, entry in spec.observations.items()})
    if features.shape != (2, torso.output_size):
        raise ConfigError(
            f"network: expected features [N, {torso.output_size}] of {network!r}, came {list(features.shape)} for N = 2"
        )
    return torso
