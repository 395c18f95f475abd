"""What the pinned identities are computed from: plain values, so that nothing here moves with the product."""

from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
SIGNING_KEY = bytes(range(32))  # of a signature that protects nothing
HOLDER = "server-1"
CAUSE = ("ada", "better")

ROWS = "text,label,kind\n" + "".join(
    f"{word} {number} of the rows,{label},{kind}\n"
    for number, (word, label, kind) in enumerate(
        (word, label, ("web", "mail", "")[place % 3])
        for place in range(10)
        for word, label in ((f"sun{place * place}", "good"), (f"rain{place * 7}", "bad"), (f"fog{place}", "bad"))
    )
)

PLAIN: dict[str, Any] = {
    "name": "mood",
    "base_model": "tiny",
    "data": {"source": {"path": "rows.csv", "format": "csv"}, "text": "text", "label": "label"},
    "template": "{text}\nMood:",
    "labels": {"bad": " bad", "good": " good"},
    "gate": {"minimum": 0.8},
}
FULL: dict[str, Any] = {
    "name": "full",
    "base_model": "tiny",
    "data": {
        "source": {"path": "rows.tsv", "format": "tsv", "columns": ["text", "points", "kind", "who"]},
        "text": "text",
        "label": {"column": "points", "bins": {"bad": [None, 2], "good": [3, None]}},
        "slices": ["kind"],
        "split": {"dev": 0.1, "test": 0.2, "reserve": 0.05, "group": "who", "seed": 7},
        "checks": {
            "encoding": "block",
            "empty_text": "off",
            "unknown_label": "warn",
            "duplicate": "block",
            "conflicting_label": "off",
            "split_overlap": "warn",
            "near_duplicate": "off",
            "rows_per_label": "warn",
            "min_rows_per_label": 3,
        },
    },
    "template": "Review: {text}\nMood:",
    "labels": {"bad": " bad", "good": " good"},
    "scoring": {"length_normalised": True, "calibrated": True},
    "hard_prompt": {"instruction": "Say how it feels.", "examples": 2},
    "tune": {
        "method": "p_tuning",
        "num_virtual_tokens": 5,
        "placement": "after_bos",
        "init": "class_labels",
        "encoder": "mlp",
        "encoder_width": 32,
        "search": {"learning_rate": [0.01, 0.1], "seed": [1, 2]},
        "optimizer": "adafactor",
        "schedule": "linear",
        "steps": 99,
        "batch_size": 3,
        "warmup_steps": 9,
        "final_fraction": 0.25,
        "weight_decay": 0.125,
        "max_grad_norm": 0.5,
        "eval_every": 11,
        "patience": 2,
        "store_dtype": "bfloat16",
    },
    "gate": {
        "metric": "macro_f1",
        "minimum": 0.625,
        "champion": {"rule": "non_inferiority", "margin": 0.03125, "confidence": 0.9375, "looks": 12},
        "checks": {
            "gain": {"policy": "warn", "over": ["majority", "zero_shot", "hard_prompt"]},
            "collapse": {"policy": "warn", "max_share": 0.75, "min_entropy": 0.25},
            "never": {"policy": "off", "min_rows": 5},
            "leakage": {"policy": "warn", "max_share": 0.125, "max_near_share": 0.25},
            "drift": {"policy": "warn", "max_labels": 0.25, "max_length": 0.5, "max_vocabulary": 0.125},
            "test_rows": {"policy": "block", "effect": 0.0625},
            "slices": {"policy": "off", "min_rows": 25, "alpha": 0.125},
            "bytes": {"policy": "warn", "max_bytes": 4096},
            "latency": {"policy": "block", "max_ms": 250, "max_ratio": 1.5},
            "norms": {"policy": "block", "max_ratio": 8},
            "robustness": {"policy": "block", "max_white_space": 0.125, "max_case": 0.25},
            "bias": {"policy": "warn", "swaps": [["he", "she"], ["his", "her"]], "max_flips": 0.25, "min_rows": 4},
            "privacy": {"policy": "warn", "max_auc": 0.75},
        },
    },
    "promote": "auto",
    "texts_in_reports": True,
    "schedule": {"cron": "30 1 * * 1-5", "timezone": "America/Port-au-Prince"},
}
WRITING: dict[str, Any] = {
    "name": "writing",
    "base_model": "tiny",
    "data": {
        "source": {"package": "some-rows==1.2", "member": "rows.jsonl", "format": "jsonl"},
        "text": "text",
        "target": "target",
    },
    "template": "{text}\nIn short:",
    "generate": {"max_new_tokens": 20},
    "tune": {"method": "multitask", "shared": "moods", "seed": 3},
    "gate": {"metric": "chrf", "minimum": 0.25},
    "schedule": {"cron": "0 2 * * *", "timezone": "Asia/Seoul"},
}
SLICED: dict[str, Any] = PLAIN | {
    "data": PLAIN["data"]
    | {"slices": ["kind"], "split": {"dev": 0.2, "test": 0.2, "reserve": 0.1}, "checks": {"min_rows_per_label": 2}}
}
ENSEMBLE: dict[str, Any] = PLAIN | {
    "name": "many",
    "tune": {"method": "ensemble", "ensemble": {"members": 3, "combine": "vote"}},
}
SHARED: dict[str, Any] = {
    "base_model": "tiny",
    "sources": ["mood", "full"],
    "tune": {"num_virtual_tokens": 8, "seed": 1},
}
TASKS = {"plain": PLAIN, "full": FULL, "writing": WRITING, "ensemble": ENSEMBLE}

BASE = {"name": "tiny", "fingerprint": "f" * 64, "tokenizer_fingerprint": "e" * 64, "hidden_size": 4}


