"""Makes Gymnasium vector environments: which code may be imported, which wrappers go around, and which vector form is taken."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from impala.config import EnvironmentConfig, is_allowed
from impala.environments import families
from impala.errors import ConfigError

# What Gymnasium, and the constructors of environments, raise at ids and arguments that they do not take.
_CANNOT_MAKE = (gymnasium.error.Error, ImportError, TypeError, ValueError, KeyError, AttributeError, AssertionError)

# Arguments of `gymnasium.make_vec` itself, which are the actor's to choose and not the learner's.
_RESERVED = frozenset({"id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode"})

# They restart episodes in another way, write where they are told, or open a window.
_REFUSED_WRAPPERS = frozenset({"Autoreset", "RecordVideo", "HumanRendering"})

# A console's frames a second, whatever ale-py's metadata says; and an environment's that does not say.
_ATARI_FPS, _FPS = 60, 30

Envs = VectorEnv[Any, Any, Any]
_Wrapper = Callable[[gymnasium.Env[Any, Any]], gymnasium.Wrapper[Any, Any, Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """What the machine that runs environments allows and prefers; it is never the learner's to say.

    Attributes:
        vectorization: native: the environment's own vector form. sync: one after another in this process. async: a process each.
            auto: native where there is one that fits, else sync.
        allowed_modules: modules that an environment's id or its wrappers may import.
    """

    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    allowed_modules: tuple[str, ...] = ()


def make_vector(config: EnvironmentConfig, environments: int, hosting: Hosting, *, rendered: bool = False) -> Envs:
    """Returns `environments` of them side by side, in NEXT_STEP autoreset mode where there is a form that has it.

    Args:
        rendered: whether `render` returns pictures of each; for `hosting` of sync.

    Raises:
        ConfigError: the environment is unknown, its package is missing, its arguments or wrappers do not fit, it or a wrapper
            lies in a module that is not allowed, or it has no pictures.
    """
    assert not rendered or hosting.vectorization == "sync", "native forms and other processes keep their pictures to themselves"
    reserved = sorted(config.kwargs.keys() & _RESERVED)
    if reserved:
        raise ConfigError(f"environment: expected keyword arguments of {config.environment_id} itself, came {', '.join(reserved)}")
    with warnings.catch_warnings():
        # Box2D's generated modules warn as they are imported, and end the process where a warning is an error.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            spec = _find(config.environment_id, hosting)
            if _takes_native(spec, config, hosting):
                envs = _native(spec, config, environments)
                if hosting.vectorization == "native" or spec.entry_point is None or autoreset_mode(envs) == AutoresetMode.NEXT_STEP:
                    return envs
                envs.close()
            return _of_singles(spec, config, environments, hosting, rendered=rendered)
        except _CANNOT_MAKE as error:
            given = f" with {dict(config.kwargs)}" if config.kwargs else ""
            reason = " ".join(str(error).split())
            raise ConfigError(f"environment: cannot make {config.environment_id!r}{given}: {reason}") from error


def autoreset_mode(envs: Envs) -> AutoresetMode:
    """Returns when a vector environment restarts an ended episode.

    Raises:
        ConfigError: it does not say.
    """
    try:
        return AutoresetMode(envs.metadata.get("autoreset_mode"))
    except ValueError as error:
        raise ConfigError(f"environment: expected {envs} to state metadata['autoreset_mode'], came {envs.metadata}") from error


def render_fps(envs: Envs) -> float:
    """Returns how many steps of the environments, made one by one, are a second as people see it."""
    assert isinstance(envs, SyncVectorEnv)
    single = envs.envs[0]
    while isinstance(single, gymnasium.Wrapper):
        if isinstance(single, gymnasium.wrappers.AtariPreprocessing):
            return _ATARI_FPS / single.frame_skip
        single = single.env
    return float(envs.metadata.get("render_fps") or _FPS)


def _find(environment_id: str, hosting: Hosting) -> EnvSpec:
    module, _, name = environment_id.rpartition(":")
    if module:
        _import(environment_id, module, hosting)
    families.register(name)
    return gymnasium.spec(name)


def _import(name: str, module: str, hosting: Hosting) -> Any:
    # Names come from the learner, and a learner must not choose what code an actor imports.
    if not is_allowed(module, hosting.allowed_modules):
        raise ConfigError(f"environment: {name!r} would import a module; this machine allows it with --allow-module {module}")
    return importlib.import_module(module)


def _takes_native(spec: EnvSpec, config: EnvironmentConfig, hosting: Hosting) -> bool:
    wrapped = bool(config.wrappers or spec.additional_wrappers)
    if hosting.vectorization == "native":
        if spec.vector_entry_point is None or wrapped:
            reason = "for it has wrappers" if wrapped else "for it has none"
            raise ConfigError(f"vectorization: {spec.id} cannot take a native form, {reason}; expected auto, sync or async")
        return True
    if hosting.vectorization != "auto" or spec.vector_entry_point is None or wrapped:
        return False
    return spec.entry_point is None or _accepts(spec, config.kwargs)


def _accepts(spec: EnvSpec, kwargs: Mapping[str, Any]) -> bool:
    """Whether the native form takes all arguments; the single one often has more."""
    parameters = _native_parameters(spec)
    return kwargs.keys() <= parameters.keys() or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _native_parameters(spec: EnvSpec) -> Mapping[str, inspect.Parameter]:
    entry_point = spec.vector_entry_point
    assert entry_point is not None
    return inspect.signature(load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point).parameters


def _native(spec: EnvSpec, config: EnvironmentConfig, environments: int) -> Envs:
    atari = families.is_atari(spec.id)
    kwargs = families.native_atari(config.kwargs) if atari else dict(config.kwargs)
    if "autoreset_mode" in _native_parameters(spec):
        kwargs.setdefault("autoreset_mode", AutoresetMode.NEXT_STEP)
    envs = gymnasium.make_vec(spec, num_envs=environments, vectorization_mode="vector_entry_point", **kwargs)
    return families.OneFrame(envs) if atari else envs


def _of_singles(spec: EnvSpec, config: EnvironmentConfig, environments: int, hosting: Hosting, *, rendered: bool) -> Envs:
    kwargs, named = dict(config.kwargs), config.wrappers
    if families.is_atari(spec.id):
        kwargs, named = families.single_atari(kwargs, named)
    wrappers = [_wrapper(name, arguments, hosting) for name, arguments in named]
    if rendered:
        _check_renders(spec)
        kwargs["render_mode"] = "rgb_array"
    # The arrays that it returns are its buffers: they are read before the next step.
    vector_kwargs: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "copy": False}
    if hosting.vectorization == "async":
        # A fork would inherit the threads of torch and of a channel, and hang.
        vector_kwargs |= {"context": "spawn", "shared_memory": True}
    return gymnasium.make_vec(
        spec,
        num_envs=environments,
        vectorization_mode="async" if hosting.vectorization == "async" else "sync",
        vector_kwargs=vector_kwargs,
        wrappers=wrappers,
        disable_env_checker=True,
        **kwargs,
    )


def _wrapper(name: str, arguments: Mapping[str, Any], hosting: Hosting) -> _Wrapper:
    module, _, attribute = name.rpartition(":")
    found = getattr(_import(name, module, hosting) if module else gymnasium.wrappers, attribute, None)
    if not (isinstance(found, type) and issubclass(found, gymnasium.Wrapper)) or (not module and name in _REFUSED_WRAPPERS):
        raise ConfigError(f"wrappers: expected a wrapper of gymnasium.wrappers that plays on, or MODULE:CLASS, came {name!r}")
    return lambda environment: found(environment, **arguments)


def _check_renders(spec: EnvSpec) -> None:
    # Gymnasium only warns, and the environment fails in a way of its own. Functions that make environments do not say.
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    modes = getattr(creator, "metadata", {}).get("render_modes")
    if modes is not None and "rgb_array" not in modes:
        raise ConfigError(
            f"video: expected an environment that renders rgb_array, came {spec.id}, which renders {modes or 'nothing'}"
        )
