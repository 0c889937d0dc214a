"""Gymnasium environments, brought to the unroll's convention. The only package that imports gymnasium."""

from impala.environments.making import Hosting
from impala.environments.recording import record_episode
from impala.environments.spaces import OBSERVATION
from impala.environments.vector import Transition, VectorEnvironment, agent_spec

__all__ = ["OBSERVATION", "Hosting", "Transition", "VectorEnvironment", "agent_spec", "record_episode"]
