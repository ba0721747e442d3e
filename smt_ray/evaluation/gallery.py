"""Images that an RNN draws pixel by pixel, all of them at once.

A sequence begins with the start symbol, the last one of the vocabulary; the others are levels.
Shapes: B images, P inputs in a prompt, L pixels in an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from smt_ray.model.rnn import RNN

UNKNOWN = -1
"""Level of a pixel that is not given."""


@torch.inference_mode()
def draw(
    rnn: RNN,
    prompt: Int[Tensor, "B P"],
    length: int,
    *,
    temperature: float,
    generator: torch.Generator,
) -> Int[Tensor, "B L"]:
    """Return the next `length` pixels after a prompt, the start symbol among its inputs.

    Args:
        rnn: the RNN; the start symbol is never drawn.
        prompt: the inputs so far.
        length: pixels to draw.
        temperature: softmax temperature; 0 takes the likeliest level.
        generator: source of randomness, on the RNN's device.
    """
    memory, drawn = rnn.initial(len(prompt)), []
    for token in prompt.unbind(1):
        memory = rnn.step(memory, token)
    for _ in range(length):
        logits = rnn.logits(memory)[:, :-1].float()
        if temperature > 0:
            weights = torch.softmax(logits / temperature, dim=1)
            token = torch.multinomial(weights, 1, generator=generator)[:, 0]
        else:
            token = logits.argmax(1)
        drawn.append(token)
        memory = rnn.step(memory, token)
    return torch.stack(drawn, dim=1)


def gallery(
    rnn: RNN, truth: Int[Tensor, "B L"], shape: Sequence[int], temperature: float, seed: int
) -> dict[str, Any]:
    """Return images as nested lists of levels, rows of pixels each.

    Args:
        rnn: the RNN that draws.
        truth: the pixels of images.
        shape: height and width of an image.
        temperature: softmax temperature.
        seed: seed of all draws.

    Returns:
        `samples`, twice as many images as given, from the start symbol alone; `prompts`, the first
        half of each image; `completions` of them; `truth`; and `levels`, their number.
    """
    length, half = truth.shape[1], truth.shape[1] // 2
    start = torch.full_like(truth[:, :1], rnn.vocabulary - 1)
    random = torch.Generator(truth.device).manual_seed(seed)
    first = truth[:, :half]
    begun = torch.cat((start, first), dim=1)
    rest = draw(rnn, begun, length - half, temperature=temperature, generator=random)
    blank = torch.full_like(rest, UNKNOWN)
    pictures = {
        "samples": draw(rnn, start.repeat(2, 1), length, temperature=temperature, generator=random),
        "prompts": torch.cat((first, blank), dim=1),
        "completions": torch.cat((first, rest), dim=1),
        "truth": truth,
    }
    levels = {"levels": rnn.vocabulary - 1}
    return levels | {name: p.view(-1, *shape).tolist() for name, p in pictures.items()}
