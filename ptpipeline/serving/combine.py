"""An ensemble's answer out of its members' (Lester et al. 2021, section 5)."""

from typing import Literal

import torch
from torch import Tensor


def combined(log_likelihoods: Tensor, how: Literal["average", "vote"]) -> Tensor:
    """Log-share of every label [labels] out of the members' log-likelihoods [N, labels].

    `average`: the mean of the members' probabilities. `vote`: each member has one vote, and their mean probabilities
    are one more, spread over the labels: less than a vote apart, so they decide ties alone.
    """
    shares = log_likelihoods.softmax(-1)
    mean = shares.mean(0)
    if how == "average":
        return mean.log()
    votes = torch.nn.functional.one_hot(shares.argmax(-1), shares.shape[1]).sum(0)
    return ((votes + mean) / (len(shares) + 1)).log()
