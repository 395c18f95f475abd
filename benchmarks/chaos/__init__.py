"""Chaos: real processes publish, promote and roll back while everything that can die is killed; then nothing may be
lost or torn.

    python -m benchmarks.chaos --rounds 300 --seed 7
    python -m benchmarks.chaos --scenario stalled-promoter

A round starts workers (`worker`), kills them at random instants or at failpoints (`registry.failpoints`: a worker
stands at a step until it is killed or let go), kills and restarts the servers (`world`) and lets a proxy lose and
repeat requests to the store. Each worker writes what was acknowledged into a synced log of its own before it goes on.
Then one reconcile runs, and `checker` compares the ledger, MLflow, the pointers and the bytes with those logs. Named
scenarios (`scenarios`) do what chance rarely does; each runs once in every 50 rounds.

    lost   acknowledged versions or promotions that are missing or changed
    torn   disagreements of ledger, MLflow, pointers and bytes after the reconcile, ungated prompts in production,
           errors that no user should see
"""
