"""Chaos: real processes publish, promote and roll back while everything that can die is killed; then nothing may be
lost or torn.

    python -m benchmarks.chaos --rounds 300 --seed 7
    python -m benchmarks.chaos --scenario stalled-promoter

In a round the controller of one target (`controller`, `target`) starts workers (`worker`) and kills them at random
instants, or at failpoints (`registry.failpoints`): a worker waits at a step until it is killed or resumed. Servers are
killed and restarted (`backends`), a proxy loses and repeats requests to the store, workers are suspended and their
clocks set. Each worker writes what was acknowledged into a synced log of its own before it goes on, and a reader of the
store alone what it read. Then one reconcile runs, and `checker` compares the ledger, MLflow, the pointers and the bytes
with those logs; `history` checks that the reads are linearisable. Named scenarios (`scenarios`) do what chance rarely
does; each runs once in every 50 rounds (`rounds`).

    lost         acknowledged versions or promotions that are missing or changed
    torn         disagreements of ledger, MLflow, pointers and bytes after the reconcile, ungated prompts in production,
                 errors that no user should see
    wrong_reads  aliases whose promotions and reads fit into no order, and reads that got something else than a prompt
"""
