"""What holds for all tests."""

import torch

# As the programs do: two threads that wait for each other on a busy machine make steps of microseconds take seconds.
torch.set_num_threads(1)
