"""The LSTM, against PyTorch's where nothing is reset, and against a slow loop where something is: outputs and gradients."""

import torch
from torch import Tensor, nn

from impala.networks.lstm import LSTM

T, B, INPUTS, H = 7, 4, 3, 5


def run(is_first: Tensor) -> list[Tensor]:
    """Returns ours, then PyTorch's one step at a time: outputs, h, c and every gradient."""
    torch.manual_seed(0)
    reference = nn.LSTM(INPUTS, H)
    with torch.no_grad():
        reference.bias_hh_l0[H : 2 * H] += 3.0  # ours begins with forget gates that are open
    torch.manual_seed(0)
    ours = LSTM(INPUTS, H, forget_bias=3.0)
    assert all(torch.equal(parameter, dict(ours.named_parameters())[name]) for name, parameter in reference.named_parameters())
    results = []
    for lstm in (ours, reference):
        inputs, h, c = (
            torch.randn(*shape, generator=torch.Generator().manual_seed(1)) for shape in ((T, B, INPUTS), (B, H), (B, H))
        )
        leaves = [tensor.requires_grad_() for tensor in (inputs, h, c)]
        produced = lstm(inputs, is_first, h, c) if lstm is ours else _slowly(reference, inputs, is_first, h, c)
        sum((index + 1) * tensor.square().sum() for index, tensor in enumerate(produced)).backward()  # type: ignore[union-attr]
        results.append([*produced, *(leaf.grad for leaf in [*leaves, *lstm.parameters()])])
    return [torch.cat([tensor.flatten() for tensor in result if tensor is not None]).detach() for result in results]


def _slowly(lstm: nn.LSTM, inputs: Tensor, is_first: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    columns = []
    for b in range(B):
        state = (h[b : b + 1], c[b : b + 1])
        outputs = []
        for t in range(T):
            if is_first[t, b]:
                state = (torch.zeros(1, H), torch.zeros(1, H))
            output, state = lstm(inputs[t, b : b + 1], state)
            outputs.append(output)
        columns.append((torch.stack(outputs), *state))
    outputs, h, c = (torch.cat(parts, 1 if index == 0 else 0) for index, parts in enumerate(zip(*columns, strict=True)))
    return outputs, h, c


def test_without_resets_it_is_pytorchs_lstm_from_the_first_weights_on_but_for_open_forget_gates() -> None:
    ours, reference = run(torch.zeros(T, B, dtype=torch.bool))
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_resets_inside_the_unroll_equal_a_slow_loop_gradients_included() -> None:
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0, 0] = is_first[3, 1] = is_first[3, 2] = is_first[4, 2] = is_first[6, 2] = True
    ours, reference = run(is_first)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
