"""pass@k: the chance that one of k sampled answers is right."""

import numpy as np

DEFINITIONS: dict[str, str] = {
    "pass_at": "The chance that of k answers sampled to a row at least one is right: the mean over rows of the "
    "unbiased estimate from the samples drawn and those right (Chen et al. 2021, equation 1). More is better; it "
    "grows with k, which ends its name, and depends on the sampling temperature.",
}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """One row's estimate 1 - C(n - c, k) / C(n, k), 0..1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    Method: M. Chen et al., "Evaluating large language models trained on code", 2021, equation 1 and figure 3: a
    product in which no binomial coefficient overflows.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"expected 0 <= correct <= samples and 1 <= k <= samples: {num_correct}, {num_samples}, {k=}")
    # Fewer than k wrong ones leave a factor of 0.
    return float(1 - np.prod(1 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)))
