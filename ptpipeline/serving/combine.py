"""An ensemble's answer out of its prompts' answers (Lester et al. 2021, section 5)."""

import math
from typing import Literal

import torch
from torch import Tensor


def combine(log_likelihoods: Tensor, how: Literal["average", "vote"]) -> Tensor:
    """Return the log-share of every label [labels], out of the log-likelihoods [N, labels] of N prompts.

    `average`: the mean of the prompts' probabilities. `vote`: each prompt has one vote, and their mean probabilities
    are one more, spread over the labels. That is less than a vote for each, so it decides ties alone.
    """
    count, labels = log_likelihoods.shape
    mean = log_likelihoods.log_softmax(-1).logsumexp(0) - math.log(count)  # [labels]
    if how == "average":
        return mean
    votes = torch.nn.functional.one_hot(log_likelihoods.argmax(-1), labels).sum(0)  # [labels]
    return torch.logaddexp(votes.log(), mean) - math.log(count + 1)
