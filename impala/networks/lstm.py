"""An LSTM whose state is zeroed inside the unroll, at every first step of an episode."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LSTM(nn.Module):
    """torch.nn.LSTM of one layer, its weights named and, but for the forget gate's bias, initialised alike, with resets.

    Written out because the fused kernels cannot zero the state between steps; input projections are still one product for all T.

    Args:
        input_size: features of one step.
        hidden_size: H.
        forget_bias: added to the forget gates' bias. Gates that begin half open forget within a few steps, and a gradient from 20
            steps on never arrives (Jozefowicz et al. 2015; Tallec and Ollivier 2018 choose it by the time to remember).
    """

    def __init__(self, input_size: int, hidden_size: int, *, forget_bias: float) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * hidden_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)
        with torch.no_grad():
            self.bias_hh_l0[hidden_size : 2 * hidden_size] += forget_bias

    def forward(self, inputs: Tensor, is_first: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the outputs, [T, B, H], and h and c, [B, H], after the last step.

        Args:
            inputs: [T, B, input_size].
            is_first: [T, B] bool; h and c are zeroed before the step where true, and no gradient passes.
            h, c: [B, H], before the first step.
        """
        projections = functional.linear(inputs, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        keeps = (~is_first).to(inputs.dtype).unsqueeze(-1)
        recurrent = self.weight_hh_l0.t()
        outputs = []
        for projection, keep in zip(projections.unbind(0), keeps.unbind(0), strict=True):
            input_gate, forget_gate, cell, output_gate = torch.addmm(projection, h * keep, recurrent).chunk(4, -1)
            c = forget_gate.sigmoid() * (c * keep) + input_gate.sigmoid() * cell.tanh()
            h = output_gate.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), h, c
