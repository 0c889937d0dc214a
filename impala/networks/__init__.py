"""Networks: from observations to a policy and a value, over whole unrolls and over single steps."""

from impala.networks.building import build_network
from impala.networks.network import Network, NetworkOutput, State
from impala.networks.normalisation import Gather
from impala.networks.torsos import Torso

__all__ = ["Gather", "Network", "NetworkOutput", "State", "Torso", "build_network"]
