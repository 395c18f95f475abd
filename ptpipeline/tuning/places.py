"""Who trains in the next step: the places of a gang, the queue before them, and the rule that drops hopeless trials.

All of it follows from the members' own state, so a checkpoint holds nothing more of it, and a run that was killed goes
on with the same members in the same places.

Letters: P virtual tokens.
"""

from collections.abc import Iterator, Sequence

from ptpipeline.records.prompts import Dropped
from ptpipeline.tuning.member import Member


def split_places(lengths: Sequence[int], most: int) -> Iterator[range]:
    """Yield consecutive ranges of prompts of these lengths P that fit into one step, padded, of `most` virtual tokens
    (the base's `prompt_tokens`); a longer prompt is alone.
    """
    start = 0
    for end in range(1, len(lengths) + 1):
        fits = end < len(lengths) and (end + 1 - start) * max(lengths[start : end + 1]) <= most
        if not fits:
            yield range(start, end)
            start = end


def fill_places(members: Sequence[Member], most: int) -> list[Member]:
    """Return the members that take the next step: the first in the order of the jobs, as many as fit into `most`
    virtual tokens.

    A member holds its place until it ends or waits for its rivals; then the next of the queue takes it, at the next
    step. Members that one optimizer steps have their places together.
    """
    ready = [member for member in members if member.active and not _waits(member, members)]
    teams: dict[int, list[Member]] = {}
    for member in ready:
        teams.setdefault(id(member.optimizer), []).append(member)
    # A team counts as one prompt of the length of all its prompts, so that the queue is cut between teams.
    lengths = [sum(member.job.tune.num_virtual_tokens for member in team) for team in teams.values()]
    places = next(split_places(lengths, most), range(0))
    return [member for team in list(teams.values())[: len(places)] for member in team]


def drop_hopeless(members: Sequence[Member]) -> list[Member]:
    """End the trials that are too far behind, once all their rivals have reached the same rung; return them.

    At a rung the best `keep` trials on dev go on, and all that tie with the last of them. A trial that ended by itself
    is still compared; one that failed is not. A second call at the same rung drops nothing more.
    """
    dropped = []
    for member in members:
        rung = next((rung for rung in member.job.rungs if rung.step == member.step), None)
        if rung is None or not member.active or _waits(member, members):
            continue
        rivals = _list_rivals(member, members)
        if any(rival.step > member.step for rival in rivals):
            continue  # decided before, and some of those that go on have trained since, perhaps to their end
        standing = sorted((rival.best_dev for rival in rivals if rival.error is None), reverse=True)
        least = standing[: rung.keep][-1]
        if member.best_dev < least:
            dropped.append((member, Dropped(step=member.step, dev=member.best_dev, least=least)))
    for member, rule in dropped:  # all at once: each is compared with all
        member.dropped = rule
    return [member for member, _ in dropped]


def _waits(member: Member, members: Sequence[Member]) -> bool:
    """Tell whether it stands at a rung that a rival has still to reach."""
    at_rung = any(rung.step == member.step for rung in member.job.rungs)
    return at_rung and any(rival.active and rival.step < member.step for rival in _list_rivals(member, members))


def _list_rivals(member: Member, members: Sequence[Member]) -> list[Member]:
    """Return all trials of the member's search, itself too."""
    return [other for other in members if other.job.rungs and other.job.task.name == member.job.task.name]
