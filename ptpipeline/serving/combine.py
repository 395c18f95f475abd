"""An ensemble's answer out of its members' (Lester et al. 2021, section 5)."""

import math
from typing import Literal

import torch
from torch import Tensor


def combined(log_likelihoods: Tensor, how: Literal["average", "vote"]) -> Tensor:
    """Log-share of every label [labels] out of the members' log-likelihoods [N, labels].

    `average`: the mean of the members' probabilities. `vote`: each member has one vote, and their mean probabilities
    are one more, spread over the labels: less than a vote apart, so they decide ties alone.
    """
    count, labels = log_likelihoods.shape
    mean = log_likelihoods.log_softmax(-1).logsumexp(0) - math.log(count)
    if how == "average":
        return mean
    votes = torch.nn.functional.one_hot(log_likelihoods.argmax(-1), labels).sum(0)
    return torch.logaddexp(votes.log(), mean) - math.log(count + 1)