def _split(mark: str, rows: int) -> dict[str, Any]:
    return {"rows": rows, "labels": {"bad": rows // 2, "good": rows // 2}, "digest": mark * 64}


SNAPSHOT: dict[str, Any] = {
    "task": "mood",
    "digest": "5" * 64,
    "source": "rows.csv",
    "source_key": "6" * 64,
    "train": _split("1", 80),
    "dev": _split("2", 10),
    "test": _split("3", 20),
    "checks": [{"name": "duplicate", "policy": "warn", "count": 1, "outcome": "warned", "detail": "rows 3"}],
}
MANIFEST: dict[str, Any] = {
    "task": "mood",
    "placement": "before_bos",
    "base_model": BASE,
    "template": PLAIN["template"],
    "labels": PLAIN["labels"],
    "max_input_tokens": 100,
    "snapshot": SNAPSHOT["digest"],
    "recipe": "7" * 64,
    "training_key": "8" * 64,
    "seed": 0,
    "engine_version": 2,
    "parents": [],
}
NUMBERS = [
    [0.5, -1.25, 3.0, 0.0],
    [2.0, 0.125, -0.75, 1.0],
    [-4.0, 8.0, 0.25, -0.5],
]  # [P, H], the same in every stored type
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # method -> stored type, and what its manifest has of its own
    "prompt": ("float16", {}),
    "residual": ("bfloat16", {"placement": "after_bos", "seed": 3}),
    "p_tuning": ("float32", {"scoring": {"length_normalised": True, "calibrated": True}}),
    "prefix": ("float16", {"labels": {}, "generate": {"max_new_tokens": 20}}),
    "multitask": ("float16", {"task": "moods", "labels": {}, "template": "{text}", "parents": ["a" * 64, "b" * 64]}),
}

_SCORES = {
    "accuracy": 0.875,
    "macro_f1": 0.75,
    "per_label": {"bad": {"precision": 0.5, "recall": 0.25, "f1": 0.5, "support": 10}},
    "confusion": {"bad": {"bad": 9}},
    "predicted": {"bad": 10, "good": 10},
    "mcc": 0.625,
    "calibration_error": 0.125,
    "reliability": [[0.75, 0.5, 4]],
}
TUNED: dict[str, Any] = {
    "task": "mood",
    "training_key": "8" * 64,
    "snapshot": SNAPSHOT["digest"],
    "bytes": 100,
    "steps": 10,
    "best_step": 5,
    "best_dev": 0.75,
    "stopped_early": False,
    "seconds": 2.5,
    "tokens_per_second": 100.5,
    "compute_dtype": "float32",
    "self_check": {"relative_error": 0.5},
    "curve": [
        {
            "step": 5,
            "loss": 0.5,
            "learning_rate": 0.25,
            "dev": 0.75,
            "token_norms": [1.0, 3.0],
            "token_gradients": [0.5, 0.25],
        }
    ],
    "trials": [{"name": "mood/4 tokens, rate 0.01, seed 1", "best_dev": 0.75, "best_step": 5}],
    "warnings": ["short"],
}
REPORT: dict[str, Any] = {
    "task": "mood",
    "evaluation_key": "9" * 64,
    "snapshot": SNAPSHOT["digest"],
    "test_digest": "3" * 64,
    "rows": 20,
    "rows_key": "reports/mood/some/rows.parquet",
    "prompt": _SCORES,
    "zero_shot": _SCORES,
    "majority": _SCORES,
    "hard_prompt": _SCORES,
    "interval": {"accuracy": [0.75, 1.0]},
    "compute_dtype": "float32",
    "seconds": 1.5,
    "baselines": {"zero_shot": "c" * 64},
    "measures": {"latency.ms": 1.5},
    "probed": "d" * 64,
}
_PAIR = {
    "metric": "accuracy",
    "difference": 0.25,
    "lower": 0.125,
    "upper": 0.5,
    "confidence": 0.95,
    "rows": 20,
    "dropped": 1,
    "p_value": 0.03125,
    "test": "exact McNemar",
}
VERDICT: dict[str, Any] = {
    "task": "mood",
    "gate_key": "0" * 64,
    "evaluation_key": REPORT["evaluation_key"],
    "test_digest": "3" * 64,
    "champion": None,
    "comparison": None,
    "checks": [{"name": "minimum", "passed": True, "observed": "0.875", "required": "0.8"}],
    "passed": True,
    "won": "superior",
    "baselines": {"majority": _PAIR},
    "look": {"test_set": 1, "number": 2, "alpha": 0.0078125, "spent": 0.0390625, "budget": 0.05},
    "measures": {"bytes.stored": 100.0},
    "slices": [{"name": "kind web", "rows": 9, "difference": 0.25, "p_harm": 0.5}],
}
NEIGHBOURS: dict[str, Any] = {
    "k": 1,
    "tokens": [{"nearest": {"cosine": [{"id": 3, "token": "sun", "value": 0.5}]}, "overlap": {"cosine/dot": 0.5}}],
    "overlap": {"cosine/dot": 0.5},
    "warning": "a hint",
}
MISTAKES: dict[str, Any] = {
    "shown": [{"text": "rain", "wanted": "bad", "answered": "good", "figure": 0.75}],
    "wrong": 1,
    "rows": 20,
    "figure": "probability",
}
_PULLED = {"gamma": 0.5, "landed": {"cosine": 1.0}, "distance": 0.25, "dev": 0.75, "test": 0.5}
WAYWARD: dict[str, Any] = {
    "task": "mood",
    "text": "sun",
    "tokens": ["sun"],
    "metric": "accuracy",
    "steps": 10,
    "test_rows": 20,
    "text_test": 0.5,
    "text_landed": {"cosine": 1.0},
    "plain": _PULLED | {"gamma": 0.0},
    "pulled": [_PULLED],
    "warning": "a hint",
}
