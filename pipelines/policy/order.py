"""The order in which prompts are asked: neighbours are of like length, so that little of a batch is padding."""

import random
from collections.abc import Sequence

AT_ONCE = 50  # batches among whose prompts like lengths are looked for: more would leave less to chance


def like_length(lengths: Sequence[int], size: int, seed: int) -> list[int]:
    """Every prompt's number once: batches of `size` of like length, which prompts meet and when being a seed's matter.

    Method: transformers' length-grouped sampler, with the batches put in a random order too.
    """
    draw = random.Random(seed)
    numbers = draw.sample(range(len(lengths)), len(lengths))
    batches: list[list[int]] = []
    for begin in range(0, len(numbers), size * AT_ONCE):
        part = sorted(numbers[begin : begin + size * AT_ONCE], key=lambda number: lengths[number])
        batches += [part[start : start + size] for start in range(0, len(part), size)]
    # A last batch that isn't full would shift all behind it.
    full, rest = [b for b in batches if len(b) == size], [b for b in batches if len(b) < size]
    draw.shuffle(full)
    return [number for batch in (*full, *rest) for number in batch]
